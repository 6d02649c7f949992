"""backup, restore, copy: all rows of a database, at one moment, in one transaction, checked by their counts.

The archive of either database is an SQLite file with the platform's own tables, so a backup of one can be restored into
the other, and copying is restoring.
"""

import asyncio
import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Table, delete, func, insert, select, text
from sqlalchemy.exc import SQLAlchemyError

from automagik.errors import ConfigurationError, Conflict, Internal, InvalidInput
from automagik.settings import Settings
from automagik.store import schema
from automagik.store.failures import translated
from automagik.store.locks import FileLock
from automagik.store.migrator import current_revision
from automagik.store.sqlite import (
    connect_sqlite,
    database_file,
    own_folder,
    prepare_sqlite,
    sqlite_transaction,
    wrap_sqlite,
)

__all__ = ["Copied", "backup", "copy", "restore", "server_of"]

_BATCH = 500
"""Rows that are read and written at a time."""

_PASSING = frozenset({schema.executors.name, schema.rate_counters.name})
"""Tables of what is true of this moment only: which processes live, and what they counted. They are not carried over."""

_KEPT = [table for table in schema.metadata.sorted_tables if table.name not in _PASSING]


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied: the number of rows of each table."""

    rows: dict[str, int]

    @property
    def total(self) -> int:
        """All rows."""
        return sum(self.rows.values())


async def backup(settings: Settings, target: Path) -> Copied:
    """Write the database that the settings name to the new file `target`, also while a server runs.

    Raises:
        Conflict: the file is there already.
        ConfigurationError: the database can't be used, or is not at this version's schema.
    """
    with _part_of(target) as part:
        if settings.database_url is None:
            copied = await asyncio.to_thread(_snapshot, database_file(settings.data_dir), part)
        else:
            copied = await _from_postgres(settings.database_url.get_secret_value(), part)
        part.replace(target)
    return copied


async def restore(settings: Settings, source: Path, *, replace: bool = False) -> Copied:
    """Fill the database that the settings name with the archive `source`: all of it, or nothing.

    Raises:
        InvalidInput: `source` is no archive of Automagik's.
        Conflict: the database has rows, and `replace` does not allow to delete them.
        ConfigurationError: the database can't be used, a server uses the data folder, or the archive is from a newer version.
    """
    with tempfile.TemporaryDirectory(prefix="automagik-") as folder:
        archive = Path(folder) / "archive.db"
        await asyncio.to_thread(_lift, source, archive)
        if settings.database_url is not None:
            return await _into_postgres(settings.database_url.get_secret_value(), archive, replace=replace)
        return await asyncio.to_thread(_into_sqlite, settings.data_dir, archive, replace=replace)


def server_of(settings: Settings) -> str | None:
    """The name of the server that uses the data folder now, or None: what it stores while we copy is not in the copy."""
    lock = FileLock(database_file(settings.data_dir).parent / "server.lock")
    return (lock.holder() or "its name is not known") if lock.is_taken() else None


async def copy(settings: Settings, url: str, *, replace: bool = False) -> Copied:
    """Copy the data folder's SQLite database to the PostgreSQL database at `url`, which is made ready for it.

    Raises: as `restore`.
    """
    with tempfile.TemporaryDirectory(prefix="automagik-") as folder:
        archive = Path(folder) / "archive.db"
        await asyncio.to_thread(_snapshot, database_file(settings.data_dir), archive)
        await asyncio.to_thread(prepare_sqlite, archive)
        return await _into_postgres(url, archive, replace=replace, named="--to")


def _pour(source: Connection, target: Connection, *, replace: bool) -> Copied:
    """Copy all rows within the transactions that both connections are in."""
    filled = [table.name for table in _KEPT if _count(target, table)]
    if filled and not replace:
        raise Conflict(
            f"The database that would be filled has rows already: {', '.join(filled)}.",
            hint="Name an empty database, or say that its rows may be replaced.",
        )
    for table in reversed(_KEPT):
        target.execute(delete(table))
    for table in _KEPT:
        key = list(table.primary_key.columns)
        rows = source.execution_options(yield_per=_BATCH).execute(select(table).order_by(*key))
        for batch in rows.mappings().partitions():
            target.execute(insert(table), [dict(row) for row in batch])
    copied = {table.name: _count(target, table) for table in _KEPT}
    if copied != {table.name: _count(source, table) for table in _KEPT}:
        raise Internal("The copy has not as many rows as the original; nothing was changed.", hint="Try again.")
    if target.dialect.name == "postgresql":
        _go_on_counting(target)
    return Copied(copied)


def _count(connection: Connection, table: Table) -> int:
    return connection.scalar(select(func.count()).select_from(table)) or 0


def _go_on_counting(connection: Connection) -> None:
    """Let the next row of each table get an id above those that were copied."""
    for table in _KEPT:
        if "id" in table.c and table.c.id.type.python_type is int:
            connection.execute(
                text(
                    f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'),"  # noqa: S608 - our tables' names
                    f" coalesce((SELECT max(id) FROM {table.name}), 0) + 1, false)"
                )
            )


def _snapshot(source: Path, target: Path) -> Copied:
    """Copy an SQLite file at one moment, while others write to it."""
    if not source.exists():
        raise ConfigurationError(
            f"There is no database {source}.", hint="Set AUTOMAGIK_DATA_DIR or AUTOMAGIK_DATABASE_URL."
        )
    with contextlib.closing(connect_sqlite(source)) as original, contextlib.closing(sqlite3.connect(target)) as made:
        original.backup(made)
        made.execute("PRAGMA journal_mode=DELETE")  # one file, without companions
        tables = {name for (name,) in made.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for name in sorted(_PASSING & tables):
            made.execute(f"DELETE FROM {name}")  # noqa: S608 - our own names
        made.commit()
        return Copied(
            {
                table.name: made.execute(f"SELECT count(*) FROM {table.name}").fetchone()[0]  # noqa: S608 - our own names
                for table in _KEPT
                if table.name in tables
            }
        )


def _lift(source: Path, archive: Path) -> None:
    """Copy an archive and bring the copy to this version's schema; the archive itself is only read."""
    if not source.is_file():
        raise InvalidInput(f"There is no file {source}.", field=("file",), hint="Name an archive of `db backup`.")
    try:
        _snapshot(source, archive)
        with contextlib.closing(connect_sqlite(archive)) as raw, wrap_sqlite(raw) as connection:
            known = current_revision(connection) is not None
    except sqlite3.DatabaseError as wrong:
        raise _no_archive(source) from wrong
    if not known:
        raise _no_archive(source)
    prepare_sqlite(archive)


