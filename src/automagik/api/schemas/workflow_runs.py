"""Runs of workflows on the wire."""

import uuid
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from automagik.api.schemas.common import Count, Resource
from automagik.api.schemas.runs import Seconds, bounded_labels

__all__ = ["BundleResource", "RepositoryGiven", "RunWords", "WorkflowRunRequest"]

_Usd = Annotated[Decimal, Field(gt=0, le=1_000_000, max_digits=16, decimal_places=9, allow_inf_nan=False)]


class RepositoryGiven(BaseModel):
    """The repository that is worked on. Give `bundle` or `place`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    bundle: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """What POST /api/v1/repositories answered for a git bundle."""
    place: Annotated[str, Field(min_length=1, max_length=2000)] | None = None
    """A folder or an address that the server's settings allow (`AUTOMAGIK_REPOSITORY_ROOTS`, `AUTOMAGIK_REPOSITORY_HOSTS`)."""
    ref: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    """The branch, tag or commit that the work begins at; unset: the repository's HEAD."""
    name: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    """What it is called, for people."""

    @model_validator(mode="after")
    def _one_of_both(self) -> "RepositoryGiven":
        if (self.bundle is None) == (self.place is None):
            raise ValueError("give `bundle` or `place`, one of them")
        return self


class WorkflowRunRequest(BaseModel):
    """A task for a workflow. What is left out is as the workflow says."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    message_content: Annotated[str, Field(min_length=1)]
    """The task."""
    repository: RepositoryGiven | None = None
    """What is worked on; unset where `resume_of` names a run, whose repository it is then."""
    model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """A model that the workflow allows."""
    max_turns: Annotated[Count, Field(ge=1, le=10_000)] | None = None
    """How many turns the model may take: at most the workflow's own limit, but for keys with `workflows:write`."""
    budget_usd: _Usd | None = None
    """How much may be spent, a decimal text in US dollars: at most the workflow's own limit, but for keys with `workflows:write`."""
    timeout_seconds: Seconds | None = None
    executor: Literal["auto", "local", "docker"] | None = None
    demo: bool | None = None
    """Whether the labelled scripted model works instead of a real one: no account, no cost."""
    resume_of: Annotated[str, Field(pattern=r"^run_[0-9a-z]{26}$")] | None = None
    """A run of a workflow that has ended, whose conversation and commits this one goes on with."""
    publish: bool | None = None
    """Whether the branch is pushed and a pull request opened afterwards; of the workflow `pr` only."""
    prompt_variables: dict[str, str] | None = None
    labels: Annotated[dict[str, str], AfterValidator(bounded_labels)] | None = None
    session_id: uuid.UUID | None = None
    session_name: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    user_id: uuid.UUID | None = None
    priority: Annotated[Count, Field(ge=-100, le=100)] | None = None
    queue_timeout_seconds: Seconds | None = None

    @model_validator(mode="after")
    def _has_repository(self) -> "WorkflowRunRequest":
        if (self.repository is None) == (self.resume_of is None):
            raise ValueError("give `repository` or `resume_of`, one of them")
        return self


class RunWords(BaseModel):
    """Something to say into a running session."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    message_content: Annotated[str, Field(min_length=1, max_length=100_000)]
    """The text; the model reads it with the next result of a tool, or as its next turn."""


class BundleResource(Resource):
    """A git bundle that was uploaded: it is kept as long as a run uses it, and some days more."""

    bundle: str
    """To be given as `repository.bundle`."""
    commit: str
    """The commit of its HEAD."""
    size: int
    """Of the bundle, in bytes."""
