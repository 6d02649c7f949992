"""A run that does its worst at its door: it gets an answer or a closed connection, and nothing reaches the provider by it."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from gateway_house import KEY, MODEL, TOKEN, House, anthropic, raw, talk

from automagik.gateway.allowance import Allowance, Places
from automagik.gateway.connection import Answer, Connection, Exchange, Head
from automagik.gateway.listener import Listener
from automagik.testing.scripted_messages import ScriptedMessages

pytestmark = pytest.mark.anyio

BODY = b'{"model": "claude-sonnet-4-6", "max_tokens": 10, "messages": [{"role": "user", "content": "Hello"}]}'
OPEN = b"x-api-key: " + TOKEN.encode() + b"\r\n"


def post(*lines: bytes, body: bytes = BODY, length: bool = True, path: bytes = b"/v1/messages") -> bytes:
    """A request with these headers."""
    head = [b"POST " + path + b" HTTP/1.1", b"host: localhost", OPEN.strip(), *lines]
    if length:
        head.append(b"content-length: %d" % len(body))
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:80]
    return int(answer.split()[1])


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"\x16\x03\x01 this is no HTTP\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (post(b"transfer-encoding: chunked"), 400),
        (post(b"content-length: 5"), 400),
        (post(b"transfer-encoding: gzip, chunked", length=False), 501),
        (post(b"transfer-encoding: chunked", length=False, body=b"zz\r\nnonsense\r\n0\r\n\r\n"), 400),
        (post(b"transfer-encoding: chunked", length=False, body=b"-1\r\n"), 400),
        (post(b"content-length: 99999999999999999999999", length=False), 400),
        (post(b"content-length: 999999999999", length=False), 413),
        (post(b"content-encoding: gzip"), 415),
        (post(b"x-long: " + b"a" * 70_000), 431),
        (post(*[b"x-%d: a" % number for number in range(200)]), 431),
        (post(path=b"http://169.254.169.254/latest/meta-data"), 400),
        (post(path=b"http://localhost/v1/messages"), 400),
        (post(path=b"/v1/../v1/messages"), 404),
        (post(path=b"/v1/messages%00"), 404),
        (b"CONNECT evil.example:443 HTTP/1.1\r\nhost: evil.example\r\n" + OPEN + b"\r\n", 400),
        (post(b"connection: upgrade", b"upgrade: h2c"), 400),
    ],
)
async def test_a_bad_request_is_refused_and_its_connection_ends(
    house: House, api: ScriptedMessages, request_bytes: bytes, expected: int
) -> None:
    await house.door()
    answer = await talk(house.socket(), request_bytes)
    assert status(answer) == expected
    assert answer.count(b"HTTP/1.1 ") == 1
    assert api.count == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"not JSON",
        b'{"model": "a", "model": "claude-opus-4-6", "max_tokens": 1, "messages": []}',
        b'{"model": "claude-sonnet-4-6", "MODEL": "claude-opus-4-6", "max_tokens": 1, "messages": []}',
        b'{"model": ["claude-sonnet-4-6"], "max_tokens": 1, "messages": []}',
        b'{"model": "claude-sonnet-4-6", "max_tokens": -1, "messages": []}',
        b'{"model": "claude-sonnet-4-6", "max_tokens": 1e99, "messages": []}',
        b'{"model": "claude-sonnet-4-6", "max_tokens": NaN, "messages": []}',
        b'{"model": "claude-sonnet-4-6", "messages": []}',
        b'{"model": "claude-sonnet-4-6\\n", "max_tokens": 1, "messages": []}',
        b'{"model": "claude-sonnet-4-6", "max_tokens": 1, "stream": "yes", "messages": []}',
        b'\xff\xfe{"model": 1}',
        '{"model": "claude-sonnet-4-6", "max_tokens": 1}'.encode("utf-16"),
        b'{"a":' * 100_000,
        b'{"a":[' + b"{}," * 200_000 + b"0]}",
        b'{"a":[' + b"0," * 2_000_000 + b"0]}",
    ],
)
async def test_a_body_that_could_be_read_in_two_ways_is_refused(
    house: House, api: ScriptedMessages, body: bytes
) -> None:
    await house.limit(1)
    await house.door(models=("claude-sonnet-*",))
    async with raw(house.socket()) as client:
        answer = await client.post("/v1/messages", content=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert api.count == 0


async def test_odd_but_valid_messages_are_left_to_the_provider(house: House, api: ScriptedMessages) -> None:
    await house.limit(1)
    await house.door()
    async with raw(house.socket()) as client:
        for messages in (
            "null",
            '"text"',
            "[1, null, [[]]]",
            '[{"content": {"a": 1}}]',
            '[{"content": "\\ud800"}]',
            "[1e400]",
            "[123456789012345678901234567890]",
        ):
            content = f'{{"model": "{MODEL}", "max_tokens": 10, "messages": {messages}}}'
            assert (await client.post("/v1/messages", content=content)).status_code in {200, 400}


async def test_a_body_of_much_text_or_depth_is_no_trouble(house: House, api: ScriptedMessages) -> None:
    await house.limit(20)
    await house.door()
    code = "{[,]}" * 400_000 + '\\"\n'
    deep = 480
    nested = '{"cache_control":' * deep + "1" + "}" * deep
    async with raw(house.socket()) as client:
        asked = {"model": MODEL, "max_tokens": 10, "messages": [{"role": "user", "content": code}]}
        assert (await client.post("/v1/messages", json=asked)).status_code == 200
        content = f'{{"model": "{MODEL}", "max_tokens": 10, "messages": [{nested}]}}'
        assert (await client.post("/v1/messages", content=content)).status_code in {200, 400}
        tool = {"model": MODEL, "max_tokens": 10, "messages": [], "tools": [{"type": "x" * 100_000}]}
        assert len((await client.post("/v1/messages", json=tool)).content) < 300
    assert len(str(house.told)) < 500


async def test_no_header_of_the_run_reaches_the_provider_but_those_of_the_list(
    house: House, api: ScriptedMessages
) -> None:
    await house.door()
    async with raw(house.socket()) as client:
        answer = await client.post(
            "/v1/messages?beta=true&key=1",
            content=BODY,
            headers={
                "host": "evil.example",
                "authorization": "Bearer mine",
                "cookie": "a=b",
                "x-forwarded-for": "10.0.0.1",
                "anthropic-beta": "tools-2026",
                "anthropic-version": "2023-06-01",
                "proxy-authorization": "Basic x",
                "user-agent": "evil/1.0",
                "accept-encoding": "gzip",
                "x-api-key": TOKEN,
            },
        )
    assert answer.status_code == 200
    headers = dict(api.calls[0].headers)
    assert headers.pop("host") == f"127.0.0.1:{api.port}"
    assert headers.pop("content-length") == str(len(BODY))
    assert headers == {
        "x-api-key": KEY,
        "accept": "*/*",
        "accept-encoding": "identity",
        "anthropic-beta": "tools-2026",
        "anthropic-version": "2023-06-01",
        "content-type": "application/json",
        "user-agent": "automagik-agents",
    }


async def test_an_endless_body_is_cut_off(house: House, api: ScriptedMessages) -> None:
    await house.door()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"a" * 65536

    reader, writer = await asyncio.open_unix_connection(str(house.socket()))
    writer.write(post(b"transfer-encoding: chunked", length=False, body=b""))

    async def flood() -> None:
        try:
            async for piece in endless():
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
        except ConnectionError:
            return

    async with asyncio.timeout(20):
        flooding = asyncio.create_task(flood())
        try:
            assert status(await reader.readuntil(b"\r\n\r\n")) == 413
        finally:
            writer.transport.abort()
            await flooding
    assert api.count == 0


async def test_requests_ahead_of_their_turn_are_not_answered(house: House, api: ScriptedMessages) -> None:
    await house.door()
    answer = await talk(house.socket(), post() + post() + post())
    assert status(answer) == 200
    assert answer.count(b"HTTP/1.1 ") == 1
    assert api.count == 1


async def test_a_connection_serves_one_request_after_the_other(house: House, api: ScriptedMessages) -> None:
    await house.door()
    reader, writer = await asyncio.open_unix_connection(str(house.socket()))
    for number in range(3):
        request = post(b"expect: 100-continue") if number else post()
        for byte in range(0, len(request), 40):
            writer.write(request[byte : byte + 40])
            await asyncio.sleep(0)
        if number:
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        head = await reader.readuntil(b"\r\n\r\n")
        assert status(head) == 200
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length"))
        await reader.readexactly(length)
    writer.close()
    assert api.count == 3


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)


def _speaking(allowance: Allowance, opened: list[Connection]) -> Callable[[], Connection]:
    """Connections whose requests nobody answers."""
    return lambda: Connection(
        _Nobody(), allowance, opened=opened.append, closed=opened.remove, spawn=lambda exchange: None
    )


async def test_who_connects_and_is_silent_makes_room_for_who_speaks(sockets: Path) -> None:
    """The one that is silent longest loses its place. Where all have requests under way, a newcomer is refused."""
    allowance, opened = Allowance(3, 1000, 1000), list[Connection]()
    listener = Listener(sockets / "full.sock")
    await listener.start(_speaking(allowance, opened))
    silent = [await asyncio.open_unix_connection(str(sockets / "full.sock")) for _ in range(3)]
    speaking: list[asyncio.StreamWriter] = []
    for reader, _ in silent:
        _, writer = await asyncio.open_unix_connection(str(sockets / "full.sock"))
        writer.write(post())
        speaking.append(writer)
        assert await asyncio.wait_for(reader.read(), 20) == b""
        await asyncio.sleep(0.02)
    assert status(await talk(sockets / "full.sock", post())) == 503
    speaking[0].close()
    await until(lambda: len(opened) == 2)
    _, writer = await asyncio.open_unix_connection(str(sockets / "full.sock"))
    await until(lambda: (allowance.taken, len(opened)) == (3, 3))
    for one in (writer, *speaking, *(writer for _, writer in silent)):
        one.close()
    await until(lambda: (allowance.taken, allowance.body_bytes) == (0, 1000))
    await listener.close()


async def test_one_door_does_not_take_the_places_of_all(sockets: Path) -> None:
    places = Places(10)
    before = places.left
    greedy, modest = Allowance(256, 10**6, 1000, places=places), Allowance(256, 10**6, 1000, places=places)
    listeners = [Listener(sockets / "greedy.sock"), Listener(sockets / "modest.sock")]
    for listener, allowance in zip(listeners, (greedy, modest), strict=True):
        await listener.start(_speaking(allowance, []))
    writers: list[asyncio.StreamWriter] = []

    async def ask(name: str) -> asyncio.StreamReader:
        reader, writer = await asyncio.open_unix_connection(str(sockets / name))
        writer.write(post())
        writers.append(writer)
        return reader

    for _ in range(10):
        await ask("greedy.sock")
    assert status(await (await ask("greedy.sock")).readline()) == 503
    for _ in range(8):
        await ask("modest.sock")
    assert status(await (await ask("modest.sock")).readline()) == 503
    assert modest.taken >= 8
    for writer in writers:
        writer.close()
    await until(lambda: (greedy.taken, modest.taken, places.left) == (0, 0, before))
    for listener in listeners:
        await listener.close()


async def test_connections_that_say_nothing_keep_nobody_out_of_a_door(house: House) -> None:
    await house.door()
    held: list[socket.socket] = []
    try:
        for _ in range(300):
            one = socket.socket(socket.AF_UNIX)
            one.connect(str(house.socket()))
            held.append(one)
            await asyncio.sleep(0.002)
        async with anthropic(house.socket()) as client:
            await client.messages.create(model=MODEL, max_tokens=10, messages=[{"role": "user", "content": "Hello"}])
    finally:
        for one in held:
            one.close()


async def test_a_flood_of_connections_is_taken_at_a_pace_and_hurts_no_other_run(house: House) -> None:
    """The flood waits in the kernel's queue, and another run's door answers all the while."""
    await house.door()
    await house.door("run_other")
    held = [socket.socket(socket.AF_UNIX) for _ in range(250)]
    before, began = len(os.listdir("/proc/self/fd")), time.monotonic()
    try:
        for one in held:
            one.connect(str(house.socket()))
        taken = 0
        async with asyncio.timeout(10):
            while taken < 100:
                await asyncio.sleep(0.01)
                taken = len(os.listdir("/proc/self/fd")) - before
        await asyncio.sleep(0.3)  # all that may be taken at once has been
        taken = len(os.listdir("/proc/self/fd")) - before
        assert taken <= 128 + 100 * (time.monotonic() - began)
        assert status(await talk(house.socket("run_other"), post(path=b"/nowhere"))) == 404
    finally:
        for one in held:
            one.close()


async def test_large_bodies_held_at_once_have_a_limit(house: House) -> None:
    await house.door()
    started: list[asyncio.StreamWriter] = []
    size = house.settings.max_body_bytes - 1000
    head = post(b"content-length: %d" % size, length=False, body=b"")
    try:
        for _ in range(4):
            reader, writer = await asyncio.open_unix_connection(str(house.socket()))
            writer.write(head + b" " * (size - 10))
            await writer.drain()
            started.append(writer)
        await asyncio.sleep(0.2)
        reader, writer = await asyncio.open_unix_connection(str(house.socket()))
        started.append(writer)
        writer.write(head + b" " * (size - 10))
        assert status(await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)) == 429
    finally:
        for writer in started:
            writer.transport.abort()


class _Nobody:
    """A handler that lets every request in and answers none."""

    def admit(self, head: Head) -> Answer | None:
        del head
        return None

    def spoiled(self, head: Head | None, status: int, text: str) -> Answer:
        del head
        return Answer(status, text.encode())

    async def handle(self, exchange: Exchange) -> None:
        del exchange


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"POST /v1/mess", b"HTTP/1.1 408 "),
        (b"POST / HTTP/1.1\r\ncontent-length: 100\r\n\r\nhalf", b"HTTP/1.1 408 "),
    ],
)
async def test_a_request_that_never_comes_to_its_end_is_given_up(sockets: Path, sent: bytes, answer: bytes) -> None:
    allowance = Allowance(8, 1000, 1000, head_seconds=0.2, body_seconds=0.2, idle_seconds=0.2)
    listener = Listener(sockets / "slow.sock")
    await listener.start(
        lambda: Connection(
            _Nobody(), allowance, opened=lambda _: None, closed=lambda _: None, spawn=lambda exchange: exchange.cut()
        )
    )
    assert (await talk(sockets / "slow.sock", sent)).startswith(answer)
    await asyncio.sleep(0.05)
    await listener.close()
    assert (allowance.taken, allowance.body_bytes) == (0, 1000)
