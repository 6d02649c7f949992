"""The door of a run: who may come in, what it may ask for, and that answers pass untouched and are counted."""

import asyncio
import hashlib
import json
from decimal import Decimal
from typing import Any

import anthropic as sdk
import httpx2
import pytest
from gateway_house import KEY, MODEL, RUN, TOKEN, House, OpenHouse, anthropic, openai, raw, say, talk
from pydantic import SecretStr

from automagik.budget import Party
from automagik.errors import ConfigurationError
from automagik.gateway import RunAccess
from automagik.testing.scripted_messages import ScriptedMessages
from automagik.testing.scripted_openai import Reply, ScriptedOpenAI

pytestmark = pytest.mark.anyio

USER: Any = [{"role": "user", "content": "Hello"}]
USAGE = {"input_tokens": 100, "cache_creation_input_tokens": 20, "cache_read_input_tokens": 400, "output_tokens": 50}
ASK: Any = {"model": MODEL, "max_tokens": 100, "messages": USER}


async def test_a_message_is_answered_with_the_real_key_and_counted(either_house: House, api: ScriptedMessages) -> None:
    say(api, {"text": "Hello there", "usage": USAGE})
    door = await either_house.door()
    async with anthropic(either_house.socket()) as client:
        message = await client.messages.create(model=MODEL, max_tokens=100, messages=USER)
    assert message.content[0].to_dict()["text"] == "Hello there"
    (call,) = await either_house.until_calls(1)
    assert (call.status, call.outcome, call.model, call.wire) == (200, "completed", MODEL, "anthropic")
    assert (call.input_tokens, call.cache_write_tokens, call.cache_read_tokens, call.output_tokens) == (
        100,
        20,
        400,
        50,
    )
    # 3 and 15 dollars a million; read from the cache at a tenth, written to it at five quarters
    assert call.cost_nano == 100 * 3000 + 20 * 3750 + 400 * 300 + 50 * 15000
    assert door.usage.requests == 1
    assert door.usage.input_tokens == 520
    assert door.usage.cost_usd == Decimal(call.cost_nano).scaleb(-9)
    assert api.calls[0].headers["x-api-key"] == KEY
    assert TOKEN not in str(api.calls[0].headers)


async def test_a_stream_passes_byte_for_byte(house: House, api: ScriptedMessages) -> None:
    say(api, {"thinking": "Hm, ünï", "text": "One two three " * 50, "usage": USAGE})
    asked = {**ASK, "max_tokens": 9000, "stream": True}
    async with httpx2.AsyncClient() as direct:
        expected = (await direct.post(f"{api.base_url}/v1/messages", json=asked)).content
    door = await house.door()
    async with raw(house.socket()) as client:
        answer = await client.post("/v1/messages", json=asked)
    assert answer.content == expected
    assert answer.headers["content-type"].startswith("text/event-stream")
    (call,) = await house.until_calls(1)
    assert (call.input_tokens, call.output_tokens, call.outcome) == (100, 50, "completed")
    assert call.first_byte_ms is not None
    assert door.usage.output_tokens == 50


@pytest.mark.parametrize(
    "headers", [{}, {"x-api-key": "wrong"}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}]
)
async def test_without_the_token_nothing_is_let_through(
    house: House, api: ScriptedMessages, headers: dict[str, str]
) -> None:
    await house.door()
    transport = httpx2.AsyncHTTPTransport(uds=str(house.socket()))
    async with httpx2.AsyncClient(transport=transport, headers=headers) as client:
        answer = await client.post("http://localhost/v1/messages", json=ASK)
        other = await client.get("http://localhost/anything")
    assert (answer.status_code, other.status_code) == (401, 401)
    assert answer.json()["error"]["type"] == "authentication_error"
    assert answer.headers["x-should-retry"] == "false"
    assert api.calls == []
    assert await house.calls() == []


async def test_the_token_may_come_as_a_bearer(house: House) -> None:
    await house.door()
    transport = httpx2.AsyncHTTPTransport(uds=str(house.socket()))
    async with httpx2.AsyncClient(transport=transport, headers={"authorization": f"bearer {TOKEN}"}) as client:
        assert (await client.post("http://localhost/v1/messages", json=ASK)).status_code == 200


