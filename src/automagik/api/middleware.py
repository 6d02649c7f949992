"""Gate: what every request passes on its way in and out, in one ASGI middleware."""

import re
import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from automagik.errors import TooLarge
from automagik.telemetry import Metrics
from automagik.types import new_id

__all__ = ["UPLOADS", "Gate"]

_log = structlog.stdlib.get_logger("automagik.api")

UPLOADS = "/api/v1/repositories"
"""Where bodies may be as large as an artefact: they go to a file as they come."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_SAFE: list[tuple[bytes, bytes]] = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]
_NO_STORE = (b"cache-control", b"no-store")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_GONE = 499
"""The status counted when the client left before its answer began."""
_UNSEEN = frozenset({"/health", "/ready", "/metrics"})
"""Asked every few seconds by machines; logged only when they fail."""


class Gate:
    """Gives the request its id, limits its body, adds the headers that protect browsers, counts and logs the answer."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, max_body_bytes: int, max_upload_bytes: int) -> None:
        self._app = app
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id, length = _headers_of(scope)
        scope["automagik.request_id"] = request_id
        status = 0
        limit = self._max_upload_bytes if scope["path"] == UPLOADS else self._max_body_bytes

        async def guarded_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.setdefault("headers", [])
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append(_NO_STORE)
                headers.extend(_SAFE)
                headers.append((b"x-request-id", request_id.encode()))
            await send(message)

        read = 0

        async def counted_receive() -> Message:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message["body"])
                if read > limit:
                    raise _too_large(limit)
            return message

        async def refuse() -> Message:
            raise _too_large(limit)

        tokens = structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            await self._app(scope, refuse if length > limit else counted_receive, guarded_send)
        except Exception:
            status = status or 500
            raise
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "unknown")
            method = scope["method"] if scope["method"] in _METHODS else "OTHER"
            status = status or _GONE
            self._metrics.request_finished(method, route, status, seconds)
            if route not in _UNSEEN or status >= 500:
                _report(scope, route, status, seconds)
            structlog.contextvars.reset_contextvars(**tokens)


def _headers_of(scope: Scope) -> tuple[str, int]:
    """The caller's request id, or a new one, and the length that the request claims its body has."""
    request_id: str | None = None
    length = 0
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            if _REQUEST_ID.fullmatch(value):
                request_id = value.decode()
        elif name == b"content-length" and value.isdigit():
            length = int(value) if len(value) < 19 else 1 << 62
    return request_id or new_id("req"), length


def _report(scope: Scope, route: str, status: int, seconds: float) -> None:
    caller = scope.get("automagik.caller")
    _log.info(
        "request",
        method=scope["method"],
        path=scope["path"],
        route=route,
        status=status,
        milliseconds=round(seconds * 1000, 2),
        key_id=caller.key_id if caller is not None else None,
    )


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is larger than {limit} bytes.", hint="Send less, or raise AUTOMAGIK_MAX_BODY_BYTES.")
