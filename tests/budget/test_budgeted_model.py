"""Agents of the platform's own process reserve through the ledger; the models here are scripted, the rest is real."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from ledger_house import CENT, USD, LedgerHouse, party, reservations, run
from pydantic_ai import Agent, BinaryContent, ModelMessage, ModelResponse, TextPart
from pydantic_ai.exceptions import FallbackExceptionGroup, ModelConnectionError, ModelHTTPError
from pydantic_ai.models import Model
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from automagik.agents.budgeted import BudgetedModel
from automagik.budget import Party, Prices
from automagik.errors import RunFailed
from automagik.providers import DemoModel
from automagik.settings import Settings
from automagik.types import JsonObject

pytestmark = pytest.mark.anyio

WHO = party("key_a", agent="simple", run_id="run_1")
PRICES: list[str] = ["scripted=10/100", "dear=20/200"]
"""10 and 100 dollars a million tokens: a cent is 1,000 tokens of input, or 100 of output."""


@dataclass
class Script:
    """What the model does, and what it was asked."""

    answer: Callable[[], ModelResponse] | None = None
    raises: BaseException | None = None
    asked: list[ModelSettings] = field(default_factory=list[ModelSettings])
    waits: asyncio.Event | None = None

    def model(self, name: str = "scripted") -> FunctionModel:
        return FunctionModel(self._answer, stream_function=self._stream, model_name=name)

    async def _answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        del messages
        self.asked.append(info.model_settings or ModelSettings())
        if self.waits is not None:
            await self.waits.wait()
        if self.raises is not None:
            raise self.raises
        usage = RequestUsage(input_tokens=100, output_tokens=50)
        return self.answer() if self.answer else ModelResponse(parts=[TextPart("hello")], usage=usage)

    async def _stream(self, messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        for word in ("hello ", "you ", "there"):
            yield word
        await self._answer(messages, info)


@dataclass
class Told:
    """The events that a run was told."""

    events: list[tuple[str, JsonObject]] = field(default_factory=list[tuple[str, JsonObject]])

    def __call__(self, kind: str, data: JsonObject) -> None:
        self.events.append((kind, data))


def budgeted(house: LedgerHouse, model: Model, *, who: Party = WHO, told: Told | None = None) -> BudgetedModel:
    prices = Prices(Settings(model_prices=[*PRICES]))
    return BudgetedModel(model, ledger=house.ledger, prices=prices, party=who, clock=house.clock, tell=told or Told())


def limited(tokens: int) -> ModelSettings:
    return ModelSettings(max_tokens=tokens)


async def until(house: LedgerHouse, condition: Callable[[tuple[int, int]], bool]) -> tuple[int, int]:
    """What is spent and reserved, as soon as it is as it should be."""
    (budget,) = (await house.store.read(lambda tx: tx.budgets.list())).data
    standing = await house.standing(budget)
    for _ in range(100):
        if condition(standing):
            return standing
        await asyncio.sleep(0.02)
        standing = await house.standing(budget)
    raise AssertionError(standing)


async def test_a_request_is_settled_by_what_it_used(house: LedgerHouse) -> None:
    budget = await house.limit("key", "key_a", USD)
    result = await Agent(budgeted(house, Script().model()), model_settings=limited(500)).run("hi")
    assert result.output == "hello"
    assert await house.standing(budget) == (100 * 10_000 + 50 * 100_000, 0)
    (call,) = await house.store.read(lambda tx: tx.calls.of_run("run_1"))
    assert (call.wire, call.outcome, call.input_tokens, call.output_tokens) == ("agent", "completed", 100, 50)
    assert call.cost_nano == 6_000_000 and call.reserved_nano > 50_000_000


async def test_a_stream_is_settled_when_it_has_ended(house: LedgerHouse) -> None:
    budget = await house.limit("key", "key_a", USD)
    agent = Agent(budgeted(house, Script().model()), model_settings=limited(500))
    async with agent.run_stream("hi") as stream:
        assert (await house.standing(budget))[1] > 50_000_000
        assert await stream.get_output() == "hello you there"
    spent, reserved = await house.standing(budget)
    assert 0 < spent < 2 * CENT and reserved == 0


async def test_the_run_s_other_limits_count_too(house: LedgerHouse) -> None:
    await house.limit("organisation", None, 1)
    with pytest.raises(RunFailed, match="organisation") as refused:
        await Agent(budgeted(house, Script().model()), model_settings=limited(100)).run("hi")
    assert refused.value.outcome == "budget_exceeded" and refused.value.status == 403
    assert "automagik budgets set organisation" in str(refused.value.hint)


async def test_where_only_less_fits_the_answer_may_only_be_shorter(house: LedgerHouse) -> None:
    await house.limit("key", "key_a", 30 * CENT)
    script, told = Script(), Told()
    await Agent(budgeted(house, script.model(), told=told), model_settings=ModelSettings(temperature=0.5)).run("hi")
    (asked,) = script.asked
    most = cast("dict[str, Any]", asked).get("max_tokens")
    assert most is not None and 2900 <= most < 3000  # 30 cents are 3,000 tokens, less the input
    assert cast("dict[str, Any]", asked).get("temperature") == 0.5
    assert [kind for kind, _ in told.events] == ["warning"]
    assert told.events[0][1]["code"] == "max_tokens_lowered"


async def test_where_hardly_anything_fits_the_request_is_refused(house: LedgerHouse) -> None:
    await house.limit("key", "key_a", 2 * CENT)
    script = Script()
    with pytest.raises(RunFailed, match="key 'key_a'"):
        await Agent(budgeted(house, script.model())).run("hi")
    assert script.asked == []


async def test_an_input_that_is_too_long_for_the_budget_is_refused_before_it_is_sent(house: LedgerHouse) -> None:
    await house.limit("key", "key_a", 10 * CENT)
    script = Script()
    with pytest.raises(RunFailed, match="no room"):
        await Agent(budgeted(house, script.model()), model_settings=limited(100)).run("x" * 10_000)
    await Agent(budgeted(house, script.model()), model_settings=limited(100)).run("x" * 1000)
    assert len(script.asked) == 1


async def test_an_image_counts_as_much_as_any_vendor_says(house: LedgerHouse) -> None:
    await house.limit("key", "key_a", 40 * CENT)
    image = BinaryContent(b"tiny", media_type="image/png")
    with pytest.raises(RunFailed, match="no room"):
        await Agent(budgeted(house, Script().model()), model_settings=limited(100)).run(["look", image])


@pytest.mark.parametrize(
    ("error", "spent"),
    [
        (ModelHTTPError(500, "scripted"), False),
        (ModelConnectionError("scripted", "refused", phase="connect"), False),
        (ModelConnectionError("scripted", "broke off", phase="read"), True),
        (ZeroDivisionError(), True),
    ],
)
async def test_a_failure_costs_nothing_where_no_model_can_have_worked(
    house: LedgerHouse, error: BaseException, spent: bool
) -> None:
    await house.limit("key", "key_a", USD)
    with pytest.raises(type(error)):
        await Agent(budgeted(house, Script(raises=error).model()), model_settings=limited(500)).run("hi")
    if spent:
        assert (await until(house, lambda standing: standing[1] == 0))[0] > 5 * CENT
    else:
        assert await until(house, lambda standing: standing == (0, 0)) == (0, 0)


async def test_a_request_that_is_cancelled_is_paid_in_full(house: LedgerHouse) -> None:
    budget = await house.limit("key", "key_a", USD)
    agent = Agent(budgeted(house, Script(waits=asyncio.Event()).model()), model_settings=limited(500))
    task = asyncio.create_task(agent.run("hi"))
    _, reserved = await until(house, lambda standing: standing[1] > 0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(house, lambda standing: standing == (reserved, 0))
    (call,) = await house.store.read(lambda tx: tx.calls.of_run("run_1"))
    assert (call.outcome, call.cost_nano) == ("cut", reserved)
    assert budget.spent_nano == 0


async def test_a_stream_that_is_left_early_is_paid_in_full(house: LedgerHouse) -> None:
    await house.limit("key", "key_a", USD)
    agent = Agent(budgeted(house, Script(waits=asyncio.Event()).model()), model_settings=limited(500))

    async def read() -> None:
        async with agent.run_stream("hi") as stream:
            async for _ in stream.stream_text(debounce_by=None):
                raise KeyError("the reader's own")

    with pytest.raises(KeyError):
        await read()
    assert (await until(house, lambda standing: standing[1] == 0))[0] > 5 * CENT


async def test_a_model_without_a_price_is_refused_where_a_limit_applies(house: LedgerHouse) -> None:
    await house.limit("key", "key_a", USD)
    with pytest.raises(RunFailed, match="price of the model 'unheard-of' is not known") as refused:
        await Agent(budgeted(house, Script().model("unheard-of"))).run("hi")
    assert refused.value.outcome == "policy" and "AUTOMAGIK_MODEL_PRICES" in str(refused.value.hint)
    free = await Agent(budgeted(house, Script().model("unheard-of"), who=party("key_b"))).run("hi")
    assert free.output == "hello"


@pytest.mark.parametrize("model", [DemoModel(), TestModel()], ids=["demo", "test"])
async def test_what_costs_nothing_is_not_reserved_for(house: LedgerHouse, model: Model) -> None:
    budget = await house.limit("key", "key_a", 0)
    await Agent(budgeted(house, model)).run("hi")
    assert await house.standing(budget) == (0, 0)


async def test_fallbacks_reserve_for_the_dearest_and_pay_for_the_one_that_answered(house: LedgerHouse) -> None:
    budget = await house.limit("key", "key_a", USD)
    broken = Script(raises=ModelHTTPError(503, "dear"))
    cheap, dear = Script(), Script()
    both = FallbackModel(broken.model("dear"), cheap.model("scripted"))
    await Agent(budgeted(house, both), model_settings=limited(1000)).run("hi")
    assert await house.standing(budget) == (6_000_000, 0)
    (call,) = await house.store.read(lambda tx: tx.calls.of_run("run_1"))
    assert call.reserved_nano > 1000 * 200_000
    await Agent(budgeted(house, FallbackModel(dear.model("dear"), cheap.model())), model_settings=limited(1000)).run(
        "hi"
    )
    assert await house.standing(budget) == (18_000_000, 0)
    with pytest.raises(FallbackExceptionGroup):
        await Agent(
            budgeted(house, FallbackModel(broken.model("dear"), broken.model())), model_settings=limited(9)
        ).run("x")
    await until(house, lambda standing: standing == (18_000_000, 0))


async def test_a_soft_limit_is_told_to_the_run_that_passes_it(house: LedgerHouse) -> None:
    await house.limit("agent", "simple", USD, soft=CENT)
    told = Told()
    agent = Agent(budgeted(house, Script().model(), told=told), model_settings=limited(100))
    for _ in range(3):
        await agent.run("hi")
    assert [(kind, data["scope_id"], data["soft_limit_usd"]) for kind, data in told.events] == [
        ("budget_warning", "simple", "0.010000")
    ]


async def test_a_request_waits_for_what_others_have_reserved(house: LedgerHouse) -> None:
    await house.limit("key", "key_a", 30 * CENT)
    other = await house.ledger.reserve(WHO, 28 * CENT)
    asking = asyncio.create_task(Agent(budgeted(house, Script().model()), model_settings=limited(500)).run("hi"))
    await asyncio.sleep(0.2)
    assert not asking.done()
    await house.ledger.settle(other, CENT)
    assert (await asyncio.wait_for(asking, 20)).output == "hello"


async def test_requests_before_and_while_a_budget_is_set_count_in_it_once(house: LedgerHouse) -> None:
    ready = asyncio.Event()
    script = Script(waits=ready)
    run_id = await run(house.store, ends=False, key="key_a")
    model = budgeted(house, script.model(), who=party("key_a", agent="simple", run_id=run_id))
    agent = Agent(model, model_settings=limited(500))
    ready.set()
    await agent.run("hi")
    async with agent.run_stream("hi") as stream:
        assert await stream.get_output() == "hello you there"
    ready.clear()
    under_way = asyncio.create_task(agent.run("hi"))
    while len(script.asked) < 3:
        await asyncio.sleep(0.01)
    assert await house.store.read(lambda tx: tx.calls.of_run(run_id)) == []
    budget = await house.limit("organisation", None, USD)
    async with asyncio.timeout(40):  # so that it leaves a row, should this process die
        while await house.store.read(reservations) != 1:
            await asyncio.sleep(0.01)
    ready.set()
    await under_way
    one = 6_000_000
    assert await house.standing(budget) == (one, 0)
    await agent.run("hi")
    calls = await house.store.read(lambda tx: tx.calls.of_run(run_id))
    assert len(calls) == 4 and await house.store.read(reservations) == 0
    assert await house.standing(budget) == (sum(call.cost_nano or 0 for call in calls), 0)
    assert sorted(call.cost_nano or 0 for call in calls)[-3:] == [one] * 3
    assert {(call.wire, call.model, call.agent, call.outcome) for call in calls} == {
        ("agent", "scripted", "simple", "completed")
    }
    later = await house.limit("key", "key_a", USD)
    assert await house.standing(later) == await house.standing(budget)


async def test_a_request_that_is_cut_while_a_budget_is_set_counts_in_full(house: LedgerHouse) -> None:
    script = Script(waits=asyncio.Event())
    task = asyncio.create_task(Agent(budgeted(house, script.model()), model_settings=limited(500)).run("hi"))
    while not script.asked:
        await asyncio.sleep(0.01)
    budget = await house.limit("key", "key_a", USD)
    task.cancel()
    await asyncio.wait([task])
    spent, _ = await until(house, lambda standing: standing[0] > 0)
    (call,) = await house.store.read(lambda tx: tx.calls.of_run("run_1"))
    assert (call.outcome, call.cost_nano) == ("cut", spent) and spent > 500 * 100_000
    assert await house.standing(budget) == (spent, 0)


async def test_an_answer_beyond_its_reservation_is_marked_and_ends_the_run(house: LedgerHouse) -> None:
    budget = await house.limit("key", "key_a", USD)
    babble = ModelResponse(parts=[TextPart("hello")], usage=RequestUsage(input_tokens=100, output_tokens=5000))
    with pytest.raises(RunFailed, match="did not keep to the limit of its answer, 300 tokens") as ended:
        await Agent(budgeted(house, Script(answer=lambda: babble).model()), model_settings=limited(300)).run("hi")
    assert ended.value.outcome == "budget_exceeded"
    (call,) = await house.store.read(lambda tx: tx.calls.of_run("run_1"))
    assert call.over_reservation and call.cost_nano == 501_000_000 > call.reserved_nano
    assert await house.standing(budget) == (501_000_000, 0)
