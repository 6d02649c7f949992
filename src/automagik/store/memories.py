"""Memories: variables scoped to an agent, a user, a session, or several of them at once."""

import uuid
from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

from sqlalchemy import ColumnElement, Row, Select, and_, insert, or_, select, union, update
from sqlalchemy import delete as delete_from

from automagik.errors import Conflict, InvalidInput, NotFound
from automagik.store import schema
from automagik.store.pages import fetch_page
from automagik.store.repository import Repository, conflicts
from automagik.store.rows import MemoryRow, Page
from automagik.store.users import Users
from automagik.types import JsonObject, new_uuid

__all__ = ["Memories", "MemoryChanges"]

_memories = schema.memories
_agents = schema.agents
_sessions = schema.sessions


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


class _Scope(TypedDict):
    agent_id: int | None
    user_id: uuid.UUID | None
    session_id: int | None


class Memories(Repository):
    """The memories table. A name is unique within its scope: the agent, user and session that are set."""

    __slots__ = ()

    def create(
        self,
        name: str,
        content: str,
        *,
        memory_id: uuid.UUID | None = None,
        agent_id: int | None = None,
        user_id: uuid.UUID | None = None,
        session_id: int | None = None,
        description: str | None = None,
        memory_type: str = "variable",
        read_mode: str | None = None,
        access: str | None = None,
        metadata: JsonObject | None = None,
        active: bool = True,
    ) -> MemoryRow:
        """The new memory.

        Raises:
            InvalidInput: it belongs to no agent, user or session.
            NotFound: there is no such user.
            Conflict: the scope has a memory of this name.
        """
        if agent_id is None and user_id is None and session_id is None:
            raise InvalidInput(
                "A memory belongs to an agent, a user or a session.",
                field=("body", "agent_id"),
                hint="Give at least one of them.",
            )
        if user_id is not None:
            Users(self._connection, self._now).get(user_id)
        memory_id = memory_id or new_uuid()
        values = {
            "memory_id": memory_id,
            "agent_id": agent_id,
            "user_id": user_id,
            "session_id": session_id,
            "name": name,
            "content": content,
            "description": description,
            "memory_type": memory_type,
            "read_mode": read_mode,
            "access": access,
            "metadata": metadata or {},
            "active": active,
            "created_at": self._now,
            "updated_at": self._now,
        }
        with conflicts(
            f"There is already a memory '{name}' in this scope.", hint="Change that memory, or choose another name."
        ):
            self._connection.execute(insert(_memories).values(values))
        return self.get(memory_id)

    def find(self, memory_id: uuid.UUID) -> MemoryRow | None:
        """The memory, or None."""
        return self._find(_select().where(_memories.c.memory_id == memory_id))

    def get(self, memory_id: uuid.UUID) -> MemoryRow:
        """The memory. Raises NotFound."""
        found = self.find(memory_id)
        if found is None:
            raise NotFound("memory", str(memory_id))
        return found

    def find_in_scope(
        self,
        name: str,
        *,
        agent_id: int | None = None,
        user_id: uuid.UUID | None = None,
        session_id: int | None = None,
    ) -> MemoryRow | None:
        """The memory of this name whose scope is exactly the given one, or None."""
        return self._find(
            _select().where(
                _memories.c.name == name,
                _is(_memories.c.agent_id, agent_id),
                _is(_memories.c.user_id, user_id),
                _is(_memories.c.session_id, session_id),
            )
        )

    def put(
        self,
        name: str,
        content: str,
        *,
        agent_id: int | None = None,
        user_id: uuid.UUID | None = None,
        session_id: int | None = None,
        description: str | None = None,
        memory_type: str = "variable",
    ) -> MemoryRow:
        """The memory of this name in this scope with the given content: changed where it is there, else made."""
        scope = _Scope(agent_id=agent_id, user_id=user_id, session_id=session_id)
        found = self.find_in_scope(name, **scope)
        if found is None:
            try:
                with self._connection.begin_nested():
                    return self.create(name, content, description=description, memory_type=memory_type, **scope)
            except Conflict:  # somebody else made it at the same moment
                found = self.find_in_scope(name, **scope)
                if found is None:
                    raise
        changes = MemoryChanges(content=content, active=True)
        if description is not None:
            changes["description"] = description
        return self.update(found.memory_id, **changes)

    def update(self, memory_id: uuid.UUID, **changes: Unpack[MemoryChanges]) -> MemoryRow:
        """The changed memory. Raises NotFound, or Conflict where its scope has one of the new name."""
        statement = update(_memories).where(_memories.c.memory_id == memory_id)
        with conflicts(
            f"There is already a memory '{changes.get('name')}' in this scope.", hint="Choose another name."
        ):
            done = self._connection.execute(statement.values(updated_at=self._now, **changes))
        if not done.rowcount:
            raise NotFound("memory", str(memory_id))
        return self.get(memory_id)

    def delete(self, memory_id: uuid.UUID) -> MemoryRow:
        """The memory that was deleted. Raises NotFound."""
        found = self.get(memory_id)
        self._connection.execute(delete_from(_memories).where(_memories.c.id == found.id))
        return found

    def variables(
        self,
        *,
        agent_id: int | None,
        user_id: uuid.UUID | None,
        session_id: int | None,
        names: Sequence[str] | None = None,
    ) -> dict[str, str]:
        """What each name means to this agent, user and session: the nearest scope wins (session, agent and user, user, agent).

        `names` None: every name.
        """
        branches: list[ColumnElement[bool]] = []
        if session_id is not None:
            branches.append(_memories.c.session_id == session_id)
        if user_id is not None:
            branches.append(and_(_memories.c.user_id == user_id, _memories.c.session_id.is_(None)))
        if agent_id is not None:
            branches.append(
                and_(_memories.c.agent_id == agent_id, _memories.c.user_id.is_(None), _memories.c.session_id.is_(None))
            )
        if not branches or (names is not None and not names):
            return {}
        m = _memories.c
        conditions = [
            m.active,
            or_(m.agent_id.is_(None), m.agent_id == agent_id),
            or_(m.user_id.is_(None), m.user_id == user_id),
        ]
        if names is not None:
            conditions.append(m.name.in_(names))
        columns: list[ColumnElement[Any]] = [m.id, m.agent_id, m.user_id, m.session_id, m.name, m.content]
        statement = union(*(select(*columns).where(branch, *conditions) for branch in branches))
        found: Sequence[Row[Any]] = self._connection.execute(statement).all()
        return {record.name: record.content for record in sorted(found, key=_nearness)}

    def known_names(self, agent_id: int | None = None, *, visible_to: uuid.UUID | None = None) -> list[str]:
        """Every name that a memory has for this agent (None: for any), to check a template's places with.

        With `visible_to` only names of that user's memories and of those that belong to no user.
        """
        statement = select(_memories.c.name).distinct()
        if agent_id is not None:
            statement = statement.where(or_(_memories.c.agent_id.is_(None), _memories.c.agent_id == agent_id))
        if visible_to is not None:
            statement = statement.where(or_(_memories.c.user_id.is_(None), _memories.c.user_id == visible_to))
        return [*self._connection.scalars(statement.order_by(_memories.c.name))]

    def list(
        self,
        *,
        agent_id: int | None = None,
        user_id: uuid.UUID | None = None,
        session_id: int | None = None,
        name: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[MemoryRow]:
        """Memories, newest first."""
        statement = _select()
        if agent_id is not None:
            statement = statement.where(_memories.c.agent_id == agent_id)
        if user_id is not None:
            statement = statement.where(_memories.c.user_id == user_id)
        if session_id is not None:
            statement = statement.where(_memories.c.session_id == session_id)
        if name is not None:
            statement = statement.where(_memories.c.name == name)
        return fetch_page(self._connection, statement, (_memories.c.id,), _row, limit=limit, cursor=cursor)

    def _find(self, statement: Select[Any]) -> MemoryRow | None:
        record = self._connection.execute(statement).one_or_none()
        return None if record is None else _row(record)


def _is(column: ColumnElement[Any], value: object) -> ColumnElement[bool]:
    return column.is_(None) if value is None else column == value


def _nearness(record: Row[Any]) -> int:
    return 4 * (record.session_id is not None) + 2 * (record.user_id is not None) + (record.agent_id is not None)


def _select() -> Select[Any]:
    joined = _memories.outerjoin(_agents, _memories.c.agent_id == _agents.c.id).outerjoin(
        _sessions, _memories.c.session_id == _sessions.c.id
    )
    return select(
        _memories, _agents.c.name.label("agent_name"), _sessions.c.session_id.label("session_uuid")
    ).select_from(joined)


def _row(record: Row[Any]) -> MemoryRow:
    return MemoryRow(
        id=record.id,
        memory_id=record.memory_id,
        agent_id=record.agent_id,
        agent_name=record.agent_name,
        user_id=record.user_id,
        session_id=record.session_id,
        session_uuid=record.session_uuid,
        name=record.name,
        content=record.content,
        description=record.description,
        memory_type=record.memory_type,
        read_mode=record.read_mode,
        access=record.access,
        metadata=record.metadata,
        active=record.active,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )
