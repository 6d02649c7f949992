import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from agent_house import House, Recorder
from pydantic import BaseModel
from pydantic_ai import (
    Agent,
    ApprovalRequired,
    BinaryContent,
    DeferredToolRequests,
    ModelMessage,
    ModelResponse,
    RunContext,
    RunUsage,
    UsageLimitExceeded,
    UsageLimits,
)
from pydantic_ai.exceptions import ModelHTTPError, UserError
from pydantic_ai.messages import (
    ModelRequest,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    UserPromptPart,
)
from pydantic_ai.models import Model
from pydantic_ai.models.function import AgentInfo, DeltaThinkingPart, DeltaToolCall, FunctionModel

from automagik.agents import AgentInput, RunOptions
from automagik.agents.running import run_agent
from automagik.errors import RunFailed
from automagik.tools import AgentContext

pytestmark = pytest.mark.anyio

LIMITS = UsageLimits()
THROUGH_THE_GRAPH = UsageLimits(total_tokens_limit=1_000_000)
"""With a limit of tokens, the pieces of an answer travel through Pydantic AI's graph, which must stop it in its midst."""


def options(house: House, **changes: Any) -> RunOptions:
    context = AgentContext(
        run_id="run_1",
        agent_name="x",
        agent_id=1,
        memory=house.memories.for_agent(1, user_id=None, session_key=None),
    )
    return RunOptions(context=context, **changes)


def adder(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    if len(messages) == 1:
        return ModelResponse(
            parts=[
                ThinkingPart("hm"),
                TextPart("let me see"),
                ToolCallPart("add", '{"a": 2, "b": 3}', tool_call_id="c1"),
                ToolCallPart("add", {"a": 1, "b": -1}, tool_call_id="c2"),
            ]
        )
    return ModelResponse(parts=[TextPart("5 and 0")])


async def adder_stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Any]:
    if len(messages) == 1:
        yield {0: DeltaThinkingPart(content="h")}
        yield {0: DeltaThinkingPart(content="m")}
        yield "let me "
        yield "see"
        yield {2: DeltaToolCall("add", '{"a": 2, ', tool_call_id="c1")}
        yield {2: DeltaToolCall(json_args='"b": 3}', tool_call_id="c1")}
        yield {3: DeltaToolCall("add", '{"a": 1, "b": -1}', tool_call_id="c2")}
    else:
        for piece in ("5 ", "and ", "0"):
            yield piece


def calculator() -> Agent[Any, Any]:
    agent: Agent[Any, Any] = Agent(name="calculator", deps_type=AgentContext)

    @agent.tool_plain
    async def add(a: int, b: int) -> int:
        """Add."""
        await asyncio.sleep(0.001)
        return a + b

    return agent


@pytest.mark.parametrize(
    ("stream", "limits"),
    [(False, LIMITS), (True, LIMITS), (True, THROUGH_THE_GRAPH)],
    ids=["plain", "streamed", "streamed-through-the-graph"],
)
async def test_a_run_tells_its_tools_and_answers_the_same_streamed_or_not(
    house: House, stream: bool, limits: UsageLimits
) -> None:
    recorder = Recorder()
    response = await run_agent(
        calculator(),
        AgentInput("what is 2+3 and 1-1?"),
        options(house, stream=stream, emit=recorder, instructions="Be brief."),
        model=FunctionModel(adder, stream_function=adder_stream),
        limits=limits,
    )
    assert (response.message, response.data) == ("5 and 0", None)
    assert response.tool_calls == [
        {"tool_call_id": "c1", "tool_name": "add", "args": {"a": 2, "b": 3}},
        {"tool_call_id": "c2", "tool_name": "add", "args": {"a": 1, "b": -1}},
    ]
    assert sorted(str(output["content"]) for output in response.tool_outputs) == ["0", "5"]
    assert (response.usage.requests, response.usage.tool_calls) == (2, 2)
    assert response.usage.input_tokens > 0
    assert response.instructions == "Be brief."
    assert [type(message).__name__ for message in response.new_messages] == [
        "ModelRequest",
        "ModelResponse",
        "ModelRequest",
        "ModelResponse",
    ]
    told = [kind for kind in recorder.kinds() if not kind.endswith("_delta")]
    assert told == ["message_completed", "tool_call", "tool_call", "tool_result", "tool_result", "message_completed"]
    assert recorder.text("message_completed") == ["let me see", "5 and 0"]
    deltas = {
        "text_delta": ["let me ", "see", "5 ", "and ", "0"],
        "thinking_delta": ["h", "m"],
    }
    for kind, pieces in deltas.items():
        assert recorder.text(kind) == (pieces if stream else [])
    assert all(data["is_error"] is False for kind, data in recorder.events if kind == "tool_result")


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_a_tool_that_fails_is_told_and_the_model_may_try_again(house: House, stream: bool) -> None:
    recorder = Recorder()

    def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        args = {1: {"a": "x", "b": 1}, 3: {"a": 1, "b": 1}}.get(len(messages))
        return ModelResponse(parts=[ToolCallPart("add", args) if args else TextPart("two")])

    async def streamed(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Any]:
        part = model(messages, info).parts[0]
        if isinstance(part, ToolCallPart):
            yield {0: DeltaToolCall(part.tool_name, part.args_as_json_str())}
        else:
            yield "two"

    response = await run_agent(
        calculator(),
        AgentInput("1+1"),
        options(house, stream=stream, emit=recorder),
        model=FunctionModel(model, stream_function=streamed),
        limits=LIMITS,
    )
    assert response.message == "two"
    assert [data["is_error"] for kind, data in recorder.events if kind == "tool_result"] == [True, False]


