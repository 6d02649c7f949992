"""DurablePlace: where DBOS keeps its rows, beside the platform's own: in the same PostgreSQL database, or a file of its own."""

import os
import random
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import URL, make_url
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from automagik.errors import ConfigurationError
from automagik.store.failures import translated, unavailable

__all__ = ["DurablePlace", "durable_meaning"]

_log = structlog.stdlib.get_logger(__name__)

_FILE = "durable.db"
_CONNECT_SECONDS = 5
_RETRY_SECONDS = 0.5


class DurablePlace:
    """A database as DBOS is told of it: its URL, and what its SQLAlchemy engine is made with besides."""

    def __init__(self, data_dir: Path, database_url: str | None) -> None:
        """The place that goes with `database_url`; where there is none a file in the data folder, which is made."""
        self._patient = False
        self._ended = threading.Event()
        self._away = False
        if database_url is not None:
            self.url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
            self.engine_options: Mapping[str, Any] = {"creator": self._connect}
        else:
            self.url = _made_file(data_dir / _FILE)
            self.engine_options = {"connect_args": {"factory": _Connection}}

    def wait_for_connections(self) -> None:
        """From now on let DBOS's threads wait for a database that is away, until it is back or `end` is called.

        By itself DBOS tries again after up to 90 s, does so in threads that keep the process from ending, and not at all
        where a name or a socket is missing.
        """
        self._patient = True

    def end(self) -> None:
        """Let nobody wait any more."""
        self._ended.set()

    def _connect(self) -> object:
        import psycopg  # noqa: PLC0415 - DBOS's driver: 40 ms, which a process without DBOS need not pay

        while True:
            try:
                connection = psycopg.connect(
                    self.url, application_name="automagik durable", connect_timeout=_CONNECT_SECONDS
                )
            except psycopg.OperationalError as error:
                if not self._patient:
                    raise
                if not self._away:
                    _log.warning("durable_database_away", cause=str(error))
                self._away = True
            else:
                self._away = False
                return connection
            if self._ended.wait(_RETRY_SECONDS * random.uniform(0.5, 1.5)):  # noqa: S311 - spreads attempts, keeps no secret
                raise psycopg.InterfaceError("DBOS is stopping.")  # which it does not try again


def durable_meaning(error: BaseException) -> BaseException:
    """What it means that DBOS does not start; any error that is no database's as it is."""
    state = getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None
    meaning: BaseException
    if isinstance(error, OperationalError) and state is None:
        meaning = unavailable()
    elif isinstance(error, ProgrammingError) and state is None:
        meaning = ConfigurationError(
            "The parameters of AUTOMAGIK_DATABASE_URL are not all known to libpq, which queued work uses.",
            hint="Use libpq's names, as `sslmode` instead of `ssl`.",
        )
    elif state == "42501":
        meaning = ConfigurationError(
            "The user of AUTOMAGIK_DATABASE_URL may not make the schema 'dbos', in which queued work is kept.",
            hint="GRANT CREATE ON DATABASE to that user, or make the schema 'dbos' and give it to the user.",
        )
    else:
        return translated(error)
    meaning.__cause__ = error
    return meaning


class _Connection(sqlite3.Connection):
    """A connection that does not wait for the disk at each commit: the rows are lost only with the machine, not the process."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.execute("PRAGMA synchronous = NORMAL")


def _made_file(path: Path) -> str:
    """The URL of a SQLite file that only its owner reads."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()
    return URL.create("sqlite", database=str(path)).render_as_string()
