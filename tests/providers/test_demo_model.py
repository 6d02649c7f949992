"""The demo model under a real Pydantic AI agent."""

import re
from enum import StrEnum
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Len
from pydantic import BaseModel, Field
from pydantic_ai import Agent, BinaryContent, DeferredToolRequests, NativeOutput, PromptedOutput
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart

from automagik.providers import DEMO_NOTICE, DemoModel

pytestmark = pytest.mark.anyio


@pytest.fixture
def agent() -> Agent[None, str]:
    """An agent with tools as the platform has them; each tells what it was given."""
    agent = Agent(DemoModel())

    @agent.tool_plain
    def get_current_time(time_zone: str = "UTC") -> str:
        """The time of day."""
        return f"noon in {time_zone}"

    @agent.tool_plain
    def store_memory(name: str, content: str) -> str:
        return f"stored {name} = {content}"

    @agent.tool_plain
    def get_memory(name: str) -> str:
        return f"looked up {name}"

    @agent.tool_plain
    def list_memories() -> list[str]:
        return ["pet", "colour"]

    @agent.tool_plain
    def delete_memory(name: str) -> str:
        return f"deleted {name}"

    @agent.tool_plain
    def add_numbers(a: float, b: float) -> float:
        return a + b

    @agent.tool_plain
    def weather(city: str, unit: Literal["celsius", "fahrenheit"], days: Annotated[int, Ge(2)]) -> str:
        return f"{days} days of {city} in {unit}"

    return agent


def calls(messages: list[ModelMessage]) -> list[str]:
    return [
        part.tool_name
        for message in messages
        if isinstance(message, ModelResponse)
        for part in message.parts
        if isinstance(part, ToolCallPart)
    ]


async def test_every_answer_says_that_it_is_no_language_model(agent: Agent[None, str]) -> None:
    for prompt in ("Hello", "What time is it?", "", "?" * 10_000):
        output = (await agent.run(prompt)).output
        assert output.endswith(DEMO_NOTICE)
        assert len(output) < 2000
    assert "not a language model" in DEMO_NOTICE
    assert "AUTOMAGIK_MODEL" in DEMO_NOTICE


async def test_the_same_question_gets_the_same_answer(agent: Agent[None, str]) -> None:
    first, second = await agent.run("What time is it?"), await agent.run("What time is it?")
    assert first.output == second.output
    assert first.usage == second.usage


@pytest.mark.parametrize(
    ("prompt", "tools", "said"),
    [
        ("Hello there", [], "You said: “Hello there”"),
        ("What time is it?", ["get_current_time"], "noon in UTC"),
        ("Remember that my favourite colour is blue.", ["store_memory"], "stored my favourite colour = blue"),
        ('Store the memory "pet" with "a cat"', ["store_memory"], "stored pet = a cat"),
        ("List my memories", ["list_memories"], '["pet","colour"]'),
        ("Tell me about memory", ["list_memories"], '["pet","colour"]'),
        ("Recall favourite colour", ["get_memory"], "looked up favourite colour"),
        ("Forget pet", ["delete_memory"], "deleted pet"),
        ("Add the numbers 3 and -4.5", ["add_numbers"], "-1.5"),
        ("Weather for 'Oslo' in fahrenheit", ["weather"], "2 days of Oslo in fahrenheit"),
        ("The time, and the weather for 5 days", ["get_current_time", "weather"], "5 days of"),
    ],
)
async def test_tools_are_called_by_what_is_asked(
    agent: Agent[None, str], prompt: str, tools: list[str], said: str
) -> None:
    result = await agent.run(prompt)
    assert sorted(calls(result.all_messages())) == sorted(tools)
    assert said in result.output


async def test_a_tool_is_known_by_two_words_of_its_description() -> None:
    agent = Agent(DemoModel())

    @agent.tool_plain
    def fx(amount: int) -> str:
        """Convert dollars to another currency."""
        return f"{amount} converted"

    assert "7 converted" in (await agent.run("Convert 7 dollars please")).output
    assert calls((await agent.run("Convert this")).all_messages()) == []


async def test_a_tool_that_fails_is_reported_and_not_called_again() -> None:
    agent = Agent(DemoModel(), retries=3)

    @agent.tool_plain
    def weather(city: str) -> str:
        raise_retry(city)
        return city

    result = await agent.run("Weather in Oslo")
    assert calls(result.all_messages()) == ["weather"]
    assert "The tool weather gave no result" in result.output


