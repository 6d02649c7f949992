"""RunService: one lifecycle for every kind of work: accept, watch, cancel, requeue."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Literal, cast

from automagik.agents import AutomagikAgent
from automagik.errors import (
    Conflict,
    InvalidInput,
    NotFound,
    QueueFull,
    RunFailed,
    ServiceUnavailable,
)
from automagik.events import Looked, RunEvent
from automagik.providers import ModelRegistry
from automagik.runs.acceptance import begin_of, idempotency_of, new_row, with_media
from automagik.runs.live import LiveRun
from automagik.runs.names import Name, SessionNames
from automagik.runs.outcomes import CANCELLED
from automagik.runs.permissions import Permissions
from automagik.runs.request import RunRequest
from automagik.runs.runtime import Runtime
from automagik.runs.stream import RunStream, stored_event
from automagik.store import Idempotency, Page, Transaction
from automagik.store.hot import KEY_TAKEN
from automagik.store.queue import EndedRun
from automagik.store.rows import RunRow
from automagik.types import TERMINAL, Caller, JsonObject, RunStatus, new_uuid

__all__ = ["RunService"]

_DEPTH_SECONDS = 0.5
"""How long the queue's counted depth is believed; what this process accepts meanwhile is added."""
_CANCEL_PAUSES = (0.02, 0.05, 0.1, 0.2, 0.4)
"""When it is looked whether a run that another process carries out was stopped, before its events are waited for."""
_FULL_SECONDS = 5
"""When a caller whom the full queue refused should come again."""


