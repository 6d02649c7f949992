"""RateLimits: how often each key asked, counted over all instances (Redis, else PostgreSQL) or in this process."""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import structlog
from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage, RedisStorage, Storage

from automagik.errors import AutomagikError, RateLimited
from automagik.store import Store
from automagik.types import Caller, Clock

__all__ = ["HitCounter", "Hits", "RateLimits", "SharedHits", "StorageHits", "StoredHits", "hit_counter"]

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


class RateLimits:
    """Holds keys to their rate limits: what they ask the API, and the runs that their schedules begin."""

    def __init__(self, hits: HitCounter) -> None:
        self._hits = hits
        self._limits: dict[str, RateLimitItem] = {}

    async def count(self, caller: Caller) -> None:
        """Count one more in the name of the caller's key, and of those from which it descends.

        Raises: RateLimited where one of them used up its allowance.
        """
        if caller.rate_limit is not None:
            await self._count(caller.key_id or "", caller.rate_limit)
        for key_id, rate_limit in caller.shared_limits:
            await self._count(key_id, rate_limit, shared=True)

    async def _count(self, key_id: str, rate_limit: str, *, shared: bool = False) -> None:
        limit = self._limits.get(rate_limit)
        if limit is None:
            limit = self._limits[rate_limit] = parse(rate_limit)
        hits = await self._hits.hit(key_id, limit)
        if hits.count <= limit.amount:
            return
        wait = max(1, math.ceil(hits.seconds_left))
        who = "This key and the one that made it, with all of its keys," if shared else "This key"
        raise RateLimited(
            f"{who} may make {rate_limit.replace('/', ' requests a ')}, and {'have' if shared else 'has'}.",
            retry_after_seconds=wait,
            hint=f"Wait {wait} seconds, or use a key with a higher rate limit.",
        )


def hit_counter(
    store: Store, clock: Clock, *, redis_pool: object | None, redis_failures: tuple[type[Exception], ...] = ()
) -> HitCounter:
    """The counter of a platform: over Redis where it has a pool, over PostgreSQL, else (SQLite) in process.

    `redis_failures`: what the pool raises when Redis is away.
    """
    if redis_pool is not None:
        make = cast("Callable[..., Storage]", RedisStorage)
        storage = make("async+redis://", implementation="redispy", key_prefix="automagik", connection_pool=redis_pool)
        return SharedHits(StorageHits(storage), redis_failures, clock)
    if store.dialect == "postgresql":
        return SharedHits(StoredHits(store, clock), (AutomagikError,), clock)
    return StorageHits(MemoryStorage())