class City(BaseModel):
    name: str
    people: int


async def test_a_structured_output_is_data_and_its_json_the_message(house: House) -> None:
    recorder = Recorder()

    def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse(parts=[ToolCallPart(info.output_tools[0].name, {"name": "Oslo", "people": 717710})])

    response = await run_agent(
        Agent(name="x", output_type=City),
        AgentInput("Oslo?"),
        options(house, emit=recorder),
        model=FunctionModel(model),
        limits=LIMITS,
    )
    assert response.data == {"name": "Oslo", "people": 717710}
    assert response.message == '{"name":"Oslo","people":717710}'
    assert (response.tool_calls, recorder.events) == ([], [])


async def test_text_history_and_media_reach_the_model(house: House) -> None:
    seen: list[list[ModelMessage]] = []

    def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        seen.append(messages)
        return ModelResponse(parts=[TextPart("ok")])

    history: list[ModelMessage] = [
        ModelRequest(parts=[UserPromptPart("earlier")]),
        ModelResponse(parts=[TextPart("yes")]),
    ]
    picture = BinaryContent(b"png", media_type="image/png")
    response = await run_agent(
        Agent(name="x"),
        AgentInput("look", (picture,)),
        options(house, history=history),
        model=FunctionModel(model),
        limits=LIMITS,
    )
    assert len(seen[0]) == 3
    part = seen[0][2].parts[0]
    assert isinstance(part, UserPromptPart)
    assert part.content == ["look", picture]
    assert len(response.new_messages) == 2


async def test_what_no_wire_can_carry_is_cleaned_on_its_way_out(house: House) -> None:
    recorder = Recorder()

    def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if len(messages) == 1:
            return ModelResponse(parts=[ToolCallPart("echo", {"big": 10**30}), ToolCallPart("raw", {})])
        return ModelResponse(parts=[TextPart("a\ud800b\x00")])

    agent: Agent[Any, Any] = Agent(name="x")

    @agent.tool_plain
    def echo(big: int) -> str:
        """Say it."""
        return f"{big}\ud83d"

    @agent.tool_plain
    def raw() -> dict[str, Any]:
        """Say it in bytes."""
        return {"raw": b"\xff", "path": Path("/x")}

    response = await run_agent(
        agent, AgentInput("go"), options(house, emit=recorder), model=FunctionModel(model), limits=LIMITS
    )
    assert response.message == "a\ufffdb\ufffd"
    assert response.tool_calls[0]["args"] == {"big": str(10**30)}
    contents = {str(output["tool_name"]): output["content"] for output in response.tool_outputs}
    assert contents == {"echo": f"{10**30}\ufffd", "raw": {"raw": "_w==", "path": "/x"}}


async def test_a_model_that_fails_raises_its_own_error_and_what_was_used_is_known(house: House) -> None:
    def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if len(messages) > 1:
            raise ModelHTTPError(503, "scripted")
        return ModelResponse(parts=[ToolCallPart("add", {"a": 1, "b": 1})])

    used = RunUsage()
    with pytest.raises(ModelHTTPError):
        await run_agent(
            calculator(), AgentInput("1+1"), options(house, usage=used), model=FunctionModel(model), limits=LIMITS
        )
    assert (used.requests, used.tool_calls) == (1, 1)