class RunService:
    """Accepts runs, in the order of a session's turns, and tells about all runs, wherever they are carried out."""

    def __init__(self, runtime: Runtime, *, models: ModelRegistry) -> None:
        self._runtime = runtime
        self._settings = runtime.settings
        self._clock = runtime.clock
        self._store = runtime.store
        self._permissions = Permissions(runtime.agents, models)
        self._events = runtime.events
        self._names = SessionNames(self._find_session)
        self._accepting: set[asyncio.Task[LiveRun]] = set()
        self._stopping = False
        self._depth = 0
        self._depth_at = float("-inf")
        self._counting = asyncio.Lock()

    # -- asking an agent

    async def run(self, request: RunRequest, caller: Caller, *, idempotency_key: str | None = None) -> RunRow:
        """The run once it has ended well. The same idempotency key with the same request gives the same run.

        Raises:
            RunFailed: the run is stored as failed or cancelled, and this says why.
            Conflict: the key was used for another request.
        """
        accepted = await self._accept(request, caller, wants_text=False, idempotency_key=idempotency_key)
        row = await accepted.ended() if isinstance(accepted, LiveRun) else accepted
        return self._ended(row if RunStatus(row.status) in TERMINAL else await self._end_of(row))

    async def stream(self, request: RunRequest, caller: Caller, *, idempotency_key: str | None = None) -> RunStream:
        """The events of a run that is accepted when this returns. Leaving the stream ends nothing. Raises as `run`."""
        accepted = await self._accept(request, caller, wants_text=True, idempotency_key=idempotency_key)
        if isinstance(accepted, LiveRun):
            run_id = accepted.row.run_id
            return RunStream(accepted.row, accepted.stream.subscribe(), lambda after: self._watch(run_id, after))
        return RunStream(accepted, self._watch(accepted.run_id, 0))

    async def submit(
        self,
        request: RunRequest,
        caller: Caller,
        *,
        idempotency_key: str | None = None,
        requeue_of: str | None = None,
    ) -> RunRow:
        """The run, waiting in the queue, as soon as it is stored; a worker of any process carries it out.

        Raises: QueueFull where too many wait; Conflict as `run`.
        """
        accepted = await self._accept(
            request,
            caller,
            wants_text=True,
            background=True,
            idempotency_key=idempotency_key,
            requeue_of=requeue_of,
        )
        return accepted.row if isinstance(accepted, LiveRun) else accepted

    async def requeue(self, run_id: str, caller: Caller, *, idempotency_key: str | None = None) -> RunRow:
        """A new run that asks what a run that has ended asked, waiting in the queue; `requeue_of` is the old one.

        Raises: Conflict where the run has not ended, or its conversation is not kept here; what `submit` raises, for the caller
        must be allowed to ask that.
        """
        row = await self.get(run_id, caller)
        if RunStatus(row.status) not in TERMINAL:
            raise Conflict(
                f"The run '{run_id}' has not ended.", code="run_not_ended", hint="Cancel it first, or wait for its end."
            )
        if (row.input or {}).get("has_session") is False:
            raise Conflict(
                f"The conversation of the run '{run_id}' was its caller's and is not kept here.",
                code="conversation_not_kept",
                hint="Send the whole conversation again.",
            )
        return await self.submit(
            RunRequest.from_row(row), caller, idempotency_key=idempotency_key, requeue_of=row.run_id
        )

    async def check(self, request: RunRequest, caller: Caller) -> RunRequest:
        """The request as it would be accepted, with its user; nothing is stored. Raises what `submit` would for it."""
        return (await self._permissions.check(request, caller))[1]

    # -- telling about runs

    async def get(self, run_id: str, caller: Caller) -> RunRow:
        """One run, whole. Raises NotFound for what the caller may not see, too."""
        return await self._store.read(lambda tx: _visible(tx, run_id, caller))

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
        return await self._store.browse(
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

        def work(tx: Transaction) -> list[RunEvent]:
            row = _visible(tx, run_id, caller)
            return [stored_event(event, row) for event in tx.events.list(run_id, after=after)]

        return await self._store.browse(work)

    async def watch(self, run_id: str, caller: Caller, *, after: int = 0) -> RunStream:
        """Stored events after `seq`, then what comes, until the run has ended."""
        row = await self.get(run_id, caller)
        return RunStream(row, self._watch(run_id, after))

    async def cancel(self, run_id: str, caller: Caller) -> RunRow:
        """The run, cancelled: a queued one at once, a running one as soon as its agent has stopped, wherever it runs. Where its
        host is away, it ends without it, ten seconds after that was heard of last.

        A run that has ended is returned as it ended.
        """
        row = await self.get(run_id, caller)
        live = self._runtime.live.get(run_id)
        if live is not None:
            live.cancel()
            row = await live.ended()
        if RunStatus(row.status) in TERMINAL:
            return row
        ended = await self._store.write(lambda tx: _end_queued_or_ask(tx, run_id))
        if ended is not None:
            self._runtime.tell_ended(ended)
            return ended.row
        self._runtime.cancel(run_id)
        for pause in _CANCEL_PAUSES:  # its last event may come before its owner hears that somebody looks on
            await asyncio.sleep(pause)
            row = await self.get(run_id, caller)
            if RunStatus(row.status) in TERMINAL:
                return row
        return await self._end_of(row)

    async def say(self, run_id: str, caller: Caller, text: str) -> RunRow:
        """A workflow's run under way, whose model will read `text`: with the next result of a tool, or as its next turn.

        Raises: NotFound; Conflict for a run that has ended (`run_ended`), is ending (`run_ending`), is none of a workflow, or
        has 100 messages to read first (`words_waiting`).
        """
        return await self._speak(run_id, caller, "message", text)

    async def interrupt(self, run_id: str, caller: Caller) -> RunRow:
        """A workflow's run under way, whose turn will be stopped; it ends unless a message follows. Raises as `say`."""
        return await self._speak(run_id, caller, "interrupt", "")

    async def _speak(self, run_id: str, caller: Caller, kind: Literal["message", "interrupt"], text: str) -> RunRow:
        row = await self.get(run_id, caller)
        if row.kind != "workflow":
            raise Conflict(
                f"The run '{run_id}' is an agent's answer, which nobody speaks into.",
                code="run_takes_no_words",
                hint="Send the agent another message in the same session; `cancel` stops the run.",
            )
        if not await self._store.write(lambda tx: tx.words.say(run_id, kind, text, key_id=caller.key_id)):
            if RunStatus((await self.get(run_id, caller)).status) in TERMINAL:
                raise Conflict(
                    f"The run '{run_id}' has ended.",
                    code="run_ended",
                    hint=f'A new run goes on with it: `"resume_of": "{run_id}"`.',
                )
            raise Conflict(
                f"The run '{run_id}' hears nothing more: its last turn is under way, or over.",
                code="run_ending",
                hint=f'Once it has ended, a new run goes on with it: `"resume_of": "{run_id}"`.',
            )
        await self._store.signals.send("words", run_id)
        return row

    # -- the process's life

    def stop(self) -> None:
        """Accept no more."""
        self._stopping = True

    async def close(self) -> None:
        """Accept no more, let runs finish within the grace time, then end the rest: what belongs to the background goes back to
        the queue where that is safe, all else is `worker_lost`."""
        self._stopping = True
        if self._accepting:
            await asyncio.wait(self._accepting)
        runs = self._runtime.live
        running = [live.task for live in runs.values() if live.begun is not None and live.task is not None]
        if running:
            await asyncio.wait(running, timeout=self._settings.shutdown_grace_seconds)
        rest = list(runs.values())
        for live in rest:
            live.lost = True
            live.cancel()
        tasks = [live.task for live in rest if live.task is not None]
        if tasks:
            await asyncio.wait(tasks)

    @property
    def executor_id(self) -> str:
        """By what this process owns the runs that it carries out."""
        return self._runtime.executor_id

    @property
    def live_runs(self) -> int:
        """How many runs this process has under way, or waiting for their turn."""
        return len(self._runtime.live)

    # -- acceptance

    async def _accept(
        self,
        request: RunRequest,
        caller: Caller,
        *,
        wants_text: bool,
        background: bool = False,
        idempotency_key: str | None = None,
        requeue_of: str | None = None,
    ) -> LiveRun | RunRow:
        """A run of this process; or the row of one of the background, or of one that was accepted before under the same key."""
        if self._stopping:
            raise ServiceUnavailable("The server is stopping.", hint="Retry; another instance may answer.")
        agent, request = await self._permissions.check(request, caller)
        key = idempotency_of(idempotency_key, request, caller, background=background, requeue_of=requeue_of)
        if background:
            try:
                await self._check_depth()
            except QueueFull:
                if key is None or await self._store.read(lambda tx: tx.queue.idempotent(key.key_id, key.key)) is None:
                    raise
                return await self._known_by(key)
        async with self._named(request) as named:
            row = new_row(
                named,
                caller,
                agent,
                now=self._clock.now(),
                owner=None if background else self._runtime.executor_id,
                requeue_of=requeue_of,
                queue_timeout_seconds=self._settings.queue_timeout_seconds,
            )
            try:
                async with with_media(row, named, self._runtime.archive) as row:
                    if background:
                        return await self._enqueue(row, named, caller, agent, key)
                    return await self._to_its_end(self._begin(row, named, caller, agent, key, wants_text=wants_text))
            except Conflict as conflict:
                if key is None or conflict.code != KEY_TAKEN:
                    raise
        return await self._known_by(key)

    async def _begin(
        self,
        row: RunRow,
        request: RunRequest,
        caller: Caller,
        agent: AutomagikAgent,
        key: Idempotency | None,
        *,
        wants_text: bool,
    ) -> LiveRun:
        """Accept a run of this process, and carry it out when its turn comes."""
        turns = self._runtime.turns
        turn = turns.expect(row.run_id)  # before it is stored: its turn may come while the answer is on its way
        try:
            begun = await self._store.begin_run(begin_of(row, request, caller, agent, idempotency=key))
        except BaseException:
            turns.forget(row.run_id)
            raise
        starts = begun.is_ready
        row = replace(
            row,
            status=RunStatus.RUNNING.value if starts else RunStatus.QUEUED.value,
            started_at=row.created_at if starts else None,
            session_id=begun.session_id,
        )
        live = self._runtime.make(
            request, agent, row, wants_text=wants_text, begun=begun if starts else None, last_seq=1
        )
        if starts:
            turns.forget(row.run_id)
        else:
            live.turn = turn
        data: JsonObject = {} if starts else {"background": False}
        live.stream.show([RunEvent(row.run_id, 1, "run_started" if starts else "run_queued", row.created_at, data)])
        self._runtime.launch(live)
        return live

    async def _to_its_end(self, accepting: Coroutine[Any, Any, LiveRun]) -> LiveRun:
        """What `accepting` gives. A caller that goes away does not stop it: what is stored is carried out."""
        task = asyncio.get_running_loop().create_task(accepting)
        self._accepting.add(task)
        task.add_done_callback(self._accepted)
        return await asyncio.shield(task)

    def _accepted(self, task: "asyncio.Task[LiveRun]") -> None:
        self._accepting.discard(task)
        if not task.cancelled():
            task.exception()  # the caller has it, unless that one is gone

    async def _enqueue(
        self, row: RunRow, request: RunRequest, caller: Caller, agent: AutomagikAgent, key: Idempotency | None
    ) -> RunRow:
        """Accept a run of the background."""
        accepted = await self._store.accept_run(begin_of(row, request, caller, agent, idempotency=key))
        self._depth += 1
        if accepted.is_ready:
            self._runtime.on_work()
        return replace(row, session_id=accepted.session_id, user_id=accepted.user_id, ready=accepted.is_ready)

    async def _known_by(self, key: Idempotency) -> RunRow:
        """The run that was accepted under the key before."""
        found = await self._store.read(lambda tx: tx.queue.idempotent(key.key_id, key.key))
        row = await self._store.read(lambda tx: tx.runs.find(found[0])) if found is not None else None
        if found is None or row is None:
            raise Conflict(
                "The run of this Idempotency-Key is not kept any more.",
                code="idempotency_key_expired",
                hint="Use a new key for a new run.",
            )
        if found[1] != key.body_hash:
            raise Conflict(
                "This Idempotency-Key was used for another request.",
                code="idempotency_key_reused",
                hint="Use a new key for a new request, and the same key only to repeat the same request.",
            )
        return row

    async def _check_depth(self) -> None:
        """Refuse what would wait too long behind too many. The count may be half a second old."""
        most = self._settings.max_queued_runs
        if self._clock.monotonic() - self._depth_at >= _DEPTH_SECONDS:
            async with self._counting:  # for who comes meanwhile too: none gets ahead of who came before
                if (now := self._clock.monotonic()) - self._depth_at >= _DEPTH_SECONDS:
                    try:
                        self._depth = await self._store.read(lambda tx: tx.queue.depth(most + 1))
                    finally:
                        self._depth_at = now
        if self._depth >= most:
            raise QueueFull(
                f"{most} runs wait in the queue already.",
                retry_after_seconds=_FULL_SECONDS,
                hint="Send it again later; an administrator may add workers or raise AUTOMAGIK_MAX_QUEUED_RUNS.",
            )

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

    # -- looking on

    def _watch(self, run_id: str, after: int) -> AsyncGenerator[Sequence[RunEvent]]:
        return self._events.watch(run_id, after, self._look)

    async def _look(self, run_id: str, after: int) -> Looked:
        """What the store has of a run now."""

        def work(tx: Transaction) -> Looked:
            events = tx.events.list(run_id, after=after)
            row = tx.runs.find(run_id)
            if row is None:
                return Looked([], is_over=True)
            return Looked([stored_event(event, row) for event in events], is_over=RunStatus(row.status) in TERMINAL)

        return await self._store.read(work)

    async def _end_of(self, row: RunRow) -> RunRow:
        """The run once it has ended, wherever it is carried out.

        Raises: ServiceUnavailable where this process stops before.
        """
        live = self._runtime.live.get(row.run_id)
        if live is not None:
            ended = await live.ended()
            if RunStatus(ended.status) in TERMINAL:
                return ended
        async for _ in self._watch(row.run_id, 0):
            pass
        now = await self._store.read(lambda tx: tx.runs.get(row.run_id))
        if RunStatus(now.status) not in TERMINAL:
            raise ServiceUnavailable(
                "The server is stopping.", hint=f"GET /api/v1/runs/{row.run_id} on another instance has the run."
            )
        return now

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


def _end_queued_or_ask(tx: Transaction, run_id: str) -> EndedRun | None:
    """The run, cancelled, where it is queued; else its owner is asked to stop it, as is whoever of its host takes it next."""
    row = tx.runs.find(run_id)
    ended = None
    if row is not None and row.host is None:
        ended = tx.queue.end(run_id, CANCELLED.outcome, CANCELLED.to_json(), statuses=(RunStatus.QUEUED,))
    if ended is None:
        tx.queue.request_cancel(run_id)
    return ended


def _visible(tx: Transaction, run_id: str, caller: Caller) -> RunRow:
    """The run, where the caller may see it. Raises NotFound."""
    row = tx.runs.find(run_id)
    if row is None or caller.user_id not in {None, row.user_id}:
        raise NotFound("run", run_id, hint="GET /api/v1/runs lists the runs that this key may see.")
    return row
