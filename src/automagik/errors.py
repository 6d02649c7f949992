"""The tree of errors: each class carries its stable code and HTTP status, its text says what is wrong and `hint` the way out.

AutomagikError
├── BadRequest 400
│   └── InvalidInput 422            one field of the caller's input, named by `field`
├── Unauthorized 401
├── Forbidden 403
│   ├── MissingScope
│   ├── OverrideNotAllowed
│   └── BudgetExceeded              a call costs more than a limit leaves
├── NotFound 404                    `{kind}_not_found`
├── Conflict 409
├── PreconditionFailed 412
├── TooLarge 413
├── RateLimited 429
│   ├── QueueFull                   too many runs wait already
│   └── BudgetBusy                  what a limit leaves is reserved by calls under way
├── ServiceUnavailable 503
├── RunFailed 502 | 504 | ...       a run that ended without an answer; carries its run id and outcome
└── Internal 500
    ├── ArtifactDamaged             the bytes of an artefact are gone, or not those that were stored
    ├── ConfigurationError          a setting or the machine is not as it must be
    └── PluginError                 an agent, tool or spec that could not be loaded
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import ClassVar

__all__ = [
    "ArtifactDamaged",
    "AutomagikError",
    "BadRequest",
    "BudgetBusy",
    "BudgetExceeded",
    "ConfigurationError",
    "Conflict",
    "Forbidden",
    "Internal",
    "InvalidInput",
    "MissingScope",
    "NotFound",
    "OverrideNotAllowed",
    "PluginError",
    "PreconditionFailed",
    "QueueFull",
    "RateLimited",
    "RunFailed",
    "ServiceUnavailable",
    "TooLarge",
    "Unauthorized",
    "nearest",
]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None where none is close."""
    close = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return close[0] if close else None


class AutomagikError(Exception):
    """Something a caller can be told. `detail` names what is wrong, `hint` says what to do next."""

    code: str = "internal_error"
    title: ClassVar[str] = "Internal error"
    status: int = 500

    def __init__(self, detail: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        if code is not None:
            self.code = code


class BadRequest(AutomagikError):
    """The request can't be understood."""

    code = "bad_request"
    title = "Bad request"
    status = 400


class InvalidInput(BadRequest):
    """One field of the caller's input can't be used. `field` is its path, as `("body", "media_contents", 0, "data")`."""

    code = "invalid_input"
    title = "Invalid input"
    status = 422

    def __init__(
        self, detail: str, *, field: Sequence[str | int], hint: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(detail, hint=hint, code=code)
        self.field = tuple(field)


class Unauthorized(AutomagikError):
    """No key, or one that is unknown, expired or revoked."""

    code = "unauthorized"
    title = "Unauthorized"
    status = 401


class Forbidden(AutomagikError):
    """The key is known but may not do this."""

    code = "forbidden"
    title = "Forbidden"
    status = 403


class MissingScope(Forbidden):
    """The key lacks the scope `scope`."""

    code = "missing_scope"

    def __init__(self, scope: str) -> None:
        super().__init__(
            f"This key lacks the scope '{scope}'.", hint=f"Use a key with '{scope}', or ask an administrator for one."
        )
        self.scope = scope


class OverrideNotAllowed(Forbidden):
    """The request overrides what the agent's config does not open to callers."""

    code = "override_not_allowed"


class BudgetExceeded(Forbidden):
    """What is asked would cost more than a budget leaves."""

    code = "budget_exceeded"


class NotFound(AutomagikError):
    """There is no such thing, or the caller may not see it. The hint names the nearest of those the caller may see."""

    title = "Not found"
    status = 404

    def __init__(self, kind: str, name: str, *, known: Iterable[str] = (), hint: str | None = None) -> None:
        close = nearest(name, known)
        if close is not None and hint is None:
            hint = f"Did you mean '{close}'?"
        article = "an" if kind[0] in "aeiou" and kind != "user" else "a"
        super().__init__(
            f"There is no {kind.replace('_', ' ')} '{name}'.",
            hint=hint or f"List what there is, or create {article} {kind.replace('_', ' ')}.",
            code=f"{kind}_not_found",
        )
        self.kind = kind
        self.name = name


class Conflict(AutomagikError):
    """What is asked contradicts what is there."""

    code = "conflict"
    title = "Conflict"
    status = 409


class PreconditionFailed(AutomagikError):
    """Somebody changed the resource since the caller read it (`If-Match`)."""

    code = "stale_edit"
    title = "Precondition failed"
    status = 412


class TooLarge(AutomagikError):
    """The body, or a part of it, is over its limit."""

    code = "too_large"
    title = "Too large"
    status = 413


class RateLimited(AutomagikError):
    """The key used up its allowance; `retry_after_seconds` says when it has one again."""

    code = "rate_limited"
    title = "Too many requests"
    status = 429

    def __init__(self, detail: str, *, retry_after_seconds: int, hint: str | None = None) -> None:
        super().__init__(detail, hint=hint)
        self.retry_after_seconds = retry_after_seconds


class QueueFull(RateLimited):
    """So many runs wait that another one is not accepted."""

    code = "queue_full"


class BudgetBusy(RateLimited):
    """It would fit into the budget but for what calls under way have reserved."""

    code = "budget_busy"


class ServiceUnavailable(AutomagikError):
    """The platform can't serve now: it is stopping, or a dependency is away."""

    code = "service_unavailable"
    title = "Service unavailable"
    status = 503

    def __init__(self, detail: str, *, retry_after_seconds: int = 5, hint: str | None = None) -> None:
        super().__init__(detail, hint=hint)
        self.retry_after_seconds = retry_after_seconds


class RunFailed(AutomagikError):
    """A run that ended without an answer. It is stored as failed under `run_id`; `code` is its outcome."""

    title = "Run failed"
    status = 502

    def __init__(
        self,
        detail: str,
        *,
        outcome: str,
        run_id: str | None = None,
        hint: str | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(detail, hint=hint, code=outcome)
        self.outcome = outcome
        self.run_id = run_id
        self.retryable = retryable
        self.status = _RUN_FAILED_STATUS.get(outcome, 502)


_RUN_FAILED_STATUS = {
    "timed_out": 504,
    "cancelled": 409,
    "interrupted": 409,
    "internal_error": 500,
    "worker_lost": 503,
    "policy": 403,
    "budget_exceeded": 403,
}


class Internal(AutomagikError):
    """The platform's own fault."""


class ArtifactDamaged(Internal):
    """The bytes of an artefact are gone from the artefact store, or are not those that were stored."""

    code = "artifact_damaged"
    title = "Artefact damaged"


class ConfigurationError(Internal):
    """A setting, or the machine, is not as it must be; the hint says how to mend it."""

    code = "configuration_error"
    title = "Configuration error"


class PluginError(Internal):
    """An agent, tool or spec could not be loaded."""

    code = "plugin_error"
    title = "Plug-in error"
