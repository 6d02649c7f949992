"""The rooms below the agents: on SQLite, or on what a test parametrizes `dialect` with."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal, cast

import pytest
from agent_house import House, ScriptedModels

from automagik.memory import MemoryStore, Prompts
from automagik.settings import Settings
from automagik.testing.fixtures import postgres_server
from automagik.testing.postgres import PostgresServer
from automagik.testing.stores import open_store
from automagik.tools import ToolRegistry

__all__ = ["dialect", "house", "postgres_server"]


@pytest.fixture
def dialect() -> Literal["sqlite", "postgresql"]:
    return "sqlite"


@pytest.fixture
async def house(
    tmp_path: Path, dialect: Literal["sqlite", "postgresql"], request: pytest.FixtureRequest
) -> AsyncIterator[House]:
    settings = Settings(data_dir=tmp_path, model="scripted")
    server = cast("PostgresServer", request.getfixturevalue("postgres_server")) if dialect == "postgresql" else None
    async with open_store(dialect, tmp_path, server=server) as store:
        models = ScriptedModels(settings)
        await models.open()
        tools = ToolRegistry()
        tools.discover()
        yield House(
            settings=settings,
            store=store,
            models=models,
            prompts=Prompts(store),
            memories=MemoryStore(store),
            tools=tools,
        )
        await models.close()
