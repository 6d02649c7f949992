"""PostgresSignals: signals by LISTEN and NOTIFY, over one connection of the process's own."""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable

import asyncpg
import structlog
from sqlalchemy import Connection, text

from automagik.errors import ServiceUnavailable
from automagik.store.postgres import DriverConnection, PostgresDatabase, connect_postgres, postgres_meaning
from automagik.store.signals import Heard, Listeners, message_of

__all__ = ["CHANNEL", "PostgresSignals"]

_log = structlog.stdlib.get_logger(__name__)

CHANNEL = "automagik"
"""The one channel of NOTIFY; statements that signal by themselves use it too, with `topic text` as the payload."""

_LARGEST_BATCH = 100
_SEND_SECONDS = 5.0
_PING_SECONDS = 10.0
"""How often the connection is tried: one that broke without a word is noticed then."""
_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 5.0

_NOTIFY = "SELECT pg_notify('automagik', message) FROM unnest($1::text[]) AS sent(message)"
_NOTIFY_POOLED = text("SELECT pg_notify('automagik', message) FROM unnest(CAST(:messages AS text[])) AS sent(message)")

_FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


class PostgresSignals:
    """Signals between all processes that use one PostgreSQL database.

    Messages that are sent while a NOTIFY is under way go together with the next one. A connection that is lost is made
    anew, with a growing wait between attempts; meanwhile messages are sent over the pool, and hearing resumes with `on_gap`.
    """

    largest = 7_900  # the server's limit is 7,999

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self._listeners = Listeners()
        self._connection: DriverConnection | None = None
        self._lost = asyncio.Event()
        self._using = asyncio.Lock()
        self._outbox: deque[tuple[str, asyncio.Future[None]]] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._failing = False

    async def open(self) -> None:
        """As `Signals.open`; a second time does nothing."""
        if self._keeping is not None:
            return
        try:
            await self._connect()
        except _FAILURES as error:
            raise postgres_meaning(error) from error
        self._keeping = asyncio.get_running_loop().create_task(self._keep(), name="signals")

    async def close(self) -> None:
        """Send what is waiting, then hear and send no more."""
        if self._sending is not None:
            await asyncio.wait([self._sending])
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
            self._keeping = None
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(*_FAILURES):
                await connection.close(timeout=2)

    def listen(self, topic: str, heard: Heard) -> Callable[[], None]:
        """As `Signals.listen`."""
        return self._listeners.listen(topic, heard)

    def on_gap(self, missed: Callable[[], None]) -> Callable[[], None]:
        """As `Signals.on_gap`: after each time that the connection was lost and made anew."""
        return self._listeners.on_gap(missed)

    async def send(self, topic: str, text: str = "") -> None:
        """As `Signals.send`; returns when the message is out, or was given up."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._outbox.append((message_of(topic, text, self.largest), done))
        if self._sending is None or self._sending.done():
            self._sending = loop.create_task(self._send_all())
        await done

    # -- sending

    async def _send_all(self) -> None:
        while self._outbox:
            batch = [self._outbox.popleft() for _ in range(min(_LARGEST_BATCH, len(self._outbox)))]
            try:
                await self._notify([message for message, _ in batch])
            except (ServiceUnavailable, *_FAILURES) as error:
                if not self._failing:
                    _log.warning("signals_not_sent", cause=type(error).__name__)
                self._failing = True
            else:
                self._failing = False
            for _, done in batch:
                if not done.done():
                    done.set_result(None)

    async def _notify(self, messages: list[str]) -> None:
        async with self._using:
            if (connection := self._connection) is not None:
                await self._execute(connection, _NOTIFY, messages)
                return

        def notify(pooled: Connection) -> None:
            pooled.execute(_NOTIFY_POOLED, {"messages": messages})

        async with asyncio.timeout(_SEND_SECONDS):
            await self._database.write(notify)

    async def _execute(self, connection: DriverConnection, query: str, *parameters: object) -> None:
        """Run a statement on the listening connection, which is given up where it does not answer in time."""
        try:
            await connection.execute(query, *parameters, timeout=_SEND_SECONDS)
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
            connection.terminate()
            self._ended(connection)
            raise

    # -- listening

    async def _connect(self) -> None:
        connection = await connect_postgres(self._database.url)
        try:
            await connection.add_listener(CHANNEL, self._heard)
        except BaseException:
            connection.terminate()
            raise
        connection.add_termination_listener(self._ended)
        self._lost.clear()
        self._connection = connection

    def _heard(self, connection: object, sender: int, channel: str, message: str) -> None:
        del connection, sender, channel
        self._listeners.hear(message)

    def _ended(self, connection: object) -> None:
        if connection is self._connection:
            self._connection = None
            self._lost.set()

    async def _keep(self) -> None:
        while True:
            await self._wait_until_lost()
            _log.warning("signals_lost", hint="Other processes are not heard until the connection is made anew.")
            await self._reconnect()
            _log.info("signals_back")
            self._listeners.tell_gap()

    async def _wait_until_lost(self) -> None:
        while (connection := self._connection) is not None:
            try:
                async with asyncio.timeout(_PING_SECONDS):
                    await self._lost.wait()
            except TimeoutError:
                async with self._using:
                    with contextlib.suppress(*_FAILURES):
                        await self._execute(connection, "SELECT 1")

    async def _reconnect(self) -> None:
        wait = _FIRST_WAIT_SECONDS
        while True:
            try:
                await self._connect()
            except _FAILURES:
                await asyncio.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311 - spreads attempts, keeps no secret
                wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
            else:
                return
