"""PostgresBackend: PostgreSQL as the Store uses it."""

from collections.abc import Callable
from typing import Literal, TypeVar

from sqlalchemy import Connection

from automagik.store.hot import CommitObserver, HotPath
from automagik.store.postgres import PostgresDatabase
from automagik.store.postgres_hot import PostgresHot
from automagik.store.postgres_signals import PostgresSignals
from automagik.store.replica import PostgresReplica
from automagik.store.signals import Signals
from automagik.types import Clock

__all__ = ["PostgresBackend"]

T = TypeVar("T")


class PostgresBackend:
    """PostgreSQL. Several processes may use it."""

    dialect: Literal["sqlite", "postgresql"] = "postgresql"

    def __init__(
        self, url: str, pool_size: int, clock: Clock, wrote: CommitObserver, *, replica_url: str | None = None
    ) -> None:
        self._database = PostgresDatabase(url, pool_size)
        self._replica = PostgresReplica(replica_url, pool_size, self._database, clock) if replica_url else None
        self._lanes = PostgresHot(self._database, clock, wrote)
        self.hot: HotPath = self._lanes
        self.signals: Signals = PostgresSignals(self._database)

    async def open(self) -> None:
        await self._database.open()
        await self._lanes.open()
        try:
            if self._replica is not None:
                await self._replica.open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        await self.signals.close()
        await self._lanes.close()
        if self._replica is not None:
            await self._replica.close()
        await self._database.close()

    async def read(self, work: Callable[[Connection], T]) -> T:
        return await self._database.read(work)

    async def browse(self, work: Callable[[Connection], T]) -> T:
        return await (self._database if self._replica is None else self._replica).read(work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        return await self._database.write(work)

    async def acquire_ownership(self, owner: str) -> None:
        del owner  # any number of processes share it; each shows that it lives by its heartbeat
