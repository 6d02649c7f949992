"""Real servers on loopback, a resolver that says what a test wants, and the door between them."""

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from automagik.errors import InvalidInput
from automagik.outbound import FetchFailed, Outbound, Resolve
from automagik.settings import Settings

__all__ = ["PUBLIC", "Handle", "Resolver", "answering", "failure", "outbound", "serving"]

Handle = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
PUBLIC = "93.184.215.14"


def settings(*allow: str, **values: Any) -> Settings:
    return Settings.model_validate({"outbound_allow": list(allow), "fetch_timeout_seconds": 5, **values})


class Resolver:
    """Answers from a table; where a host has several answers, one after the other."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self._answers = {host.replace("_", "."): list(given) for host, given in answers.items()}
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        given = self._answers.get(host)
        if given is None:
            raise socket.gaierror(socket.EAI_NONAME, "no such host")
        return given.pop(0) if len(given) > 1 else given[0]


@asynccontextmanager
async def serving(handle: Handle, *, tls: ssl.SSLContext | None = None) -> AsyncGenerator[int]:
    """The port of a server on 127.0.0.1; `handle` gets each request's head."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(await reader.readuntil(b"\r\n\r\n"), writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def outbound(
    *allow: str, resolve: Resolve | None = None, ssl_context: ssl.SSLContext | None = None, **values: Any
) -> AsyncGenerator[Outbound]:
    async with Outbound(settings(*allow, **values), resolve=resolve, ssl_context=ssl_context) as door:
        yield door


def answering(body: bytes = b"hello", status: str = "200 OK", *headers: str) -> Handle:
    async def handle(head: bytes, writer: asyncio.StreamWriter) -> None:
        lines = "".join(f"{line}\r\n" for line in headers)
        writer.write(f"HTTP/1.1 {status}\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body)

    return handle


async def failure(door: Outbound, url: str, max_bytes: int = 1000) -> FetchFailed:
    with pytest.raises(FetchFailed) as caught:
        await door.fetch(url, max_bytes=max_bytes, field=("body", "media_contents", 0, "media_url"))
    error = caught.value
    assert isinstance(error, InvalidInput)
    assert (error.field, error.status) == (("body", "media_contents", 0, "media_url"), 422)
    return error
