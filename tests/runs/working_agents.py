"""What the agents of `run_house` are made of that fail, wait and call tools: a module of its own, as each platform of a test loads
their files anew, which are short therefore."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from pydantic_ai import Agent, ModelMessage, ModelResponse, Tool
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel, StreamFunctionDef

from automagik.agents import AgentConfig, AgentInput, AgentResponse, RunOptions
from automagik.agents.built import PydanticAgent
from automagik.errors import RunFailed

__all__ = ["agent_of", "flaky", "outliving", "tooled", "tools"]


def noted(path: str) -> int:
    with Path(path).open("a") as file:
        file.write("x")
    return Path(path).stat().st_size


async def flaky(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
    """`fail TIMES HOW PATH`: fails so often, counted in a file."""
    _, times, how, path = said(messages)[-1].split(" ", 3)
    attempt = noted(path)
    if attempt > int(times):
        yield f"attempt {attempt}"
    elif how == "passing":
        raise ModelHTTPError(503, "scripted", "a secret of the provider")
    elif how == "refused":
        raise ModelHTTPError(400, "scripted", "a secret of the provider")
    elif how == "bug":
        raise ZeroDivisionError("a secret of the code")
    elif how == "slowly":
        await asyncio.sleep(60)
    yield ""


async def no_stream(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    raise AssertionError("only background runs are made here")


def agent_of(name: str, model: StreamFunctionDef, tools: list[Any] | None = None, **config: Any) -> PydanticAgent:
    retries: dict[str, Any] = {"retry_after_seconds": 0.1, **config}
    return PydanticAgent(
        Agent(FunctionModel(no_stream, stream_function=model), name=name, tools=tools or []),
        config=AgentConfig(message_limit=1000, **retries),
    )


class Outliving(PydanticAgent):
    """Works until it is stopped, and takes out then what it made: into the file that it is sent the path of."""

    outlives_process = True

    async def run(self, message: AgentInput, options: RunOptions) -> AgentResponse:
        stopped = asyncio.Event()
        options.on_stop(stopped.set)
        await stopped.wait()
        noted(message.text)
        raise RunFailed("It was stopped.", outcome="cancelled")


def outliving(name: str) -> Outliving:
    return Outliving(Agent(FunctionModel(no_stream), name=name), config=AgentConfig(max_attempts=1))


async def write(path: str) -> str:
    """Write."""
    noted(path)
    if path.endswith("hang"):
        await asyncio.sleep(60)
    return f"wrote {Path(path).stat().st_size}"


async def look(path: str) -> str:
    """Look."""
    noted(path)
    if path.endswith("hang"):
        await asyncio.sleep(60)
    return "looked"


async def tooled(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
    """`TOOL PATH [later|then fail|then wait]`: calls the tool once (when `PATH.go` is there), then answers, fails, or thinks for
    long."""
    last = messages[-1].parts[-1]
    words = said(messages)[-1].split(" ")
    if not isinstance(last, ToolReturnPart):
        while words[2:] == ["later"] and not Path(f"{words[1]}.go").exists():
            await asyncio.sleep(0.02)
        yield {0: DeltaToolCall(words[0], '{"path": "' + words[1] + '"}')}
    elif words[2:] == ["then", "wait"] and Path(words[1]).stat().st_size < 2:
        await asyncio.sleep(60)
    elif words[2:] == ["then", "fail"] and Path(words[1]).stat().st_size < 2:
        raise ModelHTTPError(503, "scripted", "a secret of the provider")
    yield f"the tool said {getattr(last, 'content', '')}"


def said(messages: list[ModelMessage]) -> list[str]:
    return [str(part.content) for m in messages for part in m.parts if isinstance(part, UserPromptPart)]


def tools() -> list[Any]:
    return [write, Tool(look, metadata={"read_only": True})]