def _no_archive(source: Path) -> InvalidInput:
    return InvalidInput(
        f"The file {source} is no archive of Automagik's.", field=("file",), hint="Name one of `db backup`."
    )


def _into_sqlite(data_dir: Path, archive: Path, *, replace: bool) -> Copied:
    path = database_file(data_dir)
    prepare_sqlite(path)
    owned = FileLock(path.parent / "server.lock")
    own_folder(owned, path.parent, f"restore, process {os.getpid()}")
    try:
        with _sqlite_transaction(archive) as source, _sqlite_transaction(path) as target:
            return _pour(source, target, replace=replace)
    finally:
        owned.release()


async def _into_postgres(url: str, archive: Path, *, replace: bool, named: str = "AUTOMAGIK_DATABASE_URL") -> Copied:
    def work(target: Connection) -> Copied:
        with _sqlite_transaction(archive) as source:
            return _pour(source, target, replace=replace)

    return await _on_postgres(url, work, write=True, named=named)


async def _from_postgres(url: str, part: Path) -> Copied:
    await asyncio.to_thread(prepare_sqlite, part, journal="DELETE")

    def work(source: Connection) -> Copied:
        with _sqlite_transaction(part) as target:
            return _pour(source, target, replace=False)

    return await _on_postgres(url, work, write=False)


async def _on_postgres(
    url: str, work: Callable[[Connection], Copied], *, write: bool, named: str = "AUTOMAGIK_DATABASE_URL"
) -> Copied:
    # Imported here: the driver takes 0.1 s, which a start on SQLite need not pay.
    from automagik.store.postgres import PostgresDatabase  # noqa: PLC0415

    database = PostgresDatabase(url, 2, named=named)
    await database.open(migrates=write)
    try:
        return await (database.write(work) if write else database.read(work))
    finally:
        await database.close()


@contextmanager
def _sqlite_transaction(path: Path) -> Generator[Connection]:
    try:
        with contextlib.closing(connect_sqlite(path)) as raw, sqlite_transaction(raw) as connection:
            yield connection
    except (sqlite3.Error, SQLAlchemyError) as error:
        raise translated(error) from error


@contextmanager
def _part_of(target: Path) -> Generator[Path]:
    """A file beside `target` that only this user may read; gone at the end unless it was renamed."""
    if target.exists():
        raise Conflict(f"The file {target} is there already.", hint="Choose another name, or remove the file.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".automagik-backup-", dir=target.parent) as folder:
        part = Path(folder) / "part.db"
        part.touch(mode=0o600)
        yield part
