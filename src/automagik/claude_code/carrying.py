"""Carrying: one run of a workflow on this host, from its workspace to what it made, whatever dies in between."""

import asyncio
import hashlib
import secrets
from contextlib import AsyncExitStack
from dataclasses import replace
from decimal import Decimal
from typing import Self, cast

import structlog

from automagik.agents import AgentResponse, RunOptions
from automagik.budget import Party
from automagik.claude_code.collecting import Collecting
from automagik.claude_code.command import CliSpec, command, environment, user_message
from automagik.claude_code.control import Control
from automagik.claude_code.ending import answer, ended_without_sandbox, tell_at_end
from automagik.claude_code.executor import Execution, ExecutionSpec, Executor, ExitStatus
from automagik.claude_code.following import Following, Limit
from automagik.claude_code.furnishing import Furnished, Furnishing
from automagik.claude_code.house import House
from automagik.claude_code.moving import LOST, Spent, begun_with, earlier_execution
from automagik.claude_code.outcome import Verdict, classify, ended_by_us
from automagik.claude_code.publish import PUBLISHING_WORKFLOW, Publishing, PullRequest
from automagik.claude_code.transcript import Transcript
from automagik.claude_code.work import Work
from automagik.claude_code.workflow import ANTHROPIC, Workflow, own_name
from automagik.errors import AutomagikError, ConfigurationError, Internal, RunFailed
from automagik.gateway import Door, RunAccess
from automagik.sandbox.confinement import Limits
from automagik.sandbox.egress import EgressPolicy, EgressProxy
from automagik.sandbox.relay import relayed
from automagik.store.rows import RunRow
from automagik.store.workflows import ExecutionRow
from automagik.types import JsonObject, RunOutcome, Usage, new_uuid

__all__ = ["Carrying"]

_log = structlog.stdlib.get_logger(__name__)

_NANO = Decimal(10) ** 9


