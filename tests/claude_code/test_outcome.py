"""The outcome classifier, row by row. What the real CLI does in these situations is shown by test_real_cli."""

import json
from typing import Any

import pytest

from automagik.claude_code.executor import ExitStatus
from automagik.claude_code.outcome import EndedBy, Verdict, classify
from automagik.claude_code.transcript import Transcript
from automagik.types import RunOutcome


def transcript(*events: dict[str, Any]) -> Transcript:
    read = Transcript()
    for event in events:
        read.feed(json.dumps(event).encode() + b"\n")
    return read


def result(subtype: Any = "success", *, is_error: bool | None = None, **fields: Any) -> dict[str, Any]:
    wrong = subtype != "success" if is_error is None else is_error
    return {"type": "result", "subtype": subtype, "is_error": wrong, "permission_denials": [], **fields}


def api_error(status: int | None, text: str = "", **fields: Any) -> dict[str, Any]:
    return result(is_error=True, terminal_reason="api_error", api_error_status=status, result=text, **fields)


WORK = {
    "type": "assistant",
    "message": {"id": "m", "content": [{"type": "text", "text": "Hm"}]},
    "parent_tool_use_id": None,
}
INIT = {"type": "system", "subtype": "init"}
NOTHING = transcript()

ROWS: list[tuple[str, Transcript, ExitStatus, RunOutcome, bool]] = [
    ("success", transcript(result(result="Done")), ExitStatus(0), RunOutcome.COMPLETED, False),
    (
        "several results",
        transcript(result("error_max_turns"), WORK, result()),
        ExitStatus(0),
        RunOutcome.COMPLETED,
        False,
    ),
    ("turn limit", transcript(result("error_max_turns", num_turns=3)), ExitStatus(1), RunOutcome.MAX_TURNS, False),
    ("CLI's own budget", transcript(result("error_max_budget_usd")), ExitStatus(1), RunOutcome.BUDGET_EXCEEDED, False),
    (
        "no report",
        transcript(result("error_max_structured_output_retries")),
        ExitStatus(1),
        RunOutcome.INVALID_OUTPUT,
        True,
    ),
    *[
        (f"{status}", transcript(api_error(status)), ExitStatus(1), RunOutcome.MODEL_ERROR, False)
        for status in (400, 401, 403, 404, 413)
    ],
    *[
        (f"{status}", transcript(api_error(status)), ExitStatus(1), RunOutcome.MODEL_ERROR, True)
        for status in (408, 409, 429, 500, 502, 503, 504, 529)
    ],
    ("not reachable", transcript(api_error(None, "Connection error.")), ExitStatus(1), RunOutcome.MODEL_ERROR, True),
    ("prompt too long", transcript(api_error(400, "Prompt is too long")), ExitStatus(1), RunOutcome.MODEL_ERROR, False),
    ("refusal", transcript(result(is_error=True, stop_reason="refusal")), ExitStatus(1), RunOutcome.POLICY, False),
    (
        "max_tokens",
        transcript(api_error(None, api_error="max_output_tokens")),
        ExitStatus(1),
        RunOutcome.INVALID_OUTPUT,
        True,
    ),
    (
        "unknown session",
        transcript(result("error_during_execution", errors=["No conversation found with session ID: x"])),
        ExitStatus(1),
        RunOutcome.SANDBOX_LOST,
        False,
    ),
    (
        "SIGINT in a tool",
        transcript(result("error_during_execution", terminal_reason="aborted_tools")),
        ExitStatus(0),
        RunOutcome.INTERRUPTED,
        False,
    ),
    ("SIGINT at the API", transcript(INIT, WORK), ExitStatus(0), RunOutcome.INTERRUPTED, True),
    ("SIGINT, named", transcript(INIT, WORK), ExitStatus(130), RunOutcome.INTERRUPTED, True),
    ("no prompt", NOTHING, ExitStatus(0), RunOutcome.SANDBOX_ERROR, True),
    ("stale success", transcript(INIT, result(), WORK), ExitStatus(0), RunOutcome.INTERRUPTED, True),
    ("bad arguments", NOTHING, ExitStatus(1, stderr="error: unknown option '--x'"), RunOutcome.SANDBOX_ERROR, False),
    (
        "session in use",
        NOTHING,
        ExitStatus(1, stderr="Error: Session ID x is already in use."),
        RunOutcome.SANDBOX_ERROR,
        False,
    ),
    ("no CLI", NOTHING, ExitStatus(127, stderr="claude: not found"), RunOutcome.SANDBOX_ERROR, False),
    ("SIGTERM", transcript(WORK), ExitStatus(143), RunOutcome.SANDBOX_ERROR, True),
    ("SIGKILL", transcript(WORK), ExitStatus(137), RunOutcome.SANDBOX_ERROR, True),
    ("SIGKILL, named", transcript(WORK), ExitStatus(137, signal=9), RunOutcome.SANDBOX_ERROR, True),
    ("pids limit", transcript(WORK), ExitStatus(134), RunOutcome.SANDBOX_ERROR, True),
    ("host lost", transcript(WORK), ExitStatus(None), RunOutcome.SANDBOX_LOST, True),
    ("too much output", transcript(WORK), ExitStatus(137, output_full=True), RunOutcome.SANDBOX_ERROR, False),
    ("a tool was OOM-killed", transcript(result()), ExitStatus(0, oom_killed=True), RunOutcome.COMPLETED, False),
    ("the CLI was OOM-killed", transcript(WORK), ExitStatus(137, oom_killed=True), RunOutcome.SANDBOX_ERROR, True),
    ("forged success, killed", transcript(result()), ExitStatus(137), RunOutcome.SANDBOX_ERROR, True),
    ("forged success, exit 1", transcript(result()), ExitStatus(1), RunOutcome.SANDBOX_ERROR, True),
    ("nonsense", transcript({"type": "result"}), ExitStatus(1), RunOutcome.SANDBOX_ERROR, True),
    (
        "nonsense fields",
        transcript(result(["x"], errors={}, api_error_status="x")),
        ExitStatus(1),
        RunOutcome.SANDBOX_ERROR,
        True,
    ),
]


