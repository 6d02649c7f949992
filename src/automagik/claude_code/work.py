"""Work: what a workflow's run is asked besides its text, as it is kept with the run."""

from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Literal, Self, cast

from automagik.types import Json, JsonObject

__all__ = ["ExecutorName", "RepositorySource", "Work"]

ExecutorName = Literal["auto", "local", "docker"]


@dataclass(frozen=True, slots=True)
class RepositorySource:
    """Where a run's repository comes from: an uploaded bundle, or a place that the server may clone from."""

    bundle: str | None = None
    """The artefact of a git bundle."""
    place: str | None = None
    """A folder or an address, as the settings allow them."""
    ref: str | None = None
    """The branch, tag or commit that the work begins at; None: the repository's own HEAD."""
    name: str | None = None
    """What the repository is called, for people."""


@dataclass(frozen=True, slots=True)
class Work:
    """One piece of work for a workflow. What is None is as the workflow says."""

    workflow: str
    repository: RepositorySource
    model: str | None = None
    max_turns: int | None = None
    budget_usd: Decimal | None = None
    executor: ExecutorName = "auto"
    demo: bool = False
    """Whether the labelled scripted model works instead of a real one: no account, no cost."""
    resume_of: str | None = None
    """The run whose conversation and commits this one goes on with."""
    publish: bool = False
    """Whether the branch is pushed and a pull request opened afterwards; of the workflow `pr` only."""

    @classmethod
    def parse(cls, document: JsonObject) -> Self:
        """The work that `to_json` gave, or that the API's schema has checked."""
        values = {**document}
        source = cast("JsonObject", values.pop("repository"))
        budget = values.pop("budget_usd", None)
        return cls(
            repository=RepositorySource(**cast("dict[str, str | None]", source)),
            budget_usd=None if budget is None else Decimal(str(budget)),
            **cast("dict[str, object]", values),  # pyright: ignore[reportArgumentType] - the schema has checked them
        )

    def to_json(self) -> JsonObject:
        """As it is kept: what is not the default."""
        kept: dict[str, Json] = {
            name: value
            for name, value in asdict(self).items()
            if name not in {"repository", "budget_usd"} and value not in (None, False, "auto")
        }
        kept["repository"] = {name: value for name, value in asdict(self.repository).items() if value is not None}
        if self.budget_usd is not None:
            kept["budget_usd"] = f"{self.budget_usd:f}"
        return kept
