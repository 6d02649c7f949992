"""Agents whose model is scripted, as files of the agents folder."""

from collections.abc import Awaitable, Callable

from automagik.app import Platform

__all__ = ["AGENTS", "TOOLED", "OpenPlatform"]

AGENTS = """
import asyncio

from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart
from pydantic_ai.messages import ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from automagik.agents import AgentConfig, SimpleAgent
from automagik.agents.built import PydanticAgent


def said(messages):
    return [part.content for m in messages for part in m.parts if isinstance(part, UserPromptPart)]


async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    texts = said(messages)
    text = texts[-1]
    if text.startswith("sleep "):
        await asyncio.sleep(float(text.split()[1]))
    if text == "boom":
        raise ValueError("secret-detail-of-the-failure")
    return ModelResponse(parts=[TextPart(f"seen {len(texts)}: {text}")])


async def stream(messages: list[ModelMessage], info: AgentInfo):
    for word in (await answer(messages, info)).parts[0].content.split(" "):
        await asyncio.sleep(0.005)
        yield word + " "


agent = PydanticAgent(
    Agent(FunctionModel(answer, stream_function=stream), name="echo"),
    config=AgentConfig(message_limit=1000, variables={"style": "plain"}),
)
"""

TOOLED = '''
import asyncio

from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart
from pydantic_ai.messages import ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel


def returned(messages):
    return [part for part in messages[-1].parts if isinstance(part, ToolReturnPart)]


async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    if returned(messages):
        return ModelResponse(parts=[TextPart(f"the tool said {returned(messages)[0].content}")])
    return ModelResponse(parts=[TextPart("let me see"), ToolCallPart("work", {"how": messages[-1].parts[-1].content})])


async def stream(messages: list[ModelMessage], info: AgentInfo):
    if returned(messages):
        yield "the tool "
        yield f"said {returned(messages)[0].content}"
    else:
        yield "let me see"
        yield {1: DeltaToolCall("work", '{"how": "' + messages[-1].parts[-1].content + '"}')}


agent = Agent(FunctionModel(answer, stream_function=stream), name="tooled")


@agent.tool_plain
async def work(how: str) -> str:
    """Work."""
    if how == "break":
        raise RuntimeError("secret-detail-of-the-tool")
    if how == "slow":
        await asyncio.sleep(0.2)
    return f"done {how}"
'''

OpenPlatform = Callable[..., Awaitable[Platform]]
"""Opens a platform with changed settings."""
