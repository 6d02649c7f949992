"""Budgets: limits of money as people set and see them."""

import re
import uuid
from collections.abc import Collection

from automagik.budget.amounts import dollars
from automagik.budget.ledger import Ledger
from automagik.errors import Forbidden, InvalidInput, NotFound, nearest
from automagik.store import Page, Store, Transaction
from automagik.store.budgets import BUDGETS_CHANGED, BudgetRow, Owners
from automagik.store.reservations import Period, Scope
from automagik.types import Caller, JsonObject

__all__ = ["Budgets"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Budgets:
    """Budgets as people set and see them. A caller bound to a user has to do with that user's own, of keys and runs too."""

    def __init__(self, store: Store, ledger: Ledger) -> None:
        self._store = store
        self._ledger = ledger

    async def set(
        self,
        scope: Scope,
        scope_id: str | None,
        period: Period,
        limit_nano: int,
        *,
        caller: Caller,
        soft_limit_nano: int | None = None,
        known_agents: Collection[str] | None = None,
        if_revision: int | None = None,
        request_id: str | None = None,
    ) -> tuple[BudgetRow, bool]:
        """The budget of this scope and period, and whether it is new: then what runs used in the period is spent already.

        `known_agents`: the names that a budget of the scope `agent` may have; None: any.

        Raises:
            InvalidInput: `scope_id` or the soft limit is not as it must be; the field is named.
            NotFound: there is no such key, user or run, or the caller may not see it.
            Forbidden: the caller is bound to a user, and the budget would limit more.
            PreconditionFailed: it is not at `if_revision` any more. Conflict: somebody else makes it right now.
        """
        name = _checked(scope, scope_id, known_agents)
        if soft_limit_nano is not None and soft_limit_nano >= limit_nano:
            raise InvalidInput(
                f"A soft limit is less than the limit, which is {dollars(limit_nano)}.",
                field=("body", "soft_limit_usd"),
                hint="It warns before the limit refuses.",
            )
        of = _owners(caller)

        def work(tx: Transaction) -> tuple[BudgetRow, bool]:
            _check_there(tx, scope, name, of)
            row, is_new = tx.budgets.set(
                scope,
                name,
                period,
                limit_nano,
                soft_limit_nano=soft_limit_nano,
                key_id=caller.key_id,
                if_revision=if_revision,
            )
            details: JsonObject = {
                "scope": scope,
                "scope_id": name or None,
                "period": period,
                "limit_nano": limit_nano,
                "soft_limit_nano": soft_limit_nano,
            }
            action = "budget.create" if is_new else "budget.update"
            tx.audit.append(action, row.budget_id, caller=caller, request_id=request_id, details=details)
            return row, is_new

        found = await self._store.write(work)
        await self._changed()
        return found

    async def get(self, budget_id: str, caller: Caller) -> BudgetRow:
        """The budget as it stands. Raises NotFound, for what the caller may not see, too."""
        return await self._store.read(lambda tx: tx.budgets.get(budget_id, of=_owners(caller)))

    async def list(
        self,
        caller: Caller,
        *,
        scope: Scope | None = None,
        scope_id: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[BudgetRow]:
        """Budgets as they stand, newest first; those of runs only where `scope` asks for them."""
        of = _owners(caller)
        return await self._store.read(
            lambda tx: tx.budgets.list(of=of, scope=scope, scope_id=scope_id, limit=limit, cursor=cursor)
        )

    async def delete(
        self, budget_id: str, *, caller: Caller, if_revision: int | None = None, request_id: str | None = None
    ) -> BudgetRow:
        """The budget that was deleted: it limits nothing any more. Raises NotFound, PreconditionFailed."""

        def work(tx: Transaction) -> BudgetRow:
            row = tx.budgets.delete(budget_id, of=_owners(caller), if_revision=if_revision)
            details: JsonObject = {"scope": row.scope, "scope_id": row.scope_id or None, "period": row.period}
            tx.audit.append("budget.delete", budget_id, caller=caller, request_id=request_id, details=details)
            return row

        row = await self._store.write(work)
        await self._changed()
        return row

    async def _changed(self) -> None:
        await self._ledger.refresh()
        await self._store.signals.send(*BUDGETS_CHANGED)


def _owners(caller: Caller) -> Owners | None:
    return None if caller.user_id is None else Owners(caller.user_id)


def _checked(scope: Scope, scope_id: str | None, known_agents: Collection[str] | None) -> str:
    """Whom the budget names, in the one form in which it is kept."""
    field = ("body", "scope_id")
    if scope == "organisation":
        if scope_id:
            raise InvalidInput("There is one organisation; it has no id.", field=field, hint="Leave `scope_id` out.")
        return ""
    if not scope_id:
        raise InvalidInput(f"Which {scope}?", field=field, hint=f"Give the {scope}'s id or name as `scope_id`.")
    if scope == "user":
        try:
            return str(uuid.UUID(scope_id))
        except ValueError:
            raise InvalidInput("A user is named by a UUID.", field=field) from None
    if _NAME.fullmatch(scope_id) is None:
        raise InvalidInput(f"{scope_id[:80]!r} names no {scope}.", field=field)
    if scope == "agent" and known_agents is not None and scope_id not in known_agents:
        close = nearest(scope_id, known_agents)
        raise InvalidInput(
            f"There is no agent or workflow '{scope_id}'.",
            field=field,
            code="agent_not_found",
            hint=f"Did you mean '{close}'?" if close else "GET /api/v1/agents lists all agents.",
        )
    return scope_id


def _check_there(tx: Transaction, scope: Scope, name: str, of: Owners | None) -> None:
    owner: uuid.UUID | None = None
    match scope:
        case "key":
            key = tx.keys.find(name)
            owner = key.user_id if key is not None else None
            missing = key is None
        case "run":
            run = tx.runs.find(name)
            owner = run.user_id if run is not None else None
            missing = run is None
        case "user":
            owner = uuid.UUID(name)
            missing = tx.users.find(owner) is None
        case _:
            if of is not None:
                raise Forbidden(
                    f"This key is bound to a user, and may not limit the {scope}.",
                    hint="Use a key that is bound to nobody.",
                )
            return
    if missing or (of is not None and owner != of.user_id):
        raise NotFound(scope, name)
