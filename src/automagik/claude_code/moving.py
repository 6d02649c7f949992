"""Moving: what a run needs from other hosts: what an earlier run left on one, what it used where it was, and whether it may begin
again."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final, Self, cast

from automagik.claude_code.outcome import TIMED_OUT, TURNS_USED_UP, Verdict
from automagik.claude_code.work import Work
from automagik.claude_code.workflow import Workflow
from automagik.errors import InvalidInput, RunFailed
from automagik.store import Store
from automagik.store.workflows import ExecutionRow
from automagik.types import JsonObject, RunOutcome

__all__ = ["LOST", "Spent", "begun_with", "earlier_execution", "remembered"]

LOST: Final = Verdict(
    RunOutcome.SANDBOX_LOST,
    "The sandbox of the run is gone.",
    "What was taken out of it last is kept: `automagik runs diff`. Start a new run with `resume_of`.",
    retryable=True,
)


def remembered(workflow: Workflow) -> JsonObject:
    """The workflow as an execution remembers it: a run that has begun goes on with it, whatever becomes of the one of that name."""
    return {"workflow": {"files": dict(workflow.files), "trusted": workflow.trusted}}


def begun_with(name: str, known: ExecutionRow | None) -> Workflow | None:
    """The workflow that an execution `remembered`; None where it did not get so far, or this version can't read it any more."""
    kept = None if known is None else cast("dict[str, Any] | None", known.place.get("workflow"))
    if kept is None:
        return None
    try:
        return Workflow.parse(name, kept["files"], trusted=kept["trusted"])
    except InvalidInput:
        return None


@dataclass(frozen=True, slots=True)
class Spent:
    """What a run's earlier executions used of its limits: they hold for the run, however often it begins again."""

    restarts: int = 0
    """How often it lost its host."""
    seconds: float = 0.0
    """How long they were at work; what the run then waited for another host does not count."""
    turns: int = 0

    @classmethod
    def of(cls, known: ExecutionRow | None) -> Self:
        """What those before this execution used."""
        spent = None if known is None else known.place.get("spent")
        return cls() if spent is None else cls(**cast("dict[str, Any]", spent))

    @classmethod
    async def with_lost(cls, store: Store, lost: ExecutionRow, *, moved: bool, now: datetime) -> Self:
        """What those before and this one used, which is lost: with its host where the run has `moved`, else before the CLI worked."""
        before = cls.of(lost)
        seen_at, events = await store.read(
            lambda tx: (tx.executors.host_seen_at(lost.host), tx.events.list(lost.run_id))
        )
        told = cast("int", lost.place.get("told", 0))
        turns = [cast("int", event.data["turn"]) for event in events if event.seq > told and "turn" in event.data]
        until = min(now, seen_at or lost.updated_at) if moved else now
        return cls(
            before.restarts + moved,
            before.seconds + max(0.0, (until - lost.created_at).total_seconds()),
            before.turns + max(turns, default=0),
        )

    def to_json(self) -> JsonObject:
        """As its next execution keeps it."""
        return cast("JsonObject", asdict(self))

    def ends(self, workflow: Workflow, *, max_turns: int, timeout_seconds: float) -> Verdict | None:
        """Why the run may not begin again; None where it may."""
        limit = workflow.limits.max_restarts
        if self.restarts and workflow.host_gone != "restart":
            return LOST
        if self.restarts > limit:
            return Verdict(
                RunOutcome.SANDBOX_LOST,
                f"The sandbox of the run is gone, and the run has begun again {limit} times already.",
                "What was taken out of it last is kept: `automagik runs diff`. See why its hosts go, or raise `max_restarts`"
                " of the workflow; a new run with `resume_of` goes on with it.",
            )
        if self.seconds >= timeout_seconds:
            return TIMED_OUT
        return TURNS_USED_UP if self.turns >= max_turns else None


async def earlier_execution(
    store: Store, work: Work, *, emit: Callable[[str, JsonObject], None]
) -> ExecutionRow | None:
    """The execution of the run that this one goes on with, on whichever host it was; None where it goes on with none.

    Raises: RunFailed where nothing of it is kept.
    """
    resumed = work.resume_of
    if resumed is None:
        return None
    earlier = await store.read(lambda tx: tx.executions.find(resumed))
    if earlier is None:
        raise RunFailed(
            f"Nothing is kept of the run '{resumed}', which this one was to go on with.",
            outcome=RunOutcome.SANDBOX_ERROR.value,
            hint="It never began, or was deleted meanwhile. Start a new run without `resume_of`.",
        )
    if earlier.conversation is None:
        detail = f"The conversation of '{resumed}' could not be saved: this run goes on with its commits alone."
        emit("warning", {"code": "conversation_lost", "detail": detail})
    return earlier
