"""CliError: why a command ends without success, with its exit code."""

import re
from collections.abc import Mapping
from enum import IntEnum

from automagik.errors import AutomagikError
from automagik.types import Json, JsonObject

__all__ = ["CliError", "ExitCode", "failure_of_error", "failure_of_problem"]


_NAMES_FIELDS = "`errors` names each field."
_TO_LIST = re.compile(r"^List what there is, or create an? ([a-z]+)\.$")
_NOUNS = {
    "agent": "agents",
    "budget": "budgets",
    "key": "keys",
    "memory": "memories",
    "prompt": "prompts",
    "run": "runs",
    "schedule": "schedules",
    "secret": "secrets",
    "session": "sessions",
    "user": "users",
    "webhook": "webhooks",
    "workflow": "workflows",
}
"""What a `NotFound` names, and the command that lists it."""
_LISTS = re.compile(r"GET /api/v1/([a-z]+) lists")
_RESUMES = re.compile(r'`"resume_of": "(run_[0-9a-z]+)"`')
_LISTS_DELIVERIES = "GET /api/v1/webhooks/{webhook_id}/deliveries lists"
_PLACES = {"body", "query", "files"}
"""Where a field stands, which is of no interest to who gave an option."""


class ExitCode(IntEnum):
    """What the command's end tells a script."""

    DONE = 0
    FAILED = 1
    """The work failed: a failed run, a conflict, a fault of the server."""
    USAGE = 2
    """The command line, a setting or a value is wrong."""
    UNREACHABLE = 3
    """No server answered, or it can't serve now."""
    NOT_ALLOWED = 4
    """No key, a bad one, or one that may not do this."""
    NOT_FOUND = 5
    INTERRUPTED = 130


class CliError(Exception):
    """The end of a command: what is wrong, the way out, and the exit code. `problem` is what the API answered, if it did."""

    def __init__(
        self, detail: str, *, exit_code: ExitCode, hint: str | None = None, problem: JsonObject | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.exit_code = exit_code
        self.problem = problem

    def to_json(self) -> JsonObject:
        """What the API answered, or an object of the same fields."""
        return self.problem or {"detail": self.detail, "hint": self.hint, "exit_code": int(self.exit_code)}


_BY_STATUS = {
    400: ExitCode.USAGE,
    401: ExitCode.NOT_ALLOWED,
    403: ExitCode.NOT_ALLOWED,
    404: ExitCode.NOT_FOUND,
    413: ExitCode.USAGE,
    422: ExitCode.USAGE,
}


def failure_of_problem(problem: JsonObject, status: int) -> CliError:
    """The error that a Problem of the API spells."""
    detail = _text(problem, "detail") or _text(problem, "title") or f"The server answered {status}."
    hint = _text(problem, "hint")
    errors = problem.get("errors")
    if isinstance(errors, list):
        fields = [field for item in errors if (field := _field_error(item)) is not None]
        if len(fields) == 1 and detail.endswith(fields[0][1]):  # the same once more, but with its field
            detail = ": ".join(fields[0])
        else:
            detail = "\n".join([detail, *(f"  {place}: {message}" for place, message in fields)])
        if hint == _NAMES_FIELDS:  # which was just done
            hint = None
    run_id = _text(problem, "run_id")
    if run_id is not None:
        detail = f"{detail} ({run_id})"
    code = _BY_STATUS.get(status, ExitCode.FAILED)
    if problem.get("code") == "service_unavailable":
        code = ExitCode.UNREACHABLE
    elif run_id is not None:
        code = ExitCode.FAILED
    return CliError(detail, exit_code=code, hint=_in_commands(hint), problem=problem)


def failure_of_error(error: AutomagikError) -> CliError:
    """The end of a command that met `error` while it worked on the data folder itself."""
    code = _BY_STATUS.get(error.status, ExitCode.FAILED)
    if error.status == 503:
        code = ExitCode.UNREACHABLE
    return CliError(error.detail, exit_code=code, hint=error.hint)


def _text(problem: Mapping[str, Json], name: str) -> str | None:
    value = problem.get(name)
    return value if isinstance(value, str) and value else None


def _in_commands(hint: str | None) -> str | None:
    """The hint with the lists of the API named by the command that shows them."""
    if hint is None:
        return None
    listed = _TO_LIST.match(hint)
    if listed is not None and listed[1] in _NOUNS:
        return f"`automagik {_NOUNS[listed[1]]} list` lists what there is."
    hint = _RESUMES.sub(r"`automagik workflows run WORKFLOW TASK --resume \1`", hint)
    return _LISTS.sub(r"`automagik \1 list` lists", hint).replace(
        _LISTS_DELIVERIES, "`automagik webhooks deliveries WEBHOOK` lists"
    )


def _field_error(item: Json) -> tuple[str, str] | None:
    """Which field, and what is wrong with it."""
    if not isinstance(item, dict):
        return None
    loc = item.get("loc")
    place = ".".join(str(part) for part in loc if part not in _PLACES) if isinstance(loc, list) else ""
    message = item.get("msg")
    if not isinstance(message, str):
        return None
    return place or "body", message.removeprefix(f"{place}: ")  # what is wrong in a file begins with its name
