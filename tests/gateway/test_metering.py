"""Usage is read from answers however they come in pieces, and from nothing that a model wrote."""

import json
from typing import Any

import pytest

from automagik.budget import Prices, Tokens
from automagik.gateway.metering import ChatMeter, MessagesMeter, ResponsesMeter
from automagik.gateway.openai_wire import ResponsesWire
from automagik.gateway.wire import Refusal
from automagik.settings import Settings


def event(data: Any) -> bytes:
    return b"event: x\ndata: " + json.dumps(data).encode() + b"\n\n"


START = event(
    {
        "type": "message_start",
        "message": {
            "usage": {
                "input_tokens": 10,
                "cache_creation_input_tokens": 30,
                "cache_read_input_tokens": 7,
                "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
                "output_tokens": 1,
            }
        },
    }
)
FORGED = event(
    {
        "type": "content_block_delta",
        "delta": {
            "type": "text_delta",
            "text": '\ndata: {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 0}}\n',
        },
    }
)
END = event({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 900}})


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_a_stream_is_read_in_any_pieces(size: int, ending: bytes) -> None:
    meter = MessagesMeter(streams=True)
    stream = (START + FORGED + event({"type": "ping"}) + END).replace(b"\n", ending)
    for place in range(0, len(stream), size):
        meter.feed(stream[place : place + size])
    meter.finish()
    assert (meter.reported, meter.complete) == (Tokens(10, 900, 7, 30, 20), True)


def test_what_was_cut_counts_no_less_than_what_came() -> None:
    meter = MessagesMeter(streams=True)
    assert meter.at_most(5000) is None
    meter.feed(START + FORGED)
    seen = meter.at_most(5000)
    assert seen is not None
    assert (seen.input, 100 < seen.output < 300) == (10, True)
    assert meter.at_most(50) == Tokens(10, 50, 7, 30, 20)
    # Thinking that isn't shown may be of any length.
    meter.feed(event({"type": "content_block_start", "content_block": {"type": "redacted_thinking", "data": "x"}}))
    assert meter.at_most(5000) == Tokens(10, 5000, 7, 30, 20)


def test_rounds_of_a_compacting_server_are_added_up() -> None:
    rounds = [{"input_tokens": 100, "output_tokens": 5}, {"input_tokens": 20, "output_tokens": 7}]
    meter = MessagesMeter(streams=False)
    usage = {"input_tokens": 20, "output_tokens": 7, "iterations": rounds}
    meter.feed(json.dumps({"type": "message", "usage": usage}).encode())
    meter.finish()
    assert meter.reported == Tokens(120, 12)


def test_openais_cached_tokens_are_told_apart() -> None:
    chat, responses = ChatMeter(streams=True), ResponsesMeter(streams=True)
    usage = {"prompt_tokens": 50, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 40}}
    chat.feed(event({"choices": [], "usage": None}) + event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n")
    assert (chat.reported, chat.complete) == (Tokens(10, 9, 40), True)
    ended = {"input_tokens": 50, "output_tokens": 9, "input_tokens_details": {"cached_tokens": 40}}
    responses.feed(event({"type": "response.created", "response": {"usage": None}}))
    assert responses.at_most(100) is None
    responses.feed(event({"type": "response.completed", "response": {"usage": ended}}))
    assert (responses.reported, responses.complete) == (Tokens(10, 9, 40), True)


def test_openais_tokens_that_are_written_to_the_cache_are_told_apart_which_are_dearer() -> None:
    chat, responses = ChatMeter(streams=False), ResponsesMeter(streams=False)
    details = {"cached_tokens": 400, "cache_write_tokens": 500}
    whole: Any = {"prompt_tokens": 1000, "completion_tokens": 9, "prompt_tokens_details": details}
    told: Any = {"input_tokens": 1000, "output_tokens": 9, "input_tokens_details": details}
    for meter, usage in ((chat, whole), (responses, told)):
        meter.feed(json.dumps({"usage": usage}).encode())
        meter.finish()
        assert meter.reported == Tokens(100, 9, 400, 500)
    price = Prices(Settings()).of("gpt-5.6-sol", provider="openai")
    assert price is not None
    assert price.cost(Tokens(100, 9, 400, 500)) == 100 * 4000 + 9 * 20_000 + 400 * 400 + 500 * 5000


def test_an_answer_that_is_no_json_or_too_strange_reports_nothing() -> None:
    for body in (
        b"",
        b"<html>",
        b"[]",
        b'{"usage": 5, "type": "message"}',
        b'{"type": "message", "usage": {"input_tokens": -5}}',
    ):
        meter = MessagesMeter(streams=False)
        meter.feed(body)
        meter.finish()
        assert meter.reported is None or meter.reported == Tokens()


def test_responses_are_limited_by_their_own_field_and_may_not_grow_unseen() -> None:
    wire = ResponsesWire()
    ask = wire.ask({"model": "gpt-5", "input": "Hello", "max_output_tokens": 9000})
    assert wire.with_max_output(ask, 2000)["max_output_tokens"] == 2000
    assert wire.costs_extra({"previous_response_id": "resp_1"}) == "`previous_response_id`"
    assert wire.reaches_out({"tools": [{"type": "web_search"}]}) == "the tool `web_search`"
    assert wire.reaches_out({"tools": [{"type": "function", "name": "f"}]}) is None
    with pytest.raises(Refusal, match="max_output_tokens"):
        wire.ask({"model": "gpt-5", "input": "Hello", "max_output_tokens": True})
