"""Pool: connections to a provider's API, kept for the next call, whose answers come as the bytes that they are.

A bare protocol over httptools. An HTTP client for every purpose takes 0.2 ms of the one processor for each piece of a
stream, and milliseconds for a call, which is more than all that the gateway does besides.
"""

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator
from typing import Protocol, cast

import httptools

from automagik.gateway.connection import Header

__all__ = ["BrokeOff", "Origin", "Pool", "Reply", "Unreachable"]

_CONNECT_SECONDS = 10.0
_IDLE_SECONDS = 30.0
_SILENT_SECONDS = 60
"""How long the other side's system may answer nothing: a host that is gone says no goodbye, and a model may think for minutes."""
_PROBES = 3
_MAX_IDLE = 64
_MAX_HEAD_BYTES = 256 * 1024
_MANY_BYTES = 256 * 1024
"""What may wait for the run to take it before the provider is made to wait."""

Origin = tuple[str, str, int]
"""Scheme, host and port."""


class Unreachable(Exception):
    """There was no connection: nothing was asked, so nothing can have been paid for."""


class BrokeOff(Exception):
    """The connection ended, or what came was no HTTP, after the request was sent."""


class Reply(Protocol):
    """An answer whose body has not been read yet."""

    status: int
    headers: tuple[Header, ...]

    def value(self, name: bytes) -> bytes:
        """The last value of a header; empty where it isn't there."""
        ...

    def pieces(self) -> AsyncIterator[bytes]:
        """The body's bytes as they come. Raises BrokeOff where it ends before its end."""
        ...

    @property
    def complete(self) -> bool:
        """Whether all pieces were given and the body is known to have ended; it may have, where it isn't."""
        ...

    @property
    def has_piece(self) -> bool:
        """Whether a piece is there already, which was not taken yet."""
        ...

    async def close(self) -> None:
        """Let go of the connection; where the body wasn't read to its end, the provider is told by its end."""
        ...


class Pool:
    """Connections to any number of origins. Open it before use, close it after. One whose host has not been heard of for
    `silent_seconds` is broken off."""

    def __init__(self, context: ssl.SSLContext, *, silent_seconds: int = _SILENT_SECONDS) -> None:
        self._context = context
        self._silent_seconds = silent_seconds
        self._idle: dict[Origin, list[_Wire]] = {}
        self._busy: set[_Wire] = set()

    async def send(
        self, origin: Origin, method: str, target: str, headers: tuple[Header, ...], body: bytes | None
    ) -> Reply:
        """The answer's head. Raises Unreachable, BrokeOff."""
        lines = [f"{method} {target} HTTP/1.1\r\nhost: {_authority(origin)}\r\n".encode()]
        lines += [b"%b: %b\r\n" % header for header in headers]
        lines.append(b"\r\n" if body is None else b"content-length: %d\r\n\r\n" % len(body))
        wire = self._take(origin) or await self._connect(origin)
        self._busy.add(wire)
        try:
            wire.ask(b"".join(lines), body or b"")
            await wire.head()
        except BaseException:
            self._busy.discard(wire)
            wire.abort()
            raise
        return _Answer(self, wire)

    async def close(self) -> None:
        """End every connection."""
        for wire in [*self._busy, *(wire for idle in self._idle.values() for wire in idle)]:
            wire.abort()
        self._idle.clear()
        self._busy.clear()

    def give_back(self, wire: "_Wire") -> None:
        """Keep the connection for the next call, where it can have one."""
        self._busy.discard(wire)
        idle = self._idle.setdefault(wire.origin, [])
        if wire.can_go_on and len(idle) < _MAX_IDLE:
            idle.append(wire)
            wire.rest(_IDLE_SECONDS)
        else:
            wire.abort()

    def forget(self, wire: "_Wire") -> None:
        """The connection is gone."""
        idle = self._idle.get(wire.origin, [])
        if wire in idle:
            idle.remove(wire)

    def _take(self, origin: Origin) -> "_Wire | None":
        """The connection that was used last; those that aren't needed any more come to their end behind it."""
        idle = self._idle.get(origin)
        return idle.pop() if idle else None

    async def _connect(self, origin: Origin) -> "_Wire":
        scheme, host, port = origin
        secure = scheme == "https"
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                transport, wire = await loop.create_connection(
                    lambda: _Wire(self, origin),
                    host,
                    port,
                    ssl=self._context if secure else None,
                    server_hostname=host if secure else None,
                )
            _probe(transport.get_extra_info("socket"), self._silent_seconds)
        except (OSError, TimeoutError) as error:  # refused, no such host, a certificate that isn't the host's
            raise Unreachable(type(error).__name__) from error
        return wire


