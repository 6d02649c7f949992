"""classify: what an ended run of the Claude CLI was, from its exit, from what it claims, and from why we ended it."""

import re
from dataclasses import dataclass
from typing import Final, Literal

from automagik.claude_code.executor import ExitStatus
from automagik.claude_code.transcript import Transcript
from automagik.errors import RunFailed
from automagik.memory import clean_text
from automagik.types import Json, JsonObject, RunOutcome

__all__ = ["TIMED_OUT", "TURNS_USED_UP", "EndedBy", "Refusal", "Verdict", "classify", "ended_by_us"]

EndedBy = Literal["cancel", "interrupt", "timeout", "stall", "budget", "size", "unmeasured"]
"""Why the platform ended a run: by a person's word, or by one of the run's limits (`size`: of its workspace; `unmeasured`: that could
not be measured)."""

Refusal = Literal["budget_exceeded", "budget_busy", "policy"]
"""What the gateway refused: money, money that other calls had reserved (429), or a model that the workflow does not allow."""

_MAX_QUOTED = 500
_TERMINATED, _KILLED, _ABORTED, _INTERRUPTED = 15, 9, 6, 2
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_TOO_LONG = re.compile(r"prompt is too long|request too large|input length", re.IGNORECASE)
_LOGS = "See the run's events; the whole output is among its artefacts."


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a run ended. `detail` says what happened, `hint` what to do; neither holds anything internal."""

    outcome: RunOutcome
    detail: str
    hint: str | None = None
    retryable: bool = False
    """Whether the same again may go better."""

    @property
    def failure(self) -> RunFailed | None:
        """The error that the run ends with; None where it ended well."""
        if self.outcome is RunOutcome.COMPLETED:
            return None
        return RunFailed(self.detail, outcome=self.outcome.value, hint=self.hint, retryable=self.retryable)


TIMED_OUT: Final = Verdict(
    RunOutcome.TIMED_OUT,
    "The run used up its time.",
    "Give it more (timeout_seconds), or a smaller task. What it had done is under its commits and its wip commit.",
    retryable=True,
)
TURNS_USED_UP: Final = Verdict(
    RunOutcome.MAX_TURNS,
    "The run reached its limit of turns.",
    "Raise max_turns, or give it a smaller task. What it had done is under its commits and its wip commit.",
)


def classify(
    transcript: Transcript,
    exit: ExitStatus,  # noqa: A002 - it is one
    *,
    ended_by: EndedBy | None = None,
    refused: str | None = None,
    wants_report: bool = False,
) -> Verdict:
    """The verdict on a run whose output is read to its end.

    `completed` needs both: exit 0, and a result that claims success. Neither is enough alone: the CLI exits 0 where it is
    interrupted, calls an API error a "success", and a tool can forge any event. `refused` is what the gateway refused (a
    `Refusal`); `wants_report`: whether the workflow asked for a structured report.
    """
    if ended_by == "cancel":
        return Verdict(RunOutcome.CANCELLED, "The run was cancelled.")
    result = transcript.result
    if exit.code == 0 and _claims_success(result):
        return _success(transcript, wants_report)
    if ended_by is not None:
        return ended_by_us(ended_by)
    refusal = _refusal(refused, result)
    if refusal is not None:
        return refusal
    crash = _crash(exit)
    if crash is not None:
        return crash
    if result is None:
        return _no_result(transcript, exit)
    if _claims_success(result):
        return Verdict(
            RunOutcome.SANDBOX_ERROR,
            f"The CLI claimed success but ended with exit code {exit.code}.",
            f"Its claim is not believed. {_LOGS}",
            retryable=True,
        )
    return _claimed_failure(result)


def _claims_success(result: JsonObject | None) -> bool:
    return result is not None and result.get("subtype") == "success" and result.get("is_error") is False


def _success(transcript: Transcript, wants_report: bool) -> Verdict:
    if wants_report and not isinstance(transcript.structured_output, dict):
        return Verdict(
            RunOutcome.INVALID_OUTPUT,
            "The model ended without the report that the workflow asks for.",
            "Try again, use a stronger model, or ask for less in the workflow's report schema.",
            retryable=True,
        )
    denied = list(dict.fromkeys(str(denial.get("tool_name"))[:100] for denial in transcript.permission_denials[:1000]))
    if denied:
        names = clean_text(", ".join(denied[:10]))
        return Verdict(
            RunOutcome.COMPLETED,
            f"The run completed; the workflow did not allow all that it tried ({names}).",
            "If it should have been allowed, add it to the workflow's allowed_tools.json.",
        )
    return Verdict(RunOutcome.COMPLETED, "The run completed.")


def ended_by_us(ended_by: EndedBy) -> Verdict:
    """What it means for a run that the platform ended it, before it had ended by itself."""
    match ended_by:
        case "cancel":
            return Verdict(RunOutcome.CANCELLED, "The run was cancelled.")
        case "interrupt":
            return Verdict(RunOutcome.INTERRUPTED, "The run was interrupted, and no message followed.")
        case "timeout":
            return TIMED_OUT
        case "stall":
            return Verdict(
                RunOutcome.STALLED,
                "The run said nothing for longer than its stall limit.",
                "See its last tool call: a command may have waited for input. Raise stall_seconds where it only takes long.",
                retryable=True,
            )
        case "budget":
            return _budget_exceeded()
        case "size":
            return Verdict(
                RunOutcome.SANDBOX_ERROR,
                "The run's workspace grew over its limit.",
                "See what it wrote; raise AUTOMAGIK_MAX_WORKSPACE_BYTES where it needs more.",
            )
        case "unmeasured":
            return Verdict(
                RunOutcome.SANDBOX_ERROR,
                "The run's workspace could not be measured, which counts as over its limit.",
                "Its last warning (workspace_unmeasured) says why: see which of its commands makes so many files, or hides them.",
            )


def _budget_exceeded() -> Verdict:
    return Verdict(
        RunOutcome.BUDGET_EXCEEDED,
        "The run's next model call would have cost more than a budget leaves.",
        "`automagik budgets list` shows which; raise it, or wait for its next period, then requeue the run.",
    )


def _refusal(refused: str | None, result: JsonObject | None) -> Verdict | None:
    if refused == "budget_exceeded":
        return _budget_exceeded()
    if refused == "budget_busy" and _status(result) == 429:
        return Verdict(
            RunOutcome.BUDGET_EXCEEDED,
            "The run gave up: calls of other runs had reserved all that a budget leaves.",
            "Requeue it when those have ended, or raise the budget: `automagik budgets list` shows what is reserved.",
            retryable=True,
        )
    if refused == "policy":
        said = "" if result is None else _said(result)
        return Verdict(
            RunOutcome.POLICY,
            f"The run asked its model gateway for what it may not have{_quoted(said)}",
            "Where it is the model: allow it in the workflow's workflow.toml (models), or choose another one.",
        )
    return None


# -- how the process ended


def _crash(exit: ExitStatus) -> Verdict | None:  # noqa: A002 - it is one
    """What the exit says by itself. Something that was killed for memory is no failure where the CLI survived it."""
    if exit.code is None and exit.signal is None:
        return Verdict(
            RunOutcome.SANDBOX_LOST,
            "The sandbox is gone, and how it ended is not known: its host went down.",
            "Requeue the run: it starts again from the last commit that was taken out.",
            retryable=True,
        )
    if exit.output_full:
        return Verdict(
            RunOutcome.SANDBOX_ERROR,
            "The run wrote more output than is kept, and was ended.",
            "A tool printed without end: see the run's last tool call.",
        )
    match _signal(exit):
        case 6:
            return Verdict(
                RunOutcome.SANDBOX_ERROR,
                "The CLI aborted: most likely its sandbox reached its limit of processes, or of memory.",
                "See which tool started so many; raise AUTOMAGIK_SANDBOX_PIDS or AUTOMAGIK_SANDBOX_MEMORY_BYTES.",
                retryable=True,
            )
        case 9 if exit.oom_killed:
            return Verdict(
                RunOutcome.SANDBOX_ERROR,
                "The CLI was killed because its sandbox ran out of memory.",
                "See what took it; raise AUTOMAGIK_SANDBOX_MEMORY_BYTES where the work needs more.",
                retryable=True,
            )
        case None:
            return None
        case 2:
            return Verdict(
                RunOutcome.INTERRUPTED,
                "The run was interrupted from outside the platform.",
                "See who sends signals on its host, then requeue the run.",
                retryable=True,
            )
        case number:
            return Verdict(
                RunOutcome.SANDBOX_ERROR,
                f"The CLI was ended from outside the platform (signal {number}).",
                "See the host's log: who stops its processes or containers, and whether its memory ran out.",
                retryable=True,
            )


def _signal(exit: ExitStatus) -> int | None:  # noqa: A002 - it is one
    """The signal that ended it; a shell or a container says it as 128 and the number."""
    if exit.signal is not None:
        return exit.signal
    code = exit.code or 0
    if code < 0:
        return -code
    return code - 128 if code - 128 in {_ABORTED, _KILLED, _TERMINATED, _INTERRUPTED, 4, 7, 11} else None


def _no_result(transcript: Transcript, exit: ExitStatus) -> Verdict:  # noqa: A002 - it is one
    said = _quoted(exit.stderr)
    if exit.code in {126, 127}:
        return Verdict(
            RunOutcome.SANDBOX_ERROR,
            f"The Claude CLI could not be started{said}",
            "`automagik doctor` says what is missing: the CLI comes with pip install 'automagik-agents[claude]'.",
        )
    if exit.code == 0 and transcript.init is not None:  # SIGINT, at some moments
        return Verdict(
            RunOutcome.INTERRUPTED,
            "The run was interrupted from outside the platform.",
            "See who sends signals on its host, then requeue the run.",
            retryable=True,
        )
    if exit.code == 0:
        return Verdict(
            RunOutcome.SANDBOX_ERROR,
            "The CLI ended before it was given a prompt.",
            "Its input was closed, because the platform stopped: requeue the run.",
            retryable=True,
        )
    if "already in use" in exit.stderr:
        return Verdict(
            RunOutcome.SANDBOX_ERROR,
            "The CLI's session was begun before, and can only be resumed.",
            "Start a new run.",
        )
    return Verdict(
        RunOutcome.SANDBOX_ERROR,
        f"The CLI ended with exit code {exit.code} and without a result{said}",
        f"Where it names an argument, the workflow is at fault. {_LOGS}",
    )


# -- what the CLI claims


def _claimed_failure(result: JsonObject) -> Verdict:
    said = _said(result)
    match result.get("subtype"):
        case "error_max_turns":
            return TURNS_USED_UP
        case "error_max_budget_usd":
            return _budget_exceeded()
        case "error_max_structured_output_retries":
            return Verdict(
                RunOutcome.INVALID_OUTPUT,
                "The model did not manage a report that fits the workflow's schema.",
                "Try again, use a stronger model, or make the schema simpler.",
                retryable=True,
            )
        case "success":
            return _api_failure(result, said)
        case _:
            return _execution_failure(result, said)


def _execution_failure(result: JsonObject, said: str) -> Verdict:
    if str(result.get("terminal_reason", "")).startswith("aborted"):
        return Verdict(RunOutcome.INTERRUPTED, "The run was interrupted, and no message followed.")
    if "No conversation found" in said:
        return Verdict(
            RunOutcome.SANDBOX_LOST,
            "The session that was to be gone on with is not there any more.",
            "Start a new run: its commits so far are kept.",
        )
    return Verdict(RunOutcome.SANDBOX_ERROR, f"The CLI failed while it worked{_quoted(said)}", _LOGS, retryable=True)


def _api_failure(result: JsonObject, said: str) -> Verdict:
    """An error of the Messages API; the CLI calls it a success with `is_error`."""
    reason, status = result.get("stop_reason"), _status(result)
    if reason == "refusal":
        return Verdict(RunOutcome.POLICY, "The model refused the task.", "Change the task's words.")
    if reason == "max_tokens" or result.get("api_error") == "max_output_tokens":
        return Verdict(
            RunOutcome.INVALID_OUTPUT,
            "The model's answer was longer than one answer may be.",
            "Give it a smaller task, or a budget that leaves longer answers.",
            retryable=True,
        )
    if _TOO_LONG.search(said) or status == 413:
        return Verdict(
            RunOutcome.MODEL_ERROR,
            "The conversation grew longer than the model takes.",
            "Give it a smaller task, or a model with a larger context.",
        )
    match status:
        case 401 | 403:
            return Verdict(
                RunOutcome.MODEL_ERROR,
                f"The model's provider refused the platform's key ({status}){_quoted(said)}",
                "Check ANTHROPIC_API_KEY (or ANTHROPIC_AUTH_TOKEN) and what it is allowed: `automagik doctor`.",
            )
        case 404:
            return Verdict(
                RunOutcome.MODEL_ERROR,
                f"The model's provider does not know the model{_quoted(said)}",
                "Check the model's name in the workflow's workflow.toml.",
            )
        case None:
            return Verdict(
                RunOutcome.MODEL_ERROR,
                f"The run's model gateway could not be reached{_quoted(said)}",
                "The platform was away for longer than the CLI waits (about 3 minutes): requeue the run.",
                retryable=True,
            )
        case _ if status in _PASSING:
            return Verdict(
                RunOutcome.MODEL_ERROR,
                f"The model's provider answered {status}, also when asked again{_quoted(said)}",
                "It is away, overloaded, or limits the platform's rate: requeue the run later.",
                retryable=True,
            )
        case _:
            return Verdict(RunOutcome.MODEL_ERROR, f"The model's provider answered {status}{_quoted(said)}", _LOGS)


def _status(result: JsonObject | None) -> int | None:
    status: Json = (result or {}).get("api_error_status")
    return status if isinstance(status, int) else None


def _said(result: JsonObject) -> str:
    errors = result.get("errors")
    texts = [str(error) for error in errors[:10]] if isinstance(errors, list) else []
    said = result.get("result")
    return "\n".join([*texts, said] if isinstance(said, str) else texts)


def _quoted(text: str) -> str:
    """What was said, shortened, to end a sentence with."""
    one_line = " ".join(clean_text(text[-4096:]).split())
    if not one_line:
        return "."
    return f": “{one_line if len(one_line) <= _MAX_QUOTED else '…' + one_line[-_MAX_QUOTED:]}”."
