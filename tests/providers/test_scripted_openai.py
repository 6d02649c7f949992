"""The scripted provider, asked by the real openai client and by a bare socket, on loopback."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import openai
import pytest

from automagik.testing.scripted_openai import Reply, ScriptedOpenAI, ToolCall

pytestmark = pytest.mark.anyio


@pytest.fixture
async def provider() -> AsyncIterator[ScriptedOpenAI]:
    async with ScriptedOpenAI() as server:
        yield server


def client(server: ScriptedOpenAI, retries: int = 0) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=server.base_url, api_key="sk-test", max_retries=retries)


async def ask(server: ScriptedOpenAI, model: str = "scripted", text: str = "Hi") -> str | None:
    async with client(server) as api:
        answer = await api.chat.completions.create(model=model, messages=[{"role": "user", "content": text}])
    return answer.choices[0].message.content


async def stream(server: ScriptedOpenAI, model: str = "scripted") -> list[tuple[float, str]]:
    """Each token with the seconds since the request."""
    tokens: list[tuple[float, str]] = []
    async with client(server) as api:
        start = time.monotonic()
        chunks = await api.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        async for chunk in chunks:
            tokens += [(time.monotonic() - start, c.delta.content) for c in chunk.choices if c.delta.content]
            if chunk.usage is not None:
                assert chunk.usage.completion_tokens == len(tokens)
    return tokens


async def test_it_answers_plain_and_remembers_what_it_was_asked(provider: ScriptedOpenAI) -> None:
    provider.reply(Reply(text="One and only."))
    assert await ask(provider, text="What?") == "One and only."
    assert await ask(provider) == "Hello from the scripted model."
    assert [request["messages"] for request in provider.requests] == [
        [{"role": "user", "content": "What?"}],
        [{"role": "user", "content": "Hi"}],
    ]
    assert provider.headers[0]["authorization"] == "Bearer sk-test"
    assert provider.chats == 2


async def test_it_streams_word_by_word_with_usage(provider: ScriptedOpenAI) -> None:
    assert [text for _, text in await stream(provider)] == ["Hello", " from", " the", " scripted", " model."]


async def test_the_model_name_says_what_is_answered(provider: ScriptedOpenAI) -> None:
    assert await ask(provider, "echo", "Say this") == "Say this"
    assert len(await stream(provider, "bulk-200")) == 200
    assert await ask(provider, "bulk-2") == " token0 token1"
    with pytest.raises(openai.APIStatusError) as failure:
        await ask(provider, "status-503")
    assert failure.value.status_code == 503


async def test_paced_tokens_come_one_by_one(provider: ScriptedOpenAI) -> None:
    tokens = await stream(provider, "paced-4-0.1")
    assert len(tokens) == 4
    # The first may be late under load, so the pace is measured to the last: 0.3 s after the request at the least.
    assert tokens[-1][0] >= 0.28


async def test_delays_hold_back_the_first_byte(provider: ScriptedOpenAI) -> None:
    start = time.monotonic()
    assert await ask(provider, "delay-0.2") == "Hello from the scripted model."
    assert time.monotonic() - start >= 0.2


async def test_it_calls_tools_plain_and_streamed(provider: ScriptedOpenAI) -> None:
    calls = Reply(text="Let me see.", calls=(ToolCall("add", '{"a": 1}'), ToolCall("now")))
    provider.reply(calls, calls)
    async with client(provider) as api:
        plain = await api.chat.completions.create(model="scripted", messages=[{"role": "user", "content": "Hi"}])
        message = plain.choices[0].message
        assert message.tool_calls is not None
        ids = [call.id for call in message.tool_calls]
        assert plain.choices[0].finish_reason == "tool_calls"
        chunks = await api.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        deltas = [choice.delta async for chunk in chunks for choice in chunk.choices]
    called = [call for delta in deltas for call in delta.tool_calls or []]
    assert [(call.function.name, call.function.arguments) for call in called if call.function] == [
        ("add", '{"a": 1}'),
        ("now", "{}"),
    ]
    assert len({*ids, *(call.id for call in called)}) == 4


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(status=429, retry_after=1), openai.RateLimitError),
        (Reply(status=500), openai.InternalServerError),
        (Reply(status=401), openai.AuthenticationError),
        (Reply(text="cut", cut_after=0), openai.APIConnectionError),
        (Reply(text="cut short", cut_after=1), openai.APIConnectionError),
    ],
)
async def test_faults_reach_the_client(provider: ScriptedOpenAI, reply: Reply, error: type[Exception]) -> None:
    provider.reply(reply)
    with pytest.raises(error):
        await ask(provider)
    assert await ask(provider) == "Hello from the scripted model."


async def test_a_stream_is_cut_in_the_middle(provider: ScriptedOpenAI) -> None:
    provider.reply(Reply(text="one two three", cut_after=2))
    got: list[str] = []
    async with client(provider) as api:
        chunks = await api.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": "Hi"}], stream=True
        )

        async def read() -> None:
            async for chunk in chunks:
                got.extend(choice.delta.content for choice in chunk.choices if choice.delta.content)

        with pytest.raises(openai.APIConnectionError):
            await read()
    assert got == ["one", " two"]


async def test_a_client_that_goes_away_ends_its_answer(provider: ScriptedOpenAI) -> None:
    async with client(provider) as api:
        chunks = await api.chat.completions.create(
            model="paced-1000-0.05", messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        async for _ in chunks:
            break
        assert provider.answering == 1
        await chunks.close()
    async with asyncio.timeout(20):
        while provider.answering:
            await asyncio.sleep(0.01)


async def test_it_lists_models_and_refuses_the_rest(provider: ScriptedOpenAI) -> None:
    async with client(provider) as api:
        assert [model.id async for model in await api.models.list()] == ["scripted"]
        with pytest.raises(openai.NotFoundError):
            await api.embeddings.create(model="x", input="y")


async def test_nonsense_on_the_wire_closes_the_connection(provider: ScriptedOpenAI) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", provider.port)
    writer.write(b"nonsense\r\n\r\n")
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    assert await ask(provider) == "Hello from the scripted model."


def test_as_a_process_it_prints_its_port_and_stops_on_a_signal() -> None:
    command = [sys.executable, "-m", "automagik.testing.scripted_openai", "--tokens", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x") as api:
            answer = api.chat.completions.create(model="any", messages=[{"role": "user", "content": "Hi"}])
        assert answer.choices[0].message.content == " token0 token1 token2"
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(10) == 0
