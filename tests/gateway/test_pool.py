"""Connections to a provider, who may be slow, broken or somebody else."""

import asyncio
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from gateway_house import MODEL, OpenHouse, raw

from automagik.gateway.pool import BrokeOff, Origin, Pool, Reply, Unreachable

pytestmark = pytest.mark.anyio

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ASK = {"model": MODEL, "max_tokens": 10, "messages": [{"role": "user", "content": "Hello"}]}


@asynccontextmanager
async def provider(talk: Talk) -> AsyncGenerator[Origin]:
    """A server on loopback that does this on each connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield ("http", "127.0.0.1", server.sockets[0].getsockname()[1])


def answering(answer: bytes, *, keep: bool = False) -> Talk:
    """Each request, or the first, is answered with these bytes."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            if not keep:
                return

    return talk


@pytest.fixture
async def pool(anyio_backend: str) -> AsyncIterator[Pool]:
    opened = Pool(ssl.create_default_context())
    yield opened
    await opened.close()


async def whole(reply: Reply) -> bytes:
    content = b"".join([piece async for piece in reply.pieces()])
    await reply.close()
    return content


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", b"hello"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nx-trailer: 1\r\n\r\n",
            b"hello",
        ),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
)
async def test_an_answer_comes_as_it_is(pool: Pool, answer: bytes, body: bytes) -> None:
    async with provider(answering(answer)) as origin:
        reply = await pool.send(origin, "GET", "/", (), None)
        assert await whole(reply) == body
        assert all(name != b"x-trailer" for name, _ in reply.headers)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"this is no HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nx-long: " + b"a" * 600_000,
    ],
)
async def test_an_answer_that_is_none_or_not_whole_is_told(pool: Pool, answer: bytes) -> None:
    async with provider(answering(answer)) as origin:
        with pytest.raises(BrokeOff):
            await whole(await pool.send(origin, "GET", "/", (), None))


async def test_connections_are_kept_and_what_comes_unasked_ends_them(pool: Pool) -> None:
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for _ in range(3):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")

    async with provider(talk) as origin:
        for _ in range(3):
            assert await whole(await pool.send(origin, "GET", "/", (), None)) == b"ok"
        await asyncio.sleep(0.05)
        assert await whole(await pool.send(origin, "GET", "/", (), None)) == b"ok"
    assert connections == 2


async def test_a_provider_waits_while_nobody_reads(pool: Pool) -> None:
    sent = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(1000):
            writer.write(b"10000\r\n" + b"a" * 65536 + b"\r\n")
            await writer.drain()
            sent += 65536
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async with provider(talk) as origin:
        reply = await pool.send(origin, "GET", "/", (), None)
        await asyncio.sleep(0.3)
        assert sent < 30_000_000
        assert len(await whole(reply)) == 65_536_000


async def test_who_is_not_there_or_not_whom_the_certificate_names_is_unreachable(pool: Pool) -> None:
    async with provider(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")) as (_, host, port):
        with pytest.raises(Unreachable):
            await pool.send(("https", host, port), "GET", "/", (), None)
    with pytest.raises(Unreachable):
        await pool.send(("http", host, port), "GET", "/", (), None)
    with pytest.raises(Unreachable):
        await pool.send(("https", "no-such-host.invalid", 443), "GET", "/", (), None)


async def test_a_proxy_of_the_environment_is_used_for_others_than_this_machine(
    open_house: OpenHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head)
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\nset-cookie: a=b\r\n\r\n{}"
        )
        await writer.drain()

    async with provider(talk) as (_, host, port):
        monkeypatch.setenv("http_proxy", f"http://{host}:{port}")
        house = await open_house(anthropic_base_url="http://models.internal")
        await house.door()
        async with raw(house.socket()) as client:
            for _ in range(2):
                assert (await client.post("/v1/messages", json=ASK)).content == b"{}"
    assert [head.split(b"\r\n")[0] for head in asked] == [b"POST http://models.internal/v1/messages HTTP/1.1"] * 2
    assert b"cookie" not in asked[1].lower()


def test_a_provider_whose_host_vanishes_is_given_up_long_before_the_call_s_own_time() -> None:
    alone = ["/usr/bin/unshare", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--net"]
    if subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system gives no network of one's own")
    done = subprocess.run(
        [*alone, sys.executable, str(Path(__file__).with_name("vanishing.py"))],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    error, seconds = done.stdout.split()
    assert (error, float(seconds) < 10) == ("BrokeOff", True)
