"""PostgresReplica: reads on a streaming replica that miss nothing which was stored when they were asked for."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from automagik.errors import AutomagikError, ConfigurationError, ServiceUnavailable
from automagik.store.postgres import DATABASE_ERRORS, PostgresDatabase, general_engine, postgres_meaning
from automagik.types import Clock

__all__ = ["PostgresReplica"]

_log = structlog.stdlib.get_logger(__name__)

T = TypeVar("T")

_CATCH_UP_SECONDS = 0.1
"""How long a read waits for the replica to have what the primary has."""
_LAG_SECONDS = 1.0
_AWAY_SECONDS = 5.0
"""How long a replica that lags, or is away, is left alone."""

_POSITION = text(
    # Without synchronous commit a transaction is done before its part of the log is written out.
    "SELECT CASE WHEN current_setting('synchronous_commit') = 'off' THEN pg_current_wal_insert_lsn()"
    " ELSE pg_current_wal_flush_lsn() END ::text"
)
_HAS = text("SELECT pg_last_wal_replay_lsn() >= CAST(CAST(:position AS text) AS pg_lsn)")
_IDENTITY = text("SELECT system_identifier::text || ' ' || current_database() FROM pg_control_system()")


class PostgresReplica:
    """Reads on a replica as soon as it has all that the primary had when the read was asked for, else on the primary.

    So whoever wrote, on any instance, sees it. The primary is asked only where its log stands, once for all who ask together.
    """

    def __init__(self, url: str, pool_size: int, primary: PostgresDatabase, clock: Clock) -> None:
        self._primary = primary
        self._clock = clock
        self._engine: AsyncEngine = general_engine(url, pool_size)
        self._is_known = False
        self._left_alone_until = 0.0
        self._is_away = False
        self._waiting: list[asyncio.Future[str]] = []
        self._asking: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Look whether it is a replica of the primary; one that is away is looked at again later.

        Raises: ConfigurationError where it is a replica of something else.
        """
        try:
            await self._check()
        except DATABASE_ERRORS as error:
            self._leave_alone(_AWAY_SECONDS, error)

    async def close(self) -> None:
        """Close its connections."""
        await self._engine.dispose()

    async def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns; it sees one moment, no earlier than this call."""
        if self._clock.monotonic() < self._left_alone_until:
            return await self._primary.read(work)
        position = await self._position()
        try:
            if await self._has(position):
                result = await self._read(work)
                self._come_back()
                return result
            self._leave_alone(_LAG_SECONDS, None)
        except DATABASE_ERRORS as error:
            meaning = postgres_meaning(error)
            if not isinstance(meaning, ServiceUnavailable):
                raise meaning from error
            self._leave_alone(_AWAY_SECONDS, error)
        return await self._primary.read(work)

    async def _read(self, work: Callable[[Connection], T]) -> T:
        engine = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        async with engine.connect() as connection:
            return await connection.run_sync(work)

    async def _has(self, position: str) -> bool:
        """Whether the replica comes to `position` of the primary's log in time."""
        if not self._is_known:
            await self._check()
        deadline = self._clock.monotonic() + _CATCH_UP_SECONDS
        async with self._engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            while not await connection.scalar(_HAS, {"position": position}):
                if self._clock.monotonic() > deadline:
                    return False
                await asyncio.sleep(0.005)
        return True

    async def _check(self) -> None:
        theirs: Any
        async with self._engine.connect() as connection:
            theirs = await connection.scalar(_IDENTITY)
        ours = await self._primary.read(lambda connection: connection.scalar(_IDENTITY))
        if theirs != ours:
            raise ConfigurationError(
                "The database of AUTOMAGIK_DATABASE_REPLICA_URL is no replica of that of AUTOMAGIK_DATABASE_URL.",
                hint="Name a streaming replica of the same server, and the same database on it.",
            )
        self._is_known = True

    # -- where the primary's log stands

    async def _position(self) -> str:
        """Where the log stands after this call. Raises ServiceUnavailable when the primary is away."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        self._waiting.append(future)
        if self._asking is None or self._asking.done():
            self._asking = loop.create_task(self._ask())
        return await future

    async def _ask(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            try:
                position = await self._primary.read(lambda connection: connection.scalar(_POSITION))
            except AutomagikError as error:
                for future in waiting:
                    if not future.done():
                        future.set_exception(error)
            else:
                for future in waiting:
                    if not future.done():
                        future.set_result(str(position))

    # -- a replica that lags, or is away

    def _leave_alone(self, seconds: float, error: BaseException | None) -> None:
        self._left_alone_until = self._clock.monotonic() + seconds
        if not self._is_away:
            cause = "it lags" if error is None else type(error).__name__
            _log.warning("replica_away", cause=cause, hint="The primary is read meanwhile.")
        self._is_away = True

    def _come_back(self) -> None:
        if self._is_away:
            _log.info("replica_back")
        self._is_away = False
