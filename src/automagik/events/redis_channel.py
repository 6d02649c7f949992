"""Redis's one door: signals by its publish and subscribe, with those of the database to fall back on, and its connections."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, cast

import structlog
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from automagik.errors import ConfigurationError
from automagik.store.signals import Heard, Listeners, Signals, message_of

__all__ = ["RedisConnections", "RedisSignals"]

_log = structlog.stdlib.get_logger(__name__)

_FAILURES = (RedisError, OSError)
_ANSWER_SECONDS = 2.0
"""How long Redis may take to answer, or to take a connection."""
_PING_SECONDS = 10.0
_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 5.0


class _PubSub(Protocol):
    """What is used of redis-py's PubSub, whose types are not complete."""

    async def subscribe(self, *channels: str) -> None: ...

    async def get_message(self, *, timeout: float | None) -> Mapping[str, Any] | None: ...  # noqa: ASYNC109

    async def ping(self) -> None: ...

    async def aclose(self) -> None: ...


class RedisConnections:
    """Connections to a Redis or Valkey that fail at once where it is away: whoever uses them knows what to do instead."""

    failures: tuple[type[Exception], ...] = _FAILURES
    """What is raised when Redis is away."""

    def __init__(self, url: str) -> None:
        """Connects when it is first used. Raises ConfigurationError for a URL that is none of Redis's."""
        self.is_answering = False
        """Whether Redis answered lately, as RedisSignals finds."""
        try:
            self.pool = ConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType] - redis-py's types have gaps
                url,
                decode_responses=True,
                protocol=2,
                socket_timeout=_ANSWER_SECONDS,
                socket_connect_timeout=_ANSWER_SECONDS,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError as error:
            raise ConfigurationError(
                "The URL of AUTOMAGIK_REDIS_URL can't be used.",
                hint="Write `redis://:PASSWORD@HOST:6379/0`, `rediss://…` for TLS, or `unix:///PATH`.",
            ) from error

    async def close(self) -> None:
        """Let go of all connections."""
        await self.pool.disconnect()


class RedisSignals:
    """Signals by Redis where it answers, by the database where it does not. Everybody listens to both, so nobody is missed.

    Each topic is a channel of its own, `automagik:DB:TOPIC`, so an instance gets only what it listens to.
    """

    def __init__(self, connections: RedisConnections, fallback: Signals) -> None:
        """Whoever made `connections` and `fallback` opens and closes them."""
        self._connections = connections
        self._client = Redis(connection_pool=connections.pool)
        self._prefix = f"automagik:{connections.pool.connection_kwargs.get('db') or 0}:"
        self._fallback = fallback
        self._listeners = Listeners()
        self._topics: set[str] = set()
        self._pubsub: _PubSub | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._opened = asyncio.Event()
        self._subscribing: set[asyncio.Task[None]] = set()
        self.largest = fallback.largest

    async def open(self) -> None:
        """As `Signals.open`; where Redis is away, it is tried again and again."""
        if self._keeping is None:
            self._keeping = asyncio.get_running_loop().create_task(self._keep(), name="redis signals")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await self._opened.wait()

    async def close(self) -> None:
        """Hear and send no more."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping, *self._subscribing])
            self._keeping = None
        await self._client.aclose()

    def listen(self, topic: str, heard: Heard) -> Callable[[], None]:
        """As `Signals.listen`."""
        leaving = [self._listeners.listen(topic, heard), self._fallback.listen(topic, heard)]
        if topic not in self._topics:
            self._topics.add(topic)
            if self._pubsub is not None:
                task = asyncio.get_running_loop().create_task(self._subscribe(self._pubsub, topic))
                self._subscribing.add(task)
                task.add_done_callback(self._subscribing.discard)
        return lambda: _call_all(leaving)

    def on_gap(self, missed: Callable[[], None]) -> Callable[[], None]:
        """As `Signals.on_gap`."""
        leaving = [self._listeners.on_gap(missed), self._fallback.on_gap(missed)]
        return lambda: _call_all(leaving)

    async def send(self, topic: str, text: str = "") -> None:
        """As `Signals.send`: by the database where Redis does not answer, or nobody listens to the topic there."""
        message = message_of(topic, text, self.largest)
        if self._pubsub is not None:
            try:
                publish = cast("Callable[[str, str], Awaitable[int]]", self._client.publish)
                if await publish(self._prefix + topic, message):
                    return
            except _FAILURES:
                await self._drop()
        await self._fallback.send(topic, text)

    # -- the connection that listens

    async def _keep(self) -> None:
        wait, was_there = _FIRST_WAIT_SECONDS, True
        while True:
            pubsub = cast("_PubSub", self._client.pubsub())  # pyright: ignore[reportUnknownMemberType]
            try:
                await pubsub.subscribe(*(self._prefix + topic for topic in (*self._topics, "")))
                if not was_there:
                    _log.info("redis_back")
                wait, was_there = _FIRST_WAIT_SECONDS, True
                self._pubsub = pubsub
                self._connections.is_answering = True
                self._opened.set()
                self._listeners.tell_gap()
                await self._read(pubsub)
            except _FAILURES as error:
                if was_there:
                    _log.warning(
                        "redis_away", cause=type(error).__name__, hint="Signals go through the database meanwhile."
                    )
                was_there = False
            finally:
                self._pubsub = None
                self._connections.is_answering = False
                self._opened.set()
                with contextlib.suppress(*_FAILURES):
                    await pubsub.aclose()
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311 - spreads attempts, keeps no secret
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)

    async def _read(self, pubsub: _PubSub) -> None:
        """Hear until the connection is lost. Raises one of _FAILURES then."""
        pinged = False
        while self._pubsub is pubsub:
            message = await pubsub.get_message(timeout=_PING_SECONDS)
            if message is not None:
                pinged = False
                if message["type"] == "message":
                    self._listeners.hear(message["data"])
            elif pinged:
                raise TimeoutError
            else:
                pinged = True
                await pubsub.ping()

    async def _subscribe(self, pubsub: _PubSub, topic: str) -> None:
        with contextlib.suppress(*_FAILURES):  # the task that reads finds out, and subscribes to all anew
            await pubsub.subscribe(self._prefix + topic)

    async def _drop(self) -> None:
        """Begin anew: Redis did not take a message."""
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            with contextlib.suppress(*_FAILURES):
                await pubsub.aclose()


def _call_all(functions: list[Callable[[], None]]) -> None:
    for function in functions:
        function()
