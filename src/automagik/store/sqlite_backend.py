"""SqliteBackend: the data folder's database as the Store uses it."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from sqlalchemy import Connection

from automagik.store.hot import CommitObserver, HotPath
from automagik.store.signals import LocalSignals, Signals
from automagik.store.sqlite import SqliteDatabase
from automagik.store.sqlite_hot import SqliteHot

__all__ = ["SqliteBackend"]

T = TypeVar("T")


class SqliteBackend:
    """SQLite. One server at a time owns the data folder, so the runs of every other owner are those of a dead process."""

    dialect: Literal["sqlite", "postgresql"] = "sqlite"

    def __init__(self, path: Path, wrote: CommitObserver) -> None:
        self._database = SqliteDatabase(path, wrote)
        self.hot: HotPath = SqliteHot(self._database)
        self.signals: Signals = LocalSignals()

    async def open(self) -> None:
        await self._database.open()

    async def close(self) -> None:
        await self._database.close()

    async def read(self, work: Callable[[Connection], T]) -> T:
        return await self._database.read(lambda handle: work(handle.connection))

    async def browse(self, work: Callable[[Connection], T]) -> T:
        return await self.read(work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        return await self._database.write(lambda handle: work(handle.connection))

    async def acquire_ownership(self, owner: str) -> None:
        self._database.acquire_ownership(owner)
