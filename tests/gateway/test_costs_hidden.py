"""What a run could try to have a call cost more than was reserved for it: each is refused, or reserved and counted in full."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from gateway_house import KEY, MODEL, TOKEN, House, OpenHouse, raw, say
from pydantic import SecretStr

from automagik.budget import Tokens
from automagik.gateway.conversations import Conversations
from automagik.gateway.metering import ChatMeter, MessagesMeter
from automagik.gateway.openai_wire import ChatWire, ResponsesWire
from automagik.gateway.wire import Refusal
from automagik.testing.scripted_messages import ScriptedMessages

pytestmark = pytest.mark.anyio

USER: Any = [{"role": "user", "content": "Hello"}]
ASK: Any = {"model": MODEL, "max_tokens": 8000, "messages": USER}


@asynccontextmanager
async def provider(*pieces: bytes, pause: float = 0.0) -> AsyncGenerator[str]:
    """A server that answers every request with these bytes, and ends; the address that it is asked at."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        await reader.readexactly(length)
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def head(kind: bytes, *lines: bytes) -> bytes:
    return b"\r\n".join((b"HTTP/1.1 200 OK", b"content-type: " + kind, *lines)) + b"\r\n\r\n"


def event(data: Any) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


@pytest.mark.parametrize(
    "more",
    [
        {"context_management": {"edits": [{"type": "compact_20260112"}]}},
        {"context_management": {"edits": [{"type": ["odd"]}]}},
        {"tools": [{"type": "tool_search_tool_regex_20251119", "name": "t"}]},
        {"service_tier": "priority"},
        {"service_tier": ["priority"]},
        {"speed": {"a": 1}},
        {"fallbacks": [{"model": "claude-opus-4-6"}]},
        {"api_base": "https://evil.example"},
        {"tools": [{"type": ["web_search"], "name": "t"}]},
    ],
)
async def test_what_may_cost_more_than_its_tokens_is_refused_under_a_budget(
    house: House, api: ScriptedMessages, more: Any
) -> None:
    await house.limit(5)
    door = await house.door()
    async with raw(house.socket()) as client:
        answer = await client.post("/v1/messages", json={**ASK, **more})
        assert (answer.status_code, door.refused) == (403, "policy")
        plain = {"service_tier": "auto", "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}
        assert (await client.post("/v1/messages", json={**ASK, **plain})).status_code == 200
    assert len(api.calls) == 1


async def test_a_compacting_call_without_a_budget_is_counted_by_its_rounds(house: House, api: ScriptedMessages) -> None:
    say(api, {"text": "Hello"})
    await house.door()
    async with raw(house.socket()) as client:
        asked = {**ASK, "context_management": {"edits": [{"type": "compact_20260112"}]}}
        assert (await client.post("/v1/messages", json=asked)).status_code == 200
    (call,) = await house.until_calls(1)
    assert call.cost_nano


@pytest.mark.parametrize("model", ["demo", "test"])
async def test_a_vendors_model_that_is_called_like_a_free_one_is_not_free(house: House, model: str) -> None:
    await house.limit(1)
    await house.door()
    async with raw(house.socket()) as client:
        assert (await client.post("/v1/messages", json={**ASK, "model": model})).status_code == 403


def test_what_openais_wire_can_hide_a_cost_in_is_found() -> None:
    chat, responses = ChatWire(), ResponsesWire()
    dear: list[Any] = [
        {"prediction": {"type": "content", "content": "x"}},
        {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}
            ]
        },
        {"service_tier": "priority"},
        {"service_tier": {}},
    ]
    for document in dear:
        assert chat.costs_extra(document) is not None, document
    stored: list[Any] = [
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        {"input": [{"id": "msg_1"}]},
        {"background": True},
        {"conversation": "conv_1"},
    ]
    for document in stored:
        assert responses.costs_extra(document) is not None, document
    outward: list[Any] = [
        {"model": "gpt-4o-search-preview"},
        {"models": ["gpt-5"]},
        {"plugins": [{"id": "web"}]},
        {"tools": [{"type": {}}]},
        {"messages": [{"content": [{"type": "file", "file": {"file_id": "file_1"}}]}]},
    ]
    for document in outward:
        assert chat.reaches_out(document) is not None, document
    elsewhere: list[Any] = [
        {"prompt": {"id": "pmpt_1"}},
        {"input": [{"content": [{"type": "input_image", "file_id": "file_1"}]}]},
        {"input": [{"output": {"type": "computer_screenshot", "image_url": "https://a.example/b"}}]},
    ]
    for document in elsewhere:
        assert responses.reaches_out(document) is not None, document
    assert responses.repeats({"context_management": [{"type": "compaction"}]}) is not None
    plain: Any = {"model": "gpt-5", "messages": USER, "service_tier": "default", "store": True, "n": 2}
    assert (chat.costs_extra(plain), chat.reaches_out(plain), chat.repeats(plain)) == (None, None, None)


