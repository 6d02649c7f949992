"""Costs of agent runs, priced by Pydantic AI and added up by us."""

from copy import copy
from decimal import Decimal

import pytest
from genai_prices import calc_price
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models import known_model_names
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from automagik.providers import DEFAULT_MODELS, DemoModel, cost

pytestmark = pytest.mark.anyio


async def responses_of(usage: RequestUsage, model: str, vendor: str | None, url: str | None) -> list[ModelResponse]:
    """What an agent run leaves of a response as a provider's model makes it."""

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse(parts=[TextPart("x")], usage=copy(usage), provider_name=vendor, provider_url=url)

    result = await Agent(FunctionModel(answer, model_name=model)).run("Hi")
    return [message for message in result.all_messages() if isinstance(message, ModelResponse)]


async def test_a_known_model_costs_what_the_table_says() -> None:
    usage = RequestUsage(input_tokens=1000, output_tokens=200, cache_read_tokens=100)
    responses = await responses_of(usage, "gpt-5", "openai", "https://api.openai.com/v1/")
    expected = calc_price(usage, "gpt-5", provider_id="openai").total_price
    assert cost(responses) == expected > 0
    assert cost([*responses, *responses]) == 2 * expected


async def test_an_unknown_model_has_no_known_cost() -> None:
    usage = RequestUsage(input_tokens=1000, output_tokens=200)
    unknown = await responses_of(usage, "nobodys-model", "nobody", "https://models.example.com/v1")
    known = await responses_of(usage, "gpt-5", "openai", "https://api.openai.com/v1/")
    assert cost(unknown) is None
    assert cost([*known, *unknown]) is None


async def test_an_answer_without_usage_has_no_known_cost() -> None:
    usage = RequestUsage(unmeasured_requests=1)
    assert cost(await responses_of(usage, "gpt-5", "openai", "https://api.openai.com/v1/")) is None


@pytest.mark.parametrize("host", ["127.0.0.1:11434", "localhost:8080", "[::1]:8000", "127.1.2.3"])
async def test_a_server_on_loopback_costs_nothing_whatever_its_model_is_called(host: str) -> None:
    usage = RequestUsage(input_tokens=1000, output_tokens=200)
    assert cost(await responses_of(usage, "gpt-5", "openai", f"http://{host}/v1")) == 0


async def test_a_cost_that_a_gateway_reports_is_kept() -> None:
    usage = RequestUsage(input_tokens=1000, output_tokens=200, cost=Decimal("0.125"))
    assert cost(await responses_of(usage, "gpt-5", "openai", "https://gateway.example.com")) == Decimal("0.125")


async def test_the_demo_costs_nothing_plain_and_streamed() -> None:
    agent = Agent(DemoModel())
    result = await agent.run("Hi")
    async with agent.run_stream("Hi") as streamed:
        await streamed.get_output()
    for messages in (result.all_messages(), streamed.all_messages()):
        responses = [message for message in messages if isinstance(message, ModelResponse)]
        assert responses
        assert cost(responses) == 0


def test_no_answer_costs_nothing() -> None:
    assert cost([]) == 0


@pytest.mark.parametrize("name", DEFAULT_MODELS.values())
def test_the_default_models_are_known_and_priced(name: str) -> None:
    vendor, _, model = name.partition(":")
    assert name in known_model_names()
    price = calc_price(RequestUsage(input_tokens=1_000_000, output_tokens=1000), model, provider_id=vendor)
    assert price.total_price > 0
