"""SqliteDatabase: one writer thread, whose waiting jobs share a commit, and a few reader threads, each with a connection."""

import asyncio
import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from automagik.errors import ConfigurationError, ServiceUnavailable
from automagik.store.failures import translated, unavailable
from automagik.store.hot import CommitObserver
from automagik.store.locks import FileLock
from automagik.store.migrator import migrate

__all__ = [
    "SqliteDatabase",
    "SqliteHandle",
    "connect_sqlite",
    "database_file",
    "own_folder",
    "prepare_sqlite",
    "sqlite_transaction",
    "wrap_sqlite",
]

T = TypeVar("T")

BUSY_SECONDS = 10.0
"""How long a write waits for another process (the command line) that holds the write lock."""

_READERS = 3
_COMPILED = 1000
"""How many statements are kept compiled; the platform has about 400."""
_CHECKPOINT_JOBS = 128
"""After so many jobs of the writer, what they committed is brought into the database file; about 1,000 pages of small ones."""
_LARGEST_LOG_PAGES = 8000
"""How long the write-ahead log may become before a commit has to wait until it is brought in, so that it begins anew."""
_LARGEST_BATCH = 128
"""Jobs that share a commit at the most, so that none waits long for the ones behind it."""


def database_file(data_dir: Path) -> Path:
    """The embedded database of a data folder."""
    return data_dir / "automagik.db"


def own_folder(lock: FileLock, folder: Path, owner: str) -> None:
    """Make this process the one user of the data folder's database. Raises ConfigurationError where another one is."""
    if not lock.acquire(owner, wait=False):
        holder = lock.holder() or "its name is not known"
        raise ConfigurationError(
            f"Another server ({holder}) uses the data folder {folder}.",
            hint="Stop that server, or set AUTOMAGIK_DATA_DIR to another folder; another port is not enough.",
        )


