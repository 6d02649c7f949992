"""Real servers on free ports of loopback: helpful, strange and hostile ones."""

import asyncio
import gzip
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from automagik.providers import Discovery, LocalServer
from automagik.testing.scripted_openai import ScriptedOpenAI
from automagik.testing.stopwatch import Stopwatch

pytestmark = pytest.mark.anyio

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(handle: Handle) -> AsyncGenerator[int]:
    """The port of a server that treats each connection by `handle`."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await handle(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def answering(head: str, body: bytes) -> Handle:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {head}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
        await writer.drain()

    return handle


def listing(*names: str) -> bytes:
    return json.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in names]}).encode()


async def closed_port() -> int:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


async def search(handle: Handle) -> LocalServer | None:
    async with serving(handle) as port:
        return await Discovery([port]).search()


async def test_the_first_port_in_order_with_a_model_is_taken() -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(ScriptedOpenAI(models=("llama3.2:3b", "other")))
        second = await stack.enter_async_context(ScriptedOpenAI(models=("mistral",)))
        found = await Discovery([await closed_port(), first.port, second.port]).search()
    assert found == LocalServer(f"http://127.0.0.1:{first.port}/v1", "llama3.2:3b")
    assert found is not None
    assert found.model_name == "openai-chat:llama3.2:3b"


async def test_models_that_only_embed_are_passed_over() -> None:
    names = ("nomic-embed-text", "text-embedding-bge-m3", "bge-small", "all-minilm", "qwen3:4b")
    async with ScriptedOpenAI(models=names) as server:
        found = await Discovery([server.port]).search()
    assert found is not None
    assert found.model == "qwen3:4b"


async def test_nothing_is_found_where_nothing_listens() -> None:
    assert await Discovery([await closed_port()]).search() is None
    assert await Discovery([]).search() is None


async def redirecting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.2:1/v1/models\r\ncontent-length: 0\r\n\r\n")


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
    while True:
        writer.write(b"[" * 65536)
        await writer.drain()


async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.02)


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def babbling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x00\x01 what is HTTP?\r\n\r\n")


@pytest.mark.parametrize(
    "handle",
    [
        redirecting,
        endless,
        dripping,
        silent,
        babbling,
        answering("200 OK", b"<html>Django</html>"),
        answering("404 Not Found", listing("llama")),
        answering("401 Unauthorized", b"{}"),
        answering("200 OK", listing()),
        answering("200 OK", listing("nomic-embed-text")),
        answering("200 OK", listing("bad\nname", "x" * 5000, "")),
        answering("200 OK", b'{"data": [{"id": 3}]}'),
        answering("200 OK", b'{"data": "llama"}'),
        answering("200 OK", b"[" * 100_000),
        answering("200 OK\r\ncontent-encoding: gzip", gzip.compress(listing("llama"))),
    ],
)
async def test_whatever_else_answers_is_ignored_in_time(handle: Handle) -> None:
    with Stopwatch() as took:
        assert await search(handle) is None
    # Half a second is allowed; the rest is for a busy machine.
    assert took.seconds < 5


async def test_a_slow_server_does_not_hide_a_good_one() -> None:
    async with serving(silent) as slow, ScriptedOpenAI(models=("llama",)) as good:
        found = await Discovery([slow, good.port]).search()
    assert found is not None
    assert found.model == "llama"


async def test_no_key_is_shown_to_what_is_probed() -> None:
    seen: list[bytes] = []

    async def listening(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering("200 OK", listing("llama"))(reader, writer)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        await listening(reader, writer)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        assert await Discovery([server.sockets[0].getsockname()[1]]).search() is not None
    assert b"authorization" not in seen[0].lower()
    assert b"cookie" not in seen[0].lower()
