"""Requests for workflows: the task in a body, whichever door it came in by."""

from pydantic import ValidationError

from automagik.api.problems import invalid_fields
from automagik.api.schemas.workflow_runs import WorkflowRunRequest
from automagik.app import Platform
from automagik.claude_code import RepositorySource, Work
from automagik.errors import InvalidInput
from automagik.memory import check_text
from automagik.runs import RunRequest
from automagik.runs.request import WORKFLOW_AGENT
from automagik.types import Json

__all__ = ["workflow_request"]


def workflow_request(name: str | None, body: Json, platform: Platform) -> RunRequest:
    """The task in a body, its text checked; without a `name` the body's `workflow` says it.

    Raises: InvalidInput naming the field.
    """
    given = body
    if name is None and isinstance(body, dict):
        given = {**body}
        named = given.pop("workflow", None)
        if not isinstance(named, str):
            raise InvalidInput(
                "The agent `claude_code` carries out workflows, and this names none.",
                field=("body", "workflow"),
                hint="GET /api/v1/workflows lists them.",
            )
        name = named
    try:
        asked = WorkflowRunRequest.model_validate(given)
    except ValidationError as wrong:
        raise invalid_fields(wrong) from None
    check_text(asked.message_content, field=("body", "message_content"), max_chars=platform.settings.max_text_chars)
    source = asked.repository
    work = Work(
        workflow=name or "",
        repository=RepositorySource()
        if source is None
        else RepositorySource(bundle=source.bundle, place=source.place, ref=source.ref, name=source.name),
        model=asked.model,
        max_turns=asked.max_turns,
        budget_usd=asked.budget_usd,
        executor=asked.executor or "auto",
        demo=bool(asked.demo),
        resume_of=asked.resume_of,
        publish=bool(asked.publish),
    )
    return RunRequest(
        agent_name=WORKFLOW_AGENT,
        text=asked.message_content,
        session_id=asked.session_id,
        session_name=asked.session_name,
        user_id=asked.user_id,
        prompt_variables=asked.prompt_variables or {},
        labels=asked.labels or {},
        timeout_seconds=asked.timeout_seconds,
        priority=asked.priority or 0,
        queue_timeout_seconds=asked.queue_timeout_seconds,
        work=work.to_json(),
    )
