"""Moving: what a run needs from other hosts: what an earlier run left on one, and its own end where its host is gone for good."""

from collections.abc import Callable
from typing import Final

from pydantic_ai import ModelRequest, ModelResponse, TextPart, UserPromptPart

from automagik.agents import AgentResponse
from automagik.budget import Ledger
from automagik.claude_code.outcome import Verdict
from automagik.claude_code.work import Work
from automagik.errors import RunFailed
from automagik.store import Store
from automagik.store.workflows import ExecutionRow
from automagik.types import JsonObject, RunOutcome

__all__ = ["LOST", "earlier_execution", "ended_with_its_host"]

LOST: Final = Verdict(
    RunOutcome.SANDBOX_LOST,
    "The sandbox of the run is gone.",
    "What was taken out of it last is kept: `automagik runs diff`. Start a new run with `resume_of`.",
    retryable=True,
)


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


async def ended_with_its_host(store: Store, ledger: Ledger, run_id: str, task: str) -> AgentResponse:
    """How a run ends, on another host, whose own is gone for good: with what it used there."""
    await ledger.hold(run_id)  # what its host left of calls under way is settled
    try:
        usage = await store.read(lambda tx: tx.calls.usage_of(run_id))
    finally:
        ledger.let_go(run_id)
    return AgentResponse(
        message=LOST.detail,
        data=None,
        new_messages=[
            ModelRequest(parts=[UserPromptPart(task)]),
            ModelResponse(parts=[TextPart(LOST.detail)]),
        ],
        usage=usage,
        tool_calls=[],
        tool_outputs=[],
        model=None,
        failure=RunFailed(LOST.detail, outcome=LOST.outcome.value, hint=LOST.hint, retryable=LOST.retryable),
    )
