"""What a failure means for a run: its outcome, and what the caller is told."""

from dataclasses import dataclass

from pydantic_ai.exceptions import (
    ConcurrencyLimitExceeded,
    ContentFilterError,
    FallbackExceptionGroup,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelContextWindowExceededError,
    ModelHTTPError,
    ModelNotFoundError,
    ModelOverloadedError,
    ModelQuotaExceededError,
    ModelRateLimitError,
    ModelRequestTimeout,
    ModelServerError,
    ModelUnavailableError,
    UnexpectedModelBehavior,
    UsageLimitExceeded,
)

from automagik.errors import ArtifactDamaged, AutomagikError, RunFailed, ServiceUnavailable
from automagik.types import JsonObject, RunOutcome

__all__ = ["CANCELLED", "CANCELLED_AWAY", "WORKER_LOST", "Failure", "failure_of", "worker_lost"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a run ended without an answer. `detail` and `hint` are for the caller: nothing internal, no provider's text."""

    outcome: RunOutcome
    detail: str
    hint: str | None = None
    retryable: bool = False
    cause: RunOutcome | None = None
    """Why the last attempt failed, of a run that was tried several times."""

    @property
    def passes(self) -> bool:
        """Whether another attempt may go better by itself: not where the run used up its time, or its worker was lost."""
        return self.retryable and self.outcome not in {RunOutcome.TIMED_OUT, RunOutcome.WORKER_LOST}

    def exhausted(self, attempts: int) -> "Failure":
        """The failure of a run of which `attempts` failed, this one last."""
        return Failure(
            RunOutcome.RETRIES_EXHAUSTED,
            f"The run failed {attempts} times; the last time: {self.detail}",
            "When the cause is mended, requeue it: POST /api/v1/runs/RUN_ID/requeue, or `automagik runs requeue RUN_ID`.",
            retryable=True,
            cause=self.outcome,
        )

    def to_json(self) -> JsonObject:
        """The run's `error` as on the wire."""
        return {
            "code": self.outcome.value,
            "detail": self.detail,
            "hint": self.hint,
            "retryable": self.retryable,
            "cause": self.cause.value if self.cause is not None else None,
        }

    def to_exception(self, run_id: str) -> RunFailed:
        """The error that a waiting caller gets."""
        return RunFailed(
            self.detail, outcome=self.outcome.value, run_id=run_id, hint=self.hint, retryable=self.retryable
        )


CANCELLED = Failure(RunOutcome.CANCELLED, "The run was cancelled.")
"""Why a run ended that somebody stopped."""

CANCELLED_AWAY = Failure(
    RunOutcome.CANCELLED,
    "The run was cancelled while its host was away: what it had made since it was taken out last is lost.",
    "What was taken out of it is kept: `automagik runs diff`. What may still work for it is ended when its host comes back.",
)
"""The same, where nobody was there to stop it."""

WORKER_LOST = Failure(
    RunOutcome.WORKER_LOST, "The server stopped before the run ended.", "Send the request again.", retryable=True
)
"""Why a run ended whose process stopped or died."""


def worker_lost(tool: str | None) -> Failure:
    """Why a background run ended whose worker stopped or died after the tool `tool`, which writes, had been called."""
    if tool is None:
        return WORKER_LOST
    return Failure(
        RunOutcome.WORKER_LOST,
        f"The worker stopped when the tool '{tool}' had been called, so the run is not repeated: it might do that twice.",
        f"See what '{tool}' has done, then requeue the run; or declare the agent `repeatable`, or the tool `read_only`.",
    )


def failure_of(error: BaseException, *, tool_under_way: str | None) -> Failure:
    """Whose fault `error` is. `tool_under_way` names the tool that had been called and not answered, if any."""
    match error:
        case RunFailed():
            return Failure(RunOutcome(error.outcome), error.detail, error.hint, error.retryable)
        case UsageLimitExceeded():
            return _limit_exceeded(str(error))
        case FallbackExceptionGroup():
            last = error.exceptions[-1]
            if isinstance(last, ModelAPIError):
                failure = _model_failure(last)
                detail = f"All {len(error.exceptions)} models failed; the last: {failure.detail}"
                return Failure(failure.outcome, detail, failure.hint, failure.retryable)
            return Failure(RunOutcome.MODEL_ERROR, "All models failed.", "See the server's log.", retryable=True)
        case ModelAPIError():
            return _model_failure(error)
        case ContentFilterError():
            return Failure(RunOutcome.POLICY, "The model's provider filtered the content.", "Change the message.")
        case ConcurrencyLimitExceeded():
            return Failure(
                RunOutcome.MODEL_ERROR, "The model is at its limit of requests.", "Retry later.", retryable=True
            )
        case UnexpectedModelBehavior() if tool_under_way is not None or "tool" in error.message.lower():
            return Failure(RunOutcome.TOOL_ERROR, error.message, "Try again, or use a stronger model.", retryable=True)
        case UnexpectedModelBehavior():
            return Failure(
                RunOutcome.INVALID_OUTPUT, error.message, "Try again, or use a stronger model.", retryable=True
            )
        case ServiceUnavailable():
            return Failure(RunOutcome.INTERNAL_ERROR, error.detail, error.hint, retryable=True)
        case ArtifactDamaged():
            return Failure(RunOutcome.INTERNAL_ERROR, error.detail, error.hint)
        case AutomagikError() if error.status < 500:
            return Failure(RunOutcome.POLICY, error.detail, error.hint)
        case _ if tool_under_way is not None:
            return Failure(
                RunOutcome.TOOL_ERROR,
                f"The tool '{tool_under_way}' failed with {type(error).__name__}.",
                "The server's log has the cause.",
            )
        case _:
            return Failure(
                RunOutcome.INTERNAL_ERROR, "The agent failed for an internal reason.", "The server's log has the cause."
            )


def _limit_exceeded(text: str) -> Failure:
    if "request_limit" in text:
        outcome, what = RunOutcome.MAX_TURNS, "requests to the model"
    elif "tool_call" in text:
        outcome, what = RunOutcome.MAX_TURNS, "tool calls"
    elif "cost" in text:
        outcome, what = RunOutcome.BUDGET_EXCEEDED, "cost"
    else:
        outcome, what = RunOutcome.BUDGET_EXCEEDED, "tokens"
    return Failure(outcome, f"The run reached its limit of {what}.", "Raise the limit in the agent's config.")


def _model_failure(error: ModelAPIError) -> Failure:
    name = error.model_name
    status = f" (HTTP {error.status_code})" if isinstance(error, ModelHTTPError) else ""
    detail, hint, retryable = _explain(error)
    return Failure(RunOutcome.MODEL_ERROR, f"The model '{name}' {detail}{status}.", hint, retryable)


def _explain(error: ModelAPIError) -> tuple[str, str, bool]:
    match error:
        case ModelAuthenticationError():
            return "refused the platform's credentials", "An administrator must check the provider's key.", False
        case ModelNotFoundError():
            return "is not known to its provider", "Check the model's name in the agent's config.", False
        case ModelContextWindowExceededError():
            return "can't take so long a conversation", "Lower `message_limit`, or shorten the message.", False
        case ModelQuotaExceededError():
            return "is out of quota", "An administrator must check the provider's billing.", False
        case ModelRateLimitError():
            return "is rate limited by its provider", "Retry later, or give the agent fallback models.", True
        case ModelOverloadedError() | ModelUnavailableError() | ModelServerError():
            return "failed on its provider's side", "Retry later, or give the agent fallback models.", True
        case ModelRequestTimeout() | ModelConnectionError():
            return "could not be reached, or its answer broke off", "Check the provider and the network; retry.", True
        case ModelHTTPError():
            return "refused the request", "The server's log has the provider's answer.", error.status_code >= 500
        case _:
            return "failed", "The server's log has the cause.", True
