"""TracedRequests: a span round each request, the parent of its run's spans. Added only where traces are sent."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from automagik.telemetry import Tracing

__all__ = ["TracedRequests"]


class TracedRequests:
    """Gives each request a server span, named as OpenTelemetry's HTTP conventions say, a child of the caller's `traceparent`."""

    def __init__(self, app: ASGIApp, *, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        method: str = scope["method"]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        about = {"http.request.method": method, "automagik.request_id": str(scope.get("automagik.request_id", ""))}
        with self._tracing.span(method, about, carrier=headers, server=True) as span:
            try:
                await self._app(scope, receive, watched_send)
            finally:
                route = getattr(scope.get("route"), "path", None)
                if span is not None:
                    if route is not None:
                        span.update_name(f"{method} {route}")
                        span.set_attribute("http.route", route)
                    if status:
                        span.set_attribute("http.response.status_code", status)