def connect_sqlite(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection to the database at `path`, without transactions of the driver's own making."""
    raw = sqlite3.connect(
        path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    raw.execute("PRAGMA foreign_keys=ON")
    raw.execute("PRAGMA synchronous=NORMAL")
    raw.execute("PRAGMA temp_store=MEMORY")
    if read_only:
        raw.execute("PRAGMA query_only=ON")
    return raw


_wrapping = threading.local()


@cache
def _engine() -> Engine:
    """The one engine of the process, which holds no connection. What it has compiled serves the writer, all readers and each
    store that is opened later: to compile it anew for each took more than all else of a start."""
    return create_engine(
        "sqlite://",
        creator=lambda: _wrapping.raw,
        poolclass=NullPool,
        pool_reset_on_return=None,
        query_cache_size=_COMPILED,
    )


def wrap_sqlite(raw: sqlite3.Connection) -> Connection:
    """SQLAlchemy over a driver's connection, which is closed with it. Whoever holds `raw` begins and commits."""
    _wrapping.raw = raw
    try:
        return _engine().connect()
    finally:
        del _wrapping.raw


@contextmanager
def sqlite_transaction(raw: sqlite3.Connection) -> Generator[Connection]:
    """A transaction that holds the write lock from its beginning, through SQLAlchemy."""
    with wrap_sqlite(raw) as connection, connection.begin():
        raw.execute("BEGIN IMMEDIATE")  # only now: SQLAlchemy rolls back what it finds when it connects
        yield connection


@dataclass(frozen=True, slots=True)
class SqliteHandle:
    """One connection, as the driver's for the hot path and as SQLAlchemy's for all else."""

    raw: sqlite3.Connection
    connection: Connection


@dataclass(slots=True)
class _Job:
    work: Callable[[SqliteHandle], Any]
    future: "asyncio.Future[Any]"
    result: Any = None
    error: BaseException | None = None

    def run(self, handle: SqliteHandle) -> None:
        try:
            self.result = self.work(handle)
        except BaseException as error:  # noqa: BLE001 - carried to the one who waits, as it is
            self.error = translated(error)


class _Checkpointer(threading.Thread):
    """Brings what was committed from the write-ahead log into the database file. It waits twice for the disk, for ten milliseconds
    and more, so it is done beside the writer: else one commit of seventy would wait for it, and all that come behind."""

    def __init__(self, path: Path) -> None:
        super().__init__(name="automagik-sqlite-checkpointer", daemon=True)
        self._raw = connect_sqlite(path)
        self._due: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def wake(self) -> None:
        """There is something to bring in."""
        self._due.put(True)

    def end(self) -> None:
        """Nothing comes any more."""
        self._due.put(False)

    def run(self) -> None:
        try:
            while self._due.get():
                with contextlib.suppress(sqlite3.Error):  # a disk that is full: what is in the log is safe there
                    self._raw.execute("PRAGMA wal_checkpoint(PASSIVE)")
        finally:
            self._raw.close()


class _Worker(threading.Thread):
    """A thread with a connection of its own, which takes jobs from a queue until it finds None."""

    def __init__(
        self,
        path: Path,
        jobs: "queue.SimpleQueue[_Job | None]",
        wrote: CommitObserver,
        *,
        checkpointer: _Checkpointer | None = None,
    ) -> None:
        """One with a `checkpointer` writes, all others read."""
        writes = checkpointer is not None
        super().__init__(name=f"automagik-sqlite-{'writer' if writes else 'reader'}", daemon=True)
        raw = connect_sqlite(path, read_only=not writes)
        if writes:
            raw.execute(f"PRAGMA wal_autocheckpoint={_LARGEST_LOG_PAGES}")
        self._handle = SqliteHandle(raw, wrap_sqlite(raw))
        self._jobs = jobs
        self._writes = writes
        self._checkpointer = checkpointer
        self._in_log = 0
        self._wrote = wrote
        self._loop = asyncio.get_running_loop()

    def run(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                batch, last = self._gather(job) if self._writes else ([job], False)
                began = time.perf_counter()
                self._run_batch(self._handle, batch)
                if self._writes:
                    self._wrote(len(batch), time.perf_counter() - began)
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    self._loop.call_soon_threadsafe(_settle, batch)
                self._count(len(batch))
                if last:
                    break
        finally:
            self._handle.connection.close()
            self._handle.raw.close()

    def _count(self, jobs: int) -> None:
        if self._checkpointer is not None:
            self._in_log += jobs
            if self._in_log >= _CHECKPOINT_JOBS:
                self._in_log = 0
                self._checkpointer.wake()

    def _gather(self, first: _Job) -> tuple[list[_Job], bool]:
        batch = [first]
        while len(batch) < _LARGEST_BATCH and not self._jobs.empty():  # nobody else takes from it
            job = self._jobs.get_nowait()
            if job is None:
                return batch, True
            batch.append(job)
        return batch, False

    def _run_batch(self, handle: SqliteHandle, batch: list[_Job]) -> None:
        raw = handle.raw
        try:
            raw.execute("BEGIN IMMEDIATE" if self._writes else "BEGIN")
            if len(batch) == 1:
                batch[0].run(handle)
            else:
                for job in batch:
                    _run_in_savepoint(handle, job)
            raw.execute("ROLLBACK" if len(batch) == 1 and batch[0].error is not None else "COMMIT")
        except sqlite3.Error as error:
            # Busy, full or broken: SQLite has given the transaction up, or can't end it. Nothing of the batch is stored.
            if raw.in_transaction:
                raw.execute("ROLLBACK")
            meaning = unavailable()
            meaning.__cause__ = error
            for job in batch:
                job.error = job.error or meaning


def _run_in_savepoint(handle: SqliteHandle, job: _Job) -> None:
    raw = handle.raw
    raw.execute("SAVEPOINT job")
    job.run(handle)
    if job.error is not None:
        raw.execute("ROLLBACK TO job")
    raw.execute("RELEASE job")


def _settle(batch: list[_Job]) -> None:
    for job in batch:
        if job.future.done():
            continue  # its task was cancelled; the work is done all the same
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)


class SqliteDatabase:
    """A database file and the threads that use it."""

    def __init__(self, path: Path, wrote: CommitObserver) -> None:
        self._wrote = wrote
        self._path = path
        self._writes: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        self._checkpointer: _Checkpointer | None = None
        self._open = False
        self._owned = FileLock(path.parent / "server.lock")

    @property
    def path(self) -> Path:
        """The database file."""
        return self._path

    async def open(self) -> None:
        """Make the folder and the file where they are missing, migrate, start the threads.

        Raises: ConfigurationError when the folder can't be used.
        """
        await asyncio.to_thread(prepare_sqlite, self._path)
        self._checkpointer = _Checkpointer(self._path)
        self._workers = [_Worker(self._path, self._writes, self._wrote, checkpointer=self._checkpointer)]
        self._workers += [_Worker(self._path, self._reads, self._wrote) for _ in range(_READERS)]
        for thread in (self._checkpointer, *self._workers):
            thread.start()
        self._open = True

    async def close(self) -> None:
        """Do what is waiting, then end the threads and give the data folder free."""
        if self._open:
            self._open = False
            self._writes.put(None)
            for _ in range(_READERS):
                self._reads.put(None)
            await asyncio.to_thread(self._join)
        self._owned.release()

    async def write(self, work: Callable[[SqliteHandle], T]) -> T:
        """What `work` returns, once it is durable. It is done also when the waiting task is cancelled."""
        return await self._submit(self._writes, work)

    async def read(self, work: Callable[[SqliteHandle], T]) -> T:
        """What `work` returns; it sees one moment."""
        return await self._submit(self._reads, work)

    def acquire_ownership(self, owner: str) -> None:
        """Make this process the one server of the data folder. Raises ConfigurationError where another one is."""
        own_folder(self._owned, self._path.parent, owner)

    async def _submit(self, jobs: "queue.SimpleQueue[_Job | None]", work: Callable[[SqliteHandle], T]) -> T:
        if not self._open:
            raise ServiceUnavailable("The database is closed: the server is stopping.", hint="Retry later.")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        jobs.put(_Job(work, cast("asyncio.Future[Any]", future)))
        return await future

    def _join(self) -> None:
        for worker in self._workers:
            worker.join()
        if self._checkpointer is not None:
            self._checkpointer.end()
            self._checkpointer.join()


def prepare_sqlite(path: Path, *, journal: str = "WAL") -> None:
    """Make the database file ready: the folder, the journal, the schema. Processes that come at once wait for each other.

    Raises: ConfigurationError when the folder or file can't be used, or a newer Automagik wrote it.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(path.parent / "migrate.lock"):
            _migrate_file(path, journal)
    except (OSError, sqlite3.Error, SQLAlchemyError) as error:
        raise ConfigurationError(
            f"The database {path} can't be used: {error.__cause__ or error}.",
            hint="Set AUTOMAGIK_DATA_DIR to a folder that this user may write to.",
        ) from error


def _migrate_file(path: Path, journal: str) -> None:
    path.touch(mode=0o600)
    raw = connect_sqlite(path)
    try:
        raw.execute(f"PRAGMA journal_mode={journal}")
        raw.execute("PRAGMA foreign_keys=OFF")  # a table that is changed is made anew, which must not cascade
        with sqlite_transaction(raw) as connection:
            migrate(connection)
    finally:
        raw.close()