class _Wire(asyncio.Protocol):
    """One connection to a provider: one request at a time."""

    def __init__(self, pool: Pool, origin: Origin) -> None:
        self.origin = origin
        self.status = 0
        self.headers: list[Header] = []
        self.complete = False
        self._pool = pool
        self._parser: httptools.HttpResponseParser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self._has_head = False
        self._is_asked = False
        self._goes_on = True
        self._lost: BrokeOff | None = None
        self._head_bytes = 0
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def can_go_on(self) -> bool:
        """Whether another request may follow."""
        return self.complete and self._goes_on and self._lost is None

    @property
    def is_read(self) -> bool:
        """Whether the answer has come to its end, and all of it was taken."""
        return self.complete and not self._pieces

    @property
    def has_piece(self) -> bool:
        """Whether something came that was not taken yet."""
        return bool(self._pieces)

    # -- of the pool

    def ask(self, head: bytes, body: bytes) -> None:
        """Send a request."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.status, self.headers, self.complete = 0, [], False
        self._has_head, self._head_bytes, self._is_asked = False, 0, True
        self._transport.writelines((head, body) if body else (head,))

    async def head(self) -> None:
        """Return when the answer's head is there. Raises BrokeOff."""
        while not self._has_head:
            if self._lost is not None:
                raise self._lost
            await self._more()

    async def piece(self) -> bytes:
        """What came since the last time; empty at the end. Raises BrokeOff."""
        while not self._pieces:
            if self.complete:
                return b""
            if self._lost is not None:
                raise self._lost
            await self._more()
        piece = self._pieces.popleft() if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._waiting = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return piece

    def rest(self, seconds: float) -> None:
        """Wait for the next request, but not for ever."""
        self._is_asked = False
        self._timer = asyncio.get_running_loop().call_later(seconds, self._transport.close)

    def abort(self) -> None:
        """End it at once."""
        self._transport.abort()

    # -- the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # Without a length, the connection's end is the body's.
        if self._has_head and not self.complete and exc is None and not self._is_framed():
            self.complete = True
        self._lose("the connection ended")
        self._pool.forget(self)

    def data_received(self, data: bytes) -> None:
        if (
            not self._is_asked or self.complete
        ):  # nothing was asked: whatever it is, it is no answer to the next request
            self._goes_on = False
            self._transport.abort()
            return
        if not self._has_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._lose("no HTTP")
            self._transport.abort()
        if not self._has_head and self._head_bytes > _MAX_HEAD_BYTES:
            self._lose("a head without an end")
            self._transport.abort()
        self._tell()

    # -- the parser

    def on_message_begin(self) -> None:
        if self.complete:  # an answer to nothing, right behind one
            self._goes_on = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._has_head:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        status = self._parser.get_status_code()
        if status < 200:  # what comes before the answer
            self.headers = []
            return
        self.status, self._has_head = status, True
        self._goes_on = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        if self.complete:
            return
        self._pieces.append(body)
        self._waiting += len(body)
        if self._waiting > _MANY_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._has_head:
            self.complete = True

    def _is_framed(self) -> bool:
        return any(name in {b"content-length", b"transfer-encoding"} for name, _ in self.headers)

    def _lose(self, why: str) -> None:
        if self._lost is None:
            self._lost = BrokeOff(why)
        self._tell()

    async def _more(self) -> None:
        """Return when something came. The one call that the connection serves waits; an event for many takes longer."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _tell(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Answer:
    """A Reply on a connection of the pool."""

    def __init__(self, pool: Pool, wire: _Wire) -> None:
        self._pool = pool
        self._wire: _Wire | None = wire
        self.status = wire.status
        self.headers = tuple(wire.headers)

    def value(self, name: bytes) -> bytes:
        return next((value for known, value in reversed(self.headers) if known == name), b"")

    @property
    def complete(self) -> bool:
        return self._wire is None or self._wire.is_read

    @property
    def has_piece(self) -> bool:
        return self._wire is not None and self._wire.has_piece

    async def pieces(self) -> AsyncIterator[bytes]:
        while self._wire is not None and (piece := await self._wire.piece()):
            yield piece

    async def close(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            self._pool.give_back(wire)


def _probe(connection: socket.socket, silent_seconds: int) -> None:
    """Have the system ask whether the other side is still there, and end the connection where it is not."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": max(1, silent_seconds // 2),
        "TCP_KEEPINTVL": max(1, silent_seconds // 2 // _PROBES),
        "TCP_KEEPCNT": _PROBES,
        "TCP_USER_TIMEOUT": silent_seconds * 1000,  # for what was sent, too
    }
    for name, value in options.items():
        if (option := getattr(socket, name, None)) is not None:  # not every system has all
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _authority(origin: Origin) -> str:
    scheme, host, port = origin
    name = f"[{host}]" if ":" in host else host
    return name if port == (443 if scheme == "https" else 80) else f"{name}:{port}"
