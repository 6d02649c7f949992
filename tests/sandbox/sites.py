"""Sites on loopback under names of their own, a way to them, and what a client of a proxy does by hand."""

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from automagik.outbound import Outbound
from automagik.sandbox.egress import EgressPolicy, EgressProxy, Patience
from automagik.settings import Settings

__all__ = ["Heard", "Way", "certificate", "hello", "serving", "way"]

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Heard:
    """What a site was asked."""

    requests: list[bytes] = field(default_factory=list[bytes])

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """An HTTP site that answers `hello` to each request, for as long as it is asked."""
        while head := await reader.readuntil(b"\r\n\r\n"):
            size = next(
                (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
            )
            body = await reader.readexactly(size)
            if b"chunked" in head.lower():
                body = await reader.readuntil(b"0\r\n\r\n")
            self.requests.append(head + body)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            await writer.drain()
            if b"connection: close" in head.lower():
                return


@asynccontextmanager
async def serving(handle: Handle, *, tls: ssl.SSLContext | None = None) -> AsyncGenerator[int]:
    """The port of a server on 127.0.0.1."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@dataclass
class Way:
    """A proxy's socket, and whom it told of."""

    socket: Path
    told: list[tuple[str, int, bool]]

    async def say(self, request: bytes, *, more: bytes = b"") -> bytes:
        """All that the proxy answers; what comes `more`, it may no longer take."""
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        answer = b""
        try:
            writer.write(request)
            if more:
                await asyncio.sleep(0.05)
                writer.write(more)
            while chunk := await asyncio.wait_for(reader.read(65536), 10):
                answer += chunk
        except ConnectionError:
            pass
        finally:
            writer.close()
        return answer

    async def connect(self, target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A tunnel to `host:port`."""
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        writer.write(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
        return reader, writer


@asynccontextmanager
async def way(
    folder: Path,
    egress: Sequence[str],
    *,
    allow: Sequence[str] = ("127.0.0.0/8",),
    patience: Patience | None = None,
    **addresses: Sequence[str],
) -> AsyncGenerator[Way]:
    """A proxy that lets to `egress`. Names are 127.0.0.1, or what `addresses` says one after the other (`_` is a dot).

    An answer may be several addresses with spaces between them, or none.
    """
    answers = {name.replace("_", "."): list(given) for name, given in addresses.items()}

    async def resolve(host: str, port: int) -> Sequence[str]:
        del port
        given = answers.get(host, ["127.0.0.1"])
        found = (given.pop(0) if len(given) > 1 else given[0]).split()
        if not found:
            raise OSError(socket.EAI_NONAME, "no such name")
        return found

    told: list[tuple[str, int, bool]] = []
    settings = Settings.model_validate({"outbound_allow": list(allow), "fetch_timeout_seconds": 5})
    async with Outbound(settings, resolve=resolve) as outbound:
        path = folder / "egress.sock"
        door = await EgressProxy(outbound, patience=patience).open(
            path, EgressPolicy.of(egress), tell=lambda host, port, allowed: told.append((host, port, allowed))
        )
        async with door:
            yield Way(path, told)


def certificate(folder: Path, *hosts: str) -> Path:
    """A PEM file with a key and a certificate that signs itself, for these hosts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "site.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    file.chmod(0o644)
    return file


def hello(name: str | None) -> bytes:
    """The first bytes of a real TLS client that asks for this name."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    out = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()
