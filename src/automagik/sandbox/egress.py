"""The way out of a sandbox: a proxy of ours behind a unix socket, which reaches the hosts that a workflow names and no others.

It knows `CONNECT host:port` and requests for absolute `http://` URLs. A name is resolved by us and its address checked by
the rules of `outbound.py`; nothing is decrypted. Where a TLS client says which server it wants, that must be the host that
the proxy was asked for.
"""

import asyncio
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog

from automagik.errors import InvalidInput
from automagik.outbound import AddressRefused, Outbound
from automagik.sandbox.client_hello import MAX_HELLO_BYTES, ClientHello
from automagik.sandbox.listener import Listener
from automagik.sandbox.proxy_request import ProxyRequest, RequestRefused, forward_body, read_request
from automagik.sandbox.pump import CHUNK_BYTES, Pulse, both_ways, end, pump

__all__ = ["REGISTRIES", "EgressDoor", "EgressPolicy", "EgressProxy", "Patience", "Tell"]

Tell = Callable[[str, int, bool], None]
"""Gets each host and port once, and whether it may be reached."""

REGISTRIES: Final = "registries"
"""The name of the hosts that package managers need."""

_NONE = "none"
_PUBLIC_PORTS = frozenset({80, 443})
_HOST = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NAMED = re.compile(r"[a-z0-9_.-]{1,253}")
_MAX_CONNECTIONS = 64
_MAX_LOOKUPS = 4
_MAX_TOLD = 1000

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


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a connection may take for what."""

    head_seconds: float = 30.0
    """For a request's head, for a ClientHello once it has begun, and at the end for taking what is left. Without a byte, too, where the
    client of plain HTTP has ended its side: it may be gone."""
    connect_seconds: float = 10.0
    """For each address of a host."""
    idle_seconds: float = 300.0
    """Without a byte in either direction."""


class EgressProxy:
    """Opens a door for each run that has an egress. Names are resolved and addresses judged by `outbound`."""

    def __init__(self, outbound: Outbound, *, patience: Patience | None = None) -> None:
        self._outbound = outbound
        self._patience = patience or Patience()

    async def open(self, path: Path, policy: EgressPolicy, *, tell: Tell) -> "EgressDoor":
        """A door at the path, which replaces a socket that a process that died has left there. Raises: OSError."""
        door = EgressDoor(self._outbound, policy, tell, self._patience)
        await door.listen(path)
        return door


class EgressDoor:
    """One run's way out. `async with`, or `close()`, ends it and all its connections."""

    def __init__(self, outbound: Outbound, policy: EgressPolicy, tell: Tell, patience: Patience) -> None:
        self._outbound = outbound
        self._policy = policy
        self._tell = tell
        self._patience = patience
        self._told: set[tuple[str, int, bool]] = set()
        self._open: set[asyncio.Task[None]] = set()
        self._waiting: set[socket.socket] = set()
        """Accepted, but not yet attended to: nobody else closes them."""
        self._lookups = asyncio.Semaphore(_MAX_LOOKUPS)
        self._listener = Listener(self._take)

    async def listen(self, path: Path) -> None:
        """Serve at the path. Raises: OSError."""
        await self._listener.open(path)

    async def close(self) -> None:
        """End the connections and remove the socket."""
        await self._listener.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- inner parts

    def _take(self, connection: socket.socket) -> None:
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
        reader, writer = await asyncio.open_connection(sock=connection, limit=CHUNK_BYTES)
        try:
            if len(self._open) > _MAX_CONNECTIONS:
                raise RequestRefused(503, f"A sandbox has {_MAX_CONNECTIONS} connections at the most; close some.")
            async with asyncio.timeout(self._patience.head_seconds):
                request = await read_request(reader)
            await self._serve(request, reader, writer)
        except RequestRefused as refusal:
            writer.write(refusal.response())
        except (OSError, asyncio.IncompleteReadError):  # TimeoutError is one
            pass  # the client or the server went away, or says nothing
        except asyncio.CancelledError:
            writer.transport.abort()  # nothing waits until somebody reads the rest
            raise
        finally:
            await end(writer, seconds=self._patience.head_seconds)

    async def _serve(self, request: ProxyRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream = await self._connect(request.host, request.port)
        pulse = Pulse(self._patience.idle_seconds)
        answer = pump(upstream_reader, writer, pulse)
        try:
            if request.head is None:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await both_ways(self._tunnel(request, reader, upstream, pulse), answer, pulse)
            else:
                upstream.write(request.head)
                await both_ways(self._sent(request, reader, upstream, pulse), answer, pulse, answer_ends=True)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            upstream.transport.abort()
            raise
        finally:
            await end(upstream, seconds=self._patience.head_seconds)

    async def _sent(
        self, request: ProxyRequest, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter, pulse: Pulse
    ) -> None:
        """Send the body of a request, and look whether its client stays."""
        await forward_body(request, reader, upstream, beat=pulse.beat)
        if not await reader.read(1):  # most have gone then, and one that only says no more is not waited for as long
            pulse.idle_seconds = min(pulse.idle_seconds, self._patience.head_seconds)

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if not self._policy.allows(host, port):
            self._say(host, port, allowed=False)
            raise RequestRefused(
                403,
                f"This sandbox may not reach {host}:{port}. It may reach: {self._policy}. "
                "Whoever owns the workflow allows a host by `egress` in its workflow.toml.",
            )
        try:
            async with self._lookups:
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
                async with asyncio.timeout(self._patience.connect_seconds):
                    return await asyncio.open_connection(address, port, limit=CHUNK_BYTES)
            except OSError as error:  # TimeoutError is one
                reason = error.strerror or "it does not answer"
        raise RequestRefused(502, f"{host}:{port} can't be reached: {reason}.")

    async def _tunnel(
        self, request: ProxyRequest, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter, pulse: Pulse
    ) -> None:
        """What the client sends, once its first words have been heard to be for this host."""
        hello = ClientHello()
        chunk = await reader.read(CHUNK_BYTES)  # the server may be the one who speaks first
        async with asyncio.timeout(self._patience.head_seconds):
            while True:
                try:
                    name = hello.hear(chunk)
                except (ValueError, UnicodeDecodeError):
                    name = "(a ClientHello that can't be judged)"
                if name != "incomplete" or not chunk or len(hello.heard) >= MAX_HELLO_BYTES:
                    break
                chunk = await reader.read(CHUNK_BYTES)
        if name == "incomplete" and hello.heard:
            raise ConnectionAbortedError
        if name is not None and name not in ("incomplete", request.host):
            self._say(
                name if _NAMED.fullmatch(name) else "(a ClientHello that can't be judged)", request.port, allowed=False
            )
            raise ConnectionAbortedError
        pulse.beat()
        upstream.write(bytes(hello.heard))
        await pump(reader, upstream, pulse)

    def _say(self, host: str, port: int, *, allowed: bool) -> None:
        told = (host, port, allowed)
        if told not in self._told and len(self._told) < _MAX_TOLD:
            self._told.add(told)
            _log.info("sandbox_egress", host=host, port=port, allowed=allowed)
            self._tell(host, port, allowed)


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
