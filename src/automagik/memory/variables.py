"""MemoryStore: memory variables, each in the scope of an agent, a user, a session, or several of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict, Unpack
from uuid import UUID

from automagik.errors import InvalidInput, NotFound
from automagik.memory.door import AgentMemory
from automagik.memory.templates import is_name
from automagik.memory.text import check_text
from automagik.memory.writing import write_again
from automagik.store import Page, Store, Transaction
from automagik.store.rows import MemoryRow
from automagik.types import Caller, Json, JsonObject

__all__ = ["MemoryChanges", "MemoryInput", "MemoryStore"]

Field = tuple[str | int, ...]

_BODY: Field = ("body",)
_MAX_WORD = 64
_MAX_DESCRIPTION = 4000
_MAX_BATCH = 1000


@dataclass(frozen=True, slots=True)
class MemoryInput:
    """A memory to store. At least one of `agent`, `user_id` and `session_id` says whose it is."""

    name: str
    content: str
    agent: str | None = None
    """The agent's name."""
    user_id: UUID | None = None
    session_id: UUID | None = None
    description: str | None = None
    memory_type: str = "variable"
    read_mode: str | None = None
    access: str | None = None
    metadata: JsonObject = field(default_factory=dict[str, Json])
    active: bool = True


class MemoryChanges(TypedDict, total=False):
    """What an update changes; what is absent stays."""

    name: str
    content: str
    description: str | None
    memory_type: str
    read_mode: str | None
    access: str | None
    metadata: JsonObject
    active: bool


