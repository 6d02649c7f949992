"""Keys: API keys, of which only the hash is kept."""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, func, insert, select, text, update

from automagik.errors import NotFound
from automagik.store import schema
from automagik.store.pages import fetch_page
from automagik.store.repository import Repository, conflicts
from automagik.store.rows import KeyRow, Page
from automagik.store.turns import notify
from automagik.store.users import Users
from automagik.types import new_id

__all__ = ["Keys"]

_keys = schema.api_keys


class Keys(Repository):
    """The api_keys table. A key is never deleted, only revoked: what it did names it."""

    __slots__ = ()

    def create(
        self,
        name: str,
        *,
        prefix: str,
        key_hash: bytes,
        scopes: Sequence[str],
        user_id: uuid.UUID | None = None,
        rate_limit: str | None = None,
        max_concurrent_runs: int | None = None,
        made_by: str | None = None,
        expires_at: datetime | None = None,
        key_id: str | None = None,
    ) -> KeyRow:
        """The new key. Raises NotFound for an unknown user."""
        if user_id is not None:
            Users(self._connection, self._now).get(user_id)
        values = {
            "key_id": key_id or new_id("key"),
            "name": name,
            "prefix": prefix,
            "key_hash": key_hash,
            "scopes": list(scopes),
            "user_id": user_id,
            "rate_limit": rate_limit,
            "max_concurrent_runs": max_concurrent_runs,
            "made_by": made_by,
            "expires_at": expires_at,
            "created_at": self._now,
        }
        with conflicts("There is already such a key.", hint="Try again."):
            record = self._connection.execute(insert(_keys).values(values).returning(_keys)).one()
        return _row(record)

    def find(self, key_id: str) -> KeyRow | None:
        """The key, or None."""
        record = self._connection.execute(select(_keys).where(_keys.c.key_id == key_id)).one_or_none()
        return None if record is None else _row(record)

    def get(self, key_id: str) -> KeyRow:
        """The key. Raises NotFound."""
        found = self.find(key_id)
        if found is None:
            raise NotFound("key", key_id)
        return found

    def find_by_hash(self, key_hash: bytes) -> KeyRow | None:
        """The key with this SHA-256, revoked or not, or None."""
        record = self._connection.execute(select(_keys).where(_keys.c.key_hash == key_hash)).one_or_none()
        return None if record is None else _row(record)

    def makers(self, row: KeyRow) -> list[KeyRow]:
        """The keys that it descends from, as far as their limits count for it, nearest first."""
        makers: list[KeyRow] = []
        while row.made_by is not None and (maker := self.find(row.made_by)) is not None:
            makers.append(maker)
            row = maker
        return makers

    def lock(self) -> None:
        """Let no other transaction change keys until this one ends, so that what is read of them stays true."""
        if self._connection.dialect.name == "postgresql":  # SQLite has one writer at a time anyway
            self._connection.execute(text("LOCK TABLE api_keys IN SHARE ROW EXCLUSIVE MODE"))

    def count(self) -> int:
        """How many keys there are, revoked ones too."""
        return self._connection.scalar(select(func.count()).select_from(_keys)) or 0

    def revoke(self, key_id: str) -> KeyRow:
        """The key, revoked now or, where it was revoked before, as it was. Raises NotFound."""
        self._connection.execute(
            update(_keys).where(_keys.c.key_id == key_id, _keys.c.revoked_at.is_(None)).values(revoked_at=self._now)
        )
        notify(self._connection, f"changed keys {key_id}")
        return self.get(key_id)

    def touch(self, key_id: str, used_at: datetime) -> None:
        """Note when the key was last used."""
        self._connection.execute(update(_keys).where(_keys.c.key_id == key_id).values(last_used_at=used_at))

    def list(self, *, user_id: uuid.UUID | None = None, limit: int = 50, cursor: str | None = None) -> Page[KeyRow]:
        """Keys, newest first, revoked ones too."""
        statement = select(_keys)
        if user_id is not None:
            statement = statement.where(_keys.c.user_id == user_id)
        return fetch_page(self._connection, statement, (_keys.c.key_id,), _row, limit=limit, cursor=cursor)


def _row(record: Row[Any]) -> KeyRow:
    return KeyRow(
        key_id=record.key_id,
        name=record.name,
        prefix=record.prefix,
        key_hash=record.key_hash,
        scopes=record.scopes,
        user_id=record.user_id,
        rate_limit=record.rate_limit,
        max_concurrent_runs=record.max_concurrent_runs,
        made_by=record.made_by,
        expires_at=record.expires_at,
        last_used_at=record.last_used_at,
        revoked_at=record.revoked_at,
        created_at=record.created_at,
    )
