"""The way out of a sandbox: a proxy of ours behind a unix socket, which reaches the hosts that a workflow names and no others.

It knows `CONNECT host:port` and requests for absolute `http://` URLs. A name is resolved by us and its address checked by
the rules of `outbound.py`; nothing is decrypted. Where a TLS client says which server it wants, that must be the host that
the proxy was asked for.
"""

import asyncio
import contextlib
import re
import socket
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import structlog

from automagik.errors import InvalidInput
from automagik.outbound import AddressRefused, Outbound
from automagik.sandbox.client_hello import MAX_HELLO_BYTES, server_name
from automagik.sandbox.proxy_request import ProxyRequest, RequestRefused, forward_body, read_request

__all__ = ["REGISTRIES", "EgressDoor", "EgressPolicy", "EgressProxy", "Tell"]

Tell = Callable[[str, int, bool], None]
"""Gets each host and port once, and whether it may be reached."""

REGISTRIES: Final = "registries"
"""The name of the hosts that package managers need."""

_NONE = "none"
_PUBLIC_PORTS = frozenset({80, 443})
_HOST = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_MAX_CONNECTIONS = 64
_MAX_TOLD = 1000
_HEAD_SECONDS = 30.0
_CONNECT_SECONDS = 10.0
_IDLE_SECONDS = 300.0
_CHUNK_BYTES = 64 * 1024
_BACKLOG = 64

_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """Which hosts may be reached: exact names and `*.name`, each with the ports 80 and 443 or the one port that it names."""

    rules: tuple[tuple[str, int | None], ...]

    @classmethod
    def of(cls, names: Sequence[str], registries: Sequence[str] = ()) -> "EgressPolicy":
        """The policy of a workflow's `egress`: `none`, `registries`, `host`, `*.host`, `host:port`. Raises: InvalidInput."""
        wanted: list[str] = []
        for name in names:
            wanted += registries if name == REGISTRIES else [] if name == _NONE else [name]
        return cls(tuple(dict.fromkeys(_rule(name) for name in wanted)))

    def allows(self, host: str, port: int) -> bool:
        """Whether the host may be reached on this port."""
        return any(
            _matches(rule, host) and (port in _PUBLIC_PORTS if own is None else port == own) for rule, own in self.rules
        )

    def names_port(self, host: str, port: int) -> bool:
        """Whether a rule names this very port."""
        return any(_matches(rule, host) and port == own for rule, own in self.rules)

    def __bool__(self) -> bool:
        return bool(self.rules)

    def __str__(self) -> str:
        return ", ".join(rule if port is None else f"{rule}:{port}" for rule, port in self.rules) or _NONE


class EgressProxy:
    """Opens a door for each run that has an egress. Names are resolved and addresses judged by `outbound`."""

    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound

    async def open(self, path: Path, policy: EgressPolicy, *, tell: Tell) -> "EgressDoor":
        """A door at the path, which replaces a socket that a process that died has left there. Raises: OSError."""
        door = EgressDoor(self._outbound, policy, tell)
        await door.listen(path)
        return door


