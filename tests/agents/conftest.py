"""The rooms below the agents, on SQLite."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agent_house import House, ScriptedModels

from automagik.memory import MemoryStore, Prompts
from automagik.settings import Settings
from automagik.store import Store
from automagik.tools import ToolRegistry
from automagik.types import SystemClock


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    settings = Settings(data_dir=tmp_path, model="scripted")
    store = Store.from_settings(settings, SystemClock())
    await store.open()
    models = ScriptedModels(settings)
    await models.open()
    tools = ToolRegistry()
    tools.discover()
    try:
        yield House(
            settings=settings,
            store=store,
            models=models,
            prompts=Prompts(store),
            memories=MemoryStore(store),
            tools=tools,
        )
    finally:
        await models.close()
        await store.close()
