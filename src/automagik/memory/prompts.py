"""Prompts: the versions of each agent's prompt template, of which one is active for each status key."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from automagik.errors import Conflict, InvalidInput, NotFound
from automagik.memory.templates import PromptTemplate
from automagik.memory.text import check_text
from automagik.memory.writing import write_again
from automagik.store import Page, Store, Transaction
from automagik.store.prompts import PromptChanges
from automagik.store.rows import PromptRow
from automagik.types import Caller, Clock, JsonObject, SystemClock

__all__ = ["BUILTIN_VARIABLES", "DEFAULT_STATUS_KEY", "Prompts"]

BUILTIN_VARIABLES: Final = frozenset({"agent_name", "session_id", "user_id", "run_id", "current_date", "current_time"})
"""Names that every prompt may use: the agent's name, the run's identifiers (empty where there is none), and the date
(`2026-11-24`) and time (`09:30 UTC`) in UTC."""

DEFAULT_STATUS_KEY: Final = "default"

_FIELD = ("body", "prompt_text")
_MAX_WORD = 128
_FRESH_SECONDS = 5.0
"""How long another process's activation may go unnoticed, where its signal is lost."""


@dataclass(frozen=True, slots=True)
class _Cached:
    template: PromptTemplate | None
    read_at: float


class Prompts:
    """Prompt versions, and the parsed active ones at hand. A version that was defined in code is never edited.

    What is changed through this object is seen at once; what another process changed, as soon as its signal is heard.
    """

    def __init__(self, store: Store, *, max_text_chars: int = 1_000_000, clock: Clock | None = None) -> None:
        self._store = store
        self._max_text_chars = max_text_chars
        self._clock = clock or SystemClock()
        self._cache: dict[tuple[int, str], _Cached] = {}
        self._numbering = asyncio.Lock()
        self._expired = 0
        store.signals.listen("changed", self._hear_change)
        store.signals.on_gap(self._expire)

    # -- for runs

    async def active_template(self, agent_id: int, status_key: str = DEFAULT_STATUS_KEY) -> PromptTemplate | None:
        """The active template, parsed, or None where there is none."""
        cached = self._cache.get((agent_id, status_key))
        if cached is not None and self._clock.monotonic() - cached.read_at < _FRESH_SECONDS:
            return cached.template
        return await self._load(agent_id, status_key)

    def cached_template(self, agent_id: int, status_key: str = DEFAULT_STATUS_KEY) -> PromptTemplate | None:
        """The active template as it was last read in this process, or None."""
        cached = self._cache.get((agent_id, status_key))
        return None if cached is None else cached.template

    def forget(self, agent_id: int) -> None:
        """Drop what is at hand for an agent that is gone."""
        for key in [key for key in self._cache if key[0] == agent_id]:
            del self._cache[key]

    def _hear_change(self, text: str) -> None:
        kind, _, agent_id = text.partition(" ")
        if kind == "prompts":
            self._expire(int(agent_id))

    def _expire(self, agent_id: int | None = None) -> None:
        """Have the active versions looked at anew, of one agent or of all; until then the parsed ones stay at hand."""
        self._expired += 1
        for key, cached in self._cache.items():
            if agent_id in {None, key[0]}:
                self._cache[key] = replace(cached, read_at=float("-inf"))

    async def register_from_code(
        self,
        agent_id: int,
        template: str,
        *,
        known: Collection[str],
        status_key: str = DEFAULT_STATUS_KEY,
        field: Sequence[str | int] = _FIELD,
    ) -> PromptRow:
        """The version that holds the code's prompt: the newest from code, or a new one where the text changed.

        The new one becomes active where none is, or where the active one is the newest from code; a version that a
        person activated stays.

        Raises: InvalidInput for a template that can't be parsed or uses a name that is not known.
        """
        newest = await self._store.read(lambda tx: tx.prompts.find_from_code(agent_id, status_key))
        if newest is not None and newest.template == template:
            return newest
        parsed = self._parsed(template, field)

        def write(tx: Transaction) -> PromptRow:
            parsed.check_names(_known(tx, agent_id, known), field=field)
            active = tx.prompts.find_active(agent_id, status_key)
            newest = tx.prompts.find_from_code(agent_id, status_key)
            if newest is not None and newest.template == template:
                return newest  # another process that started at the same time was faster
            row = tx.prompts.create(
                agent_id,
                template,
                status_key=status_key,
                is_active=active is None or (newest is not None and active.id == newest.id),
                is_default_from_code=True,
            )
            # On PostgreSQL another process's version may have become visible since the look above.
            before = tx.prompts.list(agent_id=agent_id, status_key=status_key, limit=2).data[1:]
            if any(other.is_default_from_code and other.template == template for other in before):
                raise Conflict("Another process stored this prompt at the same moment.")
            _note(tx, "prompt.register", row, None, None)
            return row

        return await self._changed(await self._numbered(write))

    # -- for people

    async def active(self, agent_id: int, status_key: str = DEFAULT_STATUS_KEY) -> PromptRow | None:
        """The active version, or None."""
        return await self._store.read(lambda tx: tx.prompts.find_active(agent_id, status_key))

    async def get(self, prompt_id: UUID, *, agent_id: int | None = None) -> PromptRow:
        """One version. Raises NotFound, also where it is another agent's than `agent_id`."""
        return await self._store.read(lambda tx: _of_agent(tx, prompt_id, agent_id))

    async def list(
        self,
        *,
        agent_id: int | None = None,
        status_key: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[PromptRow]:
        """Versions, newest first."""
        return await self._store.read(
            lambda tx: tx.prompts.list(agent_id=agent_id, status_key=status_key, limit=limit, cursor=cursor)
        )

    async def create(
        self,
        agent_id: int,
        template: str,
        *,
        known: Collection[str],
        caller: Caller,
        status_key: str = DEFAULT_STATUS_KEY,
        name: str | None = None,
        is_active: bool = False,
        request_id: str | None = None,
        field: Sequence[str | int] = _FIELD,
    ) -> PromptRow:
        """A new version. `known`: the names that the agent lets its prompt use (`AutomagikAgent.known_variables`).

        Raises: InvalidInput for a template that can't be parsed, or uses a name that is neither known nor a memory's.
        """
        parsed = self._parsed(template, field)
        _check_words(status_key=status_key, name=name)

        def write(tx: Transaction) -> PromptRow:
            parsed.check_names(_known(tx, agent_id, known, caller), field=field)
            row = tx.prompts.create(agent_id, template, status_key=status_key, name=name, is_active=is_active)
            _note(tx, "prompt.create", row, caller, request_id)
            return row

        return await self._changed(await self._numbered(write))

    async def update(
        self,
        prompt_id: UUID,
        *,
        known: Collection[str],
        caller: Caller,
        template: str | None = None,
        name: str | None = None,
        agent_id: int | None = None,
        if_updated_at: datetime | None = None,
        request_id: str | None = None,
        field: Sequence[str | int] = _FIELD,
    ) -> PromptRow:
        """The changed version. None leaves as it is.

        Raises:
            NotFound: there is no such version (of that agent).
            PreconditionFailed: it was changed since `if_updated_at`.
            Conflict: its text comes from code; a new version is made instead.
            InvalidInput: as in `create`.
        """
        parsed = None if template is None else self._parsed(template, field)
        _check_words(name=name)
        changes = PromptChanges()
        if template is not None:
            changes["template"] = template
        if name is not None:
            changes["name"] = name

        def write(tx: Transaction) -> PromptRow:
            found = _of_agent(tx, prompt_id, agent_id)
            if parsed is not None and found.is_default_from_code and template != found.template:
                raise Conflict(
                    f"Version {found.version} was defined in code and can't be edited.",
                    code="prompt_from_code",
                    hint="Create a new version with your text and activate it.",
                )
            if parsed is not None:
                parsed.check_names(_known(tx, found.agent_id, known, caller), field=field)
            row = tx.prompts.update(prompt_id, if_updated_at=if_updated_at, **changes)
            _note(tx, "prompt.update", row, caller, request_id)
            return row

        return await self._changed(await self._store.write(write))

    async def activate(
        self, prompt_id: UUID, *, caller: Caller, agent_id: int | None = None, request_id: str | None = None
    ) -> PromptRow:
        """The version, now the active one of its agent and status key. Raises NotFound."""

        def write(tx: Transaction) -> PromptRow:
            _of_agent(tx, prompt_id, agent_id)
            row = tx.prompts.activate(prompt_id)
            _note(tx, "prompt.activate", row, caller, request_id)
            return row

        return await self._changed(await self._store.write(write))

    async def deactivate(
        self, prompt_id: UUID, *, caller: Caller, agent_id: int | None = None, request_id: str | None = None
    ) -> PromptRow:
        """The version, not active any more; the agent then uses the prompt from its code. Raises NotFound."""

        def write(tx: Transaction) -> PromptRow:
            _of_agent(tx, prompt_id, agent_id)
            row = tx.prompts.deactivate(prompt_id)
            _note(tx, "prompt.deactivate", row, caller, request_id)
            return row

        return await self._changed(await self._store.write(write))

    async def delete(
        self, prompt_id: UUID, *, caller: Caller, agent_id: int | None = None, request_id: str | None = None
    ) -> PromptRow:
        """The version that was deleted. Raises NotFound, or Conflict for the active one."""

        def write(tx: Transaction) -> PromptRow:
            found = _of_agent(tx, prompt_id, agent_id)
            if found.is_active:
                raise Conflict(
                    f"Version {found.version} is active.",
                    code="prompt_active",
                    hint="Activate another version first, or deactivate this one.",
                )
            row = tx.prompts.delete(prompt_id)
            _note(tx, "prompt.delete", row, caller, request_id)
            return row

        return await self._changed(await self._store.write(write))

    def _parsed(self, template: str, field: Sequence[str | int]) -> PromptTemplate:
        check_text(template, field=field, max_chars=self._max_text_chars)
        return PromptTemplate.parse(template, field=field)

    async def _numbered(self, write: Callable[[Transaction], PromptRow]) -> PromptRow:
        """A write that takes the next version number: one at a time here, again where another process took it first."""
        async with self._numbering:
            return await write_again(self._store, write)

    async def _changed(self, row: PromptRow) -> PromptRow:
        await self._load(row.agent_id, row.status_key)
        return row

    async def _load(self, agent_id: int, status_key: str) -> PromptTemplate | None:
        read_at, expired = self._clock.monotonic(), self._expired
        row = await self._store.read(lambda tx: tx.prompts.find_active(agent_id, status_key))
        cached = self._cache.get((agent_id, status_key))
        if cached is not None and cached.read_at > read_at:
            return cached.template  # somebody looked later than this, and was faster
        known = None if cached is None else cached.template
        if row is None:
            template = None
        elif known is not None and known.text == row.template:
            template = known
        else:
            template = PromptTemplate.parse(row.template)
        is_fresh = expired == self._expired  # else something changed meanwhile, perhaps this one
        self._cache[agent_id, status_key] = _Cached(template, read_at if is_fresh else float("-inf"))
        return template


def _known(tx: Transaction, agent_id: int, known: Collection[str], caller: Caller | None = None) -> frozenset[str]:
    """What a template may use; of memories' names only those that the caller may see."""
    visible_to = caller.user_id if caller is not None else None
    return frozenset((*BUILTIN_VARIABLES, *known, *tx.memories.known_names(agent_id, visible_to=visible_to)))


def _of_agent(tx: Transaction, prompt_id: UUID, agent_id: int | None) -> PromptRow:
    row = tx.prompts.get(prompt_id)
    if agent_id is not None and row.agent_id != agent_id:
        raise NotFound("prompt", str(prompt_id))
    return row


def _check_words(**words: str | None) -> None:
    for key, word in words.items():
        if word is None:
            continue
        if not word:
            raise InvalidInput(f"{key} is empty.", field=("body", key))
        check_text(word, field=("body", key), max_chars=_MAX_WORD)


def _note(tx: Transaction, action: str, row: PromptRow, caller: Caller | None, request_id: str | None) -> None:
    details: JsonObject = {"agent": row.agent_name, "status_key": row.status_key, "version": row.version}
    tx.audit.append(action, str(row.prompt_id), caller=caller, request_id=request_id, details=details)
