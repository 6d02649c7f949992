"""Runtime: what all runs that this process carries out have in common, and which they are."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from automagik.agents import AgentFactory, AutomagikAgent
from automagik.events import EventBus, EventStream, RunEvent
from automagik.memory import MemoryStore, MessageArchive
from automagik.runs.live import LiveRun, RunObserver, new_event
from automagik.runs.request import RunRequest
from automagik.runs.turns import Turns
from automagik.settings import Settings
from automagik.store import BegunRun, NextTurn, Store
from automagik.store.queue import EndedRun
from automagik.store.rows import RunRow
from automagik.telemetry import Tracing
from automagik.tools import AgentContext
from automagik.types import Clock

__all__ = ["Runtime"]

_log = structlog.stdlib.get_logger(__name__)


def _nobody() -> None:
    """Who is woken in a process without a worker."""


async def _nothing_owed() -> None:
    """What is settled of dead processes where nobody keeps accounts."""


async def _always() -> bool:
    """Whether there is room for a workflow where nobody looks."""
    return True


def _nothing(run_id: str) -> bool:
    """What has been taken in a process without a worker."""
    del run_id
    return False


class Runtime:
    """The runs that are alive in this process, all owned by its one executor."""

    def __init__(
        self,
        *,
        settings: Settings,
        clock: Clock,
        store: Store,
        archive: MessageArchive,
        agents: AgentFactory,
        memories: MemoryStore,
        events: EventBus,
        observer: RunObserver,
        tracing: Tracing,
        executor_id: str,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.store = store
        self.archive = archive
        self.agents = agents
        self.events = events
        self.executor_id = executor_id
        """By what this process owns runs; another one after it was declared lost."""
        self.live: dict[str, LiveRun] = {}
        self.turns = Turns()
        self.on_work: Callable[[], None] = _nobody
        """Called when a run came into the queue, or a place of a worker's became free."""
        self.on_cancel: Callable[[], None] = _nobody
        """Called when a run is to be stopped that is not alive here: it may wait for a worker of this host."""
        self.has_taken: Callable[[str], bool] = _nothing
        """Whether the worker of this process has claimed a run, and means to carry it out."""
        self.admits_workflows: Callable[[], Awaitable[bool]] = _always
        """Whether this host has room for another workflow."""
        self.settle_lost: Callable[[], Awaitable[None]] = _nothing_owed
        """Records the calls of models that processes had under way which are gone."""
        self._memories = memories
        self._observer = observer
        self._tracing = tracing

    def make(
        self,
        request: RunRequest,
        agent: AutomagikAgent,
        row: RunRow,
        *,
        wants_text: bool,
        begun: BegunRun | None = None,
        last_seq: int = 0,
    ) -> LiveRun:
        """A run of this process, which does nothing yet. `last_seq` is that of its last stored event."""
        config = agent.config
        limits = [request.timeout_seconds, config.timeout_seconds, self.settings.run_timeout_seconds]
        live: LiveRun

        async def store_events(run_id: str, events: Sequence[RunEvent]) -> bool:
            is_ours = await self.store.append_events(run_id, live.owner, [new_event(event) for event in events])
            if not is_ours:
                live.disown()
            return is_ours

        live = LiveRun(
            row=row,
            request=request,
            agent=agent,
            stream=EventStream(row.run_id, self.clock, store_events, last_seq=last_seq),
            store=self.store,
            archive=self.archive,
            clock=self.clock,
            observer=self._observer,
            tracing=self._tracing,
            owner=row.owner or self.executor_id,
            make_context=self._context,
            tell_next=self.follow,
            message_limit=request.message_limit if request.message_limit is not None else config.message_limit,
            timeout_seconds=min(limit for limit in limits if limit is not None),
            wants_text=wants_text,
            begun=begun,
        )
        return live

    def launch(self, live: LiveRun) -> "asyncio.Task[RunRow]":
        """Carry the run out; it is known here until it has ended."""
        run_id = live.row.run_id
        self.live[run_id] = live
        self.events.add(live.stream)
        task = asyncio.get_running_loop().create_task(live.carry_out(), name=run_id)
        live.task = task
        task.add_done_callback(lambda done: self._forget(live, done))
        return task

    def follow(self, following: NextTurn | None) -> None:
        """Wake whoever here waits for the turn that has come; other processes are told by the store."""
        if following is None:
            return
        if following.background:
            if following.owner is None:  # else the worker that has it goes on with it by itself
                self.on_work()
        else:
            self.turns.come(following.run_id)

    def tell_ended(self, ended: EndedRun) -> None:
        """Tell those here who look on at a run, wait for it or follow it in its session that it was ended from outside."""
        run_id = ended.row.run_id
        self.events.wake(run_id)
        self.turns.come(run_id)
        self._observer.run_finished(ended.row)
        self.follow(ended.next_turn)

    def cancel(self, run_id: str) -> None:
        """Stop a run that is alive here, or that waits for the worker here to stop it; any other is fine."""
        live = self.live.get(run_id)
        if live is not None:
            live.cancel()
        else:
            self.on_cancel()

    def disown(self, executor_id: str) -> None:
        """Go on as `executor_id`: whatever was alive here belongs to others now, and is dropped without a word."""
        self.executor_id = executor_id
        for live in list(self.live.values()):
            if live.owner != executor_id:
                live.disown()

    def _forget(self, live: LiveRun, task: "asyncio.Task[RunRow]") -> None:
        run_id = live.row.run_id
        if self.live.get(run_id) is live:
            del self.live[run_id]
            self.events.remove(run_id)
        self.turns.forget(run_id)
        live.tell_ended(task)
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