async def test_an_auth_token_goes_out_as_a_bearer(open_house: OpenHouse, api: ScriptedMessages) -> None:
    house = await open_house(
        anthropic_base_url=api.base_url, anthropic_api_key=None, anthropic_auth_token=SecretStr("oauth-1")
    )
    await house.door()
    async with anthropic(house.socket()) as client:
        await client.messages.create(**ASK)
    assert api.calls[0].headers["authorization"] == "Bearer oauth-1"
    assert "x-api-key" not in api.calls[0].headers


async def test_the_key_may_be_a_stored_secret(open_house: OpenHouse, api: ScriptedMessages) -> None:
    house = await open_house(anthropic_base_url=api.base_url, anthropic_api_key=None)
    await house.secrets.set("anthropic_api_key", SecretStr("sk-stored"))
    await house.door()
    async with anthropic(house.socket()) as client:
        await client.messages.create(**ASK)
    assert api.calls[0].headers["x-api-key"] == "sk-stored"


async def test_without_a_key_the_answer_names_the_setting_and_is_not_tried_again(open_house: OpenHouse) -> None:
    house = await open_house(anthropic_api_key=None, anthropic_base_url="https://api.anthropic.invalid")
    await house.door()
    async with anthropic(house.socket(), retries=3) as client:
        with pytest.raises(sdk.AuthenticationError, match="ANTHROPIC_API_KEY"):
            await client.messages.create(**ASK)
    assert len(await house.until_calls(1)) == 1


async def test_a_key_is_not_sent_in_plain_text_to_a_public_host(open_house: OpenHouse) -> None:
    house = await open_house(anthropic_base_url="http://api.anthropic.example.org")
    await house.door()
    async with anthropic(house.socket()) as client:
        with pytest.raises(sdk.InternalServerError, match="AUTOMAGIK_ANTHROPIC_BASE_URL"):
            await client.messages.create(**ASK)


async def test_what_the_provider_says_of_the_key_stays_here(
    open_house: OpenHouse, api: ScriptedMessages, capfd: pytest.CaptureFixture[str]
) -> None:
    house = await open_house(anthropic_base_url=api.base_url)
    await house.door()
    async with raw(house.socket()) as client:
        for status in (401, 400):
            error = {"status": status, "message": f"Bad key {KEY}"}
            say(api, {"error": error})
            answer = await client.post("/v1/messages", json=ASK)
            assert answer.status_code == status
            assert KEY not in answer.text
    assert any(event == "warning" and "key" in str(data["detail"]) for event, data in house.told)
    assert KEY not in str(house.told) + str(await house.calls()) + "".join(capfd.readouterr())


async def test_only_the_models_of_the_run_are_called(house: House, api: ScriptedMessages) -> None:
    door = await house.door(models=("claude-sonnet-*",))
    async with anthropic(house.socket()) as client:
        await client.messages.create(**ASK)
        with pytest.raises(sdk.PermissionDeniedError, match="claude-opus-4-6"):
            await client.messages.create(**{**ASK, "model": "claude-opus-4-6"})
        assert door.refused == "policy"
        await client.messages.create(**ASK)
    assert len(api.calls) == 2
    assert [call.outcome for call in await house.until_calls(3)] == ["completed", "refused", "completed"]
    assert door.refused is None


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tools": [{"type": "code_execution_20250522", "name": "code_execution"}]},
        {"mcp_servers": [{"type": "url", "url": "https://example.org", "name": "x"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "https://a.b/c"}}]}
            ]
        },
    ],
)
async def test_the_provider_does_not_reach_out_for_a_sandbox(house: House, api: ScriptedMessages, more: Any) -> None:
    await house.door()
    async with raw(house.socket()) as client:
        answer = await client.post("/v1/messages", json={**ASK, **more})
        assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error")
        mine = {
            "tools": [{"name": "Bash", "input_schema": {"type": "object"}}, {"type": "bash_20250124", "name": "bash"}]
        }
        assert (await client.post("/v1/messages", json={**ASK, **mine})).status_code == 200
    assert len(api.calls) == 1


