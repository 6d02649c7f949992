"""Worker: takes runs out of the queue and carries them out, a session's one after the other."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, cast

import structlog

from automagik.agents import AutomagikAgent
from automagik.errors import NotFound, ServiceUnavailable
from automagik.runs.outcomes import Failure, worker_lost
from automagik.runs.request import RunRequest
from automagik.runs.runtime import Runtime
from automagik.store.queue import ClaimedRun, ClaimLimits
from automagik.store.rows import EventRow, RunRow
from automagik.types import RunOutcome, RunStatus

__all__ = ["Carry", "Engine", "Worker"]

_log = structlog.stdlib.get_logger(__name__)

_POLL_SECONDS = 1.0
"""How often the queue is looked at without a signal: for runs whose time has come, and for signals that were lost."""
_AWAY_SECONDS = 0.5
"""How long a store that is away is left alone."""
_LARGEST_CLAIM = 16
_LANE_TURNS = 50
"""How many runs of one session are carried out in a row before others get the place."""
_LIMITS_SECONDS = 1.0
"""How long what the limits are is remembered."""

Carry = Callable[[str], Awaitable[None]]
"""Carries out a claimed run, and what follows it in its session; returns when nothing more is to be done."""


class Engine(Protocol):
    """What makes the carrying out of queued work durable. `start` returns when it is written down that the work is done here."""

    async def open(self) -> None:
        """Be ready for work."""
        ...

    async def close(self) -> None:
        """Let go; what is under way has ended before, or is not this executor's any more."""
        ...

    async def start(self, workflow_id: str, run_id: str) -> None:
        """Begin to carry out `run_id` as the workflow `workflow_id`."""
        ...


class Worker:
    """Carries out background runs in this process, at most `max_concurrent_background_runs` at once."""

    def __init__(self, runtime: Runtime, *, host: str, make_engine: Callable[[Carry, str], Engine]) -> None:
        """`make_engine` makes the engine of an executor, by its id."""
        self._runtime = runtime
        self._host = host
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._opening = asyncio.Lock()
        self._slots = runtime.settings.max_concurrent_background_runs
        self._claimed: dict[str, ClaimedRun] = {}
        self._places: set[str] = set()
        self._starting: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()
        self._stopping = False
        self._loop: asyncio.Task[None] | None = None
        self._limits = ClaimLimits()
        self._limits_at = float("-inf")

    def open(self, *, at_once: bool) -> None:
        """Begin to take runs. `at_once`: make the engine ready now, instead of when there is a run for it."""
        self._runtime.on_work = self.wake
        loop = asyncio.get_running_loop()
        self._loop = loop.create_task(self._work(at_once=at_once), name="worker")

    def wake(self) -> None:
        """Look at the queue now."""
        self._woken.set()

    def pause(self) -> None:
        """Take no more."""
        self._stopping = True
        self.wake()

    async def stop(self) -> None:
        """Take no more, and give back what has not begun. What is under way goes on."""
        self.pause()
        if self._loop is not None:
            await asyncio.wait([self._loop])
        if self._starting:
            await asyncio.wait(self._starting)
        for claimed in list(self._claimed.values()):
            await self._give_back(claimed.row.run_id)

    async def close(self) -> None:
        """Let go of the engine; `stop` was called, and what was under way has ended."""
        async with self._opening:
            engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()

    async def renew(self) -> None:
        """Go on with an engine of the executor's new id; what was claimed under the old one belongs to nobody here."""
        self._claimed.clear()
        self._places.intersection_update(self._runtime.live)
        await self.close()
        self.wake()

    @property
    def carrying(self) -> int:
        """How many places are taken."""
        return len(self._places)

    # -- the queue

    async def _work(self, *, at_once: bool) -> None:
        if at_once:
            await self._open_engine()
        while not self._stopping:
            self._woken.clear()
            free = min(self._slots - len(self._places), _LARGEST_CLAIM)
            taken: list[ClaimedRun] = []
            if free > 0:
                try:
                    taken = await self._claim(free)
                except ServiceUnavailable as away:
                    _log.warning("queue_not_read", reason=away.detail)
                    await asyncio.sleep(_AWAY_SECONDS)
            for claimed in taken:
                self._take(claimed)
            if len(taken) < free or free <= 0:
                await self._wait()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(_POLL_SECONDS):
                await self._woken.wait()
        except TimeoutError:
            return

    async def _claim(self, count: int) -> list[ClaimedRun]:
        runtime = self._runtime
        limits = await self._current_limits()
        owner, lease = runtime.executor_id, runtime.settings.host_lease_seconds
        return await runtime.store.write(
            lambda tx: tx.queue.claim(owner, self._host, count, limits=limits, host_lease_seconds=lease)
        )

    async def _current_limits(self) -> ClaimLimits:
        runtime = self._runtime
        now = runtime.clock.monotonic()
        if now - self._limits_at >= _LIMITS_SECONDS:
            has_key_limits = await runtime.store.read(lambda tx: tx.queue.has_key_limits())
            self._limits = ClaimLimits(
                total=runtime.settings.max_total_background_runs,
                by_agent=runtime.agents.concurrency_limits(),
                has_key_limits=has_key_limits,
            )
            self._limits_at = now
        return self._limits

    def _take(self, claimed: ClaimedRun) -> None:
        run_id = claimed.row.run_id
        self._places.add(run_id)
        self._claimed[run_id] = claimed
        task = asyncio.get_running_loop().create_task(self._start(claimed.row))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _start(self, row: RunRow) -> None:
        """Hand the run to the engine; it stands in the queue again where that fails."""
        started = False
        try:
            engine = await self._open_engine()
            await engine.start(f"{row.run_id}:{row.attempt}:{self._runtime.executor_id}", row.run_id)
            started = True
        except Exception as error:  # noqa: BLE001 - the worker's edge: an engine that fails must not lose the run
            _log.error("run_not_started", run_id=row.run_id, exc_info=error)
        if not started:
            await self._give_back(row.run_id)

    async def _open_engine(self) -> Engine:
        async with self._opening:
            if self._engine is None:
                engine = self._make_engine(self.carry, self._runtime.executor_id)
                await engine.open()
                self._engine = engine
            return self._engine

    async def _give_back(self, run_id: str) -> None:
        if self._claimed.pop(run_id, None) is None:
            return
        owner = self._runtime.executor_id
        while True:
            try:
                await self._runtime.store.write(lambda tx: tx.queue.let_go(run_id, owner))
                break
            except ServiceUnavailable:
                if self._stopping:
                    break  # it is found when this executor is missed
                await asyncio.sleep(_AWAY_SECONDS)
        self._free(run_id)

    def _free(self, run_id: str) -> None:
        self._places.discard(run_id)
        self.wake()

    # -- carrying out

    async def carry(self, run_id: str) -> None:
        """Carry out a run that this worker has claimed, and then the runs of its session that follow. Any other is left alone:
        whoever owns it carries it out."""
        claimed = self._claimed.pop(run_id, None)
        if claimed is None:
            return
        try:
            for turn in range(_LANE_TURNS):
                following = await self._carry_one(claimed, goes_on=turn + 1 < _LANE_TURNS)
                if following is None:
                    return
                claimed = following
        finally:
            self._free(run_id)

    async def _carry_one(self, claimed: ClaimedRun, *, goes_on: bool) -> ClaimedRun | None:
        """Carry out one run; the next of its session where that belongs to this worker by the end of this one."""
        runtime = self._runtime
        row = claimed.row
        await runtime.agents.refresh()
        try:
            agent = runtime.agents.get_agent(row.name)
        except NotFound as gone:
            await self._refuse(row, Failure(RunOutcome.INTERNAL_ERROR, gone.detail, "Was the agent deleted?"))
            return None
        refusal = await self._not_again(row, agent) if row.attempt > 1 else None
        if refusal is not None:
            await self._refuse(row, refusal)
            return None
        live = runtime.make(RunRequest.from_row(row), agent, row, wants_text=True, last_seq=claimed.last_seq)
        live.claims_next = goes_on and not self._stopping
        await asyncio.wait([runtime.launch(live)])
        following = live.next_turn
        owner = runtime.executor_id
        if following is None or not following.background or following.owner != owner:
            return None
        return await runtime.store.read(lambda tx: tx.queue.claimed(following.run_id, owner))

    async def _not_again(self, row: RunRow, agent: AutomagikAgent) -> Failure | None:
        """Why a run whose earlier attempt failed or was lost is not tried again, None where it is."""
        events = await self._runtime.store.read(lambda tx: tx.events.list(row.run_id))
        why = RunOutcome(str(_last_return(events).get("reason") or RunOutcome.WORKER_LOST.value))
        if why is RunOutcome.WORKER_LOST and not agent.config.repeatable:
            called = _called_tool(events, agent)
            if called is not None:
                return worker_lost(called)
        if row.attempt > agent.config.max_attempts:
            return worker_lost(None).exhausted(row.attempt - 1)
        return None

    async def _refuse(self, row: RunRow, failure: Failure) -> None:
        """End a claimed run without carrying it out."""
        ended = await self._runtime.store.write(
            lambda tx: tx.queue.end(
                row.run_id, failure.outcome, failure.to_json(), statuses=(RunStatus.QUEUED,), owner=row.owner
            )
        )
        if ended is not None:
            self._runtime.follow(ended.next_turn)


def _last_return(events: Sequence[EventRow]) -> dict[str, object]:
    """What the last return to the queue says of its reason."""
    returns = [event.data for event in events if event.type == "run_queued" and "reason" in event.data]
    return cast("dict[str, object]", returns[-1]) if returns else {}


def _called_tool(events: Sequence[EventRow], agent: AutomagikAgent) -> str | None:
    """A tool that writes and had been called: one without an answer before any other."""
    answered = [event.data.get("tool_call_id") for event in events if event.type == "tool_result"]
    calls = [event.data for event in events if event.type == "tool_call"]
    writing = [call for call in calls if not agent.only_reads(str(call.get("tool_name")))]
    unanswered = [call for call in writing if call.get("tool_call_id") not in answered]
    for call in unanswered or writing:
        return str(call.get("tool_name"))
    return None
