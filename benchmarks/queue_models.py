"""Agents of the queue's benchmarks: one that waits until a gate is opened, one that talks and calls tools over a while."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from pydantic_ai import Agent, ModelMessage, ModelRequest, ModelResponse, TextPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from automagik.agents import AgentConfig
from automagik.agents.built import PydanticAgent

__all__ = ["GATE", "PAUSE_SECONDS", "ROUNDS", "gated_agent", "talking_agent"]

GATE: Final = "BENCH_GATE"
"""The environment variable with the path of the gate: a file, whose presence is what the gated agent waits for."""
ROUNDS: Final = 20
"""How often the talking agent calls its tool before it ends."""
PAUSE_SECONDS: Final = 0.04
"""What it waits before each piece of text; three pieces come before each call."""

_GATE_SECONDS = 0.05


def gated_agent() -> PydanticAgent:
    """An agent whose answer comes when the gate is open. It may be tried again any number of times."""
    model = FunctionModel(_wait, stream_function=_stream_wait, model_name="gated")
    return PydanticAgent(Agent(model, name="gated"), config=AgentConfig(max_attempts=20, message_limit=0))


def talking_agent() -> PydanticAgent:
    """An agent whose pieces of text are the times at which they were said, with calls of a tool between them."""
    model = FunctionModel(stream_function=_talk, model_name="talking")
    agent = Agent(model, name="talking")
    agent.tool_plain(metadata={"read_only": True})(note)
    return PydanticAgent(agent, config=AgentConfig(message_limit=0))


async def _wait(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    gate = Path(os.environ[GATE])
    while not gate.exists():
        await asyncio.sleep(_GATE_SECONDS)
    return ModelResponse(parts=[TextPart("The gate is open.")])


async def _stream_wait(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
    await _wait(messages, info)
    yield "The gate is open."


async def _talk(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    noted = sum(
        isinstance(part, ToolReturnPart)
        for message in messages
        if isinstance(message, ModelRequest)
        for part in message.parts
    )
    for _ in range(3):
        await asyncio.sleep(PAUSE_SECONDS)
        yield f"{time.time():.6f} "
    if noted < ROUNDS:
        yield {0: DeltaToolCall(name="note", json_args="{}", tool_call_id=f"call-{noted}")}


def note() -> str:
    """Note that this was said."""
    return "noted"
