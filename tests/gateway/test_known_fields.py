"""Under a budget a request has only fields of which it is known that they cost no more than is reserved."""

from typing import Any

import pytest
from gateway_house import MODEL, House, OpenHouse, anthropic, openai, raw
from pydantic import SecretStr

from automagik.gateway.openai_wire import ResponsesWire
from automagik.testing.scripted_messages import ScriptedMessages
from automagik.testing.scripted_openai import Reply, ScriptedOpenAI

pytestmark = pytest.mark.anyio

USER: Any = [{"role": "user", "content": "Hello"}]
ASK: Any = {"model": MODEL, "max_tokens": 500, "messages": USER}


@pytest.mark.parametrize(
    "more",
    [
        {"thread": {"type": "continue", "previous_message_id": "msg_1"}},
        {"compaction": {"instructions": "Sum it up"}},
        {"best_of": 20, "temperature": 1},
        {"something_of_next_year": None},
    ],
)
async def test_a_field_of_which_nothing_is_known_is_refused_under_a_budget_and_named(
    house: House, api: ScriptedMessages, more: Any
) -> None:
    await house.door()
    async with raw(house.socket()) as client:
        assert (await client.post("/v1/messages", json={**ASK, **more})).status_code == 200
        await house.limit(5)
        refused = await client.post("/v1/messages", json={**ASK, **more})
    assert refused.status_code == 400 and len(api.calls) == 1
    text = refused.json()["error"]["message"]
    assert f": `{next(iter(more))}`. " in text and "AUTOMAGIK_GATEWAY_FIELDS" in text
    assert "temperature" not in text


async def test_an_operator_can_allow_a_field(open_house: OpenHouse, api: ScriptedMessages) -> None:
    house = await open_house(anthropic_base_url=api.base_url, gateway_fields=["cache_salt"])
    await house.limit(5)
    await house.door()
    async with raw(house.socket()) as client:
        assert (await client.post("/v1/messages", json={**ASK, "cache_salt": "a"})).status_code == 200
        assert (await client.post("/v1/messages", json={**ASK, "cache_sugar": "a"})).status_code == 400
    assert api.calls[0].body["cache_salt"] == "a"


async def test_what_anthropics_client_usually_asks_passes_under_a_budget(house: House, api: ScriptedMessages) -> None:
    await house.limit(5)
    await house.door()
    tool: Any = {"name": "look", "description": "Looks", "input_schema": {"type": "object"}}
    asked: Any = {
        **ASK,
        "max_tokens": 4000,
        "system": [{"type": "text", "text": "Be kind", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        "tools": [tool],
        "tool_choice": {"type": "auto"},
        "thinking": {"type": "enabled", "budget_tokens": 2000},
        "metadata": {"user_id": "u"},
        "stop_sequences": ["END"],
        "service_tier": "auto",
        "cache_control": {"type": "ephemeral"},
        "output_config": {"effort": "high"},
    }
    async with anthropic(house.socket()) as client:
        await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            await stream.get_final_message()
        edits: Any = {"edits": [{"type": "clear_tool_uses_20250919"}]}
        await client.beta.messages.create(**asked, betas=["context-management-2025-06-27"], context_management=edits)
    assert len(api.calls) == 3


async def test_what_openais_client_usually_asks_passes_under_a_budget(open_house: OpenHouse) -> None:
    async with ScriptedOpenAI(default=Reply(tokens=(" a", " b"))) as provider:
        house = await open_house(openai_base_url=provider.base_url, openai_api_key=SecretStr("sk-openai"))
        await house.limit(5)
        await house.door()
        asked: Any = {
            "model": "gpt-4o",
            "messages": USER,
            "max_completion_tokens": 100,
            "temperature": 0.5,
            "top_p": 1,
            "n": 1,
            "seed": 1,
            "stop": ["END"],
            "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "response_format": {"type": "json_object"},
            "reasoning_effort": "low",
            "logprobs": True,
            "top_logprobs": 2,
            "metadata": {"a": "b"},
            "store": False,
            "user": "u",
            "service_tier": "default",
            "prompt_cache_key": "k",
            "verbosity": "low",
        }
        async with openai(house.socket()) as client:
            await client.chat.completions.create(**asked)
            async for _ in await client.chat.completions.create(**asked, stream=True):
                pass
        assert len(provider.requests) == 2


def test_what_a_response_of_openai_usually_has_is_known_and_its_dear_ways_are_not() -> None:
    wire = ResponsesWire()
    usual: Any = {
        "model": "gpt-5",
        "input": "Hello",
        "instructions": "Be kind",
        "max_output_tokens": 100,
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "text"}},
        "include": ["reasoning.encrypted_content"],
        "store": False,
        "stream": True,
        "truncation": "disabled",
        "parallel_tool_calls": True,
    }
    assert usual.keys() <= wire.fields and wire.costs_extra(usual) is None
    assert wire.costs_extra({**usual, "reasoning": {"mode": "pro"}}) == "`reasoning` with a `mode`"
    assert not {"moderation", "image", "access_programs"} & wire.fields
