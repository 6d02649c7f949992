"""Store: the platform's one door to its database, SQLite in the data folder or PostgreSQL."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypeVar

from sqlalchemy import Connection, text

from automagik.settings import Settings
from automagik.store.columns import storable
from automagik.store.delivery_sql import DELIVERY_TOPIC
from automagik.store.hot import (
    AcceptedRun,
    BeginRun,
    BegunRun,
    CommitObserver,
    FinishedRun,
    FinishRun,
    HotPath,
    NewEvent,
    StartRun,
    observe_nothing,
)
from automagik.store.reservations import Reserve, Reserved, Settle, Settled
from automagik.store.rows import ClaimedRun
from automagik.store.signals import Signals
from automagik.store.sqlite import database_file
from automagik.store.sqlite_backend import SqliteBackend
from automagik.store.transaction import Transaction
from automagik.types import Clock

__all__ = ["Backend", "Store"]

T = TypeVar("T")


class Backend(Protocol):
    """What the Store needs of a database."""

    dialect: Literal["sqlite", "postgresql"]
    hot: HotPath
    signals: Signals

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def read(self, work: Callable[[Connection], T]) -> T: ...

    async def browse(self, work: Callable[[Connection], T]) -> T: ...

    async def write(self, work: Callable[[Connection], T]) -> T: ...

    async def acquire_ownership(self, owner: str) -> None: ...


class Store:
    """Transactions over all tables, and the statements of every run. Open it before use, close it after.

    Everything raises ServiceUnavailable when the database is away.
    """

    def __init__(self, backend: Backend, clock: Clock) -> None:
        self._backend = backend
        self._clock = clock

    @classmethod
    def from_settings(cls, settings: Settings, clock: Clock, *, wrote: CommitObserver = observe_nothing) -> "Store":
        """The store that the settings name, not opened yet. `wrote` is told of the commits of runs."""
        if settings.database_url is None:
            return cls(SqliteBackend(database_file(settings.data_dir), wrote), clock)
        # Imported here: the driver takes 0.1 s, which a start on SQLite need not pay.
        from automagik.store.postgres_backend import PostgresBackend  # noqa: PLC0415

        url, replica = settings.database_url.get_secret_value(), settings.database_replica_url
        return cls(
            PostgresBackend(
                url,
                settings.database_pool_size,
                clock,
                wrote,
                replica_url=replica.get_secret_value() if replica is not None else None,
            ),
            clock,
        )

    @property
    def dialect(self) -> Literal["sqlite", "postgresql"]:
        """Which database it is."""
        return self._backend.dialect

    @property
    def signals(self) -> Signals:
        """Messages between the processes that use this database. `signals.open()` begins to hear those of others."""
        return self._backend.signals

    async def open(self) -> None:
        """Connect, and bring the schema to this code's under a lock.

        Raises: ConfigurationError when the database can't be used or was written by a newer Automagik.
        """
        await self._backend.open()

    async def close(self) -> None:
        """Finish what is under way and let go of everything."""
        await self._backend.close()

    async def check(self) -> None:
        """Return when the database answers. Raises ServiceUnavailable when it is away."""
        await self._backend.read(lambda connection: connection.scalar(text("SELECT version_num FROM alembic_version")))

    async def acquire_ownership(self, owner: str) -> None:
        """Make this process (`owner` names it) the one server of the data folder; PostgreSQL takes any number.

        Raises: ConfigurationError when another server uses the data folder.
        """
        await self._backend.acquire_ownership(owner)

    async def read(self, work: Callable[[Transaction], T]) -> T:
        """What `work` returns. It runs in one transaction that sees one moment and writes nothing."""
        return await self._backend.read(lambda connection: work(Transaction(connection, self._clock.now())))

    async def browse(self, work: Callable[[Transaction], T]) -> T:
        """As `read`, for lists that people look through: on the read replica where there is one and it has caught up with
        all that was stored before this call."""
        return await self._backend.browse(lambda connection: work(Transaction(connection, self._clock.now())))

    async def write(self, work: Callable[[Transaction], T]) -> T:
        """What `work` returns, once it is durable; when it raises, nothing of it is stored.

        It is completed also when the waiting task is cancelled.
        """
        return await self._backend.write(lambda connection: work(Transaction(connection, self._clock.now())))

    async def begin_run(self, begin: BeginRun) -> BegunRun:
        """Store a run of this process, and its session where that is not there. It starts at once where its turn has come.

        Raises:
            InvalidInput: the session's name has a character that can't be stored.
            NotFound: the session or user is not there and may not be made, or the caller may not see it.
            Conflict: the session belongs to another user than the run, there is such a run, or the idempotency key is taken.
        """
        _check_name(begin)
        return await self._backend.hot.begin_run(begin)

    async def accept_run(self, begin: BeginRun) -> AcceptedRun:
        """Store a run of the background, and its session where that is not there. Raises as `begin_run`."""
        _check_name(begin)
        return await self._backend.hot.accept_run(begin)

    async def start_run(self, start: StartRun) -> BegunRun:
        """Start a queued run whose turn has come; the same start again is fine. Raises Conflict where the run is not queued, or
        not its owner's any more."""
        return await self._backend.hot.start_run(start)

    async def finish_run(self, finish: FinishRun) -> FinishedRun | None:
        """The run that ended now; None where it had ended before or is another's: then nothing is written."""
        finished = await self._backend.hot.finish_run(finish)
        if finished is not None and finished.wakes_senders:
            await self.signals.send(DELIVERY_TOPIC)
        return finished

    async def append_events(self, run_id: str, owner: str, events: Sequence[NewEvent]) -> bool:
        """Whether the events were added; to a run that has ended, or is another's, none are. Adding one twice does no harm."""
        return await self._backend.hot.append_events(run_id, owner, events)

    async def claimed_run(self, run_id: str, owner: str) -> ClaimedRun | None:
        """A run that belongs to `owner` by the end of the one before it in its session, or None."""
        return await self._backend.hot.claimed_run(run_id, owner)

    async def reserve(self, asked: Reserve) -> Reserved:
        """What is reserved for a call in every budget of its scopes at once, or that there is no room for it in one of them."""
        return await self._backend.hot.reserve(asked)

    async def settle(self, ends: Sequence[Settle]) -> Sequence[Settled]:
        """What came of each of these ends of reservations. A reservation that is not there any more counts nothing again; one that
        is being made is made first, also where nobody waits for it any more."""
        return await self._backend.hot.settle(ends)


def _check_name(begin: BeginRun) -> None:
    if begin.session_name is not None:
        storable(begin.session_name, field=("body", "session_name"))
