"""A provider that keeps to no limit: an agent's run ends there, and the call counts what it used. The wire is OpenAI's own."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from ledger_house import USD, LedgerHouse, party
from openai import AsyncOpenAI
from pydantic_ai import Agent, RunUsage, UsageLimits
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from automagik.agents import AgentInput, RunOptions
from automagik.agents.budgeted import BudgetedModel
from automagik.agents.running import run_agent
from automagik.budget import Prices
from automagik.errors import RunFailed
from automagik.memory import MemoryStore
from automagik.settings import Settings
from automagik.tools import AgentContext
from automagik.types import JsonObject

pytestmark = pytest.mark.anyio

WHO = party("key_a", agent="simple", run_id="run_1")
TOKEN_NANO = 100_000
"""What a token of output costs: 100 dollars a million; one of input is a tenth."""
MOST = 300
WAYS = {
    "plain": (False, UsageLimits()),
    "streamed": (True, UsageLimits()),
    "streamed-through-the-graph": (True, UsageLimits(total_tokens_limit=10_000_000)),
}


@dataclass
class Provider(httpx2.AsyncByteStream):
    """An API that says ten words in each of its pieces, whatever its limit, and at the end what they cost."""

    delta: Any
    pieces: int = 100_000
    usage: int | None = None
    said: int = 0
    is_closed: bool = False
    asked: list[JsonObject] = field(default_factory=list[JsonObject])

    def model(self) -> OpenAIChatModel:
        transport = httpx2.MockTransport(self._answer)
        client = AsyncOpenAI(
            base_url="http://provider.test/v1",
            api_key="sk",
            max_retries=0,
            http_client=httpx2.AsyncClient(transport=transport),
        )
        return OpenAIChatModel("scripted", provider=OpenAIProvider(openai_client=client))

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        asked = json.loads(request.content)
        self.asked.append(asked)
        if asked.get("stream"):
            return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=self)
        message = {"role": "assistant", "content": "word " * 10}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return httpx2.Response(200, json={**self._head("chat.completion"), "choices": [choice], "usage": self._usage()})

    async def __aiter__(self) -> AsyncIterator[bytes]:
        head = self._head("chat.completion.chunk")
        while self.said < self.pieces:
            self.said += 1
            await asyncio.sleep(0)
            yield _event({**head, "choices": [{"index": 0, "delta": self.delta, "finish_reason": None}]})
        yield _event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        yield _event({**head, "choices": [], "usage": self._usage()}) + b"data: [DONE]\n\n"

    async def aclose(self) -> None:
        self.is_closed = True

    def _head(self, kind: str) -> JsonObject:
        return {"id": "c", "object": kind, "created": 1, "model": "scripted"}

    def _usage(self) -> JsonObject:
        output = self.usage if self.usage is not None else 10 * self.pieces
        return {"prompt_tokens": 20, "completion_tokens": output, "total_tokens": 20 + output}


def _event(data: Any) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


TEXT: Any = {"role": "assistant", "content": "word " * 10}
TOOL: Any = {
    "role": "assistant",
    "tool_calls": [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "say", "arguments": "word " * 10}}
    ],
}


async def ran(
    house: LedgerHouse, provider: Provider, way: str, *, used: RunUsage | None = None, backed: bool = False
) -> str:
    """What an agent's run answers."""
    stream, limits = WAYS[way]
    prices = Prices(Settings(model_prices=["scripted=10/100"]))
    model = FallbackModel(provider.model(), provider.model()) if backed else provider.model()
    told: list[str] = []
    limited = BudgetedModel(
        model, ledger=house.ledger, prices=prices, party=WHO, clock=house.clock, tell=lambda kind, _: told.append(kind)
    )
    memory = MemoryStore(house.store).for_agent(1, user_id=None, session_key=None)
    context = AgentContext(run_id="run_1", agent_name="simple", agent_id=1, memory=memory)
    agent: Agent[Any, Any] = Agent(
        deps_type=AgentContext, model_settings=ModelSettings(max_tokens=MOST), name="simple", tools=[say]
    )
    options = RunOptions(context=context, stream=stream, usage=used)
    return (await run_agent(agent, AgentInput("hi"), options, model=limited, limits=limits)).message


def say(text: str) -> str:
    """Say it."""
    return text


@pytest.mark.parametrize("delta", [TEXT, TOOL], ids=["text", "tool"])
@pytest.mark.parametrize("way", list(WAYS)[1:])
async def test_a_stream_beyond_its_reservation_is_cut_and_the_run_ends(
    house: LedgerHouse, way: str, delta: Any
) -> None:
    budget = await house.limit("key", "key_a", USD)
    provider, used = Provider(delta), RunUsage()
    with pytest.raises(RunFailed, match=f"did not keep to the limit of its answer, {MOST} tokens: it was cut") as ended:
        await ran(house, provider, way, used=used, backed=delta is TEXT)
    assert ended.value.outcome == "budget_exceeded" and "max_tokens" in str(ended.value.hint)
    assert provider.is_closed and len(provider.asked) == 1
    (call,) = await house.store.read(lambda tx: tx.calls.of_run("run_1"))
    assert (call.outcome, call.over_reservation) == ("cut", True)
    assert MOST < call.output_tokens < 2 * MOST + 100 + call.reserved_nano // TOKEN_NANO
    assert call.cost_nano == call.output_tokens * TOKEN_NANO + call.input_tokens * TOKEN_NANO // 10
    assert call.reserved_nano < (call.cost_nano or 0) < 1.5 * call.reserved_nano
    assert await house.standing(budget) == (call.cost_nano, 0)
    assert used.output_tokens == call.output_tokens


@pytest.mark.parametrize("way", list(WAYS))
async def test_an_answer_that_ends_beyond_its_limit_counts_as_reported_and_ends_the_run(
    house: LedgerHouse, way: str
) -> None:
    budget = await house.limit("key", "key_a", USD)
    with pytest.raises(RunFailed, match=f"{MOST} tokens: it cost more than was reserved") as ended:
        await ran(house, Provider(TEXT, pieces=5, usage=5000), way)
    assert ended.value.outcome == "budget_exceeded"
    (call,) = await house.store.read(lambda tx: tx.calls.of_run("run_1"))
    assert (call.outcome, call.over_reservation, call.output_tokens) == ("completed", True, 5000)
    assert await house.standing(budget) == (5000 * TOKEN_NANO + 20 * TOKEN_NANO // 10, 0)


@pytest.mark.parametrize("way", list(WAYS))
async def test_an_answer_within_its_limit_or_that_no_budget_limits_comes_whole(house: LedgerHouse, way: str) -> None:
    long = Provider(TEXT, pieces=500)
    assert await ran(house, long, way)
    assert not long.asked[0].get("stream") or long.said == 500
    await house.limit("key", "key_a", 10 * USD)
    answer = await ran(house, Provider(TEXT, pieces=MOST // 10), way)
    assert answer.split() == ["word"] * (10 if way == "plain" else MOST)
    (call,) = await house.store.read(lambda tx: tx.calls.of_run("run_1"))  # of the other no budget knows
    assert (call.output_tokens, call.outcome, call.over_reservation) == (MOST, "completed", False)
