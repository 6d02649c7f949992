"""ClaudeCodeAgent: the agent whose runs are the Claude CLI at work on a repository, in a sandbox."""

import asyncio
import uuid
from collections.abc import Mapping
from typing import ClassVar, cast

from automagik.agents import AgentConfig, AgentInput, AgentResponse, AutomagikAgent, RunOptions
from automagik.claude_code.carrying import Carrying
from automagik.claude_code.control import Control
from automagik.claude_code.house import House
from automagik.claude_code.publish import PUBLISHING_WORKFLOW
from automagik.claude_code.work import Work
from automagik.claude_code.workflow import Workflow
from automagik.errors import (
    Conflict,
    Internal,
    InvalidInput,
    MissingScope,
    NotFound,
    OverrideNotAllowed,
    RunFailed,
    nearest,
)
from automagik.runs import RunRequest, RunService
from automagik.runs.request import WORKFLOW_AGENT
from automagik.store.rows import RunRow
from automagik.types import TERMINAL, Caller, JsonObject, RunStatus

__all__ = ["ClaudeCodeAgent"]


class ClaudeCodeAgent(AutomagikAgent):
    """Carries out workflows. Its runs wait in the queue like all others; what works for them outlives this process."""

    name = WORKFLOW_AGENT
    agent_type: ClassVar[str] = "claude_code"
    outlives_process: ClassVar[bool] = True

    def __init__(self, house: House) -> None:
        super().__init__(
            config=AgentConfig(
                description="Workflows: the Claude CLI at work on a repository, in a sandbox.", max_attempts=1
            )
        )
        self._house = house
        self._runs: RunService | None = None

    def attach(self, runs: RunService) -> None:
        """Give it the service that its runs are accepted by."""
        self._runs = runs

    async def create_async_run(
        self,
        task: str,
        work: Work,
        caller: Caller,
        *,
        user_id: uuid.UUID | None = None,
        idempotency_key: str | None = None,
    ) -> RunRow:
        """The run of a workflow, waiting in the queue. Raises what `RunService.submit` raises."""
        request = RunRequest(agent_name=self.name, text=task, user_id=user_id, work=work.to_json())
        return await self._service.submit(request, caller, idempotency_key=idempotency_key)

    async def get_run_status(self, run_id: str, caller: Caller) -> RunRow:
        """The run as it stands. Raises NotFound, also for what the caller may not see and for runs of other agents."""
        row = await self._service.get(run_id, caller)
        if row.kind != "workflow":
            raise NotFound("run", run_id, hint="GET /api/v1/runs?kind=workflow lists the runs of workflows.")
        return row

    async def check_work(self, work: JsonObject, caller: Caller, *, variables: Mapping[str, str]) -> JsonObject:
        """The work as it will be kept.

        Raises: MissingScope, also of `runs:read` to resume another key's run; NotFound for the workflow; OverrideNotAllowed for a
        limit or model beyond the workflow's; InvalidInput for the repository or the run to resume; Conflict (`no_model_key`) where
        no model could answer.
        """
        asked = Work.parse(work)
        scope = f"workflows:{asked.workflow}:run"
        if not caller.allows(scope):
            raise MissingScope(scope)
        workflow = await self._house.workflows.find(asked.workflow)
        _check_variables(workflow, variables)
        self._check_limits(asked, workflow, caller)
        if asked.resume_of is not None:
            asked = await self._resumed(asked, caller)
        else:
            await self._house.workspaces.check(asked.repository)
        if not asked.demo:
            await self._check_key()
        return asked.to_json()

    async def run(self, message: AgentInput, options: RunOptions) -> AgentResponse:
        """One run of a workflow, from its workspace to what it made; one that is under way on this host is found again.

        A person's cancel ends it with what it has made until then. Where the process stops, the run goes on without it.
        """
        control = Control()
        options.on_stop(lambda: control.end("cancel"))
        carrying = await Carrying.of(self._house, message.text, options, control)
        task = asyncio.get_running_loop().create_task(carrying.carry_out(), name=f"workflow {options.context.run_id}")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            control.leave()
            await asyncio.wait([task])
            raise

    @property
    def _service(self) -> RunService:
        if self._runs is None:
            raise Internal("The agent `claude_code` is not attached to the service of runs.")
        return self._runs

    async def _check_key(self) -> None:
        """Where other hosts may carry the run out, their keys are not known here: then its worker looks before it prepares
        anything."""
        if self._house.settings.database_url is not None:
            return
        try:
            await self._house.gateway.check_key("anthropic")
        except RunFailed as missing:
            raise Conflict(missing.detail, code="no_model_key", hint=missing.hint) from missing

    def _check_limits(self, asked: Work, workflow: Workflow, caller: Caller) -> None:
        if asked.publish and workflow.name != PUBLISHING_WORKFLOW:
            raise InvalidInput(
                f"The workflow '{workflow.name}' publishes nothing.",
                field=("body", "publish"),
                hint=f"Only `{PUBLISHING_WORKFLOW}` does.",
            )
        if asked.publish and asked.repository.place is None and asked.resume_of is None:
            raise InvalidInput(
                "A bundle has no remote that a branch could be pushed to.",
                field=("body", "publish"),
                hint="Give `repository.place`; or leave `publish` out, and push what `automagik runs apply` fetches.",
            )
        if caller.allows("workflows:write"):
            return
        limits = workflow.limits
        beyond = {
            "max_turns": asked.max_turns is not None and asked.max_turns > limits.max_turns,
            "budget_usd": asked.budget_usd is not None
            and workflow.budget_usd is not None
            and asked.budget_usd > workflow.budget_usd,
            "model": asked.model is not None and not workflow.allows(asked.model),
            "executor": asked.executor != "auto",
        }
        for name, is_beyond in beyond.items():
            if is_beyond:
                raise OverrideNotAllowed(
                    f"The workflow '{workflow.name}' does not open this `{name}` to this key.",
                    hint=f"Leave `{name}` out, or use a key with `workflows:write`.",
                )

    async def _resumed(self, asked: Work, caller: Caller) -> Work:
        run_id = cast("str", asked.resume_of)
        try:
            row = await self.get_run_status(run_id, caller)
        except NotFound as gone:
            raise InvalidInput(gone.detail, field=("body", "resume_of"), hint=gone.hint) from gone
        if row.key_id != caller.key_id and not caller.allows("runs:read"):
            # The new run would tell what the earlier one did, and hand out its commits.
            raise MissingScope("runs:read")
        if RunStatus(row.status) not in TERMINAL:
            raise InvalidInput(
                f"The run '{run_id}' has not ended.",
                field=("body", "resume_of"),
                hint=f"Speak to it while it works: POST /api/v1/runs/{run_id}/messages.",
            )
        earlier = Work.parse(cast("JsonObject", (row.input or {})["work"]))
        return Work.parse({**asked.to_json(), "repository": earlier.to_json()["repository"]})


def _check_variables(workflow: Workflow, given: Mapping[str, str]) -> None:
    for name in given:
        if name not in workflow.variables:
            close = nearest(name, workflow.variables)
            declared = ", ".join(sorted(workflow.variables)) or "none"
            raise InvalidInput(
                f"The workflow '{workflow.name}' declares no variable '{name}'.",
                field=("body", "prompt_variables", name),
                code="unknown_variable",
                hint=f"Did you mean '{close}'?" if close else f"Declared are: {declared}.",
            )
