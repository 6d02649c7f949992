"""A provider that does not keep to the limit of its answer: its stream is cut where it costs more than was reserved."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anthropic as anthropic_sdk
import httpx2
import openai as openai_sdk
import pytest
from gateway_house import MODEL, House, OpenHouse, anthropic, openai, raw, say
from pydantic import SecretStr

from automagik.gateway.metering import ChatMeter, MessagesMeter, Meter, ResponsesMeter
from automagik.testing.scripted_messages import ScriptedMessages

pytestmark = pytest.mark.anyio

USER: Any = [{"role": "user", "content": "Hello"}]
ASK: Any = {"model": MODEL, "max_tokens": 1000, "messages": USER}
WORDS = "word " * 200  # as many tokens
USAGE: Any = {"input_tokens": 10, "output_tokens": 1}


def sse(data: Any) -> bytes:
    return f"event: {data.get('type', 'message')}\ndata: {json.dumps(data)}\n\n".encode()


def block(text: str) -> bytes:
    return sse({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}})


BEGIN = sse(
    {
        "type": "message_start",
        "message": {
            "id": "msg_1", "type": "message", "role": "assistant", "model": MODEL, "content": [], "stop_reason": None,
            "stop_sequence": None, "usage": USAGE,
        },
    }
) + sse({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})  # fmt: skip


def chunk(text: str) -> bytes:
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
    return f"data: {json.dumps({'id': 'c', 'object': 'chat.completion.chunk', 'created': 1, 'model': 'gpt-4o', 'choices': [choice]})}\n\n".encode()


@asynccontextmanager
async def babbler(piece: bytes, *begin: bytes) -> AsyncGenerator[Any]:
    """A provider that never ends by itself: its address, and what it was able to say."""
    said, is_over = bytearray(), asyncio.Event()
    transports: list[asyncio.WriteTransport] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transports.append(writer.transport)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
        with contextlib.suppress(ConnectionError):
            for first in (b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n", *begin):
                writer.write(first)
                await writer.drain()
                await asyncio.sleep(0.03)
            while len(said) < 5_000_000 and not is_over.is_set():
                await asyncio.sleep(0.002)
                writer.write(piece)
                said.extend(piece)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", said
        finally:
            is_over.set()
            for transport in transports:  # what nobody reads any more would keep it open
                transport.abort()
            await asyncio.sleep(0.01)


async def test_a_stream_beyond_its_reservation_is_cut_with_an_error_and_counted_as_it_was_metered(
    open_house: OpenHouse,
) -> None:
    async with babbler(block(WORDS), BEGIN) as (address, said):
        house = await open_house(anthropic_base_url=address)
        await house.limit(5)
        door = await house.door()
        text: list[str] = []

        async def read(client: Any) -> None:
            async with client.messages.stream(**ASK) as stream:
                async for piece in stream.text_stream:
                    text.append(piece)

        async with anthropic(house.socket()) as client:
            with pytest.raises(
                anthropic_sdk.APIStatusError, match=r"more than was reserved for this call.*1000 tokens"
            ):
                await read(client)
        (call,) = await house.until_calls(1)
    assert (call.outcome, door.refused) == ("cut", "budget_exceeded")
    assert set(text) == {WORDS} and len(said) < 200_000  # whole events, and nothing much after
    assert 1 < (10 * 3000 + len(text) * 200 * 15_000) / call.reserved_nano < 1.25  # a word is a token
    assert abs(call.output_tokens - len(text) * len(WORDS) // 4) <= 300
    assert call.over_reservation and (call.cost_nano or 0) > call.reserved_nano > 1000 * 15_000
    assert await house.budget() == (call.cost_nano, 0)
    assert any("did not keep to the limit" in str(data) for _, data in house.told)


async def test_openais_stream_beyond_its_reservation_is_cut_too(open_house: OpenHouse) -> None:
    async with babbler(chunk(WORDS)) as (address, _said):
        house = await open_house(openai_base_url=address, openai_api_key=SecretStr("sk-openai"))
        await house.limit(5)
        await house.door()

        async def read(client: Any) -> None:
            asked: Any = {"model": "gpt-4o", "max_tokens": 500, "messages": USER}
            async for _ in await client.chat.completions.create(**asked, stream=True):
                pass

        async with openai(house.socket()) as client:
            with pytest.raises(openai_sdk.APIError, match="more than was reserved for this call"):
                await read(client)
        (call,) = await house.until_calls(1)
    assert call.over_reservation and call.output_tokens > 1000
    assert await house.budget() == (call.cost_nano, 0)


OVER = sse({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 10**6}})[
    :-1
]  # its end comes later, or never


async def test_an_event_whose_end_comes_later_is_passed_whole(open_house: OpenHouse) -> None:
    async with babbler(b"\ndata: {}\n", BEGIN, OVER) as (address, _said):
        house = await open_house(anthropic_base_url=address)
        await house.limit(5)
        await house.door()
        async with raw(house.socket()) as client:
            answer = await client.post("/v1/messages", json={**ASK, "stream": True})
        (call,) = await house.until_calls(1)
    *events, error, rest = answer.text.split("\n\n")
    assert (len(events) >= 3, error.startswith("event: error"), rest) == (True, True, "")
    assert call.output_tokens == 10**6 and call.over_reservation


async def test_an_event_without_an_end_is_cut_off_with_its_connection(open_house: OpenHouse) -> None:
    async with babbler(b"x" * 5000, BEGIN, OVER) as (address, said):
        house = await open_house(anthropic_base_url=address)
        await house.limit(5)
        await house.door()
        async with raw(house.socket()) as client:
            with pytest.raises(httpx2.RemoteProtocolError):
                await client.post("/v1/messages", json={**ASK, "stream": True})
        (call,) = await house.until_calls(1)
    assert len(said) < 2_000_000
    assert call.output_tokens == 10**6 and call.over_reservation


async def test_a_stream_within_its_reservation_or_without_a_limit_is_not_cut(open_house: OpenHouse) -> None:
    ends = sse({"type": "content_block_stop", "index": 0}) + sse(
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 900},
        }
    )
    ends += sse({"type": "message_stop"})
    dashes = block("-" * 3000)  # few tokens for so many bytes
    async with babbler(b"", BEGIN, dashes + dashes + ends) as (address, _said):
        house = await open_house(anthropic_base_url=address)
        await house.limit(5)
        await house.door()
        async with (
            raw(house.socket()) as client,
            asyncio.timeout(20),
            client.stream("POST", "/v1/messages", json={**ASK, "stream": True}) as answer,
        ):
            got = b""
            async for piece in answer.aiter_bytes():
                got += piece
                if b"message_stop" in got:
                    break
        (call,) = await house.until_calls(1)
    assert b"error" not in got and call.output_tokens == 900 and not call.over_reservation


async def test_a_whole_answer_beyond_its_reservation_counts_as_reported_and_is_marked(
    house: House, api: ScriptedMessages
) -> None:
    usage = {
        "input_tokens": 10,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 50_000,
    }
    say(api, {"text": "Hello", "usage": usage})
    await house.limit(5)
    await house.door()
    async with raw(house.socket()) as client:
        assert (await client.post("/v1/messages", json=ASK)).status_code == 200
    (call,) = await house.until_calls(1)
    assert (call.outcome, call.output_tokens, call.over_reservation) == ("completed", 50_000, True)
    marked = await house.store.read(
        lambda tx: tx.connection.exec_driver_sql("SELECT call_id FROM model_calls WHERE over_reservation").all()
    )
    assert [row[0] for row in marked] == [call.call_id]


@pytest.mark.parametrize("kind", ["text", "reasoning", "tool"])
@pytest.mark.parametrize("wire", [MessagesMeter, ChatMeter, ResponsesMeter])
def test_the_output_of_a_stream_is_counted_by_its_words_on_every_wire(wire: type[Meter], kind: str) -> None:
    meter = wire(streams=True)
    for word in ["né "] * 1000:
        meter.feed(piece_of(wire, kind, word))
    meter.feed(sse({"type": "response.audio.delta", "delta": "QUJD" * 5000}))
    assert (meter.is_beyond(900), meter.is_beyond(1000), meter.complete) == (True, False, False)
    assert (meter.output_so_far(), meter.usual_output_so_far()) == (1000 - 64, 1000)


def piece_of(wire: type[Meter], kind: str, word: str) -> bytes:
    """An event with a word of text, of thinking or of a tool's arguments."""
    if wire is MessagesMeter:
        name = {"text": "text", "reasoning": "thinking", "tool": "partial_json"}[kind]
        return sse({"type": "content_block_delta", "delta": {name: word}})
    if wire is ResponsesMeter:
        name = {"text": "output_text", "reasoning": "reasoning_summary_text", "tool": "function_call_arguments"}[kind]
        return sse({"type": f"response.{name}.delta", "delta": word})
    deltas: Any = {
        "text": {"content": word},
        "reasoning": {"reasoning": word, "reasoning_content": word},
        "tool": {"tool_calls": [{"index": 0, "function": {"arguments": word}}]},
    }
    return sse({"choices": [{"index": 0, "delta": deltas[kind]}]})
