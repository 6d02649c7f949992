"""HeartLine: the one connection over which a process shows that it lives, and sees who else does. PostgreSQL only."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, cast

import asyncpg

from automagik.errors import ServiceUnavailable
from automagik.store import schema
from automagik.store.failures import unavailable
from automagik.store.postgres import driver_url

__all__ = ["HeartLine", "Pulse"]

_BEAT = """
WITH beat AS (UPDATE executors SET beat_at = clock_timestamp() WHERE executor_id = $1 AND lost_at IS NULL RETURNING beat_at)
SELECT executor_id, coalesce((SELECT beat_at FROM beat WHERE executor_id = $1), beat_at) AS beat_at,
  executor_id = $1 AND EXISTS (SELECT FROM beat) AS own
FROM executors WHERE lost_at IS NULL
"""
_LEFT_BEHIND = f"""
SELECT DISTINCT owner FROM runs WHERE {schema.OPEN_RUNS} AND owner IS NOT NULL
AND NOT EXISTS (SELECT FROM executors WHERE executor_id = owner AND lost_at IS NULL)
"""  # noqa: S608 - the text is a constant

_FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Pulse:
    """What one beat found. `alive`: this process's own row has not ended; `beats`: the last beat of each living executor."""

    alive: bool
    beats: Mapping[str, datetime]


class _Connection(Protocol):
    """What is used of asyncpg's connection, which has no types of its own."""

    async def fetch(self, query: str, *parameters: object) -> list[Mapping[str, Any]]: ...

    def is_closed(self) -> bool: ...

    def terminate(self) -> None: ...

    async def close(self, *, timeout: float | None = None) -> None: ...  # noqa: ASYNC109 - the driver's signature


class HeartLine:
    """A connection of the driver's own, used from one event loop. Each statement has `statement_seconds`.

    Everything raises ServiceUnavailable when the database did not answer in time; the connection is given up then, and the
    next statement makes a new one.
    """

    def __init__(self, url: str, executor_id: str, *, statement_seconds: float = 1.0) -> None:
        self._url = driver_url(url)
        self._executor_id = executor_id
        self._seconds = statement_seconds
        self._connection: _Connection | None = None

    async def beat(self) -> Pulse:
        """Move this executor's `beat_at` on, and look at all: one statement, so that who can't write sees nobody stand still."""
        records = await self._fetch(_BEAT, self._executor_id)
        return Pulse(
            alive=any(record["own"] for record in records),
            beats={record["executor_id"]: record["beat_at"] for record in records},
        )

    async def left_behind(self) -> list[str]:
        """The owners of open runs that are no living executor."""
        return sorted(record["owner"] for record in await self._fetch(_LEFT_BEHIND))

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close(timeout=self._seconds)
            except _FAILURES:
                connection.terminate()

    async def _fetch(self, query: str, *parameters: object) -> list[Mapping[str, Any]]:
        try:
            async with asyncio.timeout(self._seconds):
                connection = self._connection
                if connection is None or connection.is_closed():
                    connection = self._connection = await self._connect()
                return await connection.fetch(query, *parameters)
        except _FAILURES as error:
            self._give_up()
            meaning: ServiceUnavailable = unavailable()
            raise meaning from error
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def _connect(self) -> _Connection:
        # Beats need not survive a crash of the server: with the next one the row is right again.
        settings = {"application_name": "automagik heart", "synchronous_commit": "off", "jit": "off"}
        connect = cast("Callable[..., Awaitable[_Connection]]", asyncpg.connect)
        return await connect(self._url, timeout=self._seconds, server_settings=settings)
