"""Users: whom sessions, memories and runs belong to."""

import uuid
from typing import Any, TypedDict, Unpack

from sqlalchemy import Row, insert, select, update
from sqlalchemy import delete as delete_from

from automagik.errors import NotFound
from automagik.store import schema
from automagik.store.artifacts import Artifacts
from automagik.store.pages import fetch_page
from automagik.store.repository import Repository, conflicts, insert_new
from automagik.store.rows import Page, UserRow
from automagik.store.schedules import Schedules
from automagik.store.turns import dissolve, notify
from automagik.types import JsonObject, new_uuid

__all__ = ["UserChanges", "Users"]

_users = schema.users
_BY_COLUMN = {
    "email": "Another user has this email address.",
    "phone_number": "Another user has this phone number.",
}


class UserChanges(TypedDict, total=False):
    """What an update changes; what is absent stays."""

    email: str | None
    phone_number: str | None
    user_data: JsonObject


class Users(Repository):
    """The users table. Email addresses and phone numbers are unique."""

    __slots__ = ()

    def create(
        self,
        *,
        user_id: uuid.UUID | None = None,
        email: str | None = None,
        phone_number: str | None = None,
        user_data: JsonObject | None = None,
    ) -> UserRow:
        """The new user. Raises Conflict where the id, address or number is taken."""
        values = {
            "id": user_id or new_uuid(),
            "email": email,
            "phone_number": phone_number,
            "user_data": user_data or {},
            "created_at": self._now,
            "updated_at": self._now,
        }
        with conflicts("There is already a user with this id.", hint="Change that user.", by_column=_BY_COLUMN):
            record = self._connection.execute(insert(_users).values(values).returning(_users)).one()
        return _row(record)

    def ensure(self, user_id: uuid.UUID) -> UserRow:
        """The user with this id, made where it is unknown."""
        found = self.find(user_id)
        if found is not None:
            return found
        values: dict[str, Any] = {"id": user_id, "user_data": {}, "created_at": self._now, "updated_at": self._now}
        insert_new(self._connection, _users, values)
        return self.get(user_id)

    def find(self, user_id: uuid.UUID) -> UserRow | None:
        """The user, or None."""
        record = self._connection.execute(select(_users).where(_users.c.id == user_id)).one_or_none()
        return None if record is None else _row(record)

    def get(self, user_id: uuid.UUID) -> UserRow:
        """The user. Raises NotFound."""
        found = self.find(user_id)
        if found is None:
            raise NotFound("user", str(user_id))
        return found

    def find_by_contact(self, contact: str) -> UserRow | None:
        """The user with this email address or phone number, or None."""
        for column in (_users.c.email, _users.c.phone_number):
            record = self._connection.execute(select(_users).where(column == contact)).one_or_none()
            if record is not None:
                return _row(record)
        return None

    def update(self, user_id: uuid.UUID, **changes: Unpack[UserChanges]) -> UserRow:
        """The changed user. Raises NotFound, or Conflict where the address or number is taken."""
        statement = update(_users).where(_users.c.id == user_id).values(updated_at=self._now, **changes)
        with conflicts("The change contradicts another user.", by_column=_BY_COLUMN):
            record = self._connection.execute(statement.returning(_users)).one_or_none()
        if record is None:
            raise NotFound("user", str(user_id))
        return _row(record)

    def delete(self, user_id: uuid.UUID) -> UserRow:
        """The user that was deleted, with their sessions and memories. Their keys are revoked, their webhooks and schedules
        switched off; runs stay as records.

        Raises: NotFound.
        """
        keys = schema.api_keys
        self._connection.execute(
            update(keys).where(keys.c.user_id == user_id, keys.c.revoked_at.is_(None)).values(revoked_at=self._now)
        )
        dissolve(self._connection, schema.sessions.c.user_id == user_id)
        webhooks = schema.webhooks
        self._connection.execute(update(webhooks).where(webhooks.c.user_id == user_id).values(active=False))
        Schedules(self._connection, self._now).stop_of_user(user_id)
        Artifacts(self._connection, self._now).release_user(user_id)
        notify(self._connection, "changed keys")
        statement = delete_from(_users).where(_users.c.id == user_id).returning(_users)
        record = self._connection.execute(statement).one_or_none()
        if record is None:
            raise NotFound("user", str(user_id))
        return _row(record)

    def list(
        self,
        *,
        user_id: uuid.UUID | None = None,
        email: str | None = None,
        phone_number: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[UserRow]:
        """Users, newest first."""
        statement = select(_users)
        if user_id is not None:
            statement = statement.where(_users.c.id == user_id)
        if email is not None:
            statement = statement.where(_users.c.email == email)
        if phone_number is not None:
            statement = statement.where(_users.c.phone_number == phone_number)
        key = (_users.c.created_at, _users.c.id)
        return fetch_page(self._connection, statement, key, _row, limit=limit, cursor=cursor)


def _row(record: Row[Any]) -> UserRow:
    return UserRow(
        user_id=record.id,
        email=record.email,
        phone_number=record.phone_number,
        user_data=record.user_data,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )
