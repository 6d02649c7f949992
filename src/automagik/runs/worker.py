"""Worker: takes runs out of the queue and carries them out, a session's one after the other."""

import asyncio
import functools
import itertools
import operator
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, cast

import structlog

from automagik.agents import AutomagikAgent
from automagik.errors import AutomagikError, Internal, NotFound, ServiceUnavailable
from automagik.runs.document import usage_of_document
from automagik.runs.outcomes import Failure, failure_of, worker_lost
from automagik.runs.request import RunRequest
from automagik.runs.runtime import Runtime
from automagik.store import NextTurn
from automagik.store.queue import ClaimLimits, QueueLook
from automagik.store.rows import ClaimedRun, EventRow, RunRow
from automagik.types import JsonObject, RunOutcome, RunStatus, Usage

__all__ = ["Carry", "Engine", "Worker"]

_log = structlog.stdlib.get_logger(__name__)

_POLL_SECONDS = 1.0
"""How often the queue is looked at without a signal: for runs whose time has come, and for signals that were lost."""
_AWAY_SECONDS = 0.5
"""How long a store that is away is left alone, and an engine that failed; the engine twice as long each further time."""
_LONGEST_AWAY_SECONDS = 30.0
_STOP_SECONDS = 5.0
"""How long a stop waits for what is being claimed, handed over or let go."""
_LARGEST_CLAIM = 16
_MOST_STOPPED = 16
"""How many runs are stopped at once that would else wait for a place."""
_LANE_TURNS = 50
_LANE_SECONDS = 1.0
"""How many runs of one session are carried out in a row, and how long, before others get the place."""

T = TypeVar("T")

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


@dataclass(slots=True, eq=False)
class _Place:
    """What one of the worker's places is taken by: a claimed run, and later those of its session that follow it."""

    claimed: ClaimedRun
    ends: bool = False
    """Whether the run is only stopped; it has a place beside the others then, and none follows it here."""


class Worker:
    """Carries out background runs in this process, at most `max_concurrent_background_runs` at once."""

    def __init__(self, runtime: Runtime, *, host: str, make_engine: Callable[[Carry, str], Engine]) -> None:
        """`make_engine` makes the engine of an executor, by its id."""
        self._runtime = runtime
        self._host = host
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._engine_of = ""
        self._opening = asyncio.Lock()
        self._slots = runtime.settings.max_concurrent_background_runs
        self._places: set[_Place] = set()
        self._beside: set[_Place] = set()
        self._claimed: dict[str, _Place] = {}
        self._handed_over = itertools.count(1)
        self._starting: set[asyncio.Task[None]] = set()
        self._carrying: set[asyncio.Task[object]] = set()
        self._woken = asyncio.Event()
        self._stopping = False
        self._loop: asyncio.Task[None] | None = None
        self._limits = ClaimLimits()
        self._seen = QueueLook()
        self._seen_at = float("-inf")
        self._fault: AutomagikError | None = None
        self._fault_seconds = 0.0
        self._rests_until = float("-inf")
        runtime.has_taken = self._has_taken

    async def open(self, *, at_once: bool) -> None:
        """Begin to take runs. `at_once`: make the engine ready now, instead of when there is a run for it.

        Raises: what the engine raises that can't be made ready.
        """
        if at_once:
            await self._open_engine()
        self._runtime.on_work = self.wake
        self._runtime.on_cancel = self._look_for_stops
        self._loop = asyncio.get_running_loop().create_task(self._work(), name="worker")

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
        pending = [*self._starting, *([self._loop] if self._loop is not None else [])]
        if pending:
            _, late = await asyncio.wait(pending, timeout=_STOP_SECONDS)
            for task in late:
                task.cancel()
        for place in list(self._claimed.values()):
            await self._give_back(place)

    async def close(self) -> None:
        """Let go of the engine; `stop` was called, and what was under way has ended."""
        if self._carrying:
            await asyncio.wait(self._carrying, timeout=_STOP_SECONDS)
        async with self._opening:
            engine, self._engine = self._engine, None
            if engine is not None:
                await engine.close()

    async def renew(self) -> None:
        """Go on with an engine of the executor's new id; what was claimed under the old one belongs to nobody here."""
        owner = self._runtime.executor_id
        for run_id, place in list(self._claimed.items()):
            if place.claimed.row.owner != owner:
                del self._claimed[run_id]
                self._free(place)
        if self._engine is not None and self._engine_of != owner:
            await self.close()
        self.wake()

    @property
    def fault(self) -> str | None:
        """Why the engine takes no work, and when it is tried again; None where it does, or was not needed yet."""
        if self._fault is None:
            return None
        return f"No queued run begins here, and it is tried again within {self._fault_seconds:g} seconds: {self._fault.detail}"

    @property
    def carrying(self) -> int:
        """How many places are taken."""
        return len(self._places)

    def _has_taken(self, run_id: str) -> bool:
        return any(place.claimed.row.run_id == run_id for place in (*self._places, *self._beside))

    def _look_for_stops(self) -> None:
        self._seen_at = float("-inf")
        self.wake()

    # -- the queue

    async def _work(self) -> None:
        while not self._stopping:
            self._woken.clear()
            free = min(self._slots - len(self._places), _LARGEST_CLAIM)
            if self._engine is not None and self._engine_of != self._runtime.executor_id:
                free = 0  # until there is an engine of the new executor's
            if self._rests:
                free = 0  # what this worker can't begin is left to others
            taken: list[ClaimedRun] = []
            try:
                await self._look()
                if self._seen.has_stops:
                    await self._take_stopped()
                if free > 0:
                    taken = await self._claim(free)
            except AutomagikError as away:
                _log.warning("queue_not_read", reason=away.detail, exc_info=not isinstance(away, ServiceUnavailable))
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
        runtime, limits = self._runtime, self._limits
        owner, lease = runtime.executor_id, runtime.settings.host_lease_seconds
        # To look whether there is a sandbox and room takes a moment, so it is done only where a workflow waits.
        admits = self._seen.has_workflows and await runtime.admits_workflows()
        return await runtime.store.write(
            lambda tx: tx.queue.claim(
                owner, self._host, count, limits=limits, host_lease_seconds=lease, admits_workflows=admits
            )
        )

    async def _look(self) -> None:
        """See what limits claims, and who waits for more than a place: once a second, or when it is asked for."""
        runtime = self._runtime
        now = runtime.clock.monotonic()
        if now - self._seen_at < _POLL_SECONDS:
            return
        self._seen_at = now  # before the look: whoever asks for one meanwhile gets another
        try:
            self._seen = await runtime.store.read(lambda tx: tx.queue.look(self._host))
        except BaseException:
            self._seen_at = float("-inf")
            raise
        self._limits = ClaimLimits(
            total=runtime.settings.max_total_background_runs,
            by_agent=runtime.agents.concurrency_limits(),
            has_key_limits=self._seen.has_key_limits,
        )

    async def _take_stopped(self) -> None:
        """Take the runs of this host that are to be stopped, and stop them: at once, whether or not there is a place, and without
        the engine, which may rest. Where this process dies meanwhile, they wait again as they did."""
        runtime = self._runtime
        owner, room = runtime.executor_id, _MOST_STOPPED - len(self._beside)
        if room <= 0:
            return
        self._seen = replace(self._seen, has_stops=False)
        for claimed in await runtime.store.write(lambda tx: tx.queue.claim_stopped(owner, self._host, room)):
            if claimed.row.owner != runtime.executor_id:
                return  # as `_take`
            run_id = claimed.row.run_id
            place = self._claimed[run_id] = _Place(claimed, ends=True)
            self._beside.add(place)
            task = asyncio.get_running_loop().create_task(self.carry(run_id), name=f"stop {run_id}")
            self._carrying.add(task)
            task.add_done_callback(self._carrying.discard)

    def _take(self, claimed: ClaimedRun) -> None:
        if claimed.row.owner != self._runtime.executor_id:
            return  # this process was taken for dead while it claimed; others have the run
        place = _Place(claimed)
        self._places.add(place)
        self._claimed[claimed.row.run_id] = place
        task = asyncio.get_running_loop().create_task(self._start(place))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _start(self, place: _Place) -> None:
        """Hand the run to the engine; it stands in the queue again where that fails."""
        row = place.claimed.row
        # The engine does no work twice: what is handed over once more after a failure has a name of its own.
        workflow_id = f"{row.run_id}:{row.attempt}:{self._runtime.executor_id}:{next(self._handed_over)}"
        started = False
        try:
            engine = await self._open_engine()
            await engine.start(workflow_id, row.run_id)
            started = True
        except Exception as error:  # noqa: BLE001 - the worker's edge: an engine that fails must not lose the run
            self._rest(error, run_id=row.run_id)
        if started:
            self._fault, self._fault_seconds = None, 0.0
        else:
            await self._give_back(place)

    @property
    def _rests(self) -> bool:
        return self._runtime.clock.monotonic() < self._rests_until

    def _rest(self, error: Exception, *, run_id: str) -> None:
        """Leave an engine that failed alone for a while: twice as long as the last time, but once for those that fail together."""
        if self._rests:
            return
        self._fault = error if isinstance(error, AutomagikError) else Internal(f"{type(error).__name__}: {error}")
        self._fault_seconds = min(max(_AWAY_SECONDS, 2 * self._fault_seconds), _LONGEST_AWAY_SECONDS)
        self._rests_until = self._runtime.clock.monotonic() + self._fault_seconds
        _log.error("run_not_started", run_id=run_id, retry_seconds=self._fault_seconds, exc_info=error)

    async def _open_engine(self) -> Engine:
        async with self._opening:
            if self._fault is not None and self._rests:
                raise self._fault
            if self._engine is None:
                executor_id = self._runtime.executor_id
                engine = self._make_engine(self.carry, executor_id)
                await engine.open()
                self._engine, self._engine_of = engine, executor_id
            return self._engine

    async def _give_back(self, place: _Place) -> None:
        """Let the claimed run of a place go that has not begun."""
        if self._claimed.get(place.claimed.row.run_id) is place:
            del self._claimed[place.claimed.row.run_id]
            await self._let_go(place.claimed.row.run_id)
            self._free(place)
            self.wake()

    async def _let_go(self, run_id: str) -> None:
        owner = self._runtime.executor_id
        try:
            await self._patiently(lambda: self._runtime.store.write(lambda tx: tx.queue.let_go(run_id, owner)))
        except ServiceUnavailable as away:  # it is found when this executor is missed
            _log.warning("run_not_let_go", run_id=run_id, reason=away.detail)

    async def _patiently(self, do: Callable[[], Awaitable[T]]) -> T:
        """What `do` gives, however long the store is away. Raises ServiceUnavailable where this worker stops meanwhile."""
        while True:
            try:
                return await do()
            except ServiceUnavailable:
                if self._stopping:
                    raise
                await asyncio.sleep(_AWAY_SECONDS)

    def _free(self, place: _Place) -> None:
        was_full = len(self._places) >= self._slots or len(self._beside) >= _MOST_STOPPED
        self._places.discard(place)
        self._beside.discard(place)
        if was_full or self._limits.bind:  # else nothing waited for this: what comes is told by a signal
            self.wake()

    # -- carrying out

    async def carry(self, run_id: str) -> None:
        """Carry out a run that this worker has claimed, and then the runs of its session that follow. Any other is left alone:
        whoever owns it carries it out."""
        place = self._claimed.pop(run_id, None)
        if place is None:
            return
        task = cast("asyncio.Task[object]", asyncio.current_task())
        self._carrying.add(task)
        try:
            await self._carry_lane(place)
        except ServiceUnavailable as away:  # this worker stops; whoever misses it takes the run
            _log.warning("run_left_to_others", run_id=place.claimed.row.run_id, reason=away.detail)
        finally:
            self._carrying.discard(task)
            self._free(place)

    async def _carry_lane(self, place: _Place) -> None:
        began, turns = self._runtime.clock.monotonic(), 0

        def goes_on() -> bool:
            if place.ends:
                return False
            is_fair = turns < _LANE_TURNS and self._runtime.clock.monotonic() - began < _LANE_SECONDS
            return is_fair and not self._stopping

        while True:
            turns += 1
            row = place.claimed.row
            try:
                following = await self._carry_one(place, goes_on)
            except ServiceUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - the worker's edge: a run that can't be carried out must end all the same
                _log.error("run_not_carried_out", run_id=row.run_id, exc_info=error)
                await self._refuse(row, failure_of(error, tool_under_way=None))
                return
            owner = self._runtime.executor_id
            if following is None or not following.background or following.owner != owner:
                return
            run_id = following.run_id
            claimed = following.claimed or await self._patiently(
                lambda run_id=run_id, owner=owner: self._runtime.store.claimed_run(run_id, owner)
            )
            if claimed is None:
                return
            place.claimed = claimed

    async def _carry_one(self, place: _Place, goes_on: Callable[[], bool]) -> NextTurn | None:
        """Carry out the run that is claimed; whose turn in its session has come by its end."""
        runtime, claimed = self._runtime, place.claimed
        row = claimed.row
        await self._patiently(runtime.agents.refresh)
        try:
            request = RunRequest.from_row(row)
            agent = runtime.agents.get_agent(request.agent_name)
        except NotFound as gone:
            await self._refuse(row, Failure(RunOutcome.INTERNAL_ERROR, gone.detail, "Was the agent deleted?"))
            return None
        past = await self._past(row.run_id) if claimed.last_seq > 1 else ()
        refusal = _not_again(row, agent, past) if row.attempt > 1 else None
        if refusal is not None:
            await self._refuse(row, refusal)
            return None
        live = runtime.make(request, agent, row, wants_text=True, last_seq=claimed.last_seq)
        live.claims_next, live.used_before = goes_on, _used(past)
        if place.ends:
            live.cancel()
        if self._stopping:
            await self._let_go(row.run_id)
            return None
        await asyncio.wait([runtime.launch(live)])
        return live.next_turn

    async def _past(self, run_id: str) -> Sequence[EventRow]:
        """What happened in a run that was under way before."""
        return await self._patiently(lambda: self._runtime.store.read(lambda tx: tx.events.list(run_id)))

    async def _refuse(self, row: RunRow, failure: Failure) -> None:
        """End a claimed run without carrying it out."""
        ended = await self._patiently(
            lambda: self._runtime.store.write(
                lambda tx: tx.queue.end(
                    row.run_id, failure.outcome, failure.to_json(), statuses=(RunStatus.QUEUED,), owner=row.owner
                )
            )
        )
        if ended is not None:
            self._runtime.tell_ended(ended)


def _not_again(row: RunRow, agent: AutomagikAgent, past: Sequence[EventRow]) -> Failure | None:
    """Why a run whose earlier attempt failed or was lost is not tried again, None where it is."""
    returns = _returns(past)
    why = RunOutcome(str(returns[-1]["reason"])) if returns else RunOutcome.WORKER_LOST
    if why is RunOutcome.WORKER_LOST and not (agent.config.repeatable or agent.outlives_process):
        called = _called_tool(past, agent)
        if called is not None:
            return worker_lost(called)
    if row.attempt > agent.config.max_attempts:
        return worker_lost(None).exhausted(row.attempt - 1)
    return None


def _returns(past: Sequence[EventRow]) -> list[JsonObject]:
    """What is told of the run's returns to the queue."""
    return [event.data for event in past if event.type == "run_queued" and "reason" in event.data]


def _used(past: Sequence[EventRow]) -> Usage | None:
    """What earlier attempts used, as far as they could still say so."""
    told = [usage_of_document(cast("JsonObject", data["usage"])) for data in _returns(past) if "usage" in data]
    return functools.reduce(operator.add, told) if told else None


def _called_tool(events: Sequence[EventRow], agent: AutomagikAgent) -> str | None:
    """A tool that writes and had been called: one without an answer before any other."""
    answered = [event.data.get("tool_call_id") for event in events if event.type == "tool_result"]
    calls = [event.data for event in events if event.type == "tool_call"]
    writing = [call for call in calls if not agent.only_reads(str(call.get("tool_name")))]
    unanswered = [call for call in writing if call.get("tool_call_id") not in answered]
    for call in unanswered or writing:
        return str(call.get("tool_name"))
    return None
