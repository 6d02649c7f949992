"""Server-sent events: a run's events as bytes, and the response that sends them as they come."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, cast

import orjson
from prometheus_client import Gauge
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from automagik.events import RunEvent
from automagik.runs import RunStream
from automagik.types import JsonObject, utc_text

__all__ = ["EVENT_STREAM", "STREAM_CONTENT", "EventResponse", "encode_events", "event_document", "run_chunks"]

EVENT_STREAM = "text/event-stream"

STREAM_CONTENT: dict[str, Any] = {
    EVENT_STREAM: {
        "schema": {
            "type": "object",
            "description": "One event of the stream; `data` is JSON",
            "properties": {"id": {"type": "string"}, "event": {"type": "string"}, "data": {"type": "string"}},
            "required": ["data"],
        }
    }
}
"""How a stream stands in the OpenAPI document."""

_KEEP_ALIVE = b": keep-alive\n\n"
_REFUSED = b": the key is revoked or expired\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]


def event_document(event: RunEvent) -> JsonObject:
    """The event as on the wire."""
    return {
        "run_id": event.run_id,
        "seq": event.seq,
        "type": event.type,
        "at": utc_text(event.at),
        "data": event.data,
    }


def encode_events(events: Sequence[RunEvent]) -> bytes:
    """The events as one chunk, so that what came together leaves together. Only stored events have an id."""
    parts: list[bytes] = []
    for event in events:
        if event.seq is not None:
            parts.append(b"id: %d\n" % event.seq)
        parts.append(b"event: %b\ndata: %b\n\n" % (event.type.encode(), orjson.dumps(event_document(event))))
    return b"".join(parts)


async def run_chunks(stream: RunStream) -> AsyncGenerator[bytes]:
    """The run's events, a chunk for each batch."""
    try:
        async for batch in stream:
            yield encode_events(batch)
    finally:
        await stream.aclose()
        batches: object = stream.batches
        if isinstance(batches, AsyncGenerator):
            await cast("AsyncGenerator[object]", batches).aclose()


class EventResponse(Response):
    """Sends what `chunks` gives, one body chunk each, and a comment after `keep_alive_seconds` of silence.

    A client that leaves ends the reading, nothing else, and so does a key that is valid no more: who reads on with
    `Last-Event-ID` is told so. `gauge` counts the streams that are open.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[bytes],
        *,
        gauge: Gauge | None = None,
        keep_alive_seconds: float = 15.0,
        check_seconds: float = 2.0,
    ) -> None:
        """`check_seconds`: how often the key is looked at that the stream was opened with."""
        self.status_code = 200
        self.background = None
        self.raw_headers = [*_HEADERS]
        self._chunks = chunks
        self._gauge = gauge
        self._keep_alive_seconds = keep_alive_seconds
        self._check_seconds = check_seconds
        self._sent_at = 0.0
        self._gone = False
        self._refused = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream until it ends or the client leaves."""
        task = asyncio.current_task()
        assert task is not None, "an ASGI application runs in a task"
        loop = asyncio.get_running_loop()
        if self._gauge is not None:
            self._gauge.inc()
        still_admitted = cast("Callable[[], Awaitable[bool]] | None", scope.get("automagik.still_admitted"))
        attendants: list[asyncio.Task[None]] = []
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            self._sent_at = loop.time()
            attendants.append(loop.create_task(self._attend(task, receive, send)))
            if still_admitted is not None:
                attendants.append(loop.create_task(self._watch(task, still_admitted)))
            async for chunk in self._chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                self._sent_at = loop.time()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except asyncio.CancelledError:
            if not (self._gone or self._refused) or task.uncancel() > 0:
                raise
            if self._refused:
                await send({"type": "http.response.body", "body": _REFUSED, "more_body": False})
        finally:
            for attendant in attendants:
                attendant.cancel()
            if self._gauge is not None:
                self._gauge.dec()
            await self._chunks.aclose()

    async def _watch(self, reader: "asyncio.Task[object]", still_admitted: "Callable[[], Awaitable[bool]]") -> None:
        """Tell `reader` when the key that opened the stream is revoked or expired."""
        while True:
            await asyncio.sleep(self._check_seconds)
            if not await still_admitted():
                self._refused = not self._gone
                reader.cancel()
                return

    async def _attend(self, reader: "asyncio.Task[object]", receive: Receive, send: Send) -> None:
        """Break the silence; tell `reader` when the client is gone."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout_at(self._sent_at + self._keep_alive_seconds):
                    message = await receive()
            except TimeoutError:
                if loop.time() - self._sent_at >= self._keep_alive_seconds:
                    await send({"type": "http.response.body", "body": _KEEP_ALIVE, "more_body": True})
                    self._sent_at = loop.time()
                continue
            if message["type"] == "http.disconnect":
                self._gone = True
                reader.cancel()
                return