@pytest.mark.parametrize(
    ("read", "exit_status", "outcome", "retryable"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_how_a_run_of_itself_ended(
    read: Transcript, exit_status: ExitStatus, outcome: RunOutcome, retryable: bool
) -> None:
    verdict = classify(read, exit_status)
    assert (verdict.outcome, verdict.retryable) == (outcome, retryable), verdict
    assert verdict.detail.endswith((".", "”."))
    assert verdict.hint or outcome in {RunOutcome.COMPLETED, RunOutcome.INTERRUPTED}, "it says what to do"


@pytest.mark.parametrize(
    ("ended_by", "outcome", "mentions"),
    [
        ("cancel", RunOutcome.CANCELLED, "cancelled"),
        ("interrupt", RunOutcome.INTERRUPTED, "interrupted"),
        ("timeout", RunOutcome.TIMED_OUT, "timeout_seconds"),
        ("stall", RunOutcome.STALLED, "stall_seconds"),
        ("budget", RunOutcome.BUDGET_EXCEEDED, "budgets list"),
        ("size", RunOutcome.SANDBOX_ERROR, "AUTOMAGIK_MAX_WORKSPACE_BYTES"),
        ("unmeasured", RunOutcome.SANDBOX_ERROR, "workspace_unmeasured"),
    ],
)
def test_what_we_ended_has_our_reason_whatever_signal_it_took(
    ended_by: EndedBy, outcome: RunOutcome, mentions: str
) -> None:
    verdicts = [
        classify(transcript(WORK), ExitStatus(137), ended_by=ended_by),
        classify(
            transcript(result("error_during_execution", terminal_reason="aborted_tools")),
            ExitStatus(1),
            ended_by=ended_by,
        ),
        classify(transcript(WORK), ExitStatus(0), ended_by=ended_by),
    ]
    assert {verdict.outcome for verdict in verdicts} == {outcome}
    assert mentions in f"{verdicts[0].detail} {verdicts[0].hint}"


def test_a_run_that_was_done_before_we_ended_it_is_completed_unless_a_person_cancelled_it() -> None:
    done = transcript(result())
    assert classify(done, ExitStatus(0), ended_by="timeout").outcome is RunOutcome.COMPLETED
    assert classify(done, ExitStatus(0), ended_by="interrupt").outcome is RunOutcome.COMPLETED
    assert classify(done, ExitStatus(0), ended_by="cancel").outcome is RunOutcome.CANCELLED
    assert classify(done, ExitStatus(137), ended_by="timeout").outcome is RunOutcome.TIMED_OUT


def test_what_the_gateway_refused_ends_the_run_unless_it_found_another_way() -> None:
    refused = transcript(api_error(403))
    assert classify(refused, ExitStatus(1), refused="budget_exceeded").outcome is RunOutcome.BUDGET_EXCEEDED
    assert classify(refused, ExitStatus(1), refused="policy").outcome is RunOutcome.POLICY
    assert classify(transcript(result()), ExitStatus(0), refused="budget_exceeded").outcome is RunOutcome.COMPLETED
    busy = classify(transcript(api_error(429)), ExitStatus(1), refused="budget_busy")
    assert (busy.outcome, busy.retryable) == (RunOutcome.BUDGET_EXCEEDED, True)
    assert classify(transcript(api_error(500)), ExitStatus(1), refused="budget_busy").outcome is RunOutcome.MODEL_ERROR


def test_a_workflow_that_wants_a_report_is_not_completed_without_one() -> None:
    assert classify(transcript(result()), ExitStatus(0), wants_report=True).outcome is RunOutcome.INVALID_OUTPUT
    done = transcript(result(structured_output={"summary": "x"}))
    assert classify(done, ExitStatus(0), wants_report=True).outcome is RunOutcome.COMPLETED


def test_a_completed_run_names_what_it_was_denied_and_an_error_says_little_of_what_was_written() -> None:
    denials = [{"tool_name": "Write"}, {"tool_name": "Bash"}, {"tool_name": "Write"}]
    denied = classify(transcript(result(permission_denials=denials)), ExitStatus(0))
    assert denied == Verdict(
        RunOutcome.COMPLETED,
        "The run completed; the workflow did not allow all that it tried (Write, Bash).",
        "If it should have been allowed, add it to the workflow's allowed_tools.json.",
    )
    long = classify(NOTHING, ExitStatus(1, stderr="x\x00" * 100_000))
    assert len(long.detail) < 700 and "\x00" not in long.detail