class EgressDoor:
    """One run's way out. `async with`, or `close()`, ends it and all its connections."""

    def __init__(self, outbound: Outbound, policy: EgressPolicy, tell: Tell) -> None:
        self._outbound = outbound
        self._policy = policy
        self._tell = tell
        self._told: set[tuple[str, int, bool]] = set()
        self._open: set[asyncio.Task[None]] = set()
        self._waiting: set[socket.socket] = set()
        """Accepted, but not yet attended to: nobody else closes them."""
        self._listener: socket.socket | None = None
        self._path: Path | None = None

    async def listen(self, path: Path) -> None:
        """Serve at the path. Raises: OSError."""
        # Not asyncio's server: when it closes, it leaves a connection open that it has just accepted (Python 3.11).
        self._listener = await asyncio.to_thread(_listening, path)
        self._path = path
        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    async def close(self) -> None:
        """End the connections and remove the socket."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        if self._path is not None:
            await asyncio.to_thread(self._path.unlink, missing_ok=True)
            self._path = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- inner parts

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:  # the client has gone, or there is no descriptor left: the next one may have more luck
            return
        connection.setblocking(False)
        self._waiting.add(connection)
        task = asyncio.create_task(self._attend(connection))
        self._open.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._open.discard(task)
            if connection in self._waiting:
                self._waiting.remove(connection)
                connection.close()

        task.add_done_callback(ended)

    async def _attend(self, connection: socket.socket) -> None:
        self._waiting.remove(connection)
        reader, writer = await asyncio.open_connection(sock=connection, limit=_CHUNK_BYTES)
        try:
            if len(self._open) > _MAX_CONNECTIONS:
                raise RequestRefused(503, f"A sandbox has {_MAX_CONNECTIONS} connections at the most; close some.")
            async with asyncio.timeout(_HEAD_SECONDS):
                request = await read_request(reader)
            await self._serve(request, reader, writer)
        except RequestRefused as refusal:
            await _answer(writer, refusal)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away, or says nothing
        except asyncio.CancelledError:
            writer.transport.abort()  # nothing waits until somebody reads the rest
            raise
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, OSError):
                await writer.wait_closed()

    async def _serve(self, request: ProxyRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream = await self._connect(request.host, request.port)
        try:
            if request.head is None:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await writer.drain()
                await _both(self._tunnel(request, reader, upstream), _pump(upstream_reader, writer))
            else:
                upstream.write(request.head)
                await _both(forward_body(request, reader, upstream), _pump(upstream_reader, writer), answer_ends=True)
        except asyncio.CancelledError:
            upstream.transport.abort()
            raise
        finally:
            upstream.close()
            with contextlib.suppress(ConnectionError, OSError):
                await upstream.wait_closed()

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if not self._policy.allows(host, port):
            self._say(host, port, allowed=False)
            raise RequestRefused(
                403,
                f"This sandbox may not reach {host}:{port}. It may reach: {self._policy}. "
                "Whoever owns the workflow allows a host by `egress` in its workflow.toml.",
            )
        try:
            addresses = await self._outbound.addresses(host, port, any_port=self._policy.names_port(host, port))
        except AddressRefused:
            self._say(host, port, allowed=False)
            raise RequestRefused(
                403,
                f"{host} has no address that may be reached: it is unknown or not public. "
                "An administrator can allow a host or network by AUTOMAGIK_OUTBOUND_ALLOW.",
            ) from None
        self._say(host, port, allowed=True)
        reason = "it has no address"
        for address in addresses:
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    return await asyncio.open_connection(address, port, limit=_CHUNK_BYTES)
            except OSError as error:  # TimeoutError is one
                reason = error.strerror or "it does not answer"
        raise RequestRefused(502, f"{host}:{port} can't be reached: {reason}.")

    async def _tunnel(
        self, request: ProxyRequest, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter
    ) -> None:
        """What the client sends, once its first words have been heard to be for this host."""
        first = b""
        while len(first) < MAX_HELLO_BYTES:
            async with asyncio.timeout(_IDLE_SECONDS):
                chunk = await reader.read(_CHUNK_BYTES)
            first += chunk
            try:
                name = server_name(first)
            except (ValueError, UnicodeDecodeError):
                name = "(a ClientHello that can't be read)"
            if name == "incomplete" and chunk:
                continue
            if name is not None and name not in ("incomplete", request.host):
                self._say(name[:253], request.port, allowed=False)
                raise ConnectionAbortedError
            break
        else:
            raise ConnectionAbortedError
        upstream.write(first)
        await _pump(reader, upstream)

    def _say(self, host: str, port: int, *, allowed: bool) -> None:
        told = (host, port, allowed)
        if told not in self._told and len(self._told) < _MAX_TOLD:
            self._told.add(told)
            _log.info("sandbox_egress", host=host, port=port, allowed=allowed)
            self._tell(host, port, allowed)


def _listening(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry bytes until the end, which is passed on; silence for too long ends it, too."""
    while True:
        async with asyncio.timeout(_IDLE_SECONDS):
            chunk = await reader.read(_CHUNK_BYTES)
        if not chunk:
            break
        writer.write(chunk)
        async with asyncio.timeout(_IDLE_SECONDS):
            await writer.drain()
    if writer.can_write_eof():
        with contextlib.suppress(OSError):
            writer.write_eof()


async def _both(
    request: Coroutine[Any, Any, None], answer: Coroutine[Any, Any, None], *, answer_ends: bool = False
) -> None:
    """Carry both ways until both have ended (or the answer has, where that ends all); what fails in one ends the other."""
    sending, answering = asyncio.create_task(request), asyncio.create_task(answer)
    try:
        done, _ = await asyncio.wait((sending, answering), return_when=asyncio.FIRST_COMPLETED)
        while done != {sending, answering} and not any(task.exception() for task in done):
            if answer_ends and answering in done:
                break
            done, _ = await asyncio.wait((sending, answering), return_when=asyncio.ALL_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in (sending, answering):
            task.cancel()
        await asyncio.gather(sending, answering, return_exceptions=True)


async def _answer(writer: asyncio.StreamWriter, refusal: RequestRefused) -> None:
    with contextlib.suppress(ConnectionError, OSError):
        writer.write(refusal.response())
        await writer.drain()


def _rule(name: str) -> tuple[str, int | None]:
    host, colon, port = name.lower().strip().partition(":")
    bare = host.removeprefix("*.").rstrip(".")
    if not _HOST.fullmatch(bare) or (colon and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536)):
        raise InvalidInput(
            f"'{name[:100]}' names no host that a sandbox could reach.",
            field=("egress",),
            hint="Give `none`, `registries`, or hosts like example.com, *.example.com or example.com:8443.",
        )
    return (("*." if host.startswith("*.") else "") + bare, int(port) if colon else None)


def _matches(rule: str, host: str) -> bool:
    return host.endswith(rule[1:]) if rule.startswith("*.") else host == rule
