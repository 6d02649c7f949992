import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent, ModelMessage, ModelResponse
from pydantic_ai.messages import TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from automagik.memory import MemoryInput, MemoryStore
from automagik.settings import Settings
from automagik.store import Store
from automagik.tools import AgentContext, ToolRegistry
from automagik.types import SYSTEM, SystemClock

pytestmark = pytest.mark.anyio


class StoppedClock(SystemClock):
    """A clock that stands still."""

    def now(self) -> datetime:
        return datetime(2026, 11, 24, 23, 30, tzinfo=UTC)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store.from_settings(Settings(data_dir=tmp_path), SystemClock())
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def call(context: AgentContext, tool: str, args: dict[str, Any]) -> ToolReturnPart:
    """What the tool gives back to a model that calls it once."""

    def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if len(messages) == 1:
            return ModelResponse(parts=[ToolCallPart(tool, args)])
        return ModelResponse(parts=[TextPart("done")])

    registry = ToolRegistry(clock=StoppedClock())
    registry.discover()
    agent = Agent(FunctionModel(model), deps_type=AgentContext, tools=registry.attach(["memory", "datetime"]))
    result = await agent.run("go", deps=context)
    part = result.all_messages()[2].parts[0]
    assert isinstance(part, ToolReturnPart)
    return part


async def context_for(store: Store, user: uuid.UUID | None) -> AgentContext:
    agent_id = await store.write(
        lambda tx: (tx.agents.find("clerk") or tx.agents.create("clerk", type="x", source="api")).id
    )
    memory = MemoryStore(store).for_agent(agent_id, user_id=user, session_key=None)
    return AgentContext(run_id="run_1", agent_name="clerk", agent_id=agent_id, user_id=user, memory=memory)


async def test_an_agent_stores_finds_lists_and_forgets_the_memories_of_its_user(store: Store) -> None:
    ann = await store.write(lambda tx: tx.users.create(email="ann@example.org").user_id)
    bob = await store.write(lambda tx: tx.users.create(email="bob@example.org").user_id)
    hers, his = await context_for(store, ann), await context_for(store, bob)
    args = {"name": "colour", "content": "green", "description": "of the walls"}
    assert (await call(hers, "store_memory", args)).content == "Stored as 'colour'."
    await MemoryStore(store).create(MemoryInput("city", "Oslo", user_id=ann), SYSTEM)
    assert (await call(hers, "get_memory", {"name": "colour"})).content == "green"
    assert (await call(hers, "list_memories", {})).content == {"city": "Oslo", "colour": "green"}
    assert (await call(his, "list_memories", {})).content == {}
    assert (await call(his, "get_memory", {"name": "colour"})).content == "Nothing is remembered under 'colour'."
    assert (
        await call(his, "delete_memory", {"name": "colour"})
    ).content == "Nothing of your own is remembered under 'colour'."
    assert (await call(hers, "delete_memory", {"name": "colour"})).content == "Forgot 'colour'."
    assert (await call(hers, "list_memories", {})).content == {"city": "Oslo"}


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"name": "two words", "content": "x"}, "no name of a memory"),
        ({"name": "big", "content": "x" * 1_000_001}, "the limit is 1000000"),
    ],
)
async def test_what_can_not_be_stored_is_told_to_the_model(store: Store, args: dict[str, Any], says: str) -> None:
    ann = await store.write(lambda tx: tx.users.create(email="ann@example.org").user_id)
    part = await call(await context_for(store, ann), "store_memory", args)
    assert part.outcome == "retried"
    assert says in str(part.content)


async def test_a_run_without_user_and_session_is_told_that_it_can_not_remember(store: Store) -> None:
    nobody = await context_for(store, None)
    part = await call(nobody, "store_memory", {"name": "a", "content": "b"})
    assert "neither a user nor a session" in str(part.content)
    part = await call(nobody, "delete_memory", {"name": "a"})
    assert "neither a user nor a session" in str(part.content)


@pytest.mark.parametrize(
    ("tool", "zone", "says"),
    [
        ("get_current_date", "UTC", "2026-11-24 (Tuesday)"),
        ("get_current_date", "Europe/Berlin", "2026-11-25 (Wednesday)"),
        ("get_current_time", "America/New_York", "2026-11-24T18:30:00-05:00"),
        ("get_current_time", "Mars/Olympus", "There is no time zone 'Mars/Olympus'"),
        ("get_current_time", "../../etc/passwd", "There is no time zone"),
        ("get_current_time", "", "There is no time zone"),
    ],
)
async def test_date_and_time_are_told_in_the_zone_asked_for(store: Store, tool: str, zone: str, says: str) -> None:
    part = await call(await context_for(store, None), tool, {"time_zone": zone})
    assert says in str(part.content)
