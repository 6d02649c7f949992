"""Ending: what a workflow's run answers when it is over, what it used, and what is told last."""

from collections.abc import Callable
from dataclasses import replace

from pydantic_ai import ModelRequest, ModelResponse, TextPart, UserPromptPart

from automagik.agents import AgentResponse
from automagik.budget import Ledger
from automagik.claude_code.executor import ExitStatus
from automagik.claude_code.following import unread
from automagik.claude_code.outcome import Verdict
from automagik.claude_code.transcript import Transcript
from automagik.store import Store
from automagik.types import JsonObject, RunOutcome, Usage

__all__ = ["answer", "ended_without_sandbox", "tell_at_end"]


async def answer(
    store: Store, run_id: str, task: str, verdict: Verdict, usage: Usage, transcript: Transcript | None = None
) -> AgentResponse:
    """What the run answers. `usage` is the gateway's; the calls of tools are counted from the run's stored events, which are told
    once whoever read the CLI's output, and however often the run began again: all of them must be stored."""
    calls = await store.read(lambda tx: tx.events.tool_calls(run_id))
    report = transcript.structured_output if transcript is not None else None
    summary = report.get("summary") if isinstance(report, dict) else None
    said = transcript.final_text if transcript is not None else verdict.detail
    message = summary if isinstance(summary, str) else said
    model = (transcript.init or {}).get("model") if transcript is not None else None
    return AgentResponse(
        message=message,
        data=report,
        new_messages=[
            ModelRequest(parts=[UserPromptPart(task)]),
            ModelResponse(parts=[TextPart(message or verdict.detail)]),
        ],
        usage=replace(usage, tool_calls=calls),
        tool_calls=[],
        tool_outputs=[],
        model=str(model) if model is not None else None,
        failure=verdict.failure,
    )


async def ended_without_sandbox(
    store: Store, ledger: Ledger, run_id: str, task: str, verdict: Verdict
) -> AgentResponse:
    """How a run ends that has no sandbox: it is lost, and the run does not begin again, or was never made. With what it used."""
    await ledger.hold(run_id)  # what its host left of calls under way is settled
    try:
        usage = await store.read(lambda tx: tx.calls.usage_of(run_id))
    finally:
        ledger.let_go(run_id)
    return await answer(store, run_id, task, verdict, usage)


async def tell_at_end(
    store: Store,
    run_id: str,
    verdict: Verdict,
    exit_status: ExitStatus | None,
    *,
    tell: Callable[[str, JsonObject], None],
) -> None:
    """Tell what the outcome leaves out: tools that were refused or killed, and words that were not read."""
    if verdict.outcome is RunOutcome.COMPLETED and verdict.hint is not None:
        tell("warning", {"code": "tools_denied", "detail": f"{verdict.detail} {verdict.hint}"})
    if exit_status is not None and exit_status.oom_killed:
        detail = "The sandbox ran out of memory, and a process in it was killed: AUTOMAGIK_SANDBOX_MEMORY_BYTES is its limit."
        tell("warning", {"code": "out_of_memory", "detail": detail})
    for word in await store.read(lambda tx: tx.words.waiting(run_id)):
        if word.kind == "message":
            tell("warning", unread(run_id, word.text))
