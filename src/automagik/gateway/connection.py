"""Connection: HTTP/1.1 on a unix socket, with a limit and a deadline on all that a hostile client decides.

A bare protocol over httptools: what is between the run and its model must cost next to nothing, and bounds the head, the
body, the time that each may take and the bodies that are held at once, which servers for friendly clients leave open.
Requests on one connection are served one after the other; one that comes before the answer to the last is not read.
"""

import asyncio
import http
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, cast

import httptools

from automagik.gateway.allowance import Allowance

__all__ = ["Answer", "ClientGone", "Connection", "Exchange", "Handler", "Head", "Header"]

Header = tuple[bytes, bytes]
"""A header's name in lower case, and its value."""

_MAX_HEAD_BYTES = 64 * 1024
_MAX_HEADERS = 128
_LINGER_SECONDS = 2.0
_MAX_EXCESS_BYTES = 64 * 1024 * 1024  # what a client may still be sending when it is refused
_FRAMING_SLACK = 256 * 1024  # what chunks may cost besides what is in them


class ClientGone(Exception):
    """The client went away before its answer was complete."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a request. `path` and `query` are as they came, in ASCII."""

    method: str
    path: str
    query: str
    headers: tuple[Header, ...]

    def values(self, name: bytes) -> list[bytes]:
        """All values of a header."""
        return [value for known, value in self.headers if known == name]


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    body: bytes
    headers: tuple[Header, ...] = ((b"content-type", b"application/json"),)


class Handler(Protocol):
    """Who answers the requests of a connection."""

    def admit(self, head: Head) -> Answer | None:
        """The refusal that the head alone earns, before the body is read; None: read it."""
        ...

    def spoiled(self, head: Head | None, status: int, text: str) -> Answer:
        """The answer to a request that can't be read."""
        ...

    async def handle(self, exchange: "Exchange") -> None:
        """Answer the request."""
        ...