class Carrying:
    """One run. It is made anew by whoever takes the run over, and goes on with what its execution's row says."""

    def __init__(
        self,
        house: House,
        task: str,
        row: RunRow,
        work: Work,
        workflow: Workflow,
        options: RunOptions,
        control: Control,
    ) -> None:
        self._house = house
        self._task = task
        self._row = row
        self._work = work
        self._workflow = workflow
        self._options = options
        self._control = control
        self._run_id = row.run_id
        self._told = asyncio.Event()
        self._spent = Spent()
        self._unsaid = b""

    @classmethod
    async def of(cls, house: House, task: str, options: RunOptions, control: Control) -> Self:
        """The run of `options`, ready to be carried out. Raises NotFound for a workflow that is gone or broken before it began."""
        run_id = options.context.run_id
        row, known = await house.store.read(lambda tx: (tx.runs.find(run_id), tx.executions.find(run_id)))
        if row is None or row.input is None:
            raise Internal(f"The run '{run_id}' is not stored.")
        work = Work.parse(cast("JsonObject", row.input["work"]))
        workflow = begun_with(work.workflow, known)
        if workflow is None:
            workflow = await house.workflows.find(work.workflow)
        return cls(house, task, row, work, workflow, options, control)

    async def carry_out(self) -> AgentResponse:
        """How the run ended, with what it made. Cancelled (`Control.ended_by` is `leave`): it goes on without this process."""
        leave = self._house.store.signals.listen("words", self._hear)
        try:
            return await self._carry()
        finally:
            leave()

    def _hear(self, run_id: str) -> None:
        if run_id == self._run_id:
            self._told.set()

    async def _executor(self) -> Executor:
        """The one that is asked for. Raises: RunFailed where it does not work here, with what mends it."""
        asked = self._work.executor
        try:
            return await self._house.executors.executor(None if asked == "auto" else asked)
        except ConfigurationError as missing:
            raise RunFailed(missing.detail, outcome="sandbox_error", hint=missing.hint) from missing

    async def _carry(self) -> AgentResponse:
        house = self._house
        known = former = await house.store.read(lambda tx: tx.executions.find(self._run_id))
        self._spent = Spent.of(known)
        moved = known is not None and known.host != house.host
        if known is not None and (moved or known.stage == "preparing"):  # it begins again
            self._spent = await Spent.with_lost(house.store, known, moved=moved, now=house.clock.now())
            ended = self._spent.ends(self._workflow, max_turns=self._max_turns, timeout_seconds=self._timeout_seconds)
            if ended is not None:
                return await ended_without_sandbox(house.store, house.ledger, self._run_id, self._task, ended)
        if known is not None and moved:
            self._tell_moved(known)
            known = None
        if known is not None:
            executor = house.executors.named(known.executor)
        else:
            if not self._work.demo:
                await house.gateway.check_key("anthropic")
            executor = await self._executor()
        furnished: Furnished | None = None
        token = ""
        if known is None or known.stage == "preparing":
            left = self._timeout_seconds - self._spent.seconds
            prepared = await self._control.unless_pulled(self._furnish(executor, former), seconds=left)
            if prepared is None:
                return await self._end_unprepared(executor)
            known, token, furnished = prepared
        workspace = cast("JsonObject", (self._row.details or {}).get("workspace") or {})
        repository = furnished.source.repository if furnished is not None else str(workspace.get("repository"))
        base_branch = furnished.source.branch if furnished is not None else workspace.get("base_branch")
        collecting = self._collecting(executor, known, repository, cast("str | None", base_branch))
        transcript = Transcript()
        exit_status: ExitStatus | None = None
        async with AsyncExitStack() as stack:
            door = await self._open_doors(stack, executor, known)
            if furnished is not None:
                execution: Execution | None = await self._start(executor, known, token, furnished)
            else:
                execution = await executor.find(self._run_id)
                if known.stage == "running":  # its input was this run's former process's
                    await self._update(stage="closing")
            if execution is not None:
                exit_status = await self._follow(executor, execution, transcript, door, known, collecting)
            if self._control.leaves:
                raise asyncio.CancelledError
            refused = door.refused
        return await self._end(executor, known, transcript, exit_status, collecting, door.usage, refused)

    # -- before the CLI works

    async def _end_unprepared(self, executor: Executor) -> AgentResponse:
        """The end of a run for which no CLI worked. Raises: CancelledError where this process leaves it to the next one."""
        if self._control.leaves or self._control.ended_by is None:
            raise asyncio.CancelledError
        await executor.remove(self._run_id)
        ended = ended_by_us(self._control.ended_by)
        return await ended_without_sandbox(self._house.store, self._house.ledger, self._run_id, self._task, ended)

    async def _furnish(self, executor: Executor, former: ExecutionRow | None) -> tuple[ExecutionRow, str, Furnished]:
        house, run_id = self._house, self._run_id
        if former is not None:  # whoever prepared it died meanwhile: it begins anew
            await executor.remove(run_id)
        await house.probing.check(executor, tell=self._options.emit)
        earlier = await earlier_execution(house.store, self._work, emit=self._options.emit)
        told = await house.store.read(lambda tx: tx.events.list(run_id))
        token = f"amr_{secrets.token_urlsafe(32)}"
        session = earlier.cli_session_id if earlier is not None and earlier.conversation is not None else new_uuid()
        known = await house.store.write(
            lambda tx: tx.executions.begin(
                run_id,
                self._options.owner,
                executor=executor.name,
                host=house.host,
                cli_session_id=session,
                token_hash=hashlib.sha256(token.encode()).digest(),
                former=former,
                told=max((event.seq for event in told), default=0),
                spent=self._spent.to_json(),
            )
        )
        if self._limit_usd is not None and not self._work.demo:
            await house.ledger.limit_run(run_id, int(self._limit_usd * _NANO))
        furnishing = Furnishing(house, executor, self._row, self._work, self._workflow, known)
        furnished = await furnishing.prepare(self._options, earlier, former=former)
        begun = {
            "base_commit": furnished.source.base_commit,
            "branch": furnished.branch,
            "place": {**known.place, **furnished.kept},
        }
        await self._update(**begun)
        known = replace(known, **begun)
        await self._describe(
            known, self._collecting(executor, known, furnished.source.repository, furnished.source.branch).workspace
        )
        return known, token, furnished

    async def _start(self, executor: Executor, known: ExecutionRow, token: str, furnished: Furnished) -> Execution:
        workflow, inside = self._workflow, executor.inside(self._run_id)
        spec = CliSpec(
            session_id=known.cli_session_id,
            resume=furnished.resumes,
            model=self._model,
            max_turns=self._max_turns - self._spent.turns,
            append_system_prompt_file=furnished.prompt_file,
            allowed_tools=workflow.allowed_tools,
            disallowed_tools=workflow.disallowed_tools,
            mcp_config=furnished.mcp_file,
            json_schema=workflow.report_schema,
            include_partial=True,
        )
        argv = tuple(command(spec, cli=inside.cli))
        sockets: tuple[str, ...] = ("api",)
        if workflow.egress:
            argv, sockets = relayed(argv, inside.socket("egress")), ("api", "egress")
        execution = await executor.start(
            ExecutionSpec(
                run_id=self._run_id,
                command=argv,
                env=environment(
                    socket=inside.socket("api"),
                    token=token,
                    home=inside.home,
                    config_dir=inside.credentials,
                    tmp=inside.tmp,
                    extra=furnished.environment,
                ),
                limits=self._limits,
                toolchain=furnished.toolchain,
                sockets=sockets,
            )
        )
        await self._update(stage="running", place={**known.place, **execution.place})
        self._unsaid = user_message(self._task)
        return execution

    async def _open_doors(self, stack: AsyncExitStack, executor: Executor, known: ExecutionRow) -> Door:
        house, run_id = self._house, self._run_id
        access = RunAccess(
            run_id=run_id,
            party=self._options.party or Party(key_id=self._row.key_id, user_id=None, agents=(), run_id=run_id),
            token_hash=known.token_hash,
            models=self._models,
            upstream="demo" if self._work.demo else "provider",
        )
        door = await house.gateway.open_door(access, executor.socket(run_id, "api"), tell=self._options.emit)
        stack.push_async_callback(door.close)
        await executor.share(run_id, "api")
        if self._workflow.egress:
            registries = await house.registries.find() if "registries" in self._workflow.egress else None
            policy = EgressPolicy.of(self._workflow.egress, registries.hosts if registries is not None else ())
            egress = await EgressProxy(house.outbound).open(
                executor.socket(run_id, "egress"), policy, tell=self._tell_egress
            )
            stack.push_async_callback(egress.close)
            await executor.share(run_id, "egress")
        return door

    def _tell_egress(self, host: str, port: int, allowed: bool) -> None:
        _log.info("egress", run_id=self._run_id, host=host, port=port, allowed=allowed)
        if not allowed:
            detail = f"The sandbox asked for {host}:{port}, which is not on the workflow's list."
            self._options.emit("warning", {"code": "egress_refused", "detail": detail})

    # -- while it works

    async def _follow(
        self,
        executor: Executor,
        execution: Execution,
        transcript: Transcript,
        door: Door,
        known: ExecutionRow,
        collecting: Collecting,
    ) -> ExitStatus | None:
        house, clock = self._house, self._house.clock
        seen = await self._seen(known, collecting)
        age = (clock.now() - known.created_at).total_seconds() + self._spent.seconds
        following = Following(
            run_id=self._run_id,
            owner=self._options.owner,
            executor=executor,
            execution=execution,
            transcript=transcript,
            door=door,
            control=self._control,
            store=house.store,
            clock=clock,
            limit=Limit(
                began=clock.monotonic() - max(0.0, age),
                timeout_seconds=self._timeout_seconds,
                stall_seconds=self._workflow.limits.stall_seconds,
            ),
            limits=self._limits,
            emit=self._options.emit,
            checkpoint=collecting.checkpoint,
            seen=seen,
            task=self._unsaid,
            told=self._told,
        )
        if seen == (0, -1):
            return await following.follow()
        # Whoever followed it before may have died before it took out what it had seen.
        owed = asyncio.get_running_loop().create_task(collecting.checkpoint(), name=f"take out {self._run_id}")
        try:
            return await following.follow()
        finally:
            owed.cancel()
            await asyncio.wait([owed])

    async def _seen(self, known: ExecutionRow, collecting: Collecting) -> tuple[int, int]:
        """The last event of this execution's CLI that is stored, by line and part: what comes again up to it was told already."""
        events = await self._house.store.read(lambda tx: tx.events.list(self._run_id))
        collecting.told |= {str(event.data["commit"]) for event in events if event.type == "commit"}
        before = cast("int", known.place.get("told", 0))
        places = [
            (cast("int", event.data["line"]), cast("int", event.data["part"]))
            for event in events
            if "line" in event.data and event.seq > before
        ]
        return max(places, default=(0, -1))

    # -- when it has ended

    async def _end(
        self,
        executor: Executor,
        known: ExecutionRow,
        transcript: Transcript,
        exit_status: ExitStatus | None,
        collecting: Collecting,
        usage: Usage,
        refused: str | None,
    ) -> AgentResponse:
        house = self._house
        await self._update(stage="collecting")
        verdict = LOST
        if exit_status is not None:
            verdict = classify(
                transcript,
                exit_status,
                ended_by=self._control.ended_by,
                refused=refused,
                wants_report=self._workflow.report_schema is not None,
            )
        try:
            await collecting.finish()
        except AutomagikError as lost:
            # What was taken out before is kept; but a run that ended well has not brought home what it made.
            _log.warning("run_not_taken_out", run_id=self._run_id, reason=lost.detail)
            if verdict.outcome is RunOutcome.COMPLETED:
                detail = f"What the run made could not be taken out: {lost.detail}"
                verdict = Verdict(RunOutcome.SANDBOX_ERROR, detail, lost.hint)
        published: JsonObject | None = None
        if self._workflow.name == PUBLISHING_WORKFLOW and verdict.outcome is RunOutcome.COMPLETED:
            try:
                published = await self._publish(collecting, transcript)
            except AutomagikError as refused_by:
                detail = f"The branch is ready, but could not be published: {refused_by.detail}"
                verdict = Verdict(RunOutcome.TOOL_ERROR, detail, refused_by.hint, retryable=True)
        await self._describe(
            known, collecting.workspace, turns=self._spent.turns + transcript.num_turns, published=published
        )
        await tell_at_end(house.store, self._run_id, verdict, exit_status, tell=self._options.emit)
        await self._options.settle()
        await executor.remove(self._run_id)
        await self._update(stage="ended")
        return await answer(house.store, self._run_id, self._task, verdict, usage, transcript)

    def _tell_moved(self, known: ExecutionRow) -> None:
        """The run's host is gone for good, and this one has it now: it begins anew here."""
        _log.warning("run_starts_elsewhere", run_id=self._run_id, was=known.host, host=self._house.host)
        count = f"{self._spent.restarts} of {self._workflow.limits.max_restarts}"
        detail = f"The host '{known.host}' is gone; the run starts again from what was taken out of it last (restart {count})."
        self._options.emit("warning", {"code": "sandbox_lost", "detail": detail})

    # -- what it is

    @property
    def _limits(self) -> Limits:
        return Limits.from_settings(self._house.settings)

    @property
    def _max_turns(self) -> int:
        return self._work.max_turns or self._workflow.limits.max_turns

    @property
    def _model(self) -> str | None:
        """The model's own name: the request's, else the workflow's, else the platform's where the workflow allows it and it is one
        of Anthropic's, the only provider that the CLI speaks to; None: the CLI's own choice."""
        named = self._work.model or self._workflow.model
        if named is not None:
            return own_name(named)
        usual = self._house.settings.model
        if usual is None or not usual.startswith(ANTHROPIC) or not self._workflow.allows(usual):
            return None
        return own_name(usual)

    @property
    def _models(self) -> tuple[str, ...]:
        """What its gateway lets through: what the workflow lists, and what the run was begun with; empty: any."""
        listed = tuple(map(own_name, self._workflow.models))
        return (*listed, self._model) if listed and self._model is not None else listed

    @property
    def _timeout_seconds(self) -> float:
        asked = cast("float | None", (self._row.input or {}).get("timeout_seconds"))
        own = self._workflow.limits.timeout_seconds
        return own if asked is None else min(asked, own)

    @property
    def _limit_usd(self) -> Decimal | None:
        return self._work.budget_usd if self._work.budget_usd is not None else self._workflow.budget_usd

    def _collecting(
        self, executor: Executor, known: ExecutionRow, repository: str, base_branch: str | None
    ) -> Collecting:
        return Collecting(
            house=self._house,
            executor=executor,
            row=self._row,
            known=known,
            repository=repository,
            base_branch=base_branch,
            keeps=self._workflow.writes,
            owner=self._options.owner,
            emit=self._options.emit,
            describe=lambda workspace: self._describe(known, workspace),
        )

    async def _publish(self, collecting: Collecting, transcript: Transcript) -> JsonObject | None:
        """What was published of a run of `pr`, or would be where its request did not ask for it; None: there is nothing to publish."""
        remote, report = self._work.repository.place, transcript.structured_output
        taken, branch = collecting.taken, collecting.known.branch
        if remote is None or not isinstance(report, dict) or taken is None or branch is None:
            return None
        published = await self._house.publisher.publish(
            Publishing(
                workflow=self._workflow.name,
                run_id=self._run_id,
                repository=collecting.repository,
                head_commit=taken.head_commit,
                remote=remote,
                request=PullRequest.from_report(report, branch=branch, base=collecting.base_branch or "main"),
                requested=self._work.publish,
            )
        )
        return published.to_json()

    async def _describe(
        self,
        known: ExecutionRow,
        workspace: JsonObject,
        *,
        turns: int | None = None,
        published: JsonObject | None = None,
    ) -> None:
        details: JsonObject = {
            "workspace": workspace,
            "turns": turns,
            "max_turns": self._max_turns,
            "executor": known.executor,
            "published": published,
        }
        owner = self._options.owner
        await self._house.store.write(lambda tx: tx.executions.describe(self._run_id, owner, details))
        self._options.describe(details)

    async def _update(self, **changes: object) -> None:
        owner = self._options.owner
        await self._house.store.write(lambda tx: tx.executions.update(self._run_id, owner, **changes))
