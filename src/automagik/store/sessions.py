"""Sessions: conversations, each with the count of its messages."""

import uuid
from typing import Any, TypedDict, Unpack

from sqlalchemy import Row, Select, insert, select, update
from sqlalchemy import delete as delete_from

from automagik.errors import NotFound
from automagik.store import schema
from automagik.store.artifacts import Artifacts, session_holder
from automagik.store.hot import DEFAULT_ORIGIN
from automagik.store.pages import fetch_page
from automagik.store.repository import Repository, conflicts
from automagik.store.rows import Page, SessionRow
from automagik.store.turns import dissolve
from automagik.store.users import Users
from automagik.types import JsonObject, new_uuid

__all__ = ["SessionChanges", "Sessions"]

_sessions = schema.sessions
_agents = schema.agents


class SessionChanges(TypedDict, total=False):
    """What an update changes; what is absent stays."""

    session_name: str | None
    status: str
    metadata: JsonObject


class Sessions(Repository):
    """The sessions table. A name is unique among one user's sessions, and among those of no user."""

    __slots__ = ()

    def create(
        self,
        *,
        session_id: uuid.UUID | None = None,
        agent_id: int | None = None,
        user_id: uuid.UUID | None = None,
        session_name: str | None = None,
        session_origin: str | None = None,
        metadata: JsonObject | None = None,
    ) -> SessionRow:
        """The new session. Raises Conflict where the id or name is taken, NotFound for an unknown user."""
        if user_id is not None:
            Users(self._connection, self._now).get(user_id)
        session_id = session_id or new_uuid()
        values = {
            "session_id": session_id,
            "agent_id": agent_id,
            "user_id": user_id,
            "session_name": session_name,
            "status": "active",
            "session_origin": session_origin or DEFAULT_ORIGIN,
            "metadata": metadata or {},
            "message_count": 0,
            "created_at": self._now,
            "updated_at": self._now,
        }
        with conflicts(
            f"There is already a session '{session_id}'.",
            hint="Go on with that session, or choose another.",
            by_column={"session_name": f"There is already a session named '{session_name}'."},
        ):
            self._connection.execute(insert(_sessions).values(values))
        return self.get(session_id)

    def find(self, session_id: uuid.UUID) -> SessionRow | None:
        """The session, or None."""
        return self._find(_select().where(_sessions.c.session_id == session_id))

    def find_by_name(self, user_id: uuid.UUID | None, session_name: str) -> SessionRow | None:
        """The session of this name among the user's (None: among those of no user), or None."""
        owner = _sessions.c.user_id.is_(None) if user_id is None else _sessions.c.user_id == user_id
        return self._find(_select().where(_sessions.c.session_name == session_name, owner))

    def find_by_key(self, session_key: int) -> SessionRow | None:
        """The session with the store's own id, or None."""
        return self._find(_select().where(_sessions.c.id == session_key))

    def get(self, session_id: uuid.UUID) -> SessionRow:
        """The session. Raises NotFound."""
        found = self.find(session_id)
        if found is None:
            raise NotFound("session", str(session_id))
        return found

    def names(self, *, user_id: uuid.UUID | None = None, limit: int = 200) -> list[str]:
        """Names of the newest sessions (of one user where given), to suggest the nearest from."""
        statement = select(_sessions.c.session_name).where(_sessions.c.session_name.is_not(None))
        if user_id is not None:
            statement = statement.where(_sessions.c.user_id == user_id)
        return [*self._connection.scalars(statement.order_by(_sessions.c.id.desc()).limit(limit))]

    def update(self, session_id: uuid.UUID, **changes: Unpack[SessionChanges]) -> SessionRow:
        """The changed session. Raises NotFound, or Conflict where the name is taken."""
        statement = update(_sessions).where(_sessions.c.session_id == session_id)
        with conflicts(
            f"There is already a session named '{changes.get('session_name')}'.", hint="Choose another name."
        ):
            done = self._connection.execute(statement.values(updated_at=self._now, **changes))
        if not done.rowcount:
            raise NotFound("session", str(session_id))
        return self.get(session_id)

    def delete(self, session_id: uuid.UUID) -> SessionRow:
        """The session that was deleted, with its messages and memories; its runs stay as records. Raises NotFound."""
        found = self.get(session_id)
        dissolve(self._connection, _sessions.c.id == found.id)
        Artifacts(self._connection, self._now).release([session_holder(session_id)])
        self._connection.execute(delete_from(_sessions).where(_sessions.c.id == found.id))
        return found

    def list(
        self,
        *,
        agent_id: int | None = None,
        user_id: uuid.UUID | None = None,
        session_name: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[SessionRow]:
        """Sessions, newest first."""
        statement = _select()
        if agent_id is not None:
            statement = statement.where(_sessions.c.agent_id == agent_id)
        if user_id is not None:
            statement = statement.where(_sessions.c.user_id == user_id)
        if session_name is not None:
            statement = statement.where(_sessions.c.session_name == session_name)
        return fetch_page(self._connection, statement, (_sessions.c.id,), _row, limit=limit, cursor=cursor)

    def _find(self, statement: Select[Any]) -> SessionRow | None:
        record = self._connection.execute(statement).one_or_none()
        return None if record is None else _row(record)


def _select() -> Select[Any]:
    joined = _sessions.outerjoin(_agents, _sessions.c.agent_id == _agents.c.id)
    return select(_sessions, _agents.c.name.label("agent_name")).select_from(joined)


def _row(record: Row[Any]) -> SessionRow:
    return SessionRow(
        id=record.id,
        session_id=record.session_id,
        agent_id=record.agent_id,
        agent_name=record.agent_name,
        user_id=record.user_id,
        session_name=record.session_name,
        status=record.status,
        session_origin=record.session_origin,
        metadata=record.metadata,
        message_count=record.message_count,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )
