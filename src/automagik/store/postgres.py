"""PostgresDatabase: SQLAlchemy over asyncpg for general work, and connections of the driver itself for the hot path."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar, cast

import asyncpg
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import DBAPIError, InvalidatePoolError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from automagik.errors import ConfigurationError, ServiceUnavailable
from automagik.store.failures import translated, translated_state, unavailable
from automagik.store.migrator import current_revision, migrate
from automagik.store.schema import HEAD

__all__ = [
    "DATABASE_ERRORS",
    "DriverConnection",
    "PostgresDatabase",
    "PreparedStatement",
    "connect_postgres",
    "driver_url",
    "general_engine",
    "postgres_meaning",
]

T = TypeVar("T")

_MIGRATION_LOCK = 0x6175746F
"""The key of the advisory lock under which one process at a time migrates."""
_CONNECT_SECONDS = 10.0
_STATEMENT_SECONDS = 60.0
_POOL_WAIT_SECONDS = 30.0
_RESTED_SECONDS = 1.0
"""How long a connection has rested of which the server is asked before its next use whether it is there still."""
_RESTS_SINCE = "automagik.rests_since"

_ENDED_BY_THE_SERVER = frozenset({"57P01", "57P02", "57P03", "08003", "08006"})
"""How a server says that it ends a connection, or that it is gone (PostgreSQL's appendix A, classes 57 and 08)."""

_LANE_SETTINGS = {
    # A statement of the hot path looks up a few rows by index, whatever the tables hold. It is planned once, and the plan
    # must be right when the tables have grown too: no scan or hash of a table that was small at the time.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}

DATABASE_ERRORS = (
    SQLAlchemyError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
)
"""What SQLAlchemy, the driver and the network raise."""


def driver_url(url: str) -> str:
    """The URL as asyncpg takes it, whichever of the usual schemes it has."""
    _, separator, rest = url.partition("://")
    return f"postgresql://{rest}" if separator else url


class PreparedStatement(Protocol):
    """A statement that the server has planned."""

    async def fetch(self, *parameters: object) -> list[Mapping[str, Any]]: ...


class DriverConnection(Protocol):
    """What is used of a connection of asyncpg, which has no types of its own."""

    async def execute(self, query: str, *parameters: object, timeout: float | None = None) -> str: ...  # noqa: ASYNC109

    async def prepare(self, query: str) -> PreparedStatement: ...

    async def add_listener(self, channel: str, callback: Callable[[object, int, str, str], None]) -> None: ...

    def add_termination_listener(self, callback: Callable[[object], None]) -> None: ...

    def is_closed(self) -> bool: ...

    def terminate(self) -> None: ...

    async def close(self, *, timeout: float | None = None) -> None: ...  # noqa: ASYNC109 - the driver's signature


async def connect_postgres(url: str, *, lane: bool = False) -> DriverConnection:
    """A connection of the driver's own; a `lane` is set up for the statements of the hot path."""
    settings = {"application_name": "automagik", **(_LANE_SETTINGS if lane else {})}
    connect = cast("Callable[..., Awaitable[DriverConnection]]", asyncpg.connect)
    return await connect(url, timeout=_CONNECT_SECONDS, command_timeout=_STATEMENT_SECONDS, server_settings=settings)


def general_engine(url: str, pool_size: int) -> AsyncEngine:
    """SQLAlchemy's engine for general work, with at most `pool_size` connections. The one that rested least is used first."""
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: connect_postgres(driver_url(url)),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=_POOL_WAIT_SECONDS,
        pool_use_lifo=True,
        json_deserializer=str,  # the columns' types read the text themselves
    )
    _test_rested(engine)
    return engine


def _test_rested(engine: AsyncEngine) -> None:
    """Have no connection used that is gone. As SQLAlchemy's `pool_pre_ping`, which asks the server before each use, in three
    round trips: of one that was used just now the driver knows by itself when it is cut, so only others are asked about."""
    pool, dialect = engine.sync_engine.pool, engine.sync_engine.dialect

    def rest(_: object, entry: ConnectionPoolEntry) -> None:
        entry.info[_RESTS_SINCE] = time.monotonic()

    def test(connection: Any, entry: ConnectionPoolEntry, _: object) -> None:
        since = entry.info.get(_RESTS_SINCE)
        if since is None:
            return  # it is new
        if connection.driver_connection.is_closed():
            raise InvalidatePoolError
        if time.monotonic() - since < _RESTED_SECONDS:
            return
        try:
            dialect.do_ping(connection)
        except dialect.loaded_dbapi.Error as error:
            if not dialect.is_disconnect(error, connection, None):
                raise
            raise InvalidatePoolError from error

    event.listen(pool, "checkin", rest)
    event.listen(pool, "checkout", test)


def postgres_meaning(error: BaseException) -> BaseException:
    """What an error of the driver, the network or SQLAlchemy means; any other error as it is."""
    if isinstance(error, asyncpg.PostgresError):
        return translated_state(error)
    if isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError | OSError):
        meaning = unavailable()
        meaning.__cause__ = error
        return meaning
    return translated(error)


class PostgresDatabase:
    """A PostgreSQL database. `pool_size` bounds all its connections, of which the hot path has `lanes`.

    `named` is what gave the URL, for those who have to correct it.
    """

    def __init__(self, url: str, pool_size: int, *, named: str = "AUTOMAGIK_DATABASE_URL") -> None:
        self.url = driver_url(url)
        self.lanes = 1 if pool_size < 6 else 2
        self._pool_size = pool_size - self.lanes
        self._named = named
        self._engine: AsyncEngine | None = None
        self._reading: AsyncEngine | None = None
        """The same engine and pool for transactions that see one moment; made once, for that takes a sixth of what a short one takes."""

    async def open(self, *, migrates: bool = True) -> None:
        """Connect, and where the schema is not at head migrate under a lock, or refuse.

        Raises: ConfigurationError when there is no such database, or it can't be used.
        """
        engine = general_engine(self.url, self._pool_size)
        try:
            async with engine.connect() as connection:
                current = await connection.run_sync(current_revision)
            if current != HEAD and not migrates:
                raise ConfigurationError(
                    f"The database is at revision '{current}', this version of Automagik needs '{HEAD}'.",
                    hint="Run `automagik db upgrade`, or use the version that wrote it.",
                )
            if current != HEAD:
                async with engine.begin() as connection:
                    await connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
                    await connection.run_sync(migrate)
        except BaseException as error:
            await engine.dispose()
            if isinstance(error, (*DATABASE_ERRORS, ValueError)):
                raise ConfigurationError(
                    f"The database of {self._named} can't be used: {_root_cause(error)}.",
                    hint="Is the PostgreSQL server running, and are host, database, user and password right?",
                ) from error
            raise
        self._engine = engine
        self._reading = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    async def close(self) -> None:
        """Close the connections of general work."""
        if self._engine is not None:
            engine, self._engine, self._reading = self._engine, None, None
            await engine.dispose()

    async def write(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, once it is durable. It is done also when the waiting task is cancelled."""
        return await asyncio.shield(asyncio.create_task(self._write(work)))

    async def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns; it sees one moment. Where its connection is cut it begins again, once, on another one."""
        cut = False
        while True:
            try:
                async with self._opened(self._reading).connect() as connection:
                    return await connection.run_sync(work)
            except DATABASE_ERRORS as error:
                if cut or not _is_cut(error):
                    raise postgres_meaning(error) from error
                cut = True

    async def connect_lane(self) -> DriverConnection:
        """A new connection for the hot path."""
        return await connect_postgres(self.url, lane=True)

    async def _write(self, work: Callable[[Connection], T]) -> T:
        try:
            async with self._opened(self._engine).begin() as connection:
                return await connection.run_sync(work)
        except DATABASE_ERRORS as error:
            raise postgres_meaning(error) from error

    def _opened(self, engine: AsyncEngine | None) -> AsyncEngine:
        if engine is None:
            raise ServiceUnavailable("The database is closed: the server is stopping.", hint="Retry later.")
        return engine


def _is_cut(error: Exception) -> bool:
    """Whether the connection went away while it was used. A server that can't be reached is not meant."""
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or getattr(error.orig, "sqlstate", None) in _ENDED_BY_THE_SERVER


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
