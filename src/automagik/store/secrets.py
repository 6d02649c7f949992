"""Secrets: named values, of which only the encrypted form is stored, and which of the platform's keys encrypts them."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, cast

from sqlalchemy import delete as delete_from
from sqlalchemy import func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from automagik.store import schema
from automagik.store.repository import Repository, insert_new

__all__ = ["Secrets", "StoredSecret"]

_secrets = schema.secrets
_platform = schema.platform

_KEY = "secret_key"
"""The row of `platform` that says which key encrypts, by its fingerprint."""


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """An encrypted secret, and when it was last set."""

    name: str
    token: bytes
    updated_at: datetime


class Secrets(Repository):
    """The secrets table, and the row of `platform` that names their key. Nothing here can be read without that key."""

    __slots__ = ()

    def put(self, name: str, token: bytes) -> None:
        """Store a secret in the place of the one of this name."""
        dialect = postgresql if self._connection.dialect.name == "postgresql" else sqlite
        changes = {"token": token, "updated_at": self._now}
        statement = dialect.insert(_secrets).values(name=name, created_at=self._now, **changes)
        self._connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=changes))

    def find(self, name: str) -> StoredSecret | None:
        """The secret of this name, or None."""
        record = self._connection.execute(select(_secrets).where(_secrets.c.name == name)).one_or_none()
        return None if record is None else StoredSecret(record.name, record.token, record.updated_at)

    def delete(self, *names: str) -> int:
        """How many of these there were; they are gone."""
        return self._connection.execute(delete_from(_secrets).where(_secrets.c.name.in_(names))).rowcount

    def clear(self) -> int:
        """How many secrets there were; they are gone, and no key is named any more."""
        self._connection.execute(delete_from(_platform).where(_platform.c.name == _KEY))
        return self._connection.execute(delete_from(_secrets)).rowcount

    def names(self) -> list[str]:
        """The names of all secrets, sorted."""
        return list(self._connection.scalars(select(_secrets.c.name).order_by(_secrets.c.name)))

    def count(self) -> int:
        """How many secrets there are."""
        return self._connection.scalar(select(func.count()).select_from(_secrets)) or 0

    def all(self) -> Iterator[StoredSecret]:
        """Every secret, by name."""
        for record in self._connection.execute(select(_secrets).order_by(_secrets.c.name)).all():
            yield StoredSecret(record.name, record.token, record.updated_at)

    def rewrap(self, name: str, token: bytes) -> None:
        """Replace the encrypted form of a secret that stays what it is."""
        self._connection.execute(update(_secrets).where(_secrets.c.name == name).values(token=token))

    # -- which key encrypts

    def key(self, *, held: Literal["share", "update"] | None = None) -> str | None:
        """The fingerprint of the key that encrypts, or None before there is one.

        `held`: until this transaction ends nobody changes it (`share`), or reads it to encrypt with it either (`update`).
        """
        statement = select(_platform.c.value).where(_platform.c.name == _KEY)
        if held is not None:  # SQLite has one writer at a time anyway, and SQLAlchemy leaves this out there
            statement = statement.with_for_update(read=held == "share")
        value = self._connection.scalar(statement)
        return None if value is None else cast("str", value["fingerprint"])

    def claim_key(self, fingerprint: str) -> str:
        """The fingerprint of the key that encrypts from now on: this one where there was none, else the one that there is."""
        value = {"fingerprint": fingerprint}
        insert_new(self._connection, _platform, {"name": _KEY, "value": value, "updated_at": self._now})
        settled = self.key(held="share")
        return fingerprint if settled is None else settled

    def move_key(self, fingerprint: str) -> None:
        """Name another key as the one that encrypts."""
        self._connection.execute(
            update(_platform)
            .where(_platform.c.name == _KEY)
            .values(value={"fingerprint": fingerprint}, updated_at=self._now)
        )
