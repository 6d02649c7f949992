"""Problems: every error as `application/problem+json` (RFC 9457), in one shape."""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, cast

import orjson
import structlog
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from automagik.errors import AutomagikError, InvalidInput, RateLimited, RunFailed, ServiceUnavailable, Unauthorized
from automagik.memory import clean_text
from automagik.types import Json, JsonObject

__all__ = [
    "PROBLEM_TYPE",
    "FieldError",
    "Problem",
    "invalid_fields",
    "log_fault",
    "problem_body",
    "problem_headers",
    "problem_of",
    "problem_response",
    "problems",
]

_log = structlog.stdlib.get_logger(__name__)

PROBLEM_TYPE = "application/problem+json"

_MAX_ERRORS = 20


class FieldError(BaseModel):
    """What is wrong with one field of the request."""

    loc: list[str | int]
    """Where it is: `["body", "media_contents", 0, "data"]`."""
    msg: str


class Problem(BaseModel):
    """Why a request was not served. `code` is stable; `hint` says the way out."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    hint: str | None = None
    errors: list[FieldError] | None = Field(default=None, description="The fields that are wrong; only with a 422.")
    run_id: str | None = Field(default=None, description="The run that failed; only where there is one.")
    request_id: str | None


_MEANINGS = {
    400: "The request can't be understood",
    401: "No key, or one that is unknown, expired or revoked",
    403: "The key may not do this",
    404: "There is no such thing, or the key may not see it",
    409: "What is asked contradicts what is there",
    412: "Somebody changed it since you read it",
    413: "Too large",
    422: "A field of the request can't be used",
    429: "The key used up its allowance",
    500: "The platform's own fault",
    502: "The model or a tool failed",
    503: "The platform can't serve now",
    504: "The run took longer than its limit",
}
_REFERENCE = {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait", "schema": {"type": "integer"}}}


def problems(*statuses: int, keyless: bool = False) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer these problems, besides those that any route with a key may."""
    always = (422, 503) if keyless else (401, 403, 422, 429, 503)
    documented: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*always, *statuses}):
        documented[status] = {"description": _MEANINGS[status], "content": _REFERENCE}
        if status in {429, 503}:
            documented[status]["headers"] = _RETRY_AFTER
    return documented


def invalid_fields(wrong: ValidationError, *, at: Sequence[str | int] = ("body",)) -> RequestValidationError:
    """What a model refused, as FastAPI itself says it of a route's parameters."""
    found = wrong.errors(include_url=False, include_context=False, include_input=False)
    return RequestValidationError([{**error, "loc": (*at, *error["loc"])} for error in found])


def problem_of(error: Exception, *, request_id: str | None) -> JsonObject:
    """The problem document of an error; one that is not ours says nothing of its cause."""
    match error:
        case AutomagikError():
            document = _document(error.status, error.title, error.code, error.detail, error.hint)
            if isinstance(error, InvalidInput):
                document["errors"] = [{"loc": list(error.field), "msg": error.detail}]
            if isinstance(error, RunFailed) and error.run_id is not None:
                document["run_id"] = error.run_id
        case RequestValidationError():
            document = _validation_document(error)
        case HTTPException():
            document = _http_document(error)
        case _:
            document = _document(
                500,
                "Internal error",
                "internal_error",
                "The platform failed for an internal reason.",
                "The server's log has the cause under this request id.",
            )
    document["request_id"] = request_id
    return document


def problem_response(request: Request, error: Exception) -> Response:
    """The answer to a request that ended in `error`; faults of the platform are logged with their cause."""
    document = problem_of(error, request_id=request.scope.get("automagik.request_id"))
    status = cast("int", document["status"])
    log_fault(error, status)
    return Response(problem_body(document), status, headers=problem_headers(error), media_type=PROBLEM_TYPE)


def log_fault(error: Exception, status: int) -> None:
    """Log an error that is the platform's own, with its cause; a run that failed was logged by the run."""
    if status < 500 or isinstance(error, RunFailed):
        return
    if isinstance(error, ServiceUnavailable):
        _log.warning("request_refused", status=status, detail=error.detail, cause=repr(error.__cause__))
        return
    _log.error("request_failed", status=status, exc_info=error)


def problem_headers(error: Exception) -> dict[str, str]:
    """The headers that go with an error: `Retry-After`, `Allow`, `WWW-Authenticate`."""
    if isinstance(error, RateLimited | ServiceUnavailable):
        return {"Retry-After": str(error.retry_after_seconds)}
    if isinstance(error, RunFailed) and error.status == 503:
        return {"Retry-After": "5"}
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, HTTPException):
        return dict(error.headers or {})
    return {}


def problem_body(document: JsonObject) -> bytes:
    """The document as JSON, whatever text of the caller's it quotes."""
    try:
        return orjson.dumps(document)
    except TypeError:  # a lone surrogate
        return orjson.dumps(json.loads(clean_text(json.dumps(document, ensure_ascii=False))))


def _document(status: int, title: str, code: str, detail: str, hint: str | None) -> JsonObject:
    return {"type": "about:blank", "title": title, "status": status, "code": code, "detail": detail, "hint": hint}


def _validation_document(error: RequestValidationError) -> JsonObject:
    fields: list[Json] = []
    lines: list[str] = []
    for found in cast("Sequence[dict[str, Any]]", error.errors())[:_MAX_ERRORS]:
        msg = _message(found)
        fields.append({"loc": list(found["loc"]), "msg": msg})
        lines.append(f"{'.'.join(map(str, found['loc']))}: {msg}")
    more = len(error.errors()) - 1
    detail = lines[0] + (f" ({more} more)" if more else "") if lines else "The request is not valid."
    document = _document(422, "Invalid input", "invalid_input", detail, "`errors` names each field.")
    document["errors"] = fields
    return document


def _message(found: Mapping[str, Any]) -> str:
    if found["type"] == "extra_forbidden":
        return f"There is no field '{found['loc'][-1]}'."
    return str(found["msg"])


def _http_document(error: HTTPException) -> JsonObject:
    status = HTTPStatus(error.status_code)
    hint = None
    detail = str(error.detail)
    if status is HTTPStatus.NOT_FOUND:
        detail, hint = "There is nothing at this path.", "GET /openapi.json lists what there is; /docs shows it."
    elif status is HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        detail, hint = "This path does not take this method.", f"It takes {allowed}." if allowed else None
    code = status.phrase.lower().replace(" ", "_").replace("-", "_")
    return _document(status.value, status.phrase.capitalize(), code, detail, hint)
