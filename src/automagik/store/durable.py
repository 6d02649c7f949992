"""DurablePlace: where DBOS keeps its rows, beside the platform's own: in the same PostgreSQL database, or a file of its own."""

import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, make_url

__all__ = ["DurablePlace", "durable_place"]

_FILE = "durable.db"
_CONNECT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class DurablePlace:
    """A database as DBOS is told of it: its URL, and what its engine is made with besides."""

    url: str
    engine_options: Mapping[str, Any]


def durable_place(data_dir: Path, database_url: str | None) -> DurablePlace:
    """The place that goes with `database_url`, or with the data folder where there is none; then its file is made."""
    if database_url is not None:
        url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
        return DurablePlace(url, {"creator": lambda: _connect_postgres(url)})
    path = data_dir / _FILE
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()
    return DurablePlace(
        URL.create("sqlite", database=str(path)).render_as_string(), {"connect_args": {"factory": _Connection}}
    )


def _connect_postgres(url: str) -> object:
    """A connection of psycopg, DBOS's driver, whose failure DBOS takes for one that passes, whatever it was.

    It looks for the words "connection failed", which psycopg has for a server that refuses, and not for a name or socket
    that is missing for a while.
    """
    import psycopg  # noqa: PLC0415 - DBOS's own driver, 40 ms, which a process without it need not pay

    try:
        return psycopg.connect(url, application_name="automagik durable", connect_timeout=_CONNECT_SECONDS)
    except psycopg.OperationalError as error:
        raise psycopg.OperationalError(f"connection failed: {error}") from error


class _Connection(sqlite3.Connection):
    """A connection that does not wait for the disk at each commit: the rows are lost only with the machine, not the process."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.execute("PRAGMA synchronous = NORMAL")
