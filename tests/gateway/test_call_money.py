"""What calls are reserved at and what they count: limits hold, and a call that is cut counts what it can have cost."""

import asyncio
from typing import Any

import anthropic as sdk
import pytest
from gateway_house import MODEL, RUN, USD, House, OpenHouse, anthropic, raw, say

from automagik.budget import ModelCall, Reservation
from automagik.store import Transaction
from automagik.testing.scripted_messages import ScriptedMessages
from automagik.types import SYSTEM

pytestmark = pytest.mark.anyio

USER: Any = [{"role": "user", "content": "Hello"}]
USAGE = {"input_tokens": 100, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 50}
ASK: Any = {"model": MODEL, "max_tokens": 8000, "messages": USER}
IMAGE: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 400_000}}
# Of this model: 3 dollars a million tokens in (6 written to the cache for an hour), 15 out.


async def test_a_call_is_reserved_at_its_most_and_settled_at_what_it_cost(
    either_house: House, api: ScriptedMessages
) -> None:
    house = either_house
    say(api, {"text": "Hello", "usage": USAGE, "delay": 0.3})
    await house.limit(1)
    await house.door()
    async with anthropic(house.socket()) as client:
        asking = asyncio.create_task(client.messages.create(**ASK))
        await api.wait_for(1)
        spent, reserved = await house.budget()
        assert spent == 0
        assert reserved > 8000 * 15_000
        await asking
    (call,) = await house.until_calls(1)
    assert call.reserved_nano == reserved
    assert call.cost_nano == 100 * 3_000 + 50 * 15_000
    assert await house.budget() == (call.cost_nano, 0)


async def test_where_less_is_left_the_answer_is_kept_shorter(house: House, api: ScriptedMessages) -> None:
    await house.limit(0.05)
    await house.door()
    async with anthropic(house.socket()) as client:
        await client.messages.create(**{**ASK, "thinking": {"type": "enabled", "budget_tokens": 7000}})
    asked: Any = api.calls[0].body
    assert 2048 <= asked["max_tokens"] < 4000
    assert 1024 <= asked["thinking"]["budget_tokens"] < asked["max_tokens"]
    assert asked["messages"] == USER
    assert ("warning", "budget") in [(event, "budget" if "budget" in str(data) else "") for event, data in house.told]


async def test_a_spent_budget_refuses_and_is_not_tried_again(house: House, api: ScriptedMessages) -> None:
    await house.limit(0.001)
    door = await house.door()
    async with anthropic(house.socket(), retries=3) as client:
        with pytest.raises(sdk.PermissionDeniedError, match="budget of the run"):
            await client.messages.create(**ASK)
    assert door.refused == "budget_exceeded"
    assert [call.body for call in api.calls] == []
    (call,) = await house.until_calls(1)
    assert (call.outcome, call.status, call.cost_nano) == ("refused", 403, 0)


async def test_while_others_hold_the_rest_a_call_is_put_off(house: House, api: ScriptedMessages) -> None:
    say(api, {"text": "Hello", "delay": 0.6})
    await house.limit(0.2)
    door = await house.door()
    async with anthropic(house.socket(), retries=5) as client:
        first = asyncio.create_task(client.messages.create(**ASK))
        await api.wait_for(1)
        async with raw(house.socket()) as plain:
            answer = await plain.post("/v1/messages", json=ASK)
        assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limit_error")
        assert int(answer.headers["retry-after"]) >= 1
        assert (door.refused, door.retry_refusals) == ("budget_exceeded", 1)
        await client.messages.create(**ASK)  # the client's own retries bring it through
        await first
    assert door.refused is None


async def test_ten_at_once_never_pass_the_limit(either_house: House, api: ScriptedMessages) -> None:
    say(api, {"text": "Hello", "usage": {**USAGE, "output_tokens": 3000}, "delay": 0.05})
    await either_house.limit(0.2)
    await either_house.door()
    async with raw(either_house.socket()) as client:
        answers = await asyncio.gather(
            *(client.post("/v1/messages", json={**ASK, "max_tokens": 3000}) for _ in range(10))
        )
        spent, reserved = await either_house.budget()
    assert {answer.status_code for answer in answers} == {200, 429}
    assert spent + reserved <= 0.2 * USD