class _Presence:
    """Within it, the task is ended when the client goes away. (A generator in its place takes several times as long.)"""

    __slots__ = ("_before", "_exchange", "_struck", "_task")

    def __init__(self, exchange: "Exchange") -> None:
        self._exchange = exchange
        self._struck = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._before = task, task.cancelling()
        self._exchange.watched_by(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exchange.watched_by(None)
        if not self._struck or kind is None or not issubclass(kind, asyncio.CancelledError):
            return
        if self._task.uncancel() <= self._before:
            raise ClientGone from None

    def strike(self) -> None:
        """The client went away."""
        if not self._struck:
            self._struck = True
            self._task.cancel()


class Exchange:
    """One request, and the way to answer it."""

    def __init__(self, connection: "Connection", head: Head, body: bytes) -> None:
        self.head = head
        self.body = body
        self.size = len(body)
        """What its body counts in the allowance, also when `body` was let go of."""
        self.status: int | None = None
        """The status that was answered with."""
        self._connection = connection
        self._framed = False
        self._ended = False
        self._unsent = b""
        self._gone = False
        self._presence: _Presence | None = None

    @property
    def gone(self) -> bool:
        """Whether the client went away."""
        return self._gone

    def while_present(self) -> AbstractAsyncContextManager[None]:
        """What is done inside ends when the client goes away.

        Raises: ClientGone.
        """
        return _Presence(self)

    def watched_by(self, presence: _Presence | None) -> None:
        """Who is told when the client goes away. Raises ClientGone where it is gone."""
        if presence is not None and self._gone:
            raise ClientGone
        self._presence = presence

    def leave(self) -> None:
        """The client went away."""
        self._gone = True
        if self._presence is not None:
            self._presence.strike()

    def start(
        self,
        status: int,
        headers: Iterable[Header],
        *,
        length: int | None = None,
        follows: Callable[[], bool] = lambda: False,
    ) -> None:
        """Send the head, with the first piece of the body where that is there already. Without `length` the body is sent in chunks.
        `follows`: whether `write` comes next, as a piece came right behind the head."""
        self.status = status
        self._framed = length is None
        lines = [b"HTTP/1.1 %d %b\r\n" % (status, _phrase(status))]
        lines += [b"%b: %b\r\n" % header for header in headers]
        lines.append(b"transfer-encoding: chunked\r\n" if length is None else b"content-length: %d\r\n" % length)
        if not self._connection.keeps_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        self._unsent = b"".join(lines)
        asyncio.get_running_loop().call_soon(self._send_head, follows)

    async def write(self, data: bytes) -> None:
        """Send a piece of the body; returns when the client has taken most of what was sent before."""
        if data:
            self._send(self._chunk(data))
            await self.drained()

    def write_last(self, data: bytes) -> None:
        """Send the last piece of the body, before `drained` and `end`, whose bytes go with it: each time that something is sent costs
        as much as all else that is done for a piece."""
        self._ended = True
        self._send(self._chunk(data) + self._end() if data else self._end())

    async def drained(self) -> None:
        """Return when the client has taken most of what was sent."""
        await self._connection.drained()

    def end(self) -> None:
        """The body is complete."""
        self._send(b"" if self._ended else self._end())
        self._connection.answered()

    def answer(self, answer: Answer) -> None:
        """Send a whole answer."""
        self.start(answer.status, answer.headers, length=len(answer.body))
        self._send(answer.body if self.head.method != "HEAD" else b"")
        self._connection.answered()

    def _chunk(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._framed else data

    def _end(self) -> bytes:
        return b"0\r\n\r\n" if self._framed else b""

    def _send_head(self, follows: Callable[[], bool]) -> None:
        if self._unsent and not follows():
            self._send(b"")

    def _send(self, data: bytes) -> None:
        data, self._unsent = self._unsent + data, b""
        if data:
            self._connection.send(data)

    def cut(self) -> None:
        """Break the connection off, so that the client sees that the body is not complete."""
        self._connection.abort()


class Connection(asyncio.Protocol):
    """One client's connection. `opened` and `closed` tell who keeps the connections; `spawn` begins the task of an answer."""

    def __init__(
        self,
        handler: Handler,
        allowance: Allowance,
        *,
        opened: Callable[["Connection"], None],
        closed: Callable[["Connection"], None],
        spawn: Callable[[Exchange], None],
    ) -> None:
        self._handler = handler
        self._allowance = allowance
        self._opened = opened
        self._closed = closed
        self._spawn = spawn
        self._parser: httptools.HttpRequestParser = httptools.HttpRequestParser(self)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._exchange: Exchange | None = None
        self._ending = False
        self._discards = False
        self._excess = 0
        self.keeps_alive = True
        """Whether another request may follow on this connection."""
        self._forget()

    def _forget(self) -> None:
        """Begin anew with the next request."""
        self._url = bytearray()
        self._headers: list[Header] = []
        self._head: Head | None = None
        self._body: bytes | bytearray = b""
        self._received = 0

    # -- the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._opened(self)
        self._deadline(self._allowance.idle_seconds)
        if self._allowance.enter():
            self._allowance.waits(self)
        else:
            self._refuse(self._handler.spoiled(None, 503, "There are too many connections to this door."))

    def connection_lost(self, exc: Exception | None) -> None:
        self._allowance.leave(self)
        self._stop_timer()
        self._writable.set()
        if self._exchange is None:
            self._allowance.give_back(len(self._body))
        else:
            self._allowance.give_back(self._exchange.size)
            self._exchange.leave()
        self._exchange = None
        self._discards = True
        self._closed(self)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        if self._discards or self._exchange is not None:
            # Ahead of its turn, or after a refusal: it is not read, and the connection ends after the answer.
            self.keeps_alive = False
            self._excess += len(data)
            if self._excess > _MAX_EXCESS_BYTES:
                self._transport.abort()
            return
        has_begun, had_head = self._received > 0, self._head is not None
        if not has_begun:
            self._allowance.works(self)
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._spoil(400, "The door takes plain requests only: nothing can be upgraded to.")
        except httptools.HttpParserError:
            self._spoil(400, "The request is not valid HTTP/1.1.")
        else:
            self._check_size()
            if self._exchange is None and not self._discards:  # most requests are there at once, and need no deadline
                if self._head is not None and not had_head:
                    self._deadline(self._allowance.body_seconds)
                elif not has_begun:
                    self._deadline(self._allowance.head_seconds)

    # -- the parser

    def on_message_begin(self) -> None:
        if self._exchange is not None:
            self.keeps_alive = False

    def on_url(self, url: bytes) -> None:
        if self._exchange is None:
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head is not None:  # of the trailer, or of a request ahead of its turn
            self.keeps_alive = False
        else:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._exchange is not None or self._discards:
            return None
        target, _, query = bytes(self._url).partition(b"?")
        method = self._parser.get_method().decode("ascii", "replace")
        head = Head(method, target.decode("ascii", "replace"), query.decode("ascii", "replace"), tuple(self._headers))
        self._head = head
        self.keeps_alive = self.keeps_alive and self._parser.should_keep_alive()
        if self._parser.get_http_version() not in {"1.0", "1.1"}:
            return self._spoil(505, "This door speaks HTTP/1.1.")
        is_large = self._received > _MAX_HEAD_BYTES and self._head_bytes() > _MAX_HEAD_BYTES
        if is_large or len(self._headers) > _MAX_HEADERS:
            return self._spoil(431, "The request's headers are too large.")
        given = {name for name, _ in head.headers}
        if b"transfer-encoding" in given:
            codings = [value.strip().lower() for value in head.values(b"transfer-encoding")]
            if codings != [b"chunked"]:
                return self._spoil(501, "The only transfer coding of a request is `chunked`.")
        refusal = self._handler.admit(head)
        if refusal is not None:
            return self._refuse(refusal)
        if b"content-length" in given:
            length = head.values(b"content-length")[0]
            if len(length) > 18 or int(length) > self._allowance.max_body_bytes:
                return self._too_large()
        if b"expect" in given and [value.lower() for value in head.values(b"expect")] == [b"100-continue"]:
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        return None

    def on_body(self, body: bytes) -> None:
        if self._exchange is not None or self._discards:
            return
        if len(self._body) + len(body) > self._allowance.max_body_bytes:
            self._too_large()
        elif not self._allowance.take(len(body)):
            self._spoil(429, "This run has too many large requests under way.")
        elif not self._body:  # mostly all of it: it is not copied
            self._body = body
        else:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += body

    def on_message_complete(self) -> None:
        if self._exchange is not None or self._discards or self._head is None:
            return
        self._stop_timer()
        self._exchange = Exchange(self, self._head, bytes(self._body))
        self._body = b""
        self._spawn(self._exchange)

    # -- answering

    def send(self, data: bytes) -> None:
        """Write, where there is still somebody."""
        if not self._transport.is_closing():
            self._transport.write(data)

    async def drained(self) -> None:
        """Return when the client has taken most of what was sent."""
        if not self._writable.is_set():
            await self._writable.wait()

    def answered(self) -> None:
        """The answer is sent: take the next request, or close."""
        exchange = self._exchange
        if exchange is None:  # the client is gone
            return
        self._allowance.give_back(exchange.size)
        self._exchange = None
        self._forget()
        if self.keeps_alive and not self._ending:
            self._deadline(self._allowance.idle_seconds)
            self._allowance.waits(self)
        else:
            self._close()

    def abort(self) -> None:
        """Break it off."""
        self._transport.abort()

    def finish(self) -> None:
        """Close it after the answer under way, at once where there is none."""
        self._ending = True
        self.keeps_alive = False
        if self._exchange is None:
            self._transport.close()

    def _refuse(self, answer: Answer) -> None:
        """Answer what is not read to its end, and close."""
        self.keeps_alive = False
        self._discards = True
        self._allowance.give_back(len(self._body))
        self._body = b""
        exchange = Exchange(self, Head("", "", "", ()), b"")
        exchange.answer(answer)
        self._close()

    def _spoil(self, status: int, text: str) -> None:
        if not self._discards:
            self._refuse(self._handler.spoiled(self._head, status, text))

    def _too_large(self) -> None:
        self._spoil(413, f"The request's body is larger than {self._allowance.max_body_bytes} bytes.")

    def _close(self) -> None:
        """Close a little later: a client that is still sending would else lose the answer with its connection."""
        self._discards = True
        self._stop_timer()
        if not self._transport.is_closing():
            self._transport.write_eof()
        self._timer = self._loop.call_later(_LINGER_SECONDS, self._transport.close)

    def _check_size(self) -> None:
        if self._head is None and not self._discards and self._received > _MAX_HEAD_BYTES:
            self._spoil(431, "The request's headers are too large.")
        elif self._received > self._allowance.max_body_bytes + _MAX_HEAD_BYTES + _FRAMING_SLACK:
            self._too_large()

    def _head_bytes(self) -> int:
        return len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers)

    def _deadline(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self._loop.call_later(seconds, self._late)

    def _late(self) -> None:
        if self._received and not self._discards:
            self._spoil(408, "The request did not come in full in time.")
        else:
            self._transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _phrase(status: int) -> bytes:
    try:
        return http.HTTPStatus(status).phrase.encode()
    except ValueError:
        return b"Overloaded" if status == 529 else b"Answer"
