"""What a client asks of the egress proxy: one request, its head rewritten for the server, its body to be carried as framed."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

__all__ = ["ProxyRequest", "RequestRefused", "forward_body", "read_request"]

_MAX_HEAD_BYTES = 32 * 1024
_MAX_FIELDS = 200
_CHUNK_BYTES = 64 * 1024
_REQUEST_LINE = re.compile(r"([A-Z]{1,20}) (\S{1,8192}) HTTP/1\.[01]")
_FIELD_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_NAMED = re.compile(r"[a-z0-9_.-]{1,253}")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})(?:[ \t]*;[^\r\n]*)?\r?\n")
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "proxy-connection", "te", "upgrade", "expect"})


class RequestRefused(Exception):
    """The proxy does not do this; the text says why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text

    def response(self) -> bytes:
        """The refusal as it goes to the client."""
        body = (self.text + "\n").encode()
        reason = {400: "Bad Request", 403: "Forbidden", 502: "Bad Gateway", 503: "Service Unavailable"}[self.status]
        head = f"HTTP/1.1 {self.status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """A request of a client."""

    host: str
    """In lower case, without a dot at its end."""
    port: int
    head: bytes | None = None
    """What the server gets of it, None for a tunnel."""
    body_bytes: int = 0
    chunked: bool = field(default=False)


async def read_request(reader: asyncio.StreamReader) -> ProxyRequest:
    """The next request. Raises: RequestRefused, asyncio.IncompleteReadError, ConnectionError."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise RequestRefused(400, "The request's head is too long.") from None
    if len(raw) > _MAX_HEAD_BYTES:
        raise RequestRefused(400, "The request's head is too long.")
    line, *lines = raw[:-4].decode("latin-1").split("\r\n")
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise RequestRefused(400, "This is no request to a proxy.")
    method, target = match[1], match[2]
    fields = _fields(lines)
    if method == "CONNECT":
        host, colon, port = target.rpartition(":")
        if not colon or not (port.isascii() and port.isdigit()):
            raise RequestRefused(400, "CONNECT needs host:port.")
        return ProxyRequest(_host(host), _port(port))
    return _absolute(method, target, fields)


def _absolute(method: str, target: str, fields: list[tuple[str, str]]) -> ProxyRequest:
    try:
        parts = urlsplit(target)
        port = str(parts.port or 80)
    except ValueError:
        raise RequestRefused(400, "This is no URL.") from None
    if parts.scheme != "http" or not parts.hostname or parts.username is not None:
        raise RequestRefused(400, "The proxy takes CONNECT, and http:// URLs without a user name.")
    host = _host(parts.hostname)
    named = host if port == "80" else f"{host}:{port}"
    left_out = _hop_by_hop(fields)
    kept = [
        f"{name}: {value}"
        for name, value in fields
        if name.lower() not in left_out and not name.lower().startswith("proxy-")
    ]
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    # The server gets the host that was judged, and one request only: another one could ask for another host.
    head = "\r\n".join((f"{method} {path} HTTP/1.1", f"Host: {named}", *kept, "Connection: close", "", ""))
    size, chunked = _framing(fields)
    return ProxyRequest(host, _port(port), head.encode("latin-1"), size, chunked)


def _hop_by_hop(fields: list[tuple[str, str]]) -> frozenset[str]:
    """The names, in lower case, of what the server does not get: it is meant for the proxy, or written anew."""
    named = {
        token.strip().lower() for name, value in fields if name.lower() == "connection" for token in value.split(",")
    }
    return frozenset(named - {"content-length", "transfer-encoding"} | _HOP_BY_HOP | {"host"})


def _fields(lines: list[str]) -> list[tuple[str, str]]:
    if len(lines) > _MAX_FIELDS:
        raise RequestRefused(400, "The request has too many headers.")
    fields: list[tuple[str, str]] = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _FIELD_NAME.fullmatch(name) or any(ord(sign) < 32 and sign != "\t" for sign in value):
            raise RequestRefused(400, "The request has a header that can't be read.")
        fields.append((name, value.strip()))
    return fields


def _framing(fields: list[tuple[str, str]]) -> tuple[int, bool]:
    """How long the body is. What two readers could take in two ways is refused (RFC 9112 section 6.3)."""
    lengths = [value for name, value in fields if name.lower() == "content-length"]
    codings = [value.lower() for name, value in fields if name.lower() == "transfer-encoding"]
    if codings:
        if codings != ["chunked"] or lengths:
            raise RequestRefused(400, "The request's body is framed in a way that can't be relied on.")
        return 0, True
    if len(lengths) > 1 or (lengths and not (lengths[0].isascii() and lengths[0].isdigit() and len(lengths[0]) < 16)):
        raise RequestRefused(400, "The request's body is framed in a way that can't be relied on.")
    return (int(lengths[0]) if lengths else 0), False


def _host(text: str) -> str:
    host = text.lower().rstrip(".")
    if not _NAMED.fullmatch(host):
        raise RequestRefused(400, "Hosts are reached by their names.")
    return host


def _port(text: str) -> int:
    if len(text) > 5 or not 0 < int(text) < 65536:
        raise RequestRefused(400, "There is no such port.")
    return int(text)


async def forward_body(
    request: ProxyRequest, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter, *, beat: Callable[[], None]
) -> None:
    """Carry the request's body to the server, and nothing after it; `beat` hears of each piece.

    Raises: ConnectionError, asyncio.IncompleteReadError.
    """
    if request.chunked:
        while size := await _forward_chunk_head(reader, upstream):
            await _forward(size, reader, upstream, beat)
            # A server that takes anything else for an end of line would read the next size where the proxy reads data.
            if await reader.readexactly(2) != b"\r\n":
                raise ConnectionAbortedError("a chunk that does not end where it says")
            upstream.write(b"\r\n")
            beat()
            await asyncio.sleep(0)  # reading what has come already never waits: others have their turn, too
        upstream.write(b"\r\n")  # trailers are not passed on
    else:
        await _forward(request.body_bytes, reader, upstream, beat)
    await upstream.drain()


async def _forward_chunk_head(reader: asyncio.StreamReader, upstream: asyncio.StreamWriter) -> int:
    try:
        line = await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError:
        line = b""
    match = _CHUNK_SIZE.fullmatch(line)
    if match is None:
        raise ConnectionAbortedError("a chunk that can't be read")
    size = int(match[1], 16)
    upstream.write(f"{size:x}\r\n".encode())
    return size


async def _forward(
    count: int, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter, beat: Callable[[], None]
) -> None:
    while count:
        chunk = await reader.read(min(count, _CHUNK_BYTES))
        if not chunk:
            raise ConnectionAbortedError("the client went away")
        count -= len(chunk)
        beat()
        upstream.write(chunk)
        await upstream.drain()
        beat()
