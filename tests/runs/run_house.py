"""Platforms on one database, with agents as files of the agents folder whose model is scripted."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from automagik.app import Platform, Role
from automagik.errors import RunFailed
from automagik.events import RunEvent
from automagik.runs import RunRequest, RunStream
from automagik.settings import Settings
from automagik.store import Transaction
from automagik.store.postgres import connect_postgres
from automagik.store.queue import Rescued
from automagik.store.rows import RunRow
from automagik.testing.engines import DirectEngine
from automagik.testing.postgres import PostgresServer
from automagik.types import SYSTEM, Caller, Clock, JsonObject, RunStatus

__all__ = [
    "AGENTS",
    "RUNNER",
    "TOOLED",
    "OpenPlatform",
    "away",
    "bind",
    "declare_lost",
    "ended",
    "message",
    "owner_of",
    "read",
    "sent",
    "stored",
    "until_status",
    "write_agents",
]

RUNNER = Caller("key_runner", frozenset({"agents:*:run", "runs:read", "runs:write"}))

AGENTS = """
import asyncio
from pathlib import Path

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
    while text.startswith("until ") and not Path(text.split()[1]).exists():
        await asyncio.sleep(0.02)
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

_WORKING = f"""
import sys

if {str(Path(__file__).parent)!r} not in sys.path:  # a process of its own
    sys.path.append({str(Path(__file__).parent)!r})

from working_agents import agent_of, flaky, outliving, tooled, tools
"""

_WORKERS = {
    "flaky": "flaky",
    "patient": "flaky, retry_after_seconds=1.0",
    "once": "flaky, max_attempts=1",
    "writer": "tooled, tools()",
    "repeatable": "tooled, tools(), repeatable=True",
    "narrow": "flaky, max_concurrent_runs=2",
}


def write_agents(folder: Path, *, working: bool = True) -> None:
    """Lay the agents into the folder: `echo` and `tooled`, and with `working` those that fail, wait and write in the background."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "echo.py").write_text(AGENTS)
    (folder / "tooled.py").write_text(TOOLED)
    if not working:
        return
    for name, how in _WORKERS.items():
        (folder / f"{name}.py").write_text(f"{_WORKING}\nagent = agent_of('{name}', {how})\n")
    (folder / "outliving.py").write_text(f"{_WORKING}\nagent = outliving('outliving')\n")


class OpenPlatform:
    """Opens platforms on one data folder and one database, each a process with an executor of its own; on PostgreSQL several
    at once, as hosts do."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.model_copy(update={"model": "demo", "shutdown_grace_seconds": 1.0})
        self._open: list[tuple[Platform, AsyncExitStack]] = []

    async def __call__(self, *, clock: Clock | None = None, role: Role = "all", **changes: object) -> Platform:
        """Another platform, with changed settings."""
        stack = AsyncExitStack()
        settings = self._settings.model_copy(update=changes)
        platform = await stack.enter_async_context(
            Platform.open(settings, clock=clock, role=role, make_engine=DirectEngine)
        )
        self._open.append((platform, stack))
        return platform

    async def close(self, platform: Platform) -> None:
        """End one as a process ends that was asked to."""
        [entry] = [entry for entry in self._open if entry[0] is platform]
        self._open.remove(entry)
        await entry[1].aclose()

    async def close_all(self) -> None:
        """End all that are open, the last one first."""
        while self._open:
            await self.close(self._open[-1][0])


def stored(events: Sequence[RunEvent]) -> list[tuple[int, str]]:
    """The stored ones among events."""
    return [(event.seq, event.type) for event in events if event.seq is not None]


async def read(stream: RunStream) -> list[RunEvent]:
    """All events of a stream."""
    return [event async for batch in stream for event in batch]


def message(output: JsonObject | None) -> str:
    """What an answer says."""
    assert output is not None
    return str(output["message"]).strip()


async def sent(platform: Platform, agent: str, text: str, **more: object) -> RunRow:
    """A background run, accepted."""
    return await platform.runs.submit(RunRequest(agent, text, **more), RUNNER)  # pyright: ignore[reportArgumentType]


async def until_status(platform: Platform, run_id: str, *statuses: RunStatus, seconds: float = 40) -> RunRow:
    """The run as soon as it is seen with one of the statuses."""
    async with asyncio.timeout(seconds):
        pause = 0.02
        while (row := await platform.runs.get(run_id, SYSTEM)).status not in statuses:
            await asyncio.sleep(pause)
            pause = min(pause * 1.1, 0.1)  # looking is most of what a test costs that waits for long
    return row


async def ended(platform: Platform, run_id: str, *, seconds: float = 40) -> RunRow:
    """The run when it has ended."""
    return await until_status(
        platform, run_id, RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, seconds=seconds
    )


async def bind(platform: Platform, run_id: str) -> None:
    """Let a queued run be this host's, as one is that what works for it has outlived a process."""
    host = socket.gethostname()

    def work(tx: Transaction) -> None:
        tx.connection.exec_driver_sql(f"UPDATE runs SET host = '{host}' WHERE run_id = '{run_id}'")

    await platform.store.write(work)


async def owner_of(platform: Platform, run_id: str) -> str:
    """The executor that has the run."""
    owner = (await platform.runs.get(run_id, SYSTEM)).owner
    assert owner is not None
    return owner


async def declare_lost(platform: Platform, executor_id: str, *, by: str = "exec_of_another_host") -> Rescued:
    """What a process does that sees an executor stand still, though that one lives."""
    lost = RunFailed("The server stopped before the run ended.", outcome="worker_lost", run_id="")

    def work(tx: Transaction) -> Rescued | None:
        beat = tx.executors.living().get(executor_id)
        if not tx.executors.lose(executor_id, seen=beat, to=by):
            return None
        return tx.queue.rescue(executor_id, lost={"code": lost.outcome, "detail": lost.detail})

    async with asyncio.timeout(40):
        while (rescued := await platform.store.write(work)) is None:
            await asyncio.sleep(0.01)  # it has just beaten
    return rescued


@asynccontextmanager
async def away(server: PostgresServer, database: str) -> AsyncGenerator[None]:
    """The database takes no connections meanwhile, as one whose server is restarted."""
    admin = await connect_postgres(server.url())
    try:
        await admin.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
        await admin.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")
        yield
        await admin.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
    finally:
        await admin.close()
