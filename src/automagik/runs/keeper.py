"""Keeper: this process's life as an executor, and the care for what others left: the dead, the late, the lost signals."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from automagik import __version__
from automagik.errors import AutomagikError, ServiceUnavailable
from automagik.runs.liveness import Heart, PulseLine
from automagik.runs.outcomes import CANCELLED, CANCELLED_AWAY, WORKER_LOST, Failure
from automagik.runs.runtime import Runtime
from automagik.store.queue import Rescued
from automagik.store.transaction import Transaction
from automagik.types import RunOutcome, RunStatus, new_id

__all__ = ["Keeper", "new_executor_id"]

_log = structlog.stdlib.get_logger(__name__)

_STARTS = 3
"""How often a start tries to be known as alive, each time for as long as a living process may be silent."""
_SWEEP_SECONDS = 1.0
"""How often runs that waited too long in the queue are looked for."""
_HEAL_SECONDS = 2.0
"""How often it is looked whether a signal was lost: for a turn or a wish to cancel of a run of this process.

And how long a run may be this process's without being known here, before it is taken for one whose answer was lost."""
_MEND_SECONDS = 10.0
"""How often sessions are looked for whose turn was lost with a process."""
_RETURN_SECONDS = 10.0
"""How long it is waited for a worker of a run's host to come back and stop the run, which takes out what it has made: as long as a
restart takes."""
_KEY_HOURS = 24
"""How long an idempotency key is kept."""
_FORGET_SECONDS = 600.0

_EXPIRED = Failure(
    RunOutcome.TIMED_OUT,
    "The run waited longer in the queue than it may.",
    "Send it again, with a longer `queue_timeout_seconds` or more workers.",
    retryable=True,
)


def new_executor_id() -> str:
    """A name that no executor ever had."""
    return new_id("exec")


