"""DurableEngine: queued work carried out as DBOS workflows. The one module that knows DBOS."""

import asyncio
import concurrent.futures
import contextvars
import functools
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from automagik.errors import ConfigurationError, ServiceUnavailable
from automagik.store.durable import DurablePlace, durable_meaning
from automagik.store.executors import CARRY_OUT
from automagik.types import Clock, utc_text

if TYPE_CHECKING:
    from dbos import DBOSConfig

__all__ = ["APPLICATION_VERSION", "DurableEngine"]

_log = structlog.stdlib.get_logger(__name__)

APPLICATION_VERSION = "automagik-1"
"""The version that every workflow carries, whatever version of Automagik began it: a constant, so that during a rolling
upgrade each process takes over each other's work.

A workflow only carries a run out, and is never replayed: what a dead process left is forgotten (FORGET) and begun anew.
"""

_POOL_SIZE = 4
"""Connections of DBOS's own to PostgreSQL, at the most; it uses one or two while idle."""
_THREADS = 8
_IDLE_TRANSACTION_SECONDS = 3.0
"""When the server ends a transaction of a process that was frozen in it, so that its rows can be taken over."""
_LISTENER_SECONDS = 0.5
"""Between two looks of DBOS for messages to workflows, of which there are none: closing waits for the one under way."""
_SCHEDULER_SECONDS = 3600.0
"""Between two looks for schedules of DBOS's own, of which there are none."""
_PRUNE_BATCH = 1000
_PRUNE_SECONDS = 300.0
_KEPT = timedelta(hours=1)
"""How often workflows that have ended are deleted, and how long they stay before: for a look when something went wrong."""
_CANCEL_SECONDS = 5.0
_SETTLE_SECONDS = 3.0
_DESTROY_SECONDS = 15.0
_QUIET_SECONDS = 60.0
_FORGOTTEN = "DBOSAwaitedWorkflowCancelledError"
_FINISHED = ["SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]

_one_engine = threading.Lock()
"""DBOS is one object for the whole process, kept in a global of its own: held by the engine that uses it."""

T = TypeVar("T")


class DurableEngine:
    """Carries out work under DBOS: what was started is in its tables until it has ended, whatever becomes of the process.

    `carry` is given the run's id, and runs in the event loop that opened the engine; it stores the outcome itself. DBOS has
    a thread and an event loop of its own, which this one never waits for. Only one engine may be open in a process.
    """

    def __init__(
        self,
        carry: Callable[[str], Awaitable[None]],
        *,
        executor_id: str,
        data_dir: Path,
        database_url: str | None,
        clock: Clock,
    ) -> None:
        self._carry = carry
        self._executor_id = executor_id
        self._data_dir = data_dir
        self._database_url = database_url
        self._clock = clock
        self._quieter = _Quieter()
        self._opening = asyncio.Lock()
        self._dbos: Any = None
        self._place: DurablePlace | None = None
        self._set_id: Any = None
        self._main: asyncio.AbstractEventLoop | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._workflow: Callable[[str], Coroutine[Any, Any, None]] | None = None
        self._under_way: set[asyncio.Task[Any]] = set()
        self._pruning: asyncio.Task[int] | None = None
        self._pruned_at = clock.monotonic()
        self._closed = False

    @property
    def is_open(self) -> bool:
        """Whether DBOS runs."""
        return self._dbos is not None

    async def open(self) -> None:
        """Start DBOS in a thread of its own, and make or migrate its tables; nothing where it runs.

        Raises:
            ConfigurationError: another engine is open in this process, or DBOS can't use the database.
            ServiceUnavailable: the database is away, or the engine was closed.
        """
        async with self._opening:
            if self._dbos is not None:
                return
            if self._closed:
                raise _closed()
            if not _one_engine.acquire(blocking=False):
                raise ConfigurationError(
                    "Another Platform of this process already carries out queued work.",
                    hint="DBOS serves one at a time in a process: close the other one, or use a process for each.",
                )
            self._main = asyncio.get_running_loop()
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_run_loop, args=(self._loop,), name="automagik-durable", daemon=True).start()
            try:
                self._dbos = await self._in_engine(self._launch)
            except BaseException as error:
                await self._destroy()
                meaning = durable_meaning(error)
                if meaning is error:
                    raise
                raise meaning from error

    async def close(self, grace_seconds: float = 0.0) -> None:
        """Let what is under way end within the time, cancel the rest, and stop DBOS. The engine can't be opened again."""
        async with self._opening:
            self._closed = True
            if self._dbos is None:
                return
            if self._under_way and grace_seconds > 0:
                await asyncio.wait(self._under_way, timeout=grace_seconds)
            for task in self._under_way:
                task.cancel()
            if self._under_way:
                await asyncio.wait(self._under_way, timeout=_CANCEL_SECONDS)
            if self._pruning is not None:
                self._pruning.cancel()
                await asyncio.wait([self._pruning], timeout=_CANCEL_SECONDS)
            self._dbos = None
            await self._destroy()

    async def start(self, workflow_id: str, run_id: str) -> None:
        """Begin a workflow that carries out `run_id`; returns when DBOS has stored it. A known `workflow_id` begins nothing.

        Opens the engine where it is not open. When the process dies, the workflow is forgotten (FORGET), and whoever rescues
        the run starts a new one.

        Raises as `open`.
        """
        await self.open()
        if self._clock.monotonic() - self._pruned_at >= _PRUNE_SECONDS:
            self._prune_beside()
        await self._in_engine(lambda: self._begin(workflow_id, run_id))

    async def prune(self, older_than: timedelta) -> int:
        """How many workflows that ended so long ago were deleted; 0 where the engine is not open.

        They are only bookkeeping, and the engine deletes them itself from time to time.
        """
        if self._dbos is None:
            return 0
        before = utc_text(self._clock.now() - older_than)
        deleted = 0
        while count := await self._in_engine(lambda: self._prune_some(before)):
            deleted += count
        return deleted

    # -- in DBOS's event loop

    async def _launch(self) -> Any:
        # Imported here: DBOS takes 0.15 s and 20 MB, which a process that carries out no queued work need not pay.
        from dbos import DBOS, SetWorkflowID  # noqa: PLC0415

        logger = logging.getLogger("dbos")
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())  # where there is a handler, DBOS adds none of its own
        logger.addFilter(self._quieter)
        dbos: Any = DBOS
        self._place = DurablePlace(self._data_dir, self._database_url)
        dbos(config=self._config(self._place))
        dbos.listen_queues([])

        async def carry_out(run_id: str) -> None:  # a function: DBOS writes on what it registers
            await self._carry_across(run_id)

        self._workflow = dbos.workflow(name=CARRY_OUT)(carry_out)
        self._set_id = SetWorkflowID
        dbos.launch()
        self._place.wait_for_connections()
        if self._database_url is None:
            await self._settle_file(dbos)
        return dbos

    def _config(self, place: DurablePlace) -> "DBOSConfig":
        from dbos import DBOSPortableJSONSerializer  # noqa: PLC0415 - as above

        return {
            "name": "automagik",
            "application_version": APPLICATION_VERSION,
            "executor_id": self._executor_id,
            "system_database_url": place.url,
            "dbos_system_schema": "dbos",
            "db_engine_kwargs": dict(place.engine_options),
            "sys_db_pool_size": _POOL_SIZE,
            "sys_db_idle_transaction_timeout_sec": _IDLE_TRANSACTION_SECONDS,
            "max_executor_threads": _THREADS,
            "serializer": DBOSPortableJSONSerializer(),  # JSON; DBOS's own default is pickle
            "use_listen_notify": False,
            "notification_listener_polling_interval_sec": _LISTENER_SECONDS,
            "scheduler_polling_interval_sec": _SCHEDULER_SECONDS,
            "enable_otlp": False,
            "log_level": "WARNING",
        }

    async def _settle_file(self, dbos: Any) -> None:
        """Forget what dead processes left in the data folder: it has one owner, so all others are dead."""
        pending = await dbos.list_workflows_async(status="PENDING", load_input=False, load_output=False)
        left = [workflow.workflow_id for workflow in pending if workflow.executor_id != self._executor_id]
        if left:
            await dbos.cancel_workflows_async(left)

    async def _carry_across(self, run_id: str) -> None:
        try:
            await _across(self._main_loop(), functools.partial(self._carry_here, run_id))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # DBOS leaves it as it is then: under way, of this executor

    async def _begin(self, workflow_id: str, run_id: str) -> None:
        with self._set_id(workflow_id):
            await self._dbos.start_workflow_async(self._workflow, run_id)

    async def _prune_some(self, before: str) -> int:
        found = await self._dbos.list_workflows_async(
            status=_FINISHED,
            name=CARRY_OUT,
            completed_before=before,
            limit=_PRUNE_BATCH,
            load_input=False,
            load_output=False,
        )
        if found:
            await self._dbos.delete_workflows_async([workflow.workflow_id for workflow in found])
        return len(found)

    async def _stop_dbos(self) -> None:
        """End what is left in this loop, and DBOS; blocks it until DBOS's threads have ended."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if tasks:
            _, tasks = await asyncio.wait(tasks, timeout=_SETTLE_SECONDS)  # ends are being stored
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_SETTLE_SECONDS)
        if self._place is not None:
            self._quieter.stopping = True
            self._place.end()
        from dbos import DBOS  # noqa: PLC0415 - as above

        DBOS.destroy(destroy_registry=True)
        logging.getLogger("dbos").removeFilter(self._quieter)

    # -- in the main event loop

    async def _carry_here(self, run_id: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        try:
            await self._carry(run_id)
        finally:
            self._under_way.discard(task)

    def _prune_beside(self) -> None:
        self._pruned_at = self._clock.monotonic()
        if self._pruning is None or self._pruning.done():
            self._pruning = asyncio.get_running_loop().create_task(self.prune(_KEPT), name="prune durable work")
            self._pruning.add_done_callback(_tell_failure)

    async def _in_engine(self, work: Callable[[], Awaitable[T]]) -> T:
        if self._loop is None:
            raise _closed()
        # In a context of its own: a workflow that is begun within another would be taken for its child.
        return await _across(self._loop, work, context=contextvars.Context())

    def _main_loop(self) -> asyncio.AbstractEventLoop:
        assert self._main is not None
        return self._main

    async def _destroy(self) -> None:
        loop = self._loop
        assert loop is not None
        stopped = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._stop_dbos(), loop))
        await asyncio.wait([stopped], timeout=_DESTROY_SECONDS)
        if not stopped.done():
            # Its threads are held up, whatever by. What they hold ends with the process, which can have no other engine.
            _log.warning("durable_engine_abandoned", seconds=_DESTROY_SECONDS)
            return
        stopped.result()
        self._loop = None
        loop.call_soon_threadsafe(loop.stop)
        _one_engine.release()


class _Quieter(logging.Filter):
    """Lets each line of DBOS's code warn once in a while: with its database away, five threads say so each second.

    What ends because it was forgotten is an error to DBOS; here it is what is meant, and a warning has told of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._heard: dict[tuple[str, int], float] = {}
        self.stopping = False

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            error = record.exc_info[1] if record.exc_info else None
            return type(error).__name__ != _FORGOTTEN
        line = (record.pathname, record.lineno)
        heard = self._heard.get(line)
        if self.stopping:
            return False
        if heard is not None and record.created - heard < _QUIET_SECONDS:
            return False
        self._heard[line] = record.created
        return True


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _tell_failure(task: asyncio.Task[int]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("durable_prune_failed", exc_info=error)


def _closed() -> ServiceUnavailable:
    return ServiceUnavailable("The engine of queued work is closed: the server is stopping.", hint="Retry later.")


async def _across(
    loop: asyncio.AbstractEventLoop,
    work: Callable[[], Awaitable[T]],
    *,
    context: contextvars.Context | None = None,
) -> T:
    """What `work` gives when it is done in `loop`, another thread's. Cancelling waits until that is cancelled."""
    done: concurrent.futures.Future[T] = concurrent.futures.Future()
    tasks: list[asyncio.Task[T]] = []

    async def do() -> T:
        return await work()

    def begin() -> None:
        task = loop.create_task(do())
        tasks.append(task)
        task.add_done_callback(lambda ended: _hand_back(ended, done))

    loop.call_soon_threadsafe(begin, context=context)
    answer = asyncio.wrap_future(done)
    while True:
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            if answer.done():
                raise
            loop.call_soon_threadsafe(lambda: tasks[0].cancel())


def _hand_back(task: asyncio.Task[T], done: concurrent.futures.Future[T]) -> None:
    if task.cancelled():
        done.cancel()
    elif (error := task.exception()) is not None:
        done.set_exception(error)
    else:
        done.set_result(task.result())
