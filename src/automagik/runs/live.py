"""LiveRun: one accepted run that this process carries out, from its turn in the session to its stored end."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Protocol, TypeVar, cast

import orjson
import structlog
from pydantic_ai import RunUsage

from automagik.agents import AgentInput, AgentResponse, AutomagikAgent, RunOptions, usage_of
from automagik.budget import Party
from automagik.errors import Conflict, ServiceUnavailable
from automagik.events import EventStream, RunEvent
from automagik.memory import MessageArchive
from automagik.runs.document import run_document, usage_document
from automagik.runs.outcomes import CANCELLED, WORKER_LOST, Failure, failure_of, worker_lost
from automagik.runs.request import RunRequest
from automagik.store import BegunRun, FinishRun, NewEvent, NewMessage, NextTurn, StartRun, Store
from automagik.store.artifacts import run_holder, session_holder
from automagik.store.rows import RunRow
from automagik.telemetry import Tracing
from automagik.tools import AgentContext
from automagik.types import OUTCOME_STATUS, Clock, Json, JsonObject, RunOutcome, RunStatus, Usage, utc_text

__all__ = ["LiveRun", "RunObserver", "new_event"]

_log = structlog.stdlib.get_logger(__name__)

_FIRST_WAIT_SECONDS = 0.2
_LONGEST_WAIT_SECONDS = 5.0
"""How long a store that is away is left alone before what must not be lost is offered again: doubled each time."""
_LAST_ATTEMPTS = 6
_LAST_WAIT_SECONDS = 1.0
"""How often, and how far apart, when the server is stopping: then what could not be stored is lost."""
_LONGEST_RETRY_SECONDS = 3600.0

_random = random.SystemRandom()

T = TypeVar("T")


class RunObserver(Protocol):
    """Who is told that a run ended: metrics."""

    def run_finished(self, row: RunRow) -> None:
        """Count the run."""
        ...


class _NotOurs(Exception):
    """The run has ended, or belongs to another process now: nothing more is written."""


def new_event(event: RunEvent) -> NewEvent:
    """A stored event as the store takes it. The last event's run is read from the run's row, so it is stored empty."""
    data = "{}" if event.type == "run_finished" else orjson.dumps(event.data).decode()
    return NewEvent(seq=event.seq or 0, type=event.type, at=event.at, data_json=data)


def _never() -> bool:
    """What a run claims that no worker carries out."""
    return False


@dataclass(slots=True)
class LiveRun:
    """One run under way. `task` ends when its end is stored, or when it is not this process's any more; `row` is the run as
    it stands."""

    row: RunRow
    request: RunRequest
    agent: AutomagikAgent
    stream: EventStream
    store: Store
    archive: MessageArchive
    clock: Clock
    observer: RunObserver
    tracing: Tracing
    owner: str
    make_context: "Callable[[LiveRun, BegunRun], AgentContext]"
    tell_next: Callable[[NextTurn | None], None]
    """Is told, when the end is stored, whose turn has come by it."""
    message_limit: int | None
    timeout_seconds: float
    wants_text: bool
    turn: "asyncio.Future[None] | None" = None
    """What to wait for before the run may begin; None: nothing."""
    begun: BegunRun | None = None
    used_before: Usage | None = None
    """What earlier attempts used, as far as that is known."""
    claims_next: Callable[[], bool] = _never
    """Whether the next background run of the session becomes this process's by this one's end; it is `next_turn` then."""
    task: "asyncio.Task[RunRow] | None" = None
    lost: bool = False
    """Whether the server is stopping: a cancelled run is then handed back to the queue where that is safe, else it is
    `worker_lost`."""
    next_turn: NextTurn | None = None
    _used: RunUsage = field(default_factory=RunUsage)
    _begun_work: bool = False
    _cancelled: bool = False
    _disowned: bool = False
    _ending: bool = False
    _open_tools: dict[str, str] = field(default_factory=dict[str, str])
    _wrote: str | None = None
    _stop: Callable[[], None] | None = None
    """What stops the work of an agent whose work outlives the process; its task is cancelled only where the run goes on elsewhere."""
    _waiting: "list[asyncio.Future[RunRow]]" = field(default_factory=list["asyncio.Future[RunRow]"])

    async def carry_out(self) -> RunRow:
        """Wait for the turn, ask the agent, store the end. Never raises for what goes wrong inside the run."""
        response: AgentResponse | None = None
        failure: Failure | None = None
        try:
            self._begun_work = True
            if self._cancelled and not self._stops_by_agent:
                raise asyncio.CancelledError
            if self.turn is not None:
                await self.turn
            response = await self._answer()
            if response.failure is not None:
                failure = failure_of(response.failure, tool_under_way=None)
        except _NotOurs:
            return await self._abandon()
        except asyncio.CancelledError:
            if self._disowned:
                return await self._abandon()
            failure = self._stopped()
        except TimeoutError:
            failure = Failure(
                RunOutcome.TIMED_OUT,
                f"The run took longer than its limit of {self.timeout_seconds:g} seconds.",
                "Raise `timeout_seconds` in the request or in the agent's config.",
                retryable=True,
            )
        except Exception as error:  # noqa: BLE001 - the worker's edge: whatever an agent raises ends its run, visibly
            tool = next(iter(self._open_tools.values()), None)
            failure = failure_of(error, tool_under_way=tool)
            _log.warning("run_failed", run_id=self.row.run_id, outcome=failure.outcome.value, exc_info=error)
        self._ending = True
        try:
            if failure is not None:
                failure = await self._try_again(failure)
                if failure is None:
                    return self.row
            await self._end(response, failure)
            self.observer.run_finished(self.row)
        except _NotOurs:
            return await self._abandon()
        finally:
            self._let_go()
        return self.row

    async def ended(self) -> RunRow:
        """The run when its end is stored. Going away ends nothing.

        Raises: ServiceUnavailable where the store is away for longer than a caller should wait; the end is stored later.
        """
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        return await waiter

    def tell_ended(self, task: "asyncio.Task[RunRow]") -> None:
        """Let those go who wait for the end: `task` is done."""
        for waiter in self._waiting:
            if waiter.done():
                continue
            if task.cancelled():
                waiter.cancel()
            elif (error := task.exception()) is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(task.result())
        self._waiting.clear()

    def cancel(self) -> None:
        """Stop the agent as soon as it yields; does nothing when its answer is there and the end is being stored.

        Where something on this host works for the run already, its agent stops that, and takes out what it made: also if the
        agent has not begun yet.
        """
        self._cancelled = True
        if not self._begun_work or self._ending or self.task is None:
            return
        if not self._stops_by_agent:
            self.task.cancel()
        elif self._stop is not None:
            self._stop()

    def disown(self) -> None:
        """Stop without writing anything more: the run belongs to another process now."""
        self._disowned = True
        self.cancel()

    @property
    def _stops_by_agent(self) -> bool:
        is_bound = self._stop is not None or (self.row.host is not None and self.agent.outlives_process)
        return is_bound and not self.lost and not self._disowned

    def _on_stop(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        if self._cancelled and self._stops_by_agent:
            stop()

    def emit(self, kind: str, data: JsonObject) -> None:
        """Take an event from the agent: deltas are shown, all else is stored and shown."""
        if kind in {"text_delta", "thinking_delta"}:
            self.stream.delta(kind, cast("str", data["text"]))
            return
        if kind == "tool_call":
            name = cast("str", data["tool_name"])
            self._open_tools[cast("str", data["tool_call_id"])] = name
            if not self.agent.only_reads(name):
                self._wrote = name
        elif kind == "tool_result":
            self._open_tools.pop(cast("str", data["tool_call_id"]), None)
        self.stream.publish(kind, data)

    async def written_down(self) -> None:
        """Return when all events so far are stored.

        Raises: _NotOurs where the run has ended or belongs to another process, so that no tool begins its work.
        """
        left = await self.stream.settle()
        if left:
            await self._append(left)
            self.stream.release()

    async def _answer(self) -> AgentResponse:
        begun = self.begun or await self._start()
        request = self.request
        history = request.history if request.history is not None else await self.archive.load(begun.history)
        media = request.media or await self.archive.load_media(request.stored_media)
        options = RunOptions(
            context=self.make_context(self, begun),
            history=history,
            variables=begun.variables,
            model=request.model,
            system_prompt=request.system_prompt,
            status_key=request.prompt_status_key,
            stream=self.wants_text,
            emit=self.emit,
            keep=self._keep,
            usage=self._used,
            owner=self.owner,
            party=self._party(begun),
            on_stop=self._on_stop,
            describe=self._describe,
        )
        if self.row.background:
            options = replace(options, settle=self.written_down)
        about = {"automagik.run_id": self.row.run_id, "gen_ai.agent.name": self.row.name}
        with self.tracing.span(f"run {self.row.name}", about):
            async with asyncio.timeout(None if self.agent.outlives_process else self.timeout_seconds):
                return await self.agent.process_message(AgentInput(request.text, media), options)

    def _party(self, begun: BegunRun) -> Party:
        row = self.row
        epic_id = row.parent_id if row.parent_id is not None and row.parent_id.startswith("epic_") else None
        names = (row.name,) if row.kind == "agent" else (self.agent.name, row.name)
        return Party(key_id=row.key_id, user_id=begun.user_id, agents=names, run_id=row.run_id, epic_id=epic_id)

    def _describe(self, details: JsonObject) -> None:
        self.row = replace(self.row, details=details)

    async def _keep(self, content: object) -> Json:
        return await self.archive.keep_content(content, used_by=run_holder(self.row.run_id))

    async def _start(self) -> BegunRun:
        event = self.stream.next("run_started", {})
        start = StartRun(
            run_id=self.row.run_id,
            started_at=event.at,
            owner=self.owner,
            message_limit=self.message_limit,
            variable_names=self.agent.variable_names(self.request.prompt_status_key),
            events=[new_event(event)],
        )
        try:
            begun = await self._persist("run_start_not_stored", lambda: self.store.start_run(start))
        except Conflict as gone:
            raise _NotOurs from gone
        self.begun = begun
        self.row = replace(self.row, status=RunStatus.RUNNING.value, started_at=event.at)
        self.stream.show([event])
        return begun

    # -- how it ends

    def _stopped(self) -> Failure:
        if not self.lost:
            return CANCELLED
        return worker_lost(self._wrote) if self.row.background and not self._repeatable else WORKER_LOST

    @property
    def _repeatable(self) -> bool:
        return self._wrote is None or self.agent.config.repeatable or self.agent.outlives_process

    async def _try_again(self, failure: Failure) -> Failure | None:
        """The failure that the run ends with; None where it waits in the queue again: for its next attempt, or because this
        process is stopping."""
        row, config = self.row, self.agent.config
        if self._cancelled and not self.lost:
            return CANCELLED
        if not row.background:
            return failure
        if self.lost and failure.outcome is RunOutcome.WORKER_LOST:
            return await self._wait_again(failure, row.attempt, None) if self._repeatable else failure
        if not failure.passes:
            return failure
        if row.attempt >= config.max_attempts:
            return failure.exhausted(row.attempt) if row.attempt > 1 else failure
        if not self._repeatable:
            return failure
        wait = min(config.retry_after_seconds * 2 ** (row.attempt - 1), _LONGEST_RETRY_SECONDS)
        available_at = self.clock.now() + timedelta(seconds=wait * _random.uniform(0.5, 1.5))
        return await self._wait_again(failure, row.attempt + 1, available_at)

    async def _wait_again(self, failure: Failure, attempt: int, available_at: datetime | None) -> Failure | None:
        """Put the run back into the queue. CANCELLED where somebody asked to stop it meanwhile."""
        run_id, owner = self.row.run_id, self.owner
        if self.begun is None and await self._persist(
            "run_not_let_go", lambda: self.store.write(lambda tx: tx.queue.let_go(run_id, owner))
        ):
            return None
        await self.written_down()
        data: JsonObject = {
            "background": True,
            "attempt": attempt,
            "reason": failure.outcome.value,
            "detail": failure.detail,
            "available_at": utc_text(available_at) if available_at is not None else None,
            "usage": usage_document(usage_of(self._used)),
        }
        if not await self._persist(
            "run_not_put_back",
            lambda: self.store.write(
                lambda tx: tx.queue.put_back(run_id, owner, attempt=attempt, available_at=available_at, data=data)
            ),
        ):
            return CANCELLED  # or it is not ours any more: then its end is not stored
        _log.info("run_waits_again", run_id=run_id, attempt=attempt, reason=failure.outcome.value)
        return None

    async def _abandon(self) -> RunRow:
        """The run as it stands, now that it is not ours: nothing is written."""
        run_id = self.row.run_id
        try:
            found = await self._persist("run_not_read", lambda: self.store.read(lambda tx: tx.runs.find(run_id)))
        finally:
            self._let_go()
        _log.info("run_left_to_others", run_id=run_id, status=found.status if found is not None else None)
        self.row = found or self.row
        return self.row

    def _let_go(self) -> None:
        self.stream.close()

    async def _end(self, response: AgentResponse | None, failure: Failure | None) -> None:
        """Store how the run ended; where its answer or events can't be stored, that it failed."""
        try:
            await self._finish(response, failure)
        except (ServiceUnavailable, _NotOurs):
            raise
        except Exception as error:  # noqa: BLE001 - the worker's edge: what an agent gives must not leave its run without an end
            _log.error("run_end_refused", run_id=self.row.run_id, exc_info=error)
            self.stream.forget_unstored()
            await self._finish(None, failure_of(error, tool_under_way=None))

    async def _finish(self, response: AgentResponse | None, failure: Failure | None) -> None:
        outcome = failure.outcome if failure is not None else RunOutcome.COMPLETED
        left = [*await self.stream.settle()]
        output: JsonObject | None = None
        usage = response.usage if response is not None else usage_of(self._used)
        if self.used_before is not None:
            usage += self.used_before
        if response is not None:
            output = {
                "message": response.message,
                "data": response.data,
                "tool_calls": cast("Json", response.tool_calls),
                "tool_outputs": cast("Json", response.tool_outputs),
            }
            left.append(self.stream.next("usage", usage_document(usage)))
        ending = self.stream.next("run_finished", {})
        self.row = replace(
            self.row,
            status=OUTCOME_STATUS[outcome].value,
            outcome=outcome.value,
            output=output,
            error=failure.to_json() if failure is not None else None,
            usage=usage,
            finished_at=ending.at,
            instructions=response.instructions if response is not None else None,
            model=response.model if response is not None else None,
        )
        await self._store_end(response, [*left, ending])
        self.stream.release()
        shown = [event for event in left if event.type == "usage"]
        self.stream.show([*shown, replace(ending, data={"run": run_document(self.row)})])

    async def _store_end(self, response: AgentResponse | None, events: list[RunEvent]) -> None:
        row = self.row
        messages: list[NewMessage] = []
        if response is not None and self.begun is not None and row.session_id is not None and self.request.has_session:
            messages = await self.archive.dump(response.new_messages, used_by=session_holder(row.session_id))
        end = FinishRun(
            run_id=row.run_id,
            owner=self.owner,
            status=row.status,
            outcome=cast("str", row.outcome),
            output_json=_json(row.output),
            error_json=_json(row.error),
            usage=row.usage,
            instructions=row.instructions,
            model=row.model,
            finished_at=cast("datetime", row.finished_at),
            session_key=self.begun.session_key if self.begun is not None else None,
            claims_next=self.claims_next(),
            messages=messages,
            events=[new_event(event) for event in events],
        )
        finished = await self._persist("run_end_not_stored", lambda: self.store.finish_run(end))
        if finished is None:
            raise _NotOurs
        self.next_turn = finished.next_turn
        self.tell_next(finished.next_turn)

    async def _append(self, events: Sequence[RunEvent]) -> None:
        stored = [new_event(event) for event in events]
        if not await self._persist(
            "run_events_not_stored", lambda: self.store.append_events(self.row.run_id, self.owner, stored)
        ):
            raise _NotOurs

    async def _persist(self, warning: str, write: Callable[[], Awaitable[T]]) -> T:
        """What `write` gives, however long the store is away: an answer that was paid for waits here.

        Raises: ServiceUnavailable where the store stays away while the server stops.
        """
        wait, left = _FIRST_WAIT_SECONDS, _LAST_ATTEMPTS
        while True:
            try:
                return await write()
            except ServiceUnavailable:
                left -= self.lost
                if not left:
                    raise
                _log.warning(warning, run_id=self.row.run_id, retry_seconds=wait)
            if wait == _LONGEST_WAIT_SECONDS:
                self._tell_not_stored()
            await asyncio.sleep(min(wait, _LAST_WAIT_SECONDS) if self.lost else wait)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)

    def _tell_not_stored(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(
                    ServiceUnavailable(
                        f"The run '{self.row.run_id}' has ended, but the database is away, so its end is not stored yet.",
                        hint=f"GET /api/v1/runs/{self.row.run_id} has it when the database is back.",
                    )
                )
        self._waiting.clear()


def _json(value: JsonObject | None) -> str | None:
    return None if value is None else orjson.dumps(value).decode()
