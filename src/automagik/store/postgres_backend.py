"""PostgresBackend: PostgreSQL as the Store uses it."""

from collections.abc import Callable
from typing import Literal, TypeVar

from sqlalchemy import Connection

from automagik.store.hot import CommitObserver, HotPath
from automagik.store.postgres import PostgresDatabase
from automagik.store.postgres_hot import PostgresHot
from automagik.store.postgres_signals import PostgresSignals
from automagik.store.signals import Signals
from automagik.types import Clock

__all__ = ["PostgresBackend"]

T = TypeVar("T")


class PostgresBackend:
    """PostgreSQL. Several processes may use it."""

    dialect: Literal["sqlite", "postgresql"] = "postgresql"

    def __init__(self, url: str, pool_size: int, clock: Clock, wrote: CommitObserver) -> None:
        self._database = PostgresDatabase(url, pool_size)
        self._lanes = PostgresHot(self._database, clock, wrote)
        self.hot: HotPath = self._lanes
        self.signals: Signals = PostgresSignals(self._database)

    async def open(self) -> None:
        await self._database.open()
        await self._lanes.open()

    async def close(self) -> None:
        await self.signals.close()
        await self._lanes.close()
        await self._database.close()

    async def read(self, work: Callable[[Connection], T]) -> T:
        return await self._database.read(work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        return await self._database.write(work)

    async def acquire_ownership(self, owner: str) -> None:
        del owner  # any number of processes share it; each shows that it lives by its heartbeat