async def test_tokens_are_counted_and_models_listed_by_the_provider(house: House) -> None:
    await house.door(models=("nothing-*",))
    async with raw(house.socket()) as client:
        refused = await client.post("/v1/messages/count_tokens", json={"model": MODEL, "messages": USER})
        listed = await client.get("/v1/models", headers={"anthropic-version": "2023-06-01"})
    assert refused.status_code == 403
    assert listed.json()["data"] == []
    await house.door()
    async with anthropic(house.socket()) as client:
        counted = await client.messages.count_tokens(model=MODEL, messages=USER)
        assert counted.input_tokens > 0
        assert await client.models.list() is not None
    assert await house.calls() == []


async def test_other_paths_and_methods_lead_nowhere(house: House, api: ScriptedMessages) -> None:
    await house.door()
    async with raw(house.socket()) as client:
        statuses = [
            (await client.request(method, path)).status_code
            for method, path in [
                ("GET", "/"),
                ("POST", "/v1/files"),
                ("GET", "/v1/messages"),
                ("HEAD", "/"),
                ("POST", "/v1/messages/"),
            ]
        ]
    assert statuses == [404, 404, 405, 404, 404]
    assert api.calls == []


async def test_errors_and_their_times_pass_through(house: House, api: ScriptedMessages) -> None:
    say(api, {"error": {"status": 429, "retry_after": 7}})
    await house.limit(5)
    door = await house.door()
    async with raw(house.socket()) as client:
        answer = await client.post("/v1/messages", json=ASK)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    (call,) = await house.until_calls(1)
    assert (call.status, call.outcome, call.cost_nano) == (429, "failed", 0)
    assert await house.budget() == (0, 0)
    assert door.refused is None


async def test_a_provider_that_is_away_is_a_502_which_costs_nothing(house: House, api: ScriptedMessages) -> None:
    await house.limit(5)
    await house.door()
    await api.refuse()
    async with raw(house.socket()) as client:
        answer = await client.post("/v1/messages", json=ASK)
    assert (answer.status_code, answer.json()["error"]["type"]) == (502, "api_error")
    await house.until_calls(1)
    assert await house.budget() == (0, 0)


async def test_a_redirect_is_not_followed(open_house: OpenHouse) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 307 Moved\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        house = await open_house(anthropic_base_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await house.door()
        async with raw(house.socket()) as client:
            refused = await client.post("/v1/messages", json=ASK)
        assert refused.status_code == 502
        assert "location" not in refused.headers


async def test_a_call_that_takes_too_long_is_ended(open_house: OpenHouse, api: ScriptedMessages) -> None:
    say(api, {"text": "Late", "delay": 5})
    house = await open_house(anthropic_base_url=api.base_url, model_call_timeout_seconds=0.2)
    await house.limit(5)
    await house.door()
    async with raw(house.socket()) as client:
        answer = await client.post("/v1/messages", json=ASK)
    assert answer.status_code == 504
    (call,) = await house.until_calls(1)
    # What it cost is not known: it counts in full.
    assert call.outcome == "cut"
    assert call.cost_nano == call.reserved_nano > 0
    assert await house.budget() == (call.reserved_nano, 0)


async def test_the_demo_answers_without_a_key_and_costs_nothing(open_house: OpenHouse) -> None:
    house = await open_house(anthropic_api_key=None, anthropic_base_url="https://api.anthropic.invalid")
    await house.limit(0.000001)
    door = await house.door(upstream="demo")
    async with anthropic(house.socket()) as client:
        message = await client.messages.create(model="demo", max_tokens=1000, messages=USER)
        async with client.messages.stream(model="demo", max_tokens=1000, messages=USER) as stream:
            streamed = await stream.get_final_message()
        assert (await client.messages.count_tokens(model="demo", messages=USER)).input_tokens > 0
        assert [model.id async for model in client.models.list()] == ["demo"]
    assert message.content[0].to_dict() == streamed.content[0].to_dict()
    calls = await house.until_calls(2)
    assert [call.cost_nano for call in calls] == [0, 0]
    assert door.usage.cost_usd == 0
    assert door.usage.output_tokens == 2 * message.usage.output_tokens


async def test_openais_client_is_metered_too(open_house: OpenHouse) -> None:
    async with ScriptedOpenAI(default=Reply(tokens=(" a", " b", " c"))) as provider:
        house = await open_house(openai_base_url=provider.base_url, openai_api_key=SecretStr("sk-openai"))
        door = await house.door(models=("gpt-*",))
        async with openai(house.socket()) as client:
            asked: Any = {"model": "gpt-4o", "messages": USER}
            plain = await client.chat.completions.create(**asked)
            stream = await client.chat.completions.create(**asked, stream=True)
            pieces = [chunk async for chunk in stream]
            listed = await client.models.list()
        assert provider.headers[0]["authorization"] == "Bearer sk-openai"
        assert provider.requests[1]["stream_options"] == {"include_usage": True}
    assert plain.choices[0].message.content == " a b c"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces if chunk.choices) == " a b c"
    assert listed.data == []
    calls = await house.until_calls(2)
    assert [(call.wire, call.input_tokens, call.output_tokens) for call in calls] == [("openai", 25, 3)] * 2
    assert all(call.cost_nano for call in calls)
    assert door.usage.requests == 2