async def test_a_model_without_a_price_is_refused_where_a_limit_applies(
    open_house: OpenHouse, api: ScriptedMessages
) -> None:
    house = await open_house(anthropic_base_url=api.base_url)
    asked = {**ASK, "model": "our-own-model"}
    await house.door()
    async with raw(house.socket()) as client:
        assert (await client.post("/v1/messages", json=asked)).status_code == 200
        (call,) = await house.until_calls(1)
        assert call.cost_nano is None
        await house.limit(1)
        refused = await client.post("/v1/messages", json=asked)
        assert (refused.status_code, "AUTOMAGIK_MODEL_PRICES" in refused.text) == (403, True)
    priced = await open_house(anthropic_base_url=api.base_url, model_prices=["our-own-*=1/2"])
    await priced.door()
    async with raw(priced.socket()) as client:
        assert (await client.post("/v1/messages", json=asked)).status_code == 200


@pytest.mark.parametrize("more", [{"speed": "fast"}, {"inference_geo": "us"}])
async def test_what_is_dearer_than_the_price_is_refused_under_a_budget(house: House, more: Any) -> None:
    await house.limit(1)
    await house.door()
    async with raw(house.socket()) as client:
        assert (await client.post("/v1/messages", json={**ASK, **more})).status_code == 403


async def test_an_image_is_reserved_as_an_image_and_a_long_text_by_its_bytes(house: House) -> None:
    await house.limit(20)
    await house.door()
    async with anthropic(house.socket()) as client:
        await client.messages.create(**{**ASK, "messages": [{"role": "user", "content": [IMAGE]}]})
        # A tool's input that looks like an image is text.
        told = [
            *USER,
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "x", "input": IMAGE}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [IMAGE]}]},
        ]
        await client.messages.create(**{**ASK, "messages": told})
    image, text = await house.until_calls(2)
    assert image.reserved_nano < 10_000 * 6_000 + 8000 * 15_000
    assert 400_000 * 6_000 < text.reserved_nano < 420_000 * 6_000 + 8000 * 15_000


async def test_a_long_conversation_is_reserved_by_the_tokens_that_were_reported(
    house: House, api: ScriptedMessages
) -> None:
    words = "word " * 40_000
    first: Any = [
        {"role": "user", "content": [{"type": "text", "text": words, "cache_control": {"type": "ephemeral"}}]}
    ]
    plain: Any = [{"role": "user", "content": [{"type": "text", "text": words}]}]
    more: Any = [
        *plain,
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": [{"type": "text", "text": "And?", "cache_control": {"type": "ephemeral"}}]},
    ]
    say(api, {"text": "Hello", "usage": {**USAGE, "input_tokens": 40_000}})
    await house.limit(20)
    await house.door()
    async with anthropic(house.socket()) as client:
        await client.messages.create(**{**ASK, "messages": first})
        await client.messages.create(**{**ASK, "messages": more})
        await client.messages.create(**{**ASK, "messages": [{"role": "user", "content": "x" + words}]})
    before, after, other = await house.until_calls(3)
    assert before.reserved_nano > 200_000 * 6_000
    assert after.reserved_nano < 45_000 * 6_000 + 8000 * 15_000
    assert other.reserved_nano > 200_000 * 6_000


async def test_where_bytes_do_not_fit_the_providers_count_decides(house: House, api: ScriptedMessages) -> None:
    await house.limit(0.8)
    await house.door()
    async with anthropic(house.socket()) as client:
        await client.messages.create(**{**ASK, "messages": [{"role": "user", "content": "word " * 40_000}]})
    (call,) = await house.until_calls(1)
    assert 50_000 * 6_000 < call.reserved_nano < 0.8 * USD
    assert api.calls[0].body["max_tokens"] == 8000


async def until_gone(api: ScriptedMessages) -> None:
    async with asyncio.timeout(20):
        while api.answering:
            await asyncio.sleep(0.01)


async def stored_cut(house: House) -> ModelCall:
    (call,) = await house.until_calls(1)
    assert call.outcome == "cut"
    assert (await house.budget()) == (call.cost_nano, 0)
    return call


async def test_a_client_that_goes_away_ends_the_call_and_pays_what_it_saw(house: House, api: ScriptedMessages) -> None:
    say(api, {"text": "one two three four five " * 20, "chunk_delay": 0.05, "usage": USAGE})
    await house.limit(1)
    door = await house.door()
    async with anthropic(house.socket()) as client, client.messages.stream(**ASK) as stream:
        async for _ in stream.text_stream:
            break
    await until_gone(api)
    call = await stored_cut(house)
    assert call.input_tokens == 100
    assert 1 <= call.output_tokens < 500
    assert door.usage.output_tokens == call.output_tokens