def test_answers_in_parallel_have_a_limit_and_the_larger_of_two_limits_counts() -> None:
    ask = ChatWire().ask({"model": "gpt-5", "n": 100, "max_completion_tokens": 1, "max_tokens": 9000})
    assert (ask.answers, ask.max_output) == (100, 9000)
    for n in (129, 10**8, -1, 1.5, True):
        with pytest.raises(Refusal, match="n:"):
            ChatWire().ask({"model": "gpt-5", "n": n})


async def test_a_hundred_answers_are_reserved_a_hundred_times(open_house: OpenHouse) -> None:
    async with provider() as url:  # it ends without an answer
        house = await open_house(openai_base_url=url, openai_api_key=SecretStr("sk-1"))
        await house.limit(1000)
        await house.door()
        asked = {"model": "gpt-4o", "messages": USER, "n": 100, "max_tokens": 1000}
        async with raw(house.socket()) as client:
            assert (await client.post("/v1/chat/completions", json=asked)).status_code == 502
        (call,) = await house.until_calls(1)
        assert call.cost_nano == call.reserved_nano > 100 * 1000 * 10_000


@pytest.mark.parametrize(
    "usage", [{}, {"input_tokens": 0, "output_tokens": 0}, {"input_tokens": "1", "output_tokens": 1.5}]
)
async def test_usage_that_can_not_be_true_counts_in_full(open_house: OpenHouse, usage: Any) -> None:
    body = json.dumps({"type": "message", "content": [], "usage": usage}).encode()
    async with provider(head(b"application/json", b"content-length: %d" % len(body)) + body) as url:
        house = await open_house(anthropic_base_url=url)
        await house.limit(5)
        await house.door()
        async with raw(house.socket()) as client:
            assert (await client.post("/v1/messages", json=ASK)).status_code == 200
        (call,) = await house.until_calls(1)
        assert call.cost_nano == call.reserved_nano > 0
        assert await house.budget() == (call.reserved_nano, 0)


