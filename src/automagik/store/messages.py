"""Messages: the turns of sessions, kept whole and in order."""

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, Text, cast, exists, insert, select, update
from sqlalchemy import delete as delete_from

from automagik.errors import NotFound
from automagik.store import schema
from automagik.store.artifacts import Artifacts, digests_in, session_holder
from automagik.store.hot import NewMessage, cut_at_turn
from automagik.store.pages import fetch_page
from automagik.store.repository import Repository
from automagik.store.rows import MessageRow, Page

__all__ = ["Messages"]

_messages = schema.messages
_sessions = schema.sessions


class Messages(Repository):
    """The messages table. `session_key` is the store's own id of the session."""

    __slots__ = ()

    def append(self, session_key: int, messages: Sequence[NewMessage], *, run_id: str | None = None) -> None:
        """Store messages behind those that are there. Raises NotFound where the session is gone."""
        bumped = self._connection.execute(
            update(_sessions)
            .where(_sessions.c.id == session_key)
            .values(message_count=_sessions.c.message_count + len(messages), updated_at=self._now)
        )
        if not bumped.rowcount:
            raise NotFound("session", str(session_key))
        rows = [
            {
                "message_id": message.message_id,
                "session_id": session_key,
                "run_id": run_id,
                "role": message.role,
                "content": message.content,
                "raw_payload": message.raw_payload,
                "created_at": self._now,
            }
            for message in messages
        ]
        if rows:
            self._connection.execute(insert(_messages), rows)

    def history(self, session_key: int, limit: int | None = None) -> list[str]:
        """The payloads of the newest messages, oldest first: at most `limit`, beginning with a user's message.

        Where the last turn alone is longer than `limit`, that whole turn; with `limit` 0, nothing.
        """
        if limit == 0:
            return []
        wanted = select(_messages.c.role, _messages.c.raw_payload).where(_messages.c.session_id == session_key)
        newest = self._connection.execute(wanted.order_by(_messages.c.id.desc()).limit(limit)).all()
        newest = newest[::-1]
        cut = cut_at_turn([record.role for record in newest], [record.raw_payload for record in newest])
        if cut is not None or not newest or limit is None:
            return cut or []
        turn = (
            select(_messages.c.id)
            .where(_messages.c.session_id == session_key, _messages.c.role == "user")
            .order_by(_messages.c.id.desc())
            .limit(1)
            .scalar_subquery()
        )
        return [
            *self._connection.scalars(
                select(_messages.c.raw_payload)
                .where(_messages.c.session_id == session_key, _messages.c.id >= turn)
                .order_by(_messages.c.id)
            )
        ]

    def find(self, message_id: uuid.UUID) -> MessageRow | None:
        """The message, or None."""
        record = self._connection.execute(select(_messages).where(_messages.c.message_id == message_id)).one_or_none()
        return None if record is None else _row(record)

    def get(self, message_id: uuid.UUID) -> MessageRow:
        """The message. Raises NotFound."""
        found = self.find(message_id)
        if found is None:
            raise NotFound("message", str(message_id))
        return found

    def delete(self, message_id: uuid.UUID) -> MessageRow:
        """The message that was deleted, and the session's hold on what only it referred to. Raises NotFound."""
        found = self.get(message_id)
        self._connection.execute(delete_from(_messages).where(_messages.c.id == found.id))
        self._release(found.session_id, digests_in(found.raw_payload))
        self._connection.execute(
            update(_sessions)
            .where(_sessions.c.id == found.session_id)
            .values(message_count=_sessions.c.message_count - 1, updated_at=self._now)
        )
        return found

    def _release(self, session_key: int, digests: Sequence[str]) -> None:
        """Let the session hold those no more that none of its messages refers to."""
        text = cast(_messages.c.raw_payload, Text)
        gone = [
            digest
            for digest in digests
            if not self._connection.scalar(
                select(exists().where(_messages.c.session_id == session_key, text.contains(digest)))
            )
        ]
        if gone:
            named = select(_sessions.c.session_id).where(_sessions.c.id == session_key)
            session_id = self._connection.execute(named).scalar_one()
            Artifacts(self._connection, self._now).release_digests(gone, session_holder(session_id))

    def list(self, session_key: int, *, limit: int = 50, cursor: str | None = None) -> Page[MessageRow]:
        """The messages of a session, newest first."""
        statement = select(_messages).where(_messages.c.session_id == session_key)
        return fetch_page(self._connection, statement, (_messages.c.id,), _row, limit=limit, cursor=cursor)


def _row(record: Row[Any]) -> MessageRow:
    return MessageRow(
        id=record.id,
        message_id=record.message_id,
        session_id=record.session_id,
        run_id=record.run_id,
        role=record.role,
        content=record.content,
        raw_payload=record.raw_payload,
        created_at=record.created_at,
    )