class MemoryStore:
    """The memories as a caller sees them: one whose key is bound to a user sees and changes that user's only."""

    def __init__(self, store: Store, *, max_text_chars: int = 1_000_000) -> None:
        self._store = store
        self._max_text_chars = max_text_chars

    def for_agent(self, agent_id: int, *, user_id: UUID | None, session_key: int | None) -> AgentMemory:
        """The door that a run's tools get: bound to its agent and user (or session)."""
        return AgentMemory(
            self._store,
            agent_id=agent_id,
            user_id=user_id,
            session_key=session_key,
            max_text_chars=self._max_text_chars,
        )

    async def resolve(
        self,
        names: Sequence[str] | None = None,
        *,
        agent_id: int | None,
        user_id: UUID | None,
        session_key: int | None,
    ) -> dict[str, str]:
        """What each name (None: all) means, the nearest scope winning: session, then agent and user, user, agent."""
        return await self._store.read(
            lambda tx: tx.memories.variables(agent_id=agent_id, user_id=user_id, session_id=session_key, names=names)
        )

    async def list(
        self,
        caller: Caller,
        *,
        agent: str | None = None,
        user_id: UUID | None = None,
        session_id: UUID | None = None,
        name: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[MemoryRow]:
        """Memories that the caller may see, newest first. Raises NotFound for an unknown agent or session."""
        if caller.user_id is not None:
            if user_id not in {None, caller.user_id}:
                return Page([], None)
            user_id = caller.user_id

        def read(tx: Transaction) -> Page[MemoryRow]:
            return tx.memories.list(
                agent_id=_agent_id(tx, agent),
                user_id=user_id,
                session_id=_session_key(tx, session_id, caller),
                name=name,
                limit=limit,
                cursor=cursor,
            )

        return await self._store.read(read)

    async def get(self, memory_id: UUID, caller: Caller) -> MemoryRow:
        """One memory. Raises NotFound, also for what the caller may not see."""
        return await self._store.read(lambda tx: _visible(tx, memory_id, caller))

    async def create(self, memory: MemoryInput, caller: Caller, *, request_id: str | None = None) -> MemoryRow:
        """The stored memory; one of the same name in the same scope is replaced.

        Raises: InvalidInput for a bad name or text or no scope; NotFound for an agent, user or session that is unknown.
        """
        checked = self._checked(memory, caller, _BODY)
        return await write_again(self._store, lambda tx: _put(tx, checked, caller, request_id))

    async def create_batch(
        self, memories: Sequence[MemoryInput], caller: Caller, *, request_id: str | None = None
    ) -> "list[MemoryRow]":
        """The stored memories, all or none.

        Raises: InvalidInput whose field begins with `body` and the index of the one that can't be stored.
        """
        if len(memories) > _MAX_BATCH:
            raise InvalidInput(f"A batch has at most {_MAX_BATCH} memories.", field=_BODY)
        checked = [self._checked(memory, caller, ("body", index)) for index, memory in enumerate(memories)]

        def write(tx: Transaction) -> list[MemoryRow]:
            return [_put_indexed(tx, index, memory, caller, request_id) for index, memory in enumerate(checked)]

        return await write_again(self._store, write)

    async def update(
        self, memory_id: UUID, caller: Caller, *, request_id: str | None = None, **changes: Unpack[MemoryChanges]
    ) -> MemoryRow:
        """The changed memory; its scope stays.

        Raises: NotFound, also for what the caller may not see; InvalidInput; Conflict where the new name is taken.
        """
        self._check(changes, _BODY)

        def write(tx: Transaction) -> MemoryRow:
            row = _visible(tx, memory_id, caller)
            if changes:
                row = tx.memories.update(memory_id, **changes)
            _note(tx, "memory.update", row, caller, request_id, changed=sorted(changes))
            return row

        return await self._store.write(write)

    async def delete(self, memory_id: UUID, caller: Caller, *, request_id: str | None = None) -> MemoryRow:
        """The memory that was deleted. Raises NotFound, also for what the caller may not see."""

        def write(tx: Transaction) -> MemoryRow:
            _visible(tx, memory_id, caller)
            row = tx.memories.delete(memory_id)
            _note(tx, "memory.delete", row, caller, request_id)
            return row

        return await self._store.write(write)

    def _checked(self, memory: MemoryInput, caller: Caller, at: Field) -> MemoryInput:
        """The memory in the caller's own scope, its texts checked."""
        self._check(
            MemoryChanges(
                name=memory.name,
                content=memory.content,
                description=memory.description,
                memory_type=memory.memory_type,
                read_mode=memory.read_mode,
                access=memory.access,
            ),
            at,
        )
        if caller.user_id is not None and memory.user_id != caller.user_id:
            if memory.user_id is not None:
                raise NotFound(
                    "user", str(memory.user_id), hint="This key is bound to another user; leave `user_id` out."
                )
            memory = replace(memory, user_id=caller.user_id)
        if memory.agent is None and memory.user_id is None and memory.session_id is None:
            raise InvalidInput(
                "A memory belongs to an agent, a user or a session.",
                field=(*at, "agent_id"),
                hint="Give at least one of `agent_id`, `user_id` and `session_id`.",
            )
        return memory

    def _check(self, changes: MemoryChanges, at: Field) -> None:
        name = changes.get("name")
        if name is not None and not is_name(name):
            raise InvalidInput(
                f"{name[:60]!r} is no name of a memory.",
                field=(*at, "name"),
                hint="A name has letters, digits, '_', '.' and '-', begins with a letter or '_', and has 128 at most.",
            )
        limits = {
            "content": self._max_text_chars,
            "description": _MAX_DESCRIPTION,
            "memory_type": _MAX_WORD,
            "read_mode": _MAX_WORD,
            "access": _MAX_WORD,
        }
        for key, limit in limits.items():
            text = changes.get(key)
            if isinstance(text, str):
                check_text(text, field=(*at, key), max_chars=limit)


def _put_indexed(tx: Transaction, index: int, memory: MemoryInput, caller: Caller, request_id: str | None) -> MemoryRow:
    try:
        return _put(tx, memory, caller, request_id)
    except NotFound as wrong:
        raise InvalidInput(wrong.detail, field=("body", index), hint=wrong.hint, code=wrong.code) from wrong


def _put(tx: Transaction, memory: MemoryInput, caller: Caller, request_id: str | None) -> MemoryRow:
    agent_id = _agent_id(tx, memory.agent)
    session_key = _session_key(tx, memory.session_id, caller)
    found = tx.memories.find_in_scope(memory.name, agent_id=agent_id, user_id=memory.user_id, session_id=session_key)
    if found is None:
        row = tx.memories.create(
            memory.name,
            memory.content,
            agent_id=agent_id,
            user_id=memory.user_id,
            session_id=session_key,
            description=memory.description,
            memory_type=memory.memory_type,
            read_mode=memory.read_mode,
            access=memory.access,
            metadata=memory.metadata,
            active=memory.active,
        )
    else:
        row = tx.memories.update(
            found.memory_id,
            content=memory.content,
            description=memory.description,
            memory_type=memory.memory_type,
            read_mode=memory.read_mode,
            access=memory.access,
            metadata=memory.metadata,
            active=memory.active,
        )
    _note(tx, "memory.create" if found is None else "memory.update", row, caller, request_id)
    return row


def _visible(tx: Transaction, memory_id: UUID, caller: Caller) -> MemoryRow:
    row = tx.memories.get(memory_id)
    if caller.user_id is not None and row.user_id != caller.user_id:
        raise NotFound("memory", str(memory_id))
    return row


def _agent_id(tx: Transaction, name: str | None) -> int | None:
    if name is None:
        return None
    row = tx.agents.find(name)
    if row is None:
        raise NotFound("agent", name, known=[known.name for known in tx.agents.all()])
    return row.id


def _session_key(tx: Transaction, session_id: UUID | None, caller: Caller) -> int | None:
    if session_id is None:
        return None
    row = tx.sessions.get(session_id)
    if caller.user_id is not None and row.user_id != caller.user_id:
        raise NotFound("session", str(session_id))
    return row.id


def _note(
    tx: Transaction,
    action: str,
    row: MemoryRow,
    caller: Caller,
    request_id: str | None,
    *,
    changed: Sequence[str] | None = None,
) -> None:
    details: JsonObject = {"name": row.name}
    if changed is not None:
        details["changed"] = [*changed]
    tx.audit.append(action, str(row.memory_id), caller=caller, request_id=request_id, details=details)
