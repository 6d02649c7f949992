"""Rate limits: how often each key asked, counted over all instances (Redis, else PostgreSQL) or in this process."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import structlog
from limits import RateLimitItem
from limits.aio.storage import MemoryStorage, RedisStorage, Storage

from automagik.app import Platform
from automagik.errors import AutomagikError
from automagik.store import Store
from automagik.types import Clock

__all__ = ["HitCounter", "Hits", "SharedHits", "StorageHits", "StoredHits", "hit_counter"]

_log = structlog.stdlib.get_logger(__name__)

_RETRY_SECONDS = 2.0
"""How long a shared counter that is away is left alone."""
_TIDY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Hits:
    """How many hits the window under way has with this one, and how many seconds are left of it."""

    count: int
    seconds_left: float


class HitCounter(Protocol):
    """Counts hits in fixed windows."""

    async def hit(self, name: str, limit: RateLimitItem) -> Hits:
        """Count one more hit of `name` in the window of the limit's length."""
        ...


class StorageHits:
    """Hits in a storage of `limits`: this process's memory, or one Redis; windows begin with their first hit.

    Raises what redis-py raises when Redis is away.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def hit(self, name: str, limit: RateLimitItem) -> Hits:
        """As `HitCounter.hit`."""
        key = limit.key_for(name)
        count = await self._storage.incr(key, limit.get_expiry())
        if count <= limit.amount:
            return Hits(count, limit.get_expiry())  # nobody asks how long a window lasts that is not used up
        return Hits(count, await self._storage.get_expiry(key) - time.time())  # the storage's own clock


class StoredHits:
    """Hits of all instances that use one database. What comes while a name is being counted is counted together next."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._waiting: dict[str, list[asyncio.Future[Hits]]] = {}
        self._counting: dict[str, asyncio.Task[None]] = {}
        self._tidied_at = clock.monotonic()

    async def hit(self, name: str, limit: RateLimitItem) -> Hits:
        """As `HitCounter.hit`. Raises ServiceUnavailable when the database is away."""
        name = f"{name}:{limit.get_expiry()}"
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Hits] = loop.create_future()
        self._waiting.setdefault(name, []).append(future)
        if name not in self._counting:
            self._counting[name] = loop.create_task(self._count(name, limit.get_expiry()))
        return await future

    async def _count(self, name: str, period_seconds: int) -> None:
        try:
            while waiting := self._waiting.pop(name, None):
                await self._count_together(name, period_seconds, waiting)
        finally:
            del self._counting[name]

    async def _count_together(self, name: str, period_seconds: int, waiting: "list[asyncio.Future[Hits]]") -> None:
        try:
            window = await self._store.write(lambda tx: tx.rates.hit(name, period_seconds, len(waiting)))
            first = window.hits - len(waiting) + 1
            for place, future in enumerate(waiting):
                if not future.done():
                    future.set_result(Hits(first + place, window.seconds_left))
            await self._tidy()
        except AutomagikError as error:
            for future in waiting:
                if not future.done():
                    future.set_exception(error)
        finally:
            for future in waiting:
                future.cancel()  # only those that have no answer

    async def _tidy(self) -> None:
        now = self._clock.monotonic()
        if now - self._tidied_at > _TIDY_SECONDS:
            self._tidied_at = now
            await self._store.write(lambda tx: tx.rates.forget_expired())


class SharedHits:
    """Hits of all instances where they can be counted together, of this process where they can't: a request does not fail
    for that. The change is logged once, each way."""

    def __init__(self, shared: HitCounter, failures: tuple[type[Exception], ...], clock: Clock) -> None:
        self._shared = shared
        self._failures = failures
        self._clock = clock
        self._local = StorageHits(MemoryStorage())
        self._is_away = False
        self._retry_at = 0.0

    async def hit(self, name: str, limit: RateLimitItem) -> Hits:
        """As `HitCounter.hit`."""
        if self._is_away:
            if self._clock.monotonic() < self._retry_at:
                return await self._local.hit(name, limit)
            self._retry_at = self._clock.monotonic() + _RETRY_SECONDS  # this one tries, others need not wait for it
        try:
            hits = await self._shared.hit(name, limit)
        except self._failures as error:
            if not self._is_away:
                _log.warning("rate_limits_local", cause=type(error).__name__, hint="Each instance counts by itself.")
            self._is_away = True
            self._retry_at = self._clock.monotonic() + _RETRY_SECONDS
            return await self._local.hit(name, limit)
        if self._is_away:
            _log.info("rate_limits_shared")
        self._is_away = False
        return hits


def hit_counter(platform: Platform) -> HitCounter:
    """The counter for this platform: over Redis where there is one, over PostgreSQL, else (SQLite) in process."""
    if platform.redis is not None:
        make = cast("Callable[..., Storage]", RedisStorage)
        storage = make(
            "async+redis://", implementation="redispy", key_prefix="automagik", connection_pool=platform.redis.pool
        )
        return SharedHits(StorageHits(storage), platform.redis.failures, platform.clock)
    if platform.store.dialect == "postgresql":
        return SharedHits(StoredHits(platform.store, platform.clock), (AutomagikError,), platform.clock)
    return StorageHits(MemoryStorage())