def raise_retry(city: str) -> None:
    from pydantic_ai import ModelRetry

    raise ModelRetry(f"no weather for {city}")


async def test_it_knows_the_conversation(agent: Agent[None, str]) -> None:
    first = await agent.run("Hello, my name is Ada.")
    second = await agent.run("What is my name?", message_history=first.all_messages())
    assert "your name is Ada" in second.output
    assert "This is message 2 from you" in second.output
    assert "You have not told me your name" in (await agent.run("What is my name?")).output


async def test_it_repeats_its_instructions_when_asked(agent: Agent[None, str]) -> None:
    result = await agent.run("What are your instructions?", instructions="Be kind to Ada.")
    assert "My instructions are: “Be kind to Ada.”" in result.output


async def test_it_says_what_media_it_was_given(agent: Agent[None, str]) -> None:
    picture = BinaryContent(b"\x89PNG", media_type="image/png")
    output = (await agent.run(["Look at this", picture])).output
    assert "image/png, 4 bytes" in output
    assert "You said: “Look at this”" in output


async def test_it_streams_word_by_word(agent: Agent[None, str]) -> None:
    whole = (await agent.run("Hello there")).output
    async with agent.run_stream("Hello there") as streamed:
        pieces = [piece async for piece in streamed.stream_text(delta=True, debounce_by=None)]
    assert "".join(pieces) == whole
    assert len(pieces) == len(whole.split())
    assert all(re.fullmatch(r"\s*\S+", piece) for piece in pieces)


async def test_it_streams_tool_calls_too(agent: Agent[None, str]) -> None:
    async with agent.run_stream("Add the numbers 1 and 2") as streamed:
        assert "“3.0”" in await streamed.get_output()
    usage = streamed.usage
    assert usage.requests == 2
    assert usage.input_tokens > 0
    assert usage.output_tokens > 10


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Inner(BaseModel):
    at: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    again: "Inner | None" = None


class Everything(BaseModel):
    name: Annotated[str, Len(3, 20)]
    count: Annotated[int, Field(gt=10, lt=20)]
    share: Annotated[float, Field(ge=0, le=1)]
    even: Annotated[int, Field(multiple_of=4, ge=4)]
    colour: Colour
    flag: bool
    inner: Inner
    tags: Annotated[list[str], Len(2)]
    either: int | str
    fixed: Literal["x"]
    maybe: str | None
    free: dict[str, int]
    spare: str = "left out"


@pytest.mark.parametrize("shape", [Everything, NativeOutput(Everything), PromptedOutput(Everything)])
async def test_structured_output_fits_its_schema(shape: Any) -> None:
    result = await Agent(DemoModel(), output_type=shape).run("Make it blue, named 'Blue Whale', of 12")
    value = result.output
    assert isinstance(value, Everything)
    assert (value.name, value.count, value.colour, value.spare) == ("Blue Whale", 12, Colour.BLUE, "left out")


async def test_a_structured_text_without_source_says_that_it_is_no_language_model() -> None:
    class Answer(BaseModel):
        first: str
        second: str

    answer = (await Agent(DemoModel(), output_type=Answer).run("Hi")).output
    assert answer.first == "Hi"
    assert answer.second == DEMO_NOTICE


async def test_plain_values_are_output_too() -> None:
    assert (await Agent(DemoModel(), output_type=int).run("Give me 42")).output == 42
    assert (await Agent(DemoModel(), output_type=list[int]).run("Give me 42")).output == [42]


async def test_tools_run_before_structured_output() -> None:
    agent = Agent(DemoModel(), output_type=Inner)
    seen: list[str] = []

    @agent.tool_plain
    def weather(city: str) -> str:
        seen.append(city)
        return "sunny"

    await agent.run("Weather in Oslo")
    assert seen == ["in Oslo"]


async def test_a_tool_that_needs_approval_can_be_tried() -> None:
    agent = Agent(DemoModel(), output_type=[str, DeferredToolRequests])

    @agent.tool_plain(requires_approval=True)
    def delete_file(path: str) -> str:
        return f"deleted {path}"

    asked = await agent.run("Delete the file 'a.txt'")
    assert isinstance(asked.output, DeferredToolRequests)
    approved = asked.output.build_results(approve_all=True)
    done = await agent.run(message_history=asked.all_messages(), deferred_tool_results=approved)
    assert isinstance(done.output, str)
    assert "deleted a.txt" in done.output
