"""The API over a real platform, asked in process: agents whose model is scripted, clients with keys of any strength."""

import uuid
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import orjson
from fastapi import FastAPI

from automagik.api import create_api
from automagik.app import Platform
from automagik.settings import Settings
from automagik.testing.engines import DirectEngine
from automagik.types import SYSTEM

__all__ = ["AGENTS", "ApiHouse", "SseEvent", "open_house", "read_events"]

AGENTS = """
import asyncio

from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from automagik.agents import AgentConfig, PydanticAgent


def said(messages):
    return [part.content for m in messages for part in m.parts if isinstance(part, UserPromptPart)]


async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    texts = said(messages)
    text = texts[-1] if isinstance(texts[-1], str) else " ".join(
        item if isinstance(item, str) else f"[{item.media_type}]" for item in texts[-1]
    )
    if text.startswith("sleep "):
        await asyncio.sleep(float(text.split()[1]))
    if text == "boom":
        raise ModelHTTPError(500, "scripted", "a secret of the provider")
    if text == "bug":
        raise ZeroDivisionError("a secret of the code")
    return ModelResponse(parts=[TextPart(f"{len(texts)}: {text} / {info.instructions}")])


async def stream(messages: list[ModelMessage], info: AgentInfo):
    for word in (await answer(messages, info)).parts[0].content.split(" "):
        await asyncio.sleep(0.002)
        yield word + " "


agent = PydanticAgent(
    Agent(FunctionModel(answer, stream_function=stream), name="echo"),
    config=AgentConfig(
        description="Says it again.",
        instructions="Be {{style}}.",
        message_limit=1000,
        variables={"style": "plain"},
        allow_overrides=frozenset({"system_prompt"}),
    ),
)
"""

TOOLED = '''
from pydantic_ai import Agent, ModelMessage, ModelResponse, TextPart
from pydantic_ai.messages import ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel


async def stream(messages: list[ModelMessage], info: AgentInfo):
    if isinstance(messages[-1].parts[-1], ToolReturnPart):
        yield f"it says {messages[-1].parts[-1].content}"
    else:
        yield "let me see"
        yield {1: DeltaToolCall("work", '{"how": "well"}')}


async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    if isinstance(messages[-1].parts[-1], ToolReturnPart):
        return ModelResponse(parts=[TextPart(f"it says {messages[-1].parts[-1].content}")])
    return ModelResponse(parts=[TextPart("let me see"), ToolCallPart("work", {"how": "well"})])


agent = Agent(FunctionModel(answer, stream_function=stream), name="tooled")


@agent.tool_plain
async def work(how: str) -> str:
    """Work."""
    return f"done {how}"
'''


@dataclass(frozen=True)
class SseEvent:
    """One server-sent event."""

    id: str | None
    type: str
    data: Any


def read_events(text: str) -> list[SseEvent]:
    """The events of a whole stream."""
    found: list[SseEvent] = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "event" in lines:
            found.append(SseEvent(lines.get("id"), lines["event"], orjson.loads(lines["data"])))
    return found


@dataclass
class ApiHouse:
    """An API with its platform. `admin` is a client that may do everything."""

    platform: Platform
    app: FastAPI
    stack: AsyncExitStack = field(repr=False)
    admin: httpx2.AsyncClient = field(init=False)

    async def client(self, *scopes: str, **limits: Any) -> httpx2.AsyncClient:
        """A client whose key has these scopes; `user_id`, `rate_limit`, `expires_at` limit it further."""
        _, key = await self.platform.keys.create("a test", scopes, caller=SYSTEM, **limits)
        return await self.keyless(headers={"x-api-key": key.get_secret_value()})

    async def keyless(self, **options: Any) -> httpx2.AsyncClient:
        """A client without a key."""
        transport = httpx2.ASGITransport(app=self.app, client=options.pop("peer", ("127.0.0.1", 1)))
        client = httpx2.AsyncClient(transport=transport, base_url="http://platform.test", timeout=30, **options)
        return await self.stack.enter_async_context(client)

    async def user(self) -> uuid.UUID:
        """A new user."""
        return (await self.platform.store.write(lambda tx: tx.users.create())).user_id

    async def audit(self, action: str) -> list[dict[str, Any]]:
        """The audit rows of an action, newest first."""
        return (await self.admin.get("/api/v1/audit", params={"action": action})).json()["data"]


@asynccontextmanager
async def open_house(settings: Settings, **changes: Any) -> AsyncGenerator[ApiHouse]:
    """A house by these settings, in whose agents folder `echo` and `tooled` are."""
    data_dir: Path = settings.data_dir
    folder = data_dir / "agents"
    folder.mkdir(exist_ok=True)
    (folder / "echo.py").write_text(AGENTS)
    (folder / "tooled.py").write_text(TOOLED)
    wanted = settings.model_copy(update={"model": "demo", "shutdown_grace_seconds": 0.2, **changes})
    async with Platform.open(wanted, make_engine=DirectEngine) as platform, AsyncExitStack() as stack:
        house = ApiHouse(platform, create_api(platform), stack)
        house.admin = await house.client("admin")
        yield house
