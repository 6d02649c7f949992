"""AuditLog: who changed what, written in the transaction of the change itself."""

import uuid
from typing import Any

from sqlalchemy import Row, insert, select

from automagik.store import schema
from automagik.store.pages import fetch_page
from automagik.store.repository import Repository
from automagik.store.rows import AuditRow, Page
from automagik.types import Caller, JsonObject

__all__ = ["AuditLog"]

_audit = schema.audit
_keys = schema.api_keys


class AuditLog(Repository):
    """The audit table. Rows are only added."""

    __slots__ = ()

    def append(
        self,
        action: str,
        target: str,
        *,
        caller: Caller | None = None,
        request_id: str | None = None,
        details: JsonObject | None = None,
    ) -> None:
        """Note that `caller` (None: the platform itself) did `action` (`memory.create`) to `target` (a public id)."""
        self._connection.execute(
            insert(_audit).values(
                at=self._now,
                key_id=caller.key_id if caller is not None else None,
                action=action,
                target=target,
                details=details or {},
                request_id=request_id,
            )
        )

    def list(
        self,
        *,
        action: str | None = None,
        target: str | None = None,
        user_id: uuid.UUID | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[AuditRow]:
        """What was done, newest first; with `user_id` what was done by keys that are bound to that user."""
        statement = select(_audit)
        if user_id is not None:
            statement = statement.where(_audit.c.key_id.in_(select(_keys.c.key_id).where(_keys.c.user_id == user_id)))
        if action is not None:
            statement = statement.where(_audit.c.action == action)
        if target is not None:
            statement = statement.where(_audit.c.target == target)
        return fetch_page(self._connection, statement, (_audit.c.id,), _row, limit=limit, cursor=cursor)


def _row(record: Row[Any]) -> AuditRow:
    return AuditRow(
        id=record.id,
        at=record.at,
        key_id=record.key_id,
        action=record.action,
        target=record.target,
        details=record.details,
        request_id=record.request_id,
    )
