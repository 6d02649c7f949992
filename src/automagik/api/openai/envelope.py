"""OpenAI's envelope of errors, and the route class that answers in it."""

from collections.abc import Sequence
from typing import Any, cast

import structlog
from fastapi import Request, Response
from pydantic import BaseModel

from automagik.api.answers import JsonResponse
from automagik.api.problems import log_fault, problem_body, problem_headers, problem_of
from automagik.api.route import ApiRoute
from automagik.errors import RunFailed
from automagik.types import JsonObject

__all__ = ["ErrorEnvelope", "OpenAiRoute", "envelope_of", "envelope_response", "envelopes", "run_error"]

_log = structlog.stdlib.get_logger(__name__)

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {
    "unauthorized": "invalid_api_key",
    "agent_not_found": "model_not_found",
    "rate_limited": "rate_limit_exceeded",
}
_MEANINGS = {
    400: "A parameter can't be used",
    401: "No key, or one that is unknown, expired or revoked",
    403: "The key may not do this",
    404: "There is no such model or response, or the key may not see it",
    409: "What is asked contradicts what is there",
    413: "Too large",
    429: "The key used up its allowance",
    500: "The platform's own fault",
    502: "The model or a tool failed",
    503: "The platform can't serve now",
    504: "The run took longer than its limit",
}


class ErrorDetail(BaseModel):
    """What OpenAI's clients read of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    """An error as OpenAI answers it."""

    error: ErrorDetail


def envelopes(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer these errors, besides those that any route of this door may."""
    return {
        status: {"model": ErrorEnvelope, "description": _MEANINGS[status]}
        for status in sorted({400, 401, 403, 404, 429, 503, *statuses})
    }


def envelope_of(problem: JsonObject) -> JsonObject:
    """The error of a problem document, with its hint in the message: that is all that clients show."""
    status = cast("int", problem["status"])
    fields = cast("list[dict[str, Any]]", problem.get("errors") or [])
    param = ".".join(map(str, cast("Sequence[object]", fields[0]["loc"])[1:])) if fields else ""
    message = cast("str", problem["detail"])
    hint = cast("str | None", problem.get("hint"))
    if hint and not fields:
        message = f"{message} {hint}"
    elif fields:
        message = f"{fields[0]['msg']}{f' {hint}' if hint and problem['code'] != 'invalid_input' else ''}"
    code = cast("str", problem["code"])
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param or None, "code": _CODES.get(code, code)}}


def envelope_response(request: Request, error: Exception) -> Response:
    """The answer to a request that ended in `error`. What is a 422 elsewhere is a 400 for OpenAI's clients."""
    problem = problem_of(error, request_id=request.scope.get("automagik.request_id"))
    status = cast("int", problem["status"])
    log_fault(error, status)
    body = problem_body(envelope_of(problem))
    return JsonResponse(body, 400 if status == 422 else status, headers=problem_headers(error))


def run_error(run: JsonObject) -> RunFailed:
    """The error of a run that its last event tells of."""
    error = cast("JsonObject", run["error"] or {})
    return RunFailed(
        str(error.get("detail") or "The run failed."),
        outcome=str(run["outcome"]),
        run_id=str(run["run_id"]),
        hint=cast("str | None", error.get("hint")),
    )


class OpenAiRoute(ApiRoute):
    """A route whose errors are in OpenAI's envelope."""

    def render(self, request: Request, error: Exception) -> Response:
        """The error in OpenAI's envelope."""
        return envelope_response(request, error)
