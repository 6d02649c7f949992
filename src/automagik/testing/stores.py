"""open_store: a store on a fresh database of either kind, for tests that run on both."""

import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import SecretStr

from automagik.settings import Settings
from automagik.store import Store
from automagik.store.sqlite import database_file, prepare_sqlite
from automagik.testing.postgres import PostgresServer
from automagik.types import Clock, SystemClock

__all__ = ["fresh_settings", "lay_database", "open_store"]


@cache
def _migrated() -> bytes:
    """A database of SQLite that has the platform's tables."""
    with tempfile.TemporaryDirectory() as folder:
        path = database_file(Path(folder))
        prepare_sqlite(path)
        return path.read_bytes()


def lay_database(folder: Path) -> None:
    """Put a database with the platform's tables into an empty data folder: a tenth of the cost of making them. A folder that is
    not there yet is left to the store."""
    path = database_file(folder)
    if folder.exists() and not path.exists():
        path.touch(mode=0o600)
        path.write_bytes(_migrated())


@cache
def _settings() -> Settings:
    """What the environment says, read once in a process: each reading takes 5 ms."""
    return Settings()


@asynccontextmanager
async def fresh_settings(
    dialect: Literal["sqlite", "postgresql"], folder: Path, *, server: PostgresServer | None = None
) -> AsyncGenerator[Settings]:
    """Settings that name a fresh database: a file in `folder`, or a database of `server`, which is dropped at the end. The rest
    is as the environment was when the process asked first."""
    if dialect == "sqlite":
        lay_database(folder)
        yield _settings().model_copy(update={"data_dir": folder})
        return
    if server is None:
        raise ValueError("a PostgreSQL database needs the server that it is made on")
    url = server.create_database()
    try:
        yield _settings().model_copy(update={"data_dir": folder, "database_url": SecretStr(url)})
    finally:
        server.drop_database(url)


@asynccontextmanager
async def open_store(
    dialect: Literal["sqlite", "postgresql"],
    folder: Path,
    clock: Clock | None = None,
    *,
    server: PostgresServer | None = None,
) -> AsyncGenerator[Store]:
    """An open store on a fresh database of `dialect`; `folder` holds SQLite's file, `server` PostgreSQL's database."""
    async with fresh_settings(dialect, folder, server=server) as settings:
        store = Store.from_settings(settings, clock or SystemClock())
        await store.open()
        try:
            yield store
        finally:
            await store.close()