async def test_fifty_streams_at_once_come_whole(house: House, api: ScriptedMessages) -> None:
    say(api, {"text": "One two three four five", "chunk_delay": 0.005, "usage": USAGE})
    await house.limit(5)
    door = await house.door()

    async def one(number: int) -> str:
        async with client.messages.stream(
            model=MODEL, max_tokens=100, messages=[{"role": "user", "content": f"Number {number}"}]
        ) as stream:
            return (await stream.get_final_message()).content[0].to_dict()["text"]

    async with anthropic(house.socket()) as client:
        texts = await asyncio.gather(*(one(number) for number in range(50)))
    assert set(texts) == {"One two three four five"}
    calls = await house.until_calls(50)
    spent, reserved = await house.budget()
    assert (spent, reserved) == (sum(call.cost_nano or 0 for call in calls), 0)
    assert door.usage.output_tokens == 50 * 50


async def test_what_a_run_used_before_is_counted_on(open_house: OpenHouse, api: ScriptedMessages) -> None:
    first = await open_house(anthropic_base_url=api.base_url)
    door = await first.door()
    async with anthropic(first.socket()) as client:
        await client.messages.create(**ASK)
    await first.until_calls(1)
    used = door.usage
    second = await open_house(anthropic_base_url=api.base_url)
    again = await second.door()
    assert again.usage == used
    async with anthropic(second.socket()) as client:
        await client.messages.create(**ASK)
    await second.until_calls(2)
    assert again.usage.requests == 2


async def test_a_closed_door_leaves_no_socket_and_spares_that_of_another_process(open_house: OpenHouse) -> None:
    house = await open_house()
    door = await house.door()
    assert house.socket().stat().st_mode & 0o777 == 0o666
    other = await (await open_house()).door()
    await door.close()
    assert house.socket().is_socket()
    assert (await talk(house.socket(), b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 401 ")
    await other.close()
    assert not house.socket().exists()


async def test_a_path_that_is_too_long_or_taken_is_told(house: House) -> None:
    access = RunAccess(RUN, Party(), hashlib.sha256(b"x").digest())
    with pytest.raises(ConfigurationError, match="too long") as long:
        await house.gateway.open_door(access, house.sockets / ("x" * 100), tell=print)
    assert "AUTOMAGIK_RUNTIME_DIR" in (long.value.hint or "")
    (house.sockets / "file").write_text("mine")
    with pytest.raises(ConfigurationError, match="else than a socket"):
        await house.gateway.open_door(access, house.sockets / "file", tell=print)
    assert json.dumps((house.sockets / "file").read_text()) == '"mine"'


async def test_the_head_of_an_answer_does_not_wait_for_its_body(open_house: OpenHouse) -> None:
    seen = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        await seen.wait()
        writer.write(b"data: 1\n\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        house = await open_house(anthropic_base_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await house.door()
        async with (
            asyncio.timeout(40),
            raw(house.socket()) as client,
            client.stream("POST", "/v1/messages", json=ASK) as answered,
        ):
            seen.set()
            assert await answered.aread() == b"data: 1\n\n"