@pytest.mark.parametrize("kind", ["cut", "error"])
async def test_a_stream_that_breaks_breaks_for_the_client_and_pays_what_it_saw(
    house: House, api: ScriptedMessages, kind: str
) -> None:
    say(api, {"text": "one two three four five", "usage": USAGE, "fault": {"kind": kind, "after": 4}})
    await house.limit(1)
    await house.door()
    async with anthropic(house.socket()) as client:
        with pytest.raises((sdk.APIError, Exception)):
            async with client.messages.stream(**ASK) as stream:
                await stream.get_final_message()
    (call,) = await house.until_calls(1)
    assert (call.input_tokens, call.output_tokens < 500) == (100, True)
    assert await house.budget() == (call.cost_nano, 0)


@pytest.mark.parametrize("fault", [{"kind": "refuse"}, {"kind": "garbage"}])
async def test_an_answer_whose_usage_is_not_told_counts_in_full(
    house: House, api: ScriptedMessages, fault: Any
) -> None:
    say(api, {"text": "one", "fault": fault})
    await house.limit(1)
    await house.door()
    async with raw(house.socket()) as client:
        await client.post("/v1/messages", json=ASK)
    (call,) = await house.until_calls(1)
    assert call.cost_nano == call.reserved_nano > 0
    assert await house.budget() == (call.reserved_nano, 0)


async def test_closing_the_door_settles_what_is_under_way(house: House, api: ScriptedMessages) -> None:
    say(api, {"text": "one two " * 50, "chunk_delay": 0.1, "usage": USAGE})
    await house.limit(1)
    door = await house.door()
    async with anthropic(house.socket()) as client, client.messages.stream(**ASK) as stream:
        await anext(aiter(stream.text_stream))
        assert door.usage.input_tokens == 100  # as it is known so far
        await door.close()
        with pytest.raises(Exception, match=r"(?i)peer|closed|read|connection"):
            await stream.get_final_message()
    await stored_cut(house)


async def test_a_soft_limit_that_is_passed_is_told_once(house: House, api: ScriptedMessages) -> None:
    say(api, {"text": "Hello", "usage": {**USAGE, "output_tokens": 2000}})
    await house.store.write(
        lambda tx: tx.budgets.set("organisation", "", "total", USD, soft_limit_nano=USD // 50, key_id=SYSTEM.key_id)
    )
    await house.ledger.refresh()
    await house.door()
    async with anthropic(house.socket()) as client:
        await client.messages.create(**ASK)
        await client.messages.create(**ASK)
    await house.until_calls(2)
    assert [event for event, _ in house.told] == ["budget_warning"]


async def test_a_call_that_died_with_its_process_counts_in_full(house: House) -> None:
    """What the ledger does with reservations that nobody settles is its own test; here, that the gateway's are such."""
    await house.limit(1)
    held: Reservation = await house.ledger.reserve((await party_of(house)), 1000, seconds=0.01)
    await asyncio.sleep(0.05)
    (left,) = await house.store.read(lambda tx: tx.budgets.left_behind(10))
    assert left.reservation_id == held.reservation_id


async def party_of(house: House) -> Any:
    from automagik.budget import Party

    del house
    return Party(run_id=RUN)


async def test_a_call_under_way_counts_in_a_budget_that_is_set_meanwhile(house: House, api: ScriptedMessages) -> None:
    say(api, {"text": "one two three " * 5, "chunk_delay": 0.05})
    await house.door()
    async with (
        raw(house.socket()) as client,
        client.stream("POST", "/v1/messages", json={**ASK, "stream": True}) as answer,
    ):
        pieces = answer.aiter_bytes()
        await anext(pieces)
        await house.limit(1)
        assert await house.budget() == (0, 0)
        async for _ in pieces:
            pass
    (call,) = await house.until_calls(1)
    assert call.reserved_nano == 0 and call.cost_nano
    assert await house.budget() == (call.cost_nano, 0)


async def test_a_request_that_is_too_deep_to_be_counted_keeps_no_other_from_being_noted(
    house: House, api: ScriptedMessages
) -> None:
    say(api, {"text": "one two three " * 10, "chunk_delay": 0.2})
    await house.door()
    deep: Any = "x"
    for _ in range(700):
        deep = [deep]
    async with raw(house.socket()) as client:
        asked = [{**ASK, "stream": True, "metadata": {"deep": deep, "cache_control": "x"}}, {**ASK, "stream": True}]
        tasks = [asyncio.create_task(client.post("/v1/messages", json=one)) for one in asked]
        async with asyncio.timeout(40):
            while await house.store.read(_noted) != [False, True]:
                await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    assert {call.outcome for call in await house.until_calls(2)} == {"cut"}


def _noted(tx: Transaction) -> list[bool]:
    found = tx.connection.exec_driver_sql("SELECT priced FROM reservations ORDER BY priced").scalars()
    return [bool(one) for one in found]
