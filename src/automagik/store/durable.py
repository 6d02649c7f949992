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
    """A database as DBOS is told of it: its URL, and what each connection is made with."""

    url: str
    connect_args: Mapping[str, Any]


def durable_place(data_dir: Path, database_url: str | None) -> DurablePlace:
    """The place that goes with `database_url`, or with the data folder where there is none; then its file is made."""
    if database_url is not None:
        arguments = {"application_name": "automagik durable", "connect_timeout": _CONNECT_SECONDS}
        url = make_url(database_url).set(drivername="postgresql")
        return DurablePlace(url.render_as_string(hide_password=False), arguments)
    path = data_dir / _FILE
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()
    return DurablePlace(URL.create("sqlite", database=str(path)).render_as_string(), {"factory": _Connection})


class _Connection(sqlite3.Connection):
    """A connection that does not wait for the disk at each commit: the rows are lost only with the machine, not the process."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.execute("PRAGMA synchronous = NORMAL")