class Keeper:
    """Shows that this process lives, takes over what dead ones left, and goes on under a fresh id if it was taken for dead."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        host: str,
        role: str,
        make_line: Callable[[str], PulseLine] | None,
        renew_worker: Callable[[], Awaitable[None]],
        fault: Callable[[], str | None],
    ) -> None:
        """`make_line` gives the line of an executor's heart; None where one process has the database for itself. `fault` is why this
        process takes no queued work; None where it does."""
        self._runtime = runtime
        self._host = host
        self._role = role
        self._make_line = make_line
        self._renew_worker = renew_worker
        self._fault = fault
        self._told_fault: tuple[str, str | None] = ("", None)
        self._heart: Heart | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._lost = asyncio.Event()
        self._leave: list[Callable[[], None]] = []
        self._heal_now = asyncio.Event()
        self._strays: dict[str, float] = {}

    async def open(self) -> None:
        """Be known as alive, take over what earlier processes left, and begin to listen and sweep."""
        runtime = self._runtime
        await self._register()
        if self._make_line is None:
            await self._take_over_all()
        signals = runtime.store.signals
        self._leave = [
            signals.listen("cancel", runtime.cancel),
            signals.listen("ready", runtime.turns.come),
            signals.listen("ended", runtime.turns.come),
            signals.listen("work", lambda _: runtime.on_work()),
            signals.on_gap(self._heal_now.set),
        ]
        await self._begin_to_beat()
        loop = asyncio.get_running_loop()
        self._renewing = loop.create_task(self._renewals(), name="executor")
        self._sweeping = loop.create_task(self._sweep(), name="keeper")

    async def close(self) -> None:
        """End in peace: nothing of this executor is left."""
        for leave in self._leave:
            leave()
        tasks = [task for task in (self._sweeping, self._renewing) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._heart is not None:
            await self._heart.close()
        executor_id = self._runtime.executor_id
        with contextlib.suppress(ServiceUnavailable):  # then it is missed, and found to have left nothing
            await self._runtime.store.write(lambda tx: tx.executors.retire(executor_id))

    async def give_up(self, fault: str) -> None:
        """Let administrators see on any instance why this process takes no queued work, and never will."""
        self._fault = lambda: fault
        await self._tell_fault()

    async def _tell_fault(self) -> None:
        executor_id, fault = self._runtime.executor_id, self._fault()
        if (executor_id, fault) != self._told_fault and (fault or self._told_fault[0] == executor_id):
            await self._runtime.store.write(lambda tx: tx.executors.tell_fault(executor_id, fault))
            self._told_fault = (executor_id, fault)

    # -- this executor

    async def _register(self, *, instead_of: str | None = None) -> None:
        executor_id = self._runtime.executor_id

        def work(tx: Transaction) -> None:
            if instead_of is not None:
                tx.executors.retire(instead_of)
            tx.executors.register(executor_id, host=self._host, role=self._role, version=__version__)

        await self._runtime.store.write(work)

    async def _begin_to_beat(self) -> None:
        """Start the heart. Where its first beat comes too late, others may have taken this executor for dead, which has begun
        nothing yet: so it begins anew under a fresh id."""
        for more in reversed(range(_STARTS)):
            try:
                await self._start_heart()
            except AutomagikError as error:
                if not more:
                    raise
                _log.warning("executor_not_registered", reason=error.detail)
            else:
                return
            late = self._runtime.executor_id
            self._runtime.disown(new_executor_id())
            await self._register(instead_of=late)

    async def _start_heart(self) -> None:
        if self._make_line is None:
            return
        executor_id = self._runtime.executor_id
        heart = Heart(
            self._make_line(executor_id),
            executor_id,
            clock=self._runtime.clock,
            on_lost=self._lost.set,
            on_dead=self._take_over,
        )
        await heart.open()
        self._heart = heart

    async def _renewals(self) -> None:
        while True:
            await self._lost.wait()
            self._lost.clear()
            await self._renew()

    async def _renew(self) -> None:
        """Drop what was this executor's, for it has been taken over, and go on under a fresh id."""
        old = self._runtime.executor_id
        self._runtime.disown(new_executor_id())
        if self._heart is not None:
            await self._heart.close()
        while True:
            try:
                await self._register()
                await self._start_heart()
                break
            except AutomagikError as error:
                # The database is away, or somebody took even this one for dead before its first beat.
                _log.warning("executor_not_registered", reason=error.detail)
                await asyncio.sleep(_SWEEP_SECONDS)
                self._runtime.disown(new_executor_id())
        _log.warning("executor_renewed", was=old, executor_id=self._runtime.executor_id)
        await self._renew_worker()

    # -- others

    async def _take_over(self, executor_id: str, seen: datetime | None) -> None:
        """Declare an executor dead that has stood still, and take what it left: one transaction, done by one process."""
        own = self._runtime.executor_id

        def work(tx: Transaction) -> Rescued | None:
            if not tx.executors.lose(executor_id, seen=seen, to=own):
                return None
            rescued = _rescue(tx, executor_id)
            tx.executors.forget_workflows()
            return rescued

        rescued = await self._runtime.store.write(work)
        if rescued is not None:
            self._tell(executor_id, rescued)

    async def _take_over_all(self) -> None:
        """Take what all others left: this process has the database for itself."""
        own = self._runtime.executor_id

        def work(tx: Transaction) -> list[tuple[str, Rescued]]:
            tx.executors.lose_others(own)
            others = [owner for owner in tx.queue.owners() if owner != own]
            return [(owner, _rescue(tx, owner)) for owner in others]

        for executor_id, rescued in await self._runtime.store.write(work):
            self._tell(executor_id, rescued)

    def _tell(self, executor_id: str, rescued: Rescued) -> None:
        _log.warning("runs_taken_over", executor_id=executor_id, ended=len(rescued.failed), queued=len(rescued.queued))
        for ended in rescued.failed:
            self._runtime.tell_ended(ended)
        if rescued.queued:
            self._runtime.on_work()

    # -- what time and lost signals bring

    async def _sweep(self) -> None:
        clock = self._runtime.clock
        healed = mended = forgot = clock.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SWEEP_SECONDS):
                    await self._heal_now.wait()
            if self._heal_now.is_set():
                self._heal_now.clear()
                healed = float("-inf")
            now = clock.monotonic()
            try:
                await self._tell_fault()
                await self._end_expired()
                await self._end_away()
                if now - healed >= _HEAL_SECONDS:
                    await self._heal()
                    healed = now
                if now - mended >= _MEND_SECONDS:
                    await self._mend()
                    mended = now
                if now - forgot >= _FORGET_SECONDS:
                    await self._forget_keys()
                    forgot = now
            except AutomagikError as error:
                _log.warning("sweep_put_off", reason=error.detail, exc_info=not isinstance(error, ServiceUnavailable))

    async def _end_expired(self) -> None:
        store = self._runtime.store
        for run_id in await store.read(lambda tx: tx.queue.expired()):
            ended = await store.write(
                lambda tx, run_id=run_id: tx.queue.end(
                    run_id, _EXPIRED.outcome, _EXPIRED.to_json(), statuses=(RunStatus.QUEUED,)
                )
            )
            if ended is not None:
                self._runtime.tell_ended(ended)

    async def _end_away(self) -> None:
        """End runs that are to be stopped and whose host is away. What works for them there is ended when it comes back."""
        store = self._runtime.store
        run_ids = await store.read(lambda tx: tx.queue.cancelled_away(_RETURN_SECONDS))
        if run_ids:
            await self._runtime.settle_lost()
        for run_id in run_ids:
            ended = await store.write(
                lambda tx, run_id=run_id: tx.queue.end(
                    run_id,
                    CANCELLED_AWAY.outcome,
                    CANCELLED_AWAY.to_json(),
                    statuses=(RunStatus.QUEUED,),
                    unclaimed=True,
                    usage=replace(tx.calls.usage_of(run_id), tool_calls=tx.events.tool_calls(run_id)),
                )
            )
            if ended is not None:
                self._runtime.tell_ended(ended)

    async def _heal(self) -> None:
        """Do what signals asked for that may have been lost."""
        runtime = self._runtime
        waiting = runtime.turns.waiting
        if waiting:
            for run_id in await runtime.store.read(lambda tx: tx.queue.ready(waiting)):
                runtime.turns.come(run_id)
        owner = runtime.executor_id
        if runtime.live:
            for run_id in await runtime.store.read(lambda tx: tx.queue.cancels(owner)):
                runtime.cancel(run_id)
        strays = self._lost_here(await runtime.store.read(lambda tx: tx.queue.owned(owner)))
        if strays:
            self._tell(owner, await runtime.store.write(lambda tx: _rescue(tx, owner, run_ids=strays)))

    def _lost_here(self, owned: Sequence[str]) -> list[str]:
        """The runs that are this process's and that it does not know, for long enough: it was given them by a statement whose
        answer was lost with a connection."""
        runtime = self._runtime
        now = runtime.clock.monotonic()
        unknown = [run_id for run_id in owned if run_id not in runtime.live and not runtime.has_taken(run_id)]
        self._strays = {run_id: self._strays.get(run_id, now) for run_id in unknown}
        return [run_id for run_id, since in self._strays.items() if now - since >= _HEAL_SECONDS]

    async def _mend(self) -> None:
        store = self._runtime.store
        for session_id in await store.read(lambda tx: tx.queue.stuck_sessions()):
            self._runtime.follow(await store.write(lambda tx, key=session_id: tx.queue.give_turn(key)))

    async def _forget_keys(self) -> None:
        before = self._runtime.clock.now() - timedelta(hours=_KEY_HOURS)
        await self._runtime.store.write(lambda tx: tx.queue.forget_keys(before))


def _rescue(tx: Transaction, owner: str, *, run_ids: Sequence[str] | None = None) -> Rescued:
    return tx.queue.rescue(owner, lost=WORKER_LOST.to_json(), cancelled=CANCELLED.to_json(), run_ids=run_ids)
