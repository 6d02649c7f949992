"""Workflows on the wire: what they are, not their runs."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from automagik.api.schemas.common import Body, Flag, ObjectMap, Resource, Word
from automagik.claude_code.workflow import Workflow
from automagik.claude_code.workflow_files import CheckedWorkflow, WorkflowInfo
from automagik.types import Json, JsonObject, utc_text

__all__ = [
    "CheckedWorkflowResource",
    "WorkflowChange",
    "WorkflowCreate",
    "WorkflowDefinition",
    "WorkflowResource",
    "WorkflowSummary",
    "checked_workflow",
    "workflow_resource",
    "workflow_summary",
]

Files = Annotated[
    dict[str, str],
    Field(
        max_length=10,
        description="The files of its folder, by name: `prompt.md`, `workflow.toml`, `allowed_tools.json`, `.mcp.json`, "
        "`report.schema.json`.",
    ),
]


class WorkflowCreate(Body):
    """A workflow to make, or to check."""

    name: Word
    """Small letters, digits, `_` and `-`."""
    files: Files


class WorkflowChange(Body):
    """A change of a workflow."""

    files: Files | None = None
    """The files that take the place of all the old ones."""
    active: Flag | None = None
    """Whether it can be run."""


class WorkflowDefinition(Resource):
    """What a workflow's files say."""

    allowed_tools: list[str]
    disallowed_tools: list[str]
    servers: ObjectMap
    max_turns: int
    timeout_seconds: float
    stall_seconds: float
    max_restarts: int
    """How often a run that lost its host begins again elsewhere, where `host_gone` is `restart`."""
    model: str | None
    models: list[str]
    """Patterns of the models that its runs may use; empty: any."""
    egress: list[str]
    """What its sandbox reaches; empty: nothing."""
    budget_usd: str | None
    image: str | None
    setup: list[str]
    writes: bool
    host_gone: Literal["fail", "restart"]
    variables: dict[str, str]
    report_schema: ObjectMap | None


class WorkflowSummary(Resource):
    """A workflow in a list; one that is broken has an `error`."""

    name: str
    display_name: str
    description: str
    source: Literal["builtin", "folder", "api"]
    overrides: Literal["builtin", "folder", "api"] | None
    """Whose place it takes."""
    active: bool
    revision: int
    error: str | None
    created_at: datetime | None
    updated_at: datetime | None


class WorkflowResource(WorkflowSummary):
    """A workflow. A key that may only run it sees no `files` and no `definition`."""

    definition: WorkflowDefinition | None
    files: dict[str, str] | None


class CheckedWorkflowResource(Resource):
    """What the files would be."""

    name: str
    display_name: str
    description: str
    definition: WorkflowDefinition
    warnings: list[str]
    """What is odd about it, though it could be used."""


def workflow_summary(info: WorkflowInfo, *, whole: bool) -> JsonObject:
    """The workflow as in a list; `whole` with the reason why it is broken."""
    return {
        "name": info.name,
        "display_name": info.workflow.display_name if info.workflow else info.name,
        "description": info.workflow.description if info.workflow else "",
        "source": info.source,
        "overrides": info.overrides,
        "active": info.active and info.workflow is not None,
        "revision": info.revision,
        "error": info.error if whole else None,
        "created_at": utc_text(info.created_at) if info.created_at else None,
        "updated_at": utc_text(info.updated_at) if info.updated_at else None,
    }


def workflow_resource(info: WorkflowInfo, *, whole: bool) -> JsonObject:
    """The workflow as on the wire; `whole` with its files and what they say."""
    return {
        **workflow_summary(info, whole=whole),
        "definition": _definition(info.workflow) if whole and info.workflow is not None else None,
        "files": dict[str, Json](info.files) if whole else None,
    }


def checked_workflow(checked: CheckedWorkflow) -> JsonObject:
    """What the files would be, as on the wire."""
    workflow = checked.workflow
    return {
        "name": workflow.name,
        "display_name": workflow.display_name,
        "description": workflow.description,
        "definition": _definition(workflow),
        "warnings": list[Json](checked.warnings),
    }


def _definition(workflow: Workflow) -> JsonObject:
    return {
        "allowed_tools": list[Json](workflow.allowed_tools),
        "disallowed_tools": list[Json](workflow.disallowed_tools),
        "servers": workflow.servers,
        "max_turns": workflow.limits.max_turns,
        "timeout_seconds": workflow.limits.timeout_seconds,
        "stall_seconds": workflow.limits.stall_seconds,
        "max_restarts": workflow.limits.max_restarts,
        "model": workflow.model,
        "models": list[Json](workflow.models),
        "egress": list[Json](workflow.egress),
        "budget_usd": None if workflow.budget_usd is None else str(workflow.budget_usd),
        "image": workflow.image,
        "setup": list[Json](workflow.setup),
        "writes": workflow.writes,
        "host_gone": workflow.host_gone,
        "variables": dict[str, Json](workflow.variables),
        "report_schema": workflow.report_schema,
    }