def test_later_figures_that_are_less_do_not_take_back_what_was_told() -> None:
    meter = MessagesMeter(streams=True)
    meter.feed(event({"type": "message_start", "message": {"usage": {"input_tokens": 70, "output_tokens": 1}}}))
    told = {"input_tokens": 0, "output_tokens": 9}
    meter.feed(event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": told}))
    assert (meter.reported, meter.complete) == (Tokens(70, 9), True)


def test_a_stream_that_is_cut_while_it_thinks_counts_all_that_it_can_have_thought() -> None:
    meter = MessagesMeter(streams=True)
    meter.feed(event({"type": "message_start", "message": {"usage": {"input_tokens": 70, "output_tokens": 1}}}))
    assert meter.at_most(5000) == Tokens(70, 5000)  # nothing is seen of what it does first
    meter.feed(event({"type": "content_block_start", "content_block": {"type": "thinking", "thinking": ""}}))
    meter.feed(event({"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "A summary"}}))
    meter.feed(event({"type": "content_block_start", "content_block": {"type": "text", "text": "Yes"}}))
    assert meter.at_most(5000) == Tokens(70, 5000)


def test_usage_with_every_chunk_is_not_taken_for_the_whole() -> None:
    meter = ChatMeter(streams=True)
    meter.feed(event({"choices": [{"index": 0}], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}))
    assert meter.at_most(100) is None
    meter.feed(event({"choices": [{"index": 0}], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}))
    meter.finish()
    assert meter.at_most(100) == Tokens(5, 2)


def test_a_line_without_an_end_is_not_copied_with_each_piece() -> None:
    meter = MessagesMeter(streams=True)
    for _ in range(20_000):
        meter.feed(b"x" * 4096)  # 80 MB; joined each time it would be copied for minutes
    meter.feed(b"\n")
    meter.feed(event({"type": "message_start", "message": {"usage": {"input_tokens": 7, "output_tokens": 1}}}))
    assert meter.reported == Tokens(7, 1)


def test_what_was_counted_in_another_way_bounds_nothing() -> None:
    conversations, wire = Conversations(), ResponsesWire()
    turns: Any = [{"role": "user", "content": "word " * 2000}]
    cleared = wire.ask({"model": "gpt-5", "input": turns, "context_management": [{"type": "compaction"}]})
    conversations.remember(conversations.bound(wire, cleared), Tokens(50, 1))
    assert conversations.bound(wire, cleared).tokens == 50
    assert conversations.bound(wire, wire.ask({"model": "gpt-5", "input": turns})).tokens > 10_000
    same: Any = {
        "model": "gpt-5",
        "input": turns,
        "context_management": [{"type": "compaction"}],
        "max_output_tokens": 9,
    }
    assert conversations.bound(wire, wire.ask(same)).tokens < 2000


def test_a_head_that_changes_and_comes_back_is_known_again() -> None:
    conversations, wire = Conversations(), ChatWire()
    turns: Any = [{"role": "user", "content": "Hello"}]
    first, other = (wire.ask({"model": "m", "messages": turns, "user": letter * 9000}) for letter in "ab")
    conversations.remember(conversations.bound(wire, first), Tokens(100, 1))
    assert conversations.bound(wire, other).tokens > 9000
    assert conversations.bound(wire, first).tokens == 100
    assert conversations.bound(wire, other).tokens > 9000


def test_a_tool_that_is_only_named_so_far_counts_whole_where_it_is_called_up() -> None:
    conversations, wire = Conversations(), ChatWire()
    tools: Any = [{"type": "function", "name": "t", "description": "x" * 50_000, "defer_loading": True}]
    first: Any = [{"role": "user", "content": "Hello"}]
    asked = wire.ask({"model": "m", "messages": first, "tools": tools})
    conversations.remember(conversations.bound(wire, asked), Tokens(100, 1))
    found: Any = {"role": "user", "content": [{"type": "tool_reference", "tool_name": "t"}] * 2}
    said: Any = {"role": "user", "content": '{"type": "tool_reference"}'}
    calls_up = wire.ask({"model": "m", "messages": [*first, found], "tools": tools})
    only_says = wire.ask({"model": "m", "messages": [*first, said], "tools": tools})
    assert conversations.bound(wire, calls_up).tokens > 100_000
    assert conversations.bound(wire, only_says).tokens < 1000


@pytest.mark.parametrize("size", [1, 5, 1000])
async def test_a_provider_that_repeats_the_key_is_cut_off_before_it_is_told(open_house: OpenHouse, size: int) -> None:
    said = b'data: {"type": "ping", "text": "sk-an sk-ant-"}\n\n' + b"data: %b\n\n" % KEY.encode() + b"data: more\n\n"
    pieces = [said[place : place + size] for place in range(0, len(said), size)]
    async with provider(head(b"text/event-stream", b"x-request-id: " + KEY.encode()), *pieces, pause=0.001) as url:
        house = await open_house(anthropic_base_url=url)
        await house.limit(5)
        await house.door()
        reader, writer = await asyncio.open_unix_connection(str(house.socket()))
        body = json.dumps({**ASK, "stream": True}).encode()
        writer.write(b"POST /v1/messages HTTP/1.1\r\nx-api-key: %b\r\n" % TOKEN.encode())
        writer.write(b"content-length: %d\r\n\r\n" % len(body) + body)
        try:
            answer = await asyncio.wait_for(reader.read(), 5)
        finally:
            writer.close()
        (call,) = await house.until_calls(1)
    shown = b"".join(line for line in answer.split(b"\r\n")[1:] if line)
    assert KEY.encode() not in answer and KEY.encode()[:8] + b"he" not in shown and b"request-id" not in answer
    assert (call.outcome, call.cost_nano) == ("cut", call.reserved_nano)
    assert any("key" in str(data) for _, data in house.told) and KEY not in str(house.told)


async def test_what_an_answer_tells_beside_the_key_is_counted_where_it_came_all_at_once(open_house: OpenHouse) -> None:
    begin = event({"type": "message_start", "message": {"usage": {"input_tokens": 7, "output_tokens": 1}}})
    end = event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}})
    body = begin + end + b"data: %b\n\n" % KEY.encode()
    async with provider(head(b"text/event-stream", b"content-length: %d" % len(body)) + body) as url:
        house = await open_house(anthropic_base_url=url)
        await house.limit(5)
        await house.door()
        async with raw(house.socket()) as client:
            with contextlib.suppress(httpx2.RemoteProtocolError):
                answer = await client.post("/v1/messages", json={**ASK, "stream": True})
                assert KEY not in answer.text
        (call,) = await house.until_calls(1)
    assert (call.outcome, call.input_tokens, call.output_tokens) == ("cut", 7, 9)


async def test_what_looks_like_the_begin_of_the_key_passes(open_house: OpenHouse) -> None:
    said = b'{"text": "' + KEY.encode()[:-1] + b'", "end": "' + KEY.encode()[:9]
    async with provider(head(b"application/json"), said[:20], said[20:], pause=0.01) as url:
        house = await open_house(anthropic_base_url=url)
        await house.door()
        async with raw(house.socket()) as client:
            assert (await client.post("/v1/messages", json=ASK)).content == said


async def test_the_token_of_another_run_or_of_one_that_ended_opens_nothing(house: House, api: ScriptedMessages) -> None:
    await house.door("run_one", token="token-one")
    other = await house.door("run_two", token="token-two")
    async with raw(house.socket("run_two")) as client:
        for token, status in (("token-one", 401), ("token-two", 200)):
            answer = await client.post("/v1/messages", json=ASK, headers={"x-api-key": token})
            assert answer.status_code == status
        await other.close()
        with pytest.raises(Exception, match=r"(?i)connect|no such file|disconnected|closed"):
            await client.post("/v1/messages", json=ASK, headers={"x-api-key": "token-two"})
    async with raw(house.socket("run_one")) as client:
        answer = await client.post("/v1/messages", json=ASK, headers={"x-api-key": "token-two"})
        assert answer.status_code == 401
    assert len(api.calls) == 1


async def test_the_provider_reads_the_body_as_it_was_read_here(house: House, api: ScriptedMessages) -> None:
    await house.door()
    async with raw(house.socket()) as client:
        headers = {"content-type": "application/json; charset=utf-16"}
        await client.post("/v1/messages", content=json.dumps(ASK), headers=headers)
    assert api.calls[0].headers["content-type"] == "application/json"


async def test_endpoints_that_could_cost_elsewhere_are_not_there(house: House, api: ScriptedMessages) -> None:
    await house.door()
    async with raw(house.socket()) as client:
        for path in ("messages/batches", "files", "responses/resp_1", "embeddings", "images/generations", "complete"):
            assert (await client.post(f"/v1/{path}", json=ASK)).status_code == 404
    assert api.count == 0
