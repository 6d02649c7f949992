"""An answer that comes compressed, although it was asked for plain: it passes as it is, and what is in it is counted."""

import asyncio
import contextlib
import gzip
import json
import zlib
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from gateway_house import KEY, MODEL, RUN, House, OpenHouse, raw

from automagik.gateway.coding import Unpacking

pytestmark = pytest.mark.anyio

ASK: Any = {"model": MODEL, "max_tokens": 1000, "messages": [{"role": "user", "content": "Hello"}]}
USAGE = {"input_tokens": 100, "output_tokens": 7}
COST = 100 * 3000 + 7 * 15_000


def bare(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def members(data: bytes) -> bytes:
    return gzip.compress(data[:50]) + gzip.compress(data[50:])


CODINGS: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "gzip": (b"gzip", gzip.compress),
    "gzip-in-members": (b"X-GZIP", members),
    "deflate": (b"deflate", zlib.compress),
    "bare-deflate": (b"deflate", bare),
}


def event(data: Any) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def document(text: str = "Hello") -> bytes:
    return json.dumps({"type": "message", "content": [{"type": "text", "text": text}], "usage": USAGE}).encode()


BEGIN = event({"type": "message_start", "message": {"usage": {**USAGE, "output_tokens": 1}}})
END = event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}})


def word(text: str) -> bytes:
    return event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}})


@asynccontextmanager
async def provider(kind: bytes, coding: bytes, *pieces: bytes) -> AsyncGenerator[str]:
    """A server that answers with these bytes, and ends; the address that it is asked at."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
        with contextlib.suppress(ConnectionError):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-encoding: %b\r\n\r\n" % (kind, coding))
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def passed(house: House, *, stream: bool = False, run_id: str = RUN) -> bytes:
    """The bytes that a run gets for its request."""
    got = b""
    async with (
        raw(house.socket(run_id)) as client,
        client.stream("POST", "/v1/messages", json={**ASK, "stream": stream}) as answer,
    ):
        assert "content-encoding" in answer.headers
        async for piece in answer.aiter_raw():
            got += piece
    return got


@asynccontextmanager
async def limited(open_house: OpenHouse, address: str) -> AsyncGenerator[House]:
    house = await open_house(anthropic_base_url=address)
    await house.limit(5)
    await house.door()
    yield house


@pytest.mark.parametrize(("coding", "pack"), CODINGS.values(), ids=list(CODINGS))
async def test_a_compressed_answer_passes_untouched_and_counts_what_it_reports(
    open_house: OpenHouse, coding: bytes, pack: Callable[[bytes], bytes]
) -> None:
    whole, streamed = pack(document()), pack(BEGIN + word("Hello") + END)
    pieces = [streamed[place : place + 3] for place in range(0, len(streamed), 3)]
    async with provider(b"application/json", coding, whole) as address, limited(open_house, address) as house:
        assert await passed(house) == whole
        (call,) = await house.until_calls(1)
        assert (call.cost_nano, call.output_tokens, call.outcome) == (COST, 7, "completed")
        assert await house.budget() == (COST, 0)
    async with provider(b"text/event-stream", coding, *pieces) as address:
        other = await open_house(anthropic_base_url=address)
        await other.limit(5, "run_other")
        await other.door("run_other")
        assert await passed(other, stream=True, run_id="run_other") == streamed
        (call,) = await other.until_calls(1, "run_other")
        assert (call.cost_nano, call.output_tokens) == (COST, 7)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (b"br", b"\x0b\x02\x80hello\x03"),
        (b"gzip", b"this is no gzip"),
        (b"gzip", gzip.compress(b" " * 50_000_000 + document(), compresslevel=9)),
        (b"gzip, gzip", gzip.compress(gzip.compress(document()))),
    ],
    ids=["brotli", "nonsense", "bomb", "twice"],
)
async def test_what_can_not_be_read_passes_untouched_and_counts_in_full(
    open_house: OpenHouse, coding: bytes, body: bytes
) -> None:
    async with provider(b"application/json", coding, body) as address, limited(open_house, address) as house:
        assert await passed(house) == body
        (call,) = await house.until_calls(1)
    assert call.cost_nano == call.reserved_nano > 1000 * 15_000
    assert await house.budget() == (call.reserved_nano, 0)


@pytest.mark.parametrize("size", [1000, 50_000_000])
def test_no_more_is_unpacked_than_an_answer_can_have(size: int) -> None:
    packed = gzip.compress(b"word " * (size // 5))
    unpacking, made, largest = Unpacking(b"gzip"), 0, 0
    for part in unpacking.parts(packed):
        made, largest = made + len(part), max(largest, len(part))
    assert largest <= 65_536 and made <= 1024 * 1024 + 100 * len(packed)
    assert (unpacking.is_lost, made == size) == (size > 1000, size == 1000)


async def test_the_platforms_key_is_found_in_a_compressed_answer_too(open_house: OpenHouse) -> None:
    body = gzip.compress(document(f"your key is {KEY}"))
    async with provider(b"application/json", b"gzip", body) as address, limited(open_house, address) as house:
        with pytest.raises(httpx2.RemoteProtocolError):
            await passed(house)
        (call,) = await house.until_calls(1)
    assert call.outcome == "cut"
    assert any("repeated the platform's key" in str(data) for _, data in house.told)


async def test_a_compressed_stream_beyond_its_reservation_is_cut(open_house: OpenHouse) -> None:
    packer = zlib.compressobj(wbits=31)
    pieces = [packer.compress(BEGIN) + packer.flush(zlib.Z_SYNC_FLUSH)]
    pieces += [packer.compress(word("word " * 200)) + packer.flush(zlib.Z_SYNC_FLUSH) for _ in range(400)]
    async with provider(b"text/event-stream", b"gzip", *pieces) as address, limited(open_house, address) as house:
        with pytest.raises(httpx2.RemoteProtocolError):
            await passed(house, stream=True)
        (call,) = await house.until_calls(1)
    assert call.outcome == "cut" and call.over_reservation and 1000 < call.output_tokens < 80_000
    assert await house.budget() == (call.cost_nano, 0)
