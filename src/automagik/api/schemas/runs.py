"""Runs and events on the wire."""

import uuid
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, Strict

from automagik.api.schemas.common import Count, ObjectMap, Resource
from automagik.types import RunOutcome, RunStatus

__all__ = [
    "AgentRunRequest",
    "CommitDocument",
    "EventList",
    "MediaItem",
    "RunAnswer",
    "RunError",
    "RunEventDocument",
    "RunResource",
    "RunSummary",
    "Seconds",
    "ToolCall",
    "ToolOutput",
    "UsageDocument",
    "WorkspaceDocument",
    "bounded_labels",
]

_MAX_MEDIA = 32
Seconds = Annotated[float, Strict(), Field(ge=0.001, le=7 * 86_400, allow_inf_nan=False)]
"""A limit of time: from a millisecond to a week."""


class MediaItem(BaseModel):
    """An image, an audio recording or a document, by URL or as base64. What else the earlier API knew is accepted."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    mime_type: Annotated[str, Field(min_length=3, max_length=200)]
    """`image/png`, `audio/wav`, `application/pdf`, `text/plain`, ..."""
    media_url: Annotated[str, Field(max_length=65_536)] | None = None
    """An http or https URL with a public address, fetched by the platform; or a `data:` URL."""
    data: str | None = None
    """The content as base64."""


def bounded_labels(labels: dict[str, str]) -> dict[str, str]:
    """The labels. Raises ValueError for too many, or too long ones."""
    if len(labels) > 64 or any(len(key) > 128 or len(value) > 1024 for key, value in labels.items()):
        raise ValueError("at most 64 labels, each of at most 128 characters with a value of at most 1024")
    return labels


class AgentRunRequest(BaseModel):
    """A question to an agent. Unknown fields are kept with the run as metadata."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    message_content: str
    """The text of the message; may be empty where there are media."""
    media_contents: Annotated[list[MediaItem], Field(max_length=_MAX_MEDIA)] | None = None
    session_id: uuid.UUID | None = None
    """The session to go on with; an unknown one is made with this id."""
    session_name: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    """The session's name; an unknown one is made. Give this or `session_id`."""
    session_origin: Annotated[str, Field(max_length=64)] | None = None
    user_id: uuid.UUID | None = None
    message_limit: Annotated[Count, Field(ge=0, le=10_000)] | None = None
    """How many messages of the session the model sees at the most; unset: the agent's config says."""
    context: ObjectMap | None = None
    """Passed to the agent's tools as it is."""
    system_prompt: str | None = None
    """A prompt instead of the agent's, where its config allows that."""
    model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """`provider:model` instead of the agent's, where its config allows that."""
    prompt_status_key: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Which of the agent's active prompts is used; unset: `default`."""
    prompt_variables: dict[str, str] | None = None
    """Values for variables that the agent's config declares."""
    labels: Annotated[dict[str, str], AfterValidator(bounded_labels)] | None = None
    timeout_seconds: Seconds | None = None
    priority: Annotated[Count, Field(ge=-100, le=100)] | None = None
    """In the queue of background runs: smaller numbers go first; unset: 0."""
    queue_timeout_seconds: Seconds | None = None
    """How long a background run may wait in the queue before it fails; unset: the platform's setting says."""
    message_type: str | None = None
    channel_payload: ObjectMap | None = None
    agent_id: Any = None
    parameters: ObjectMap | None = None
    messages: list[Any] | None = None
    user: ObjectMap | None = None


class UsageDocument(Resource):
    """What a run used. `cost_usd` is a decimal text, null where the price is unknown."""

    requests: int
    tool_calls: int
    """Calls of tools that ran; of a workflow those whose result the CLI told, and no call that was refused."""
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    cost_usd: str | None


class ToolCall(Resource):
    """What the model asked of a tool."""

    tool_name: str
    args: JsonValue
    tool_call_id: str


class ToolOutput(Resource):
    """What a tool gave back."""

    tool_name: str
    content: JsonValue
    tool_call_id: str


class RunAnswer(Resource):
    """The answer of a run that ended well; one that fails is a Problem."""

    run_id: str
    session_id: uuid.UUID | None
    message: str
    success: Literal[True]
    tool_calls: list[ToolCall]
    tool_outputs: list[ToolOutput]
    usage: UsageDocument


class RunError(Resource):
    """Why a run failed."""

    code: RunOutcome
    detail: str
    hint: str | None
    retryable: bool
    cause: RunOutcome | None = None
    """Why the last attempt failed, of a run whose outcome is `retries_exhausted`."""


class CommitDocument(Resource):
    """A commit that a run made, as it stands in git."""

    commit: str
    author: str
    authored_at: datetime
    subject: str
    files_changed: int
    insertions: int
    deletions: int


class WorkspaceDocument(Resource):
    """What a workflow's run worked on, and what it made of it. Read from git, not told by the model."""

    repository: str
    """The platform's own name of it."""
    base_commit: str
    branch: str
    base_branch: str | None
    head_commit: str | None
    commits: list[CommitDocument]
    """The run's own, oldest first."""
    files_changed: int
    insertions: int
    deletions: int
    descends_from_base: bool
    """Whether the last commit builds on the base; false where the run rewrote history."""
    branches: dict[str, str]
    """All branches with commits of the run, each with its last one."""
    wip_commit: str | None
    """The tree that was not committed, as a commit; None where there was nothing of that kind."""


class RunSummary(Resource):
    """A run in a list."""

    run_id: str
    kind: str
    name: str
    """The agent's or the workflow's."""
    status: RunStatus
    outcome: RunOutcome | None
    session_id: uuid.UUID | None
    user_id: uuid.UUID | None
    key_id: str | None
    parent_id: str | None
    requeue_of: str | None
    labels: dict[str, str]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    attempt: int
    deadline_at: datetime | None
    priority: int
    model: str | None
    error: RunError | None
    waiting_for: ObjectMap | None
    usage: UsageDocument
    workspace: WorkspaceDocument | None = None
    """Of a workflow's run, as are the following."""
    turns: int | None = None
    max_turns: int | None = None
    executor: str | None = None
    """`local` or `docker`."""
    published: ObjectMap | None = None
    """Of a run of the workflow `pr`: the branch that was pushed and the pull request, or with `dry_run` what would be."""


class RunResource(RunSummary):
    """A run, whole."""

    input: ObjectMap | None
    """What was asked. A large medium in `media_contents` has `artifact` (GET /artifacts/{artifact}) and `size` instead of `data`."""
    output: ObjectMap | None


class RunEventDocument(Resource):
    """One thing that happened in a run. Only stored events have a `seq`."""

    run_id: str
    seq: int | None
    type: str
    at: datetime
    data: ObjectMap


class EventList(Resource):
    """The stored events of a run, oldest first."""

    data: list[RunEventDocument]
    next_cursor: None
