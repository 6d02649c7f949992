"""Prompts: the versions of each agent's prompt templates, one active for each status key."""

import uuid
from typing import Any, TypedDict, Unpack

from sqlalchemy import Row, Select, func, insert, select, update
from sqlalchemy import delete as delete_from

from automagik.errors import NotFound, PreconditionFailed
from automagik.store import schema
from automagik.store.pages import fetch_page
from automagik.store.repository import Repository, conflicts
from automagik.store.rows import Page, PromptRow
from automagik.store.turns import notify
from automagik.types import new_uuid

__all__ = ["PromptChanges", "Prompts"]

_prompts = schema.prompts
_agents = schema.agents


class PromptChanges(TypedDict, total=False):
    """What an update changes; what is absent stays."""

    template: str
    name: str | None


class Prompts(Repository):
    """The prompts table. At most one version is active for each agent and status key."""

    __slots__ = ()

    def create(
        self,
        agent_id: int,
        template: str,
        *,
        status_key: str = "default",
        name: str | None = None,
        is_active: bool = False,
        is_default_from_code: bool = False,
        prompt_id: uuid.UUID | None = None,
    ) -> PromptRow:
        """The new version, one above the highest of its agent and status key. An active one takes the place of another."""
        prompt_id = prompt_id or new_uuid()
        self._take_turn(agent_id)
        if is_active:
            self._retire(agent_id, status_key)
        highest = (
            select(func.coalesce(func.max(_prompts.c.version), 0) + 1)
            .where(_prompts.c.agent_id == agent_id, _prompts.c.status_key == status_key)
            .scalar_subquery()
        )
        values = {
            "prompt_id": prompt_id,
            "agent_id": agent_id,
            "status_key": status_key,
            "name": name,
            "template": template,
            "version": highest,
            "is_active": is_active,
            "is_default_from_code": is_default_from_code,
            "created_at": self._now,
            "updated_at": self._now,
        }
        with conflicts("Another version of this prompt was made at the same moment.", hint="Try again."):
            self._connection.execute(insert(_prompts).values(values))
        self._tell(agent_id)
        return self.get(prompt_id)

    def find(self, prompt_id: uuid.UUID) -> PromptRow | None:
        """The version, or None."""
        return self._find(_select().where(_prompts.c.prompt_id == prompt_id))

    def get(self, prompt_id: uuid.UUID) -> PromptRow:
        """The version. Raises NotFound."""
        found = self.find(prompt_id)
        if found is None:
            raise NotFound("prompt", str(prompt_id))
        return found

    def find_active(self, agent_id: int, status_key: str = "default") -> PromptRow | None:
        """The active version, or None."""
        return self._find(
            _select().where(_prompts.c.agent_id == agent_id, _prompts.c.status_key == status_key, _prompts.c.is_active)
        )

    def find_from_code(self, agent_id: int, status_key: str = "default") -> PromptRow | None:
        """The newest version that was defined in code, or None."""
        return self._find(
            _select()
            .where(
                _prompts.c.agent_id == agent_id, _prompts.c.status_key == status_key, _prompts.c.is_default_from_code
            )
            .order_by(_prompts.c.version.desc())
            .limit(1)
        )

    def activate(self, prompt_id: uuid.UUID) -> PromptRow:
        """The version, now the active one of its agent and status key. Raises NotFound."""
        found = self.get(prompt_id)
        if found.is_active:
            return found
        self._take_turn(found.agent_id)
        self._retire(found.agent_id, found.status_key)
        with conflicts("Another version was activated at the same moment.", hint="Look, and try again."):
            self._connection.execute(
                update(_prompts).where(_prompts.c.id == found.id).values(is_active=True, updated_at=self._now)
            )
        self._tell(found.agent_id)
        return self.get(prompt_id)

    def deactivate(self, prompt_id: uuid.UUID) -> PromptRow:
        """The version, not active any more. Raises NotFound."""
        found = self.get(prompt_id)
        self._connection.execute(
            update(_prompts).where(_prompts.c.id == found.id).values(is_active=False, updated_at=self._now)
        )
        self._tell(found.agent_id)
        return self.get(prompt_id)

    def update(
        self, prompt_id: uuid.UUID, *, if_updated_at: object | None = None, **changes: Unpack[PromptChanges]
    ) -> PromptRow:
        """The changed version.

        Raises:
            NotFound: there is no such version.
            PreconditionFailed: it was changed since `if_updated_at`.
        """
        found = self.get(prompt_id)
        if if_updated_at is not None and found.updated_at != if_updated_at:
            raise PreconditionFailed(
                f"The prompt '{prompt_id}' was changed since you read it.", hint="Read it again and repeat your change."
            )
        self._connection.execute(
            update(_prompts).where(_prompts.c.id == found.id).values(updated_at=self._now, **changes)
        )
        self._tell(found.agent_id)
        return self.get(prompt_id)

    def delete(self, prompt_id: uuid.UUID) -> PromptRow:
        """The version that was deleted. Raises NotFound."""
        found = self.get(prompt_id)
        self._connection.execute(delete_from(_prompts).where(_prompts.c.id == found.id))
        return found

    def list(
        self,
        *,
        agent_id: int | None = None,
        status_key: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[PromptRow]:
        """Versions, newest first."""
        statement = _select()
        if agent_id is not None:
            statement = statement.where(_prompts.c.agent_id == agent_id)
        if status_key is not None:
            statement = statement.where(_prompts.c.status_key == status_key)
        return fetch_page(self._connection, statement, (_prompts.c.id,), _row, limit=limit, cursor=cursor)

    def _tell(self, agent_id: int) -> None:
        """Have the processes that know the agent's prompts look at them anew."""
        notify(self._connection, f"changed prompts {agent_id}")

    def _take_turn(self, agent_id: int) -> None:
        """Let changes to one agent's prompts follow each other (on SQLite all writes do)."""
        self._connection.execute(select(_agents.c.id).where(_agents.c.id == agent_id).with_for_update())

    def _retire(self, agent_id: int, status_key: str) -> None:
        self._connection.execute(
            update(_prompts)
            .where(_prompts.c.agent_id == agent_id, _prompts.c.status_key == status_key, _prompts.c.is_active)
            .values(is_active=False, updated_at=self._now)
        )

    def _find(self, statement: Select[Any]) -> PromptRow | None:
        record = self._connection.execute(statement).one_or_none()
        return None if record is None else _row(record)


def _select() -> Select[Any]:
    joined = _prompts.join(_agents, _prompts.c.agent_id == _agents.c.id)
    return select(_prompts, _agents.c.name.label("agent_name")).select_from(joined)


def _row(record: Row[Any]) -> PromptRow:
    return PromptRow(
        id=record.id,
        prompt_id=record.prompt_id,
        agent_id=record.agent_id,
        agent_name=record.agent_name,
        status_key=record.status_key,
        name=record.name,
        template=record.template,
        version=record.version,
        is_active=record.is_active,
        is_default_from_code=record.is_default_from_code,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )
