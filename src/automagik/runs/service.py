"""RunService: one lifecycle for every kind of work: accept, carry out, watch, cancel."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast

import orjson
import structlog

from automagik.agents import AgentFactory, AutomagikAgent
from automagik.errors import (
    InvalidInput,
    MissingScope,
    NotFound,
    OverrideNotAllowed,
    RunFailed,
    ServiceUnavailable,
)
from automagik.events import EventBus, EventStream, RunEvent
from automagik.memory import DEFAULT_STATUS_KEY, MemoryStore
from automagik.providers import ModelRegistry
from automagik.runs.acceptance import begin_of, new_row
from automagik.runs.document import run_document
from automagik.runs.live import LiveRun, RunObserver, new_event
from automagik.runs.names import Name, SessionNames
from automagik.runs.outcomes import WORKER_LOST
from automagik.runs.request import RunRequest
from automagik.runs.stream import RunStream
from automagik.runs.turns import SessionTurns, Turn
from automagik.settings import Settings
from automagik.store import BegunRun, FinishRun, NewEvent, Page, Store
from automagik.store.rows import EventRow, RunRow
from automagik.telemetry import Tracing
from automagik.tools import AgentContext
from automagik.types import (
    OUTCOME_STATUS,
    TERMINAL,
    Caller,
    Clock,
    JsonObject,
    RunOutcome,
    RunStatus,
    new_uuid,
)

__all__ = ["RunService"]

_log = structlog.stdlib.get_logger(__name__)

_POLL_SECONDS = 0.5
"""How often a run that is carried out by another process is looked at by those who watch it here."""


class RunService:
    """Carries out runs in this process, in the order of acceptance within a session, and tells about all runs."""

    def __init__(
        self,
        *,
        settings: Settings,
        clock: Clock,
        store: Store,
        agents: AgentFactory,
        models: ModelRegistry,
        memories: MemoryStore,
        events: EventBus,
        observer: RunObserver,
        tracing: Tracing,
        owner: str,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._store = store
        self._agents = agents
        self._models = models
        self._memories = memories
        self._events = events
        self._observer = observer
        self._tracing = tracing
        self._owner = owner
        self._turns = SessionTurns()
        self._slots = asyncio.Semaphore(settings.max_concurrent_background_runs)
        self._live: dict[str, LiveRun] = {}
        self._names = SessionNames(self._find_session)
        self._stopping = False

    # -- asking an agent

    async def run(self, request: RunRequest, caller: Caller) -> RunRow:
        """The run once it has ended well.

        Raises:
            RunFailed: the run is stored as failed or cancelled, and this says why.
        """
        live = await self._accept(request, caller, wants_text=False)
        return self._ended(await live.ended())

    async def stream(self, request: RunRequest, caller: Caller) -> RunStream:
        """The events of a run that is accepted when this returns. Leaving the stream ends nothing."""
        live = await self._accept(request, caller, wants_text=True)
        return RunStream(live.row, live.stream.subscribe())

    async def submit(self, request: RunRequest, caller: Caller) -> RunRow:
        """The queued run, as soon as it is stored; it is carried out in the background."""
        live = await self._accept(request, caller, wants_text=True, background=True)
        return live.row

    async def check(self, request: RunRequest, caller: Caller) -> RunRequest:
        """The request as it would be accepted, with its user; nothing is stored. Raises what `submit` would for it."""
        await self._agents.refresh()
        agent = self._agent_for(request, caller)
        request = self._owned(request, caller)
        await self._check_overrides(agent, request, caller)
        return request

    # -- telling about runs

    async def get(self, run_id: str, caller: Caller) -> RunRow:
        """One run, whole. Raises NotFound for what the caller may not see, too."""
        row = await self._store.read(lambda tx: tx.runs.find(run_id))
        if row is None or not _sees(caller, row):
            raise NotFound("run", run_id, hint="GET /api/v1/runs lists the runs that this key may see.")
        return row

    async def list(
        self,
        caller: Caller,
        *,
        status: str | None = None,
        outcome: str | None = None,
        kind: str | None = None,
        name: str | None = None,
        session_id: uuid.UUID | None = None,
        user_id: uuid.UUID | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[RunRow]:
        """Runs that the caller may see, newest first, without input and output."""
        if caller.user_id is not None:
            if user_id not in {None, caller.user_id}:
                return Page([], None)
            user_id = caller.user_id
        return await self._store.read(
            lambda tx: tx.runs.list(
                status=status,
                outcome=outcome,
                kind=kind,
                name=name,
                session_id=session_id,
                user_id=user_id,
                limit=limit,
                cursor=cursor,
            )
        )

    async def events(self, run_id: str, caller: Caller, *, after: int = 0) -> Sequence[RunEvent]:
        """The stored events of a run after `seq`, in order."""
        row = await self.get(run_id, caller)
        return await self._stored_events(row, after=after)

    async def watch(self, run_id: str, caller: Caller, *, after: int = 0) -> RunStream:
        """Stored events after `seq`, then what comes, until the run has ended."""
        row = await self.get(run_id, caller)
        return RunStream(row, self._watch(row, after))

    async def cancel(self, run_id: str, caller: Caller) -> RunRow:
        """The run, cancelled: a queued one at once, a running one as soon as its agent has stopped.

        A run that has ended is returned as it ended.
        """
        row = await self.get(run_id, caller)
        live = self._live.get(run_id)
        if live is None:
            return row
        live.cancel()
        return await live.ended()

    # -- the process's life

    async def recover(self) -> int:
        """Mark what a dead process left as `worker_lost`, and start what it had accepted for the background and not begun.

        Returns how many runs were started.
        """
        recovered = await self._store.recover(self._owner)
        started = 0
        for row in recovered.queued:
            run_id = row.run_id
            events = await self._store.read(lambda tx, run_id=run_id: tx.events.list(run_id))
            last_seq = events[-1].seq if events else 0
            is_background = bool(events) and bool(events[0].data.get("background"))
            if not is_background or row.name not in self._agents.names():
                await self._end_lost(row, last_seq)
                continue
            agent = self._agents.get_agent(row.name)
            request = RunRequest.from_row(row)
            turn = self._turns.enter(row.session_id) if row.session_id is not None else None
            self._launch(self._live_run(request, agent, row, turn, wants_text=True, background=True, last_seq=last_seq))
            started += 1
        return started

    async def _end_lost(self, row: RunRow, last_seq: int) -> None:
        """End a queued run that nobody waits for any more, or whose agent is gone."""
        ending = NewEvent(seq=last_seq + 1, type="run_finished", at=self._clock.now(), data_json="{}")
        await self._store.finish_run(
            FinishRun(
                run_id=row.run_id,
                status=OUTCOME_STATUS[RunOutcome.WORKER_LOST].value,
                outcome=RunOutcome.WORKER_LOST.value,
                error_json=orjson.dumps(WORKER_LOST.to_json()).decode(),
                finished_at=ending.at,
                events=[ending],
            )
        )

    async def close(self) -> None:
        """Take no more, let runs finish within the grace time, then end the rest as `worker_lost`.

        Runs of the background that have not begun stay queued: the next start takes them up.
        """
        self._stopping = True
        running = [self._task_of(live) for live in self._live.values() if live.begun is not None]
        if running:
            await asyncio.wait(running, timeout=self._settings.shutdown_grace_seconds)
        rest = list(self._live.values())
        for live in rest:
            live.lost = True
            live.cancel()
        if rest:
            await asyncio.wait([self._task_of(live) for live in rest])

    @property
    def live_runs(self) -> int:
        """How many runs this process has accepted and not ended."""
        return len(self._live)

    # -- acceptance

    async def _accept(
        self, request: RunRequest, caller: Caller, *, wants_text: bool, background: bool = False
    ) -> LiveRun:
        if self._stopping:
            raise ServiceUnavailable("The server is stopping.", hint="Retry; another instance may answer.")
        await self._agents.refresh()
        agent = self._agent_for(request, caller)
        request = self._owned(request, caller)
        await self._check_overrides(agent, request, caller)
        async with self._named(request) as request:
            turn = self._turns.enter(request.session_id) if request.session_id is not None else None
            try:
                return await self._store_acceptance(request, caller, agent, turn, wants_text, background)
            except BaseException:
                if turn is not None:
                    turn.leave()
                raise

    async def _store_acceptance(
        self,
        request: RunRequest,
        caller: Caller,
        agent: AutomagikAgent,
        turn: Turn | None,
        wants_text: bool,
        background: bool,
    ) -> LiveRun:
        starts_now = not background and (turn is None or turn.is_first)
        row = new_row(request, caller, agent, now=self._clock.now(), owner=self._owner, queued=not starts_now)
        live = self._live_run(request, agent, row, turn, wants_text=wants_text, background=background)
        kind = "run_started" if starts_now else "run_queued"
        event = live.stream.next(kind, {} if starts_now else {"background": background})
        live.row = row = replace(row, created_at=event.at, started_at=event.at if starts_now else None)
        begin = begin_of(live, caller, event)
        if starts_now:
            live.begun = begun = await self._store.begin_run(begin)
            session_id = begun.session_id
        else:
            session_id = (await self._store.accept_run(begin)).session_id
        live.row = replace(row, session_id=session_id)
        live.stream.show([event])
        self._launch(live)
        return live

    def _agent_for(self, request: RunRequest, caller: Caller) -> AutomagikAgent:
        scope = f"agents:{request.agent_name}:run"
        try:
            agent = self._agents.get_agent(request.agent_name)
        except NotFound:
            if caller.allows(scope) and self._agents.is_broken(request.agent_name):
                raise
            names = [name for name in self._agents.names() if caller.allows(f"agents:{name}:run")]
            raise NotFound("agent", request.agent_name, known=names) from None
        if not caller.allows(scope):
            raise MissingScope(scope)
        return agent

    def _owned(self, request: RunRequest, caller: Caller) -> RunRequest:
        if caller.user_id is None or request.user_id == caller.user_id:
            return request
        if request.user_id is not None:
            raise NotFound("user", str(request.user_id), hint="This key is bound to another user; leave `user_id` out.")
        return replace(request, user_id=caller.user_id)

    async def _check_overrides(self, agent: AutomagikAgent, request: RunRequest, caller: Caller) -> None:
        may_override = caller.allows("agents:write")
        if request.model is not None:
            if not (may_override or agent.config.allows_model(request.model)):
                raise OverrideNotAllowed(
                    f"The agent '{request.agent_name}' does not open `model` '{request.model}' to this key.",
                    hint="Leave `model` out, or ask an administrator to add it to the agent's `allow_overrides`.",
                )
            await self._models.resolve(request.model)
        if request.system_prompt is not None and not (may_override or "system_prompt" in agent.config.allow_overrides):
            raise OverrideNotAllowed(
                f"The agent '{request.agent_name}' does not open `system_prompt` to this key.",
                hint="Leave `system_prompt` out, or ask an administrator to add it to the agent's `allow_overrides`.",
            )
        agent.check_prompt_variables(request.prompt_variables)
        if request.prompt_status_key != DEFAULT_STATUS_KEY:
            await agent.load_active_prompt_template(request.prompt_status_key)

    @asynccontextmanager
    async def _named(self, request: RunRequest) -> AsyncGenerator[RunRequest]:
        """The request with its session's id: given, found by name, or new."""
        if not request.has_session:
            yield request
        elif request.session_name is None:
            yield request if request.session_id is not None else replace(request, session_id=new_uuid())
        elif request.session_id is not None:
            raise InvalidInput(
                "Give `session_id` or `session_name`, not both.",
                field=("body", "session_name"),
                hint="A session's id finds it whatever its name.",
            )
        else:
            async with self._names.resolve((request.user_id, request.session_name)) as session_id:
                yield replace(request, session_id=session_id)

    async def _find_session(self, name: Name) -> uuid.UUID | None:
        found = await self._store.read(lambda tx: tx.sessions.find_by_name(*name))
        return found.session_id if found is not None else None

    def _live_run(
        self,
        request: RunRequest,
        agent: AutomagikAgent,
        row: RunRow,
        turn: Turn | None,
        *,
        wants_text: bool,
        background: bool,
        last_seq: int = 0,
    ) -> LiveRun:
        limits = [request.timeout_seconds, agent.config.timeout_seconds, self._settings.run_timeout_seconds]
        return LiveRun(
            row=row,
            request=request,
            agent=agent,
            stream=EventStream(row.run_id, self._clock, self._store_events, last_seq=last_seq),
            store=self._store,
            clock=self._clock,
            observer=self._observer,
            tracing=self._tracing,
            owner=self._owner,
            make_context=self._context,
            message_limit=request.message_limit if request.message_limit is not None else agent.config.message_limit,
            timeout_seconds=min(limit for limit in limits if limit is not None),
            wants_text=wants_text,
            turn=turn,
            slots=self._slots if background else None,
        )

    def _launch(self, live: LiveRun) -> None:
        run_id = live.row.run_id
        self._live[run_id] = live
        self._events.add(live.stream)
        live.task = asyncio.get_running_loop().create_task(live.carry_out(), name=run_id)
        live.task.add_done_callback(lambda task: self._forget(live, task))

    def _forget(self, live: LiveRun, task: "asyncio.Task[RunRow]") -> None:
        run_id = live.row.run_id
        self._live.pop(run_id, None)
        live.tell_ended(task)
        self._events.remove(run_id)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("run_end_lost", run_id=run_id, exc_info=error)

    def _context(self, live: LiveRun, begun: BegunRun) -> AgentContext:
        row = live.row
        return AgentContext(
            run_id=row.run_id,
            agent_name=row.name,
            agent_id=live.agent.db_id,
            session_id=row.session_id,
            session_key=begun.session_key,
            user_id=begun.user_id,
            variables=live.request.prompt_variables,
            request=live.request.context,
            memory=self._memories.for_agent(live.agent.db_id, user_id=begun.user_id, session_key=begun.session_key),
        )

    # -- events

    async def _store_events(self, run_id: str, events: Sequence[RunEvent]) -> None:
        await self._store.append_events(run_id, [new_event(event) for event in events])

    async def _stored_events(self, row: RunRow, *, after: int) -> Sequence[RunEvent]:
        stored = await self._store.read(lambda tx: tx.events.list(row.run_id, after=after))
        return [self._event(event, row) for event in stored]

    def _event(self, event: EventRow, row: RunRow) -> RunEvent:
        data: JsonObject = {"run": run_document(row)} if event.type == "run_finished" else event.data
        return RunEvent(event.run_id, event.seq, event.type, event.at, data)

    async def _watch(self, row: RunRow, after: int) -> AsyncIterator[Sequence[RunEvent]]:
        """Stored events, then the live stream where the run is alive here, else the store again and again."""
        while True:
            stream = self._events.find(row.run_id)
            if stream is not None and stream.first_logged <= after + 1:
                subscription = stream.subscribe(after=after)
                try:
                    async for batch in subscription:
                        yield batch
                finally:
                    await subscription.aclose()
                return
            fresh = await self._store.read(lambda tx: tx.runs.find(row.run_id)) or row
            batch = await self._stored_events(fresh, after=after)
            if batch:
                after = batch[-1].seq or after
                yield batch
                if batch[-1].type == "run_finished":
                    return
            elif RunStatus(fresh.status) in TERMINAL:
                return
            elif self._events.find(row.run_id) is None:
                await asyncio.sleep(_POLL_SECONDS)

    def _ended(self, row: RunRow) -> RunRow:
        if row.status == RunStatus.COMPLETED.value:
            return row
        error = row.error or {}
        raise RunFailed(
            cast("str", error.get("detail") or "The run failed."),
            outcome=cast("str", row.outcome),
            run_id=row.run_id,
            hint=cast("str | None", error.get("hint")),
            retryable=bool(error.get("retryable")),
        )

    @staticmethod
    def _task_of(live: LiveRun) -> "asyncio.Task[RunRow]":
        if live.task is None:
            raise RuntimeError("a live run has a task from the moment it is known")
        return live.task


def _sees(caller: Caller, row: RunRow) -> bool:
    return caller.user_id is None or row.user_id == caller.user_id
