"""Repository: what the access to every table has in common."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from automagik.errors import Conflict

__all__ = ["Repository", "conflicts", "insert_new"]


def insert_new(connection: Connection, table: Table, values: Mapping[str, Any]) -> None:
    """Insert a row, or do nothing where it, or one that it contradicts, is there or is being inserted by somebody else."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(dialect.insert(table).values(**values).on_conflict_do_nothing())


class Repository:
    """Access to one table within a transaction. `_now` is the transaction's one moment."""

    __slots__ = ("_connection", "_now")

    def __init__(self, connection: Connection, now: datetime) -> None:
        self._connection = connection
        self._now = now


@contextmanager
def conflicts(detail: str, *, hint: str | None = None, by_column: Mapping[str, str] | None = None) -> Generator[None]:
    """Turn a broken constraint into a Conflict that says `detail`, or what `by_column` has for the column it names."""
    try:
        yield
    except IntegrityError as broken:
        cause = str(broken.orig)
        for column, text in (by_column or {}).items():
            if column in cause:
                detail = text
        raise Conflict(detail, hint=hint) from broken
