"""Names to models, against real servers on loopback."""

import asyncio
import os
import subprocess
import sys
import tomllib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.exceptions import FallbackExceptionGroup, ModelAPIError
from pydantic_ai.models import Model, known_model_names

from automagik.errors import InvalidInput
from automagik.providers import DEFAULT_MODELS, DemoModel, Discovery, ModelRegistry
from automagik.settings import Settings
from automagik.testing.scripted_openai import Reply, ScriptedOpenAI

pytestmark = pytest.mark.anyio

KEYS = {
    "OPENAI_API_KEY": "sk-openai-SECRET",
    "ANTHROPIC_API_KEY": "sk-ant-SECRET",
    "GOOGLE_API_KEY": "google-SECRET",
    "AUTOMAGIK_MODEL_API_KEY": "own-SECRET",
}


class TurnedClock:
    """Time that a test turns."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No vendor's key or address of the machine that runs the tests."""
    for name in list(os.environ):
        if name.split("_")[-1] in {"KEY", "TOKEN", "URL", "ENDPOINT", "REGION", "PROXY", "proxy"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # Google's library would ask the cloud's metadata server


def settings(**values: Any) -> Settings:
    return Settings.model_validate({"discover_local_models": False, **values})


@asynccontextmanager
async def opened(registry: ModelRegistry) -> AsyncGenerator[ModelRegistry]:
    await registry.open()
    try:
        yield registry
    finally:
        await registry.close()


@pytest.fixture
async def provider() -> AsyncIterator[ScriptedOpenAI]:
    async with ScriptedOpenAI() as server:
        yield server


def own_server(provider: ScriptedOpenAI, **values: Any) -> ModelRegistry:
    return ModelRegistry(settings(model_base_url=provider.base_url, **values))


async def ask(model: Model, text: str = "Hi") -> str:
    return (await Agent(model).run(text)).output


async def refused(registry: ModelRegistry, name: str) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        await registry.resolve(name)
    error = caught.value
    assert (error.code, error.field, error.status) == ("model_not_available", ("body", "model"), 422)
    assert error.hint
    assert "SECRET" not in f"{error.detail} {error.hint}"
    return error


async def test_models_of_a_server_of_ones_own_answer(provider: ScriptedOpenAI) -> None:
    async with opened(own_server(provider, model_api_key=KEYS["AUTOMAGIK_MODEL_API_KEY"])) as registry:
        assert await ask(await registry.resolve("openai-chat:echo"), "Say this") == "Say this"
    assert provider.headers[0]["authorization"] == "Bearer own-SECRET"


async def test_the_vendors_key_is_not_sent_to_a_server_of_ones_own(provider: ScriptedOpenAI) -> None:
    async with opened(own_server(provider, openai_api_key=KEYS["OPENAI_API_KEY"])) as registry:
        await ask(await registry.resolve("openai-chat:echo"))
        vendors = await registry.resolve("openai:gpt-5")
    assert "SECRET" not in str(provider.headers)
    assert vendors.base_url == "https://api.openai.com/v1/"


async def test_a_model_is_built_once(provider: ScriptedOpenAI) -> None:
    async with opened(own_server(provider)) as registry:
        assert registry.cached("openai-chat:a") is None
        first, *others = await asyncio.gather(*(registry.resolve("openai-chat:a") for _ in range(10)))
        assert all(other is first for other in others)
        assert registry.cached("openai-chat:a") is first
        assert await registry.resolve("openai-chat:b") is not first


async def test_names_from_requests_do_not_fill_the_memory(provider: ScriptedOpenAI) -> None:
    async with opened(own_server(provider)) as registry:
        for index in range(600):
            await registry.resolve(f"openai-chat:m{index}")
        assert registry.cached("openai-chat:m0") is None
        assert registry.cached("openai-chat:m599") is not None


async def test_one_client_serves_models_of_several_vendors(provider: ScriptedOpenAI) -> None:
    keys = {name.lower(): value for name, value in KEYS.items() if not name.startswith("AUTOMAGIK")}
    async with opened(ModelRegistry(settings(model_base_url=provider.base_url, **keys))) as registry:
        clients: list[Any] = []
        for name in ("openai-chat:a", *DEFAULT_MODELS.values()):
            model: Any = await registry.resolve(name)
            sdk: Any = model.client
            clients.append(sdk._api_client._async_httpx_client if name.startswith("google") else sdk._client)
        assert len({id(client) for client in clients}) == 1
    assert clients[0].is_closed


async def test_streams_share_the_pool_and_are_not_held_up_by_each_other(provider: ScriptedOpenAI) -> None:
    async with opened(own_server(provider)) as registry:
        agent = Agent(await registry.resolve("openai-chat:paced-3-0.1"))

        async def stream() -> str:
            async with agent.run_stream("Hi") as streamed:
                return await streamed.get_output()

        outputs = await asyncio.gather(*(stream() for _ in range(150)))
    assert set(outputs) == {" token0 token1 token2"}


@pytest.mark.parametrize(
    "fault",
    [
        Reply(status=500),
        Reply(status=503),
        Reply(status=429, retry_after=0),
        Reply(status=401),
        Reply(status=404),
        Reply(cut_after=0),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_the_next_model_answers_where_the_first_fails(
    provider: ScriptedOpenAI, fault: Reply, streamed: bool
) -> None:
    async with opened(own_server(provider)) as registry:
        broken: Any = await registry.resolve("openai-chat:first")
        broken.client.max_retries = 0  # the SDK's own retries would only take time here
        provider.reply(fault)
        with pytest.raises(ModelAPIError):
            await ask(broken)
        provider.reply(fault)
        agent = Agent(await registry.with_fallbacks(["openai-chat:first", "openai-chat:second"]))
        if streamed:
            async with agent.run_stream("Hi") as stream:
                assert await stream.get_output() == "Hello from the scripted model."
        else:
            assert (await agent.run("Hi")).output == "Hello from the scripted model."
    assert [request["model"] for request in provider.requests][-2:] == ["first", "second"]


async def test_where_all_fail_the_run_fails_with_each_cause(provider: ScriptedOpenAI) -> None:
    async with opened(own_server(provider)) as registry:
        model = await registry.with_fallbacks(["openai-chat:status-400", "openai-chat:status-401"])
        with pytest.raises(FallbackExceptionGroup) as caught:
            await ask(model)
    assert len(caught.value.exceptions) == 2


async def test_fallbacks_are_cached_and_one_name_is_no_fallback(provider: ScriptedOpenAI) -> None:
    async with opened(own_server(provider)) as registry:
        pair = ("openai-chat:a", "openai-chat:b")
        assert await registry.with_fallbacks(pair) is await registry.with_fallbacks(list(pair))
        assert registry.cached(*pair) is not None
        assert await registry.with_fallbacks(["openai-chat:a", "openai-chat:a"]) is registry.cached("openai-chat:a")
        with pytest.raises(InvalidInput):
            await registry.with_fallbacks(["openai-chat:a", "groq:llama"])


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("openai:gpt-5", "OPENAI_API_KEY"),
        ("openai-chat:gpt-5", "AUTOMAGIK_MODEL_BASE_URL"),
        ("anthropic:claude-sonnet-5-5", "ANTHROPIC_API_KEY"),
        ("google:gemini-3.8-flash", "GOOGLE_API_KEY"),
        ("openrouter:x/y", "OPENROUTER_API_KEY"),
        ("deepseek:deepseek-chat", "DEEPSEEK_API_KEY"),
        ("ollama:llama3", "OLLAMA_BASE_URL"),
        ("vercel:x", "VERCEL_AI_GATEWAY_API_KEY or VERCEL_OIDC_TOKEN"),
        ("gateway/openai:gpt-5", "PYDANTIC_AI_GATEWAY_API_KEY"),
        ("groq:llama-3.3-70b-versatile", "pip install 'automagik-agents[groq]'"),
        ("mistral:mistral-large-latest", "pip install 'automagik-agents[mistral]'"),
        ("cohere:command-r", "pip install 'automagik-agents[cohere]'"),
        ("xai:grok-4", "pip install 'pydantic-ai-slim[xai]'"),
        ("openia:gpt-5", "Did you mean 'openai:gpt-5"),
        ("gpt-5", "provider:model"),
        ("demmo", "Did you mean 'demo'"),
        ("", "provider:model"),
        (":gpt-5", "provider:model"),
        ("openai:", "provider:model"),
        ("openai:gpt\n5", "provider:model"),
        ("openai:\ud800", "provider:model"),
        ("x" * 100_000, "provider:model"),
        ("x:" + "y" * 100_000, "provider:model"),
        ("sentence-transformers:x", "provider:model"),
    ],
)
async def test_a_model_that_can_not_be_used_says_what_is_missing(name: str, hint: str) -> None:
    async with opened(ModelRegistry(settings())) as registry:
        error = await refused(registry, name)
        assert hint in (error.hint or "")
        assert len(error.detail) < 400
        assert registry.cached(name) is None
        error.detail.encode()


async def test_an_empty_key_is_no_key() -> None:
    async with opened(ModelRegistry(settings(openai_api_key=""))) as registry:
        assert "OPENAI_API_KEY" in ((await refused(registry, "openai:gpt-5")).hint or "")
        assert await registry.default_model_name() == "demo"


@pytest.mark.parametrize("vendor", sorted({name.split(":")[0] for name in known_model_names() if ":" in name}))
async def test_every_vendor_gives_a_model_or_says_why_not(vendor: str) -> None:
    name = next(name for name in known_model_names() if name.startswith(f"{vendor}:"))
    async with opened(ModelRegistry(settings())) as registry:
        await refused(registry, name)


async def test_the_setting_is_the_default_model() -> None:
    registry = ModelRegistry(settings(model="openai-chat:mine", openai_api_key=KEYS["OPENAI_API_KEY"]))
    async with opened(registry):
        assert await registry.default_model_name() == "openai-chat:mine"


@pytest.mark.parametrize("vendor", ["openai", "anthropic", "google"])
async def test_the_default_model_is_of_the_vendor_whose_key_is_set(vendor: str) -> None:
    async with opened(ModelRegistry(settings(**{f"{vendor}_api_key": "x-SECRET"}))) as registry:
        name = await registry.default_model_name()
        assert name == DEFAULT_MODELS[vendor]
        model = await registry.resolve(name)
        assert model.model_name == name.partition(":")[2]


async def test_without_a_key_a_server_on_loopback_is_used() -> None:
    async with ScriptedOpenAI(models=("echo",)) as local:
        registry = ModelRegistry(Settings(), discovery=Discovery([local.port]))
        async with opened(registry):
            assert await registry.default_model_name() == "openai-chat:echo"
            assert await ask(await registry.resolve("openai-chat:echo"), "Ping") == "Ping"
            assert await ask(await registry.resolve("openai-chat:bulk-1"), "Ping") == " token0"


async def test_a_server_on_loopback_is_reached_past_the_environments_proxy(
    provider: ScriptedOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    async with opened(own_server(provider)) as registry:
        assert await ask(await registry.resolve("openai-chat:echo"), "Ping") == "Ping"


async def test_no_server_is_looked_for_where_it_would_not_be_used() -> None:
    async with ScriptedOpenAI(models=("echo",)) as local:
        for values in (
            {"discover_local_models": False},
            {"openai_api_key": "x"},
            {"model_base_url": "http://127.0.0.1:9/v1"},
        ):
            registry = ModelRegistry(Settings.model_validate(values), discovery=Discovery([local.port]))
            async with opened(registry):
                assert await registry.default_model_name() in {"demo", DEFAULT_MODELS["openai"]}


async def test_a_server_that_starts_later_is_found_within_30_seconds() -> None:
    clock = TurnedClock()
    async with ScriptedOpenAI() as placeholder:
        port = placeholder.port
    registry = ModelRegistry(Settings(), discovery=Discovery([port]), clock=clock)
    async with opened(registry):
        assert await registry.default_model_name() == "demo"
        async with ScriptedOpenAI(models=("late",), port=port):
            clock.seconds += 29
            assert await registry.default_model_name() == "demo"
            clock.seconds += 2
            assert await registry.default_model_name() == "openai-chat:late"
        clock.seconds += 60
        assert await registry.default_model_name() == "openai-chat:late"


async def test_the_demo_model_is_there_by_name() -> None:
    async with opened(ModelRegistry(settings())) as registry:
        assert isinstance(await registry.resolve("demo"), DemoModel)
        await registry.check("demo")
        assert await registry.default_model_name() == "demo"


async def test_a_closed_registry_ends_its_search() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        registry = ModelRegistry(Settings(), discovery=Discovery([server.sockets[0].getsockname()[1]]))
        await registry.open()
        await asyncio.sleep(0.05)
        await registry.close()


def test_importing_the_providers_imports_no_vendor() -> None:
    code = "import sys, automagik.providers; print(sorted({'openai','anthropic','google.genai'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_extras_that_hints_name_exist() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert {"groq", "mistral", "cohere", "bedrock"} <= project["project"]["optional-dependencies"].keys()