@pytest.mark.parametrize("limits", [LIMITS, THROUGH_THE_GRAPH], ids=["straight", "through-the-graph"])
@pytest.mark.parametrize("pieces", [0, 2])
async def test_what_an_answer_used_that_broke_off_is_known(house: House, limits: UsageLimits, pieces: int) -> None:
    async def model(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        for _ in range(pieces):
            yield "three words more "
        raise ModelHTTPError(503, "scripted")

    recorder = Recorder()
    used = RunUsage()
    with pytest.raises(ModelHTTPError):
        await run_agent(
            Agent(name="x"),
            AgentInput("go"),
            options(house, stream=True, usage=used, emit=recorder),
            model=FunctionModel(stream_function=model),
            limits=limits,
        )
    assert len(recorder.events) == pieces
    assert used.requests == (1 if pieces else 0)
    assert used.output_tokens == 3 * pieces
    assert (used.input_tokens > 0) == (pieces > 0)


async def test_what_a_tool_asks_the_runs_model_for_is_not_told(house: House) -> None:
    async def model(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Any]:
        if not info.function_tools:
            yield "whispered"
        elif len(messages) == 1:
            yield {0: DeltaToolCall("think", "{}", tool_call_id="c1")}
        else:
            yield "aloud"

    agent: Agent[Any, Any] = Agent(name="x", deps_type=AgentContext)

    @agent.tool
    async def think(ctx: RunContext[AgentContext]) -> str:
        """Ask the model beside the run."""
        asked = Agent(cast("Model", ctx.model))
        async with asked.run_stream("well?") as inner:
            streamed = await inner.get_output()
        return streamed + (await asked.run("well?")).output

    recorder = Recorder()
    response = await run_agent(
        agent,
        AgentInput("go"),
        options(house, stream=True, emit=recorder),
        model=FunctionModel(lambda _, __: ModelResponse(parts=[TextPart("whole")]), stream_function=model),
        limits=LIMITS,
    )
    assert response.message == "aloud"
    assert [output["content"] for output in response.tool_outputs] == ["whisperedwhole"]
    assert recorder.text() == ["aloud"]


async def test_limits_travel_as_pydantic_ai_raises_them(house: House) -> None:
    with pytest.raises(UsageLimitExceeded):
        await run_agent(
            calculator(),
            AgentInput("1+1"),
            options(house),
            model=FunctionModel(adder),
            limits=UsageLimits(request_limit=1),
        )


async def test_a_cancelled_run_stops_in_its_model(house: House) -> None:
    stopped = asyncio.Event()

    async def model(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        try:
            yield "one "
            await asyncio.sleep(60)
        finally:
            stopped.set()

    recorder = Recorder()
    task = asyncio.create_task(
        run_agent(
            Agent(name="x"),
            AgentInput("go"),
            options(house, stream=True, emit=recorder),
            model=FunctionModel(stream_function=model),
            limits=LIMITS,
        )
    )
    async with asyncio.timeout(20):
        while not recorder.events:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await stopped.wait()


def guarded(output_type: Any) -> Agent[Any, Any]:
    agent: Agent[Any, Any] = Agent(name="guarded", output_type=output_type)

    @agent.tool_plain(requires_approval=True)
    def pay(amount: int) -> str:
        """Pay."""
        raise AssertionError("must not be reached")

    @agent.tool
    def ask(ctx: RunContext[Any], amount: int) -> str:
        """Pay, if allowed."""
        raise ApprovalRequired

    return agent


@pytest.mark.parametrize("tool", ["pay", "ask"])
@pytest.mark.parametrize("output_type", [str, [str, DeferredToolRequests]], ids=["unprepared", "prepared"])
async def test_a_tool_that_needs_approval_ends_the_run_as_policy(house: House, tool: str, output_type: Any) -> None:
    def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse(parts=[ToolCallPart(tool, {"amount": 5})])

    with pytest.raises(RunFailed) as refused:
        await run_agent(
            guarded(output_type), AgentInput("pay"), options(house), model=FunctionModel(model), limits=LIMITS
        )
    assert refused.value.outcome == "policy"
    assert f"'{tool}'" in refused.value.detail


async def test_an_authors_mistake_stays_a_user_error(house: House) -> None:
    with pytest.raises(UserError, match="model"):
        await run_agent(Agent(name="x"), AgentInput("x"), options(house), model=None, limits=LIMITS)
