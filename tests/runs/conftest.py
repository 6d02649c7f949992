"""A platform with agents whose model is scripted, on SQLite and on PostgreSQL, for tests that go through RunService."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Literal, cast

import pytest
from run_house import AGENTS, TOOLED, OpenPlatform

from automagik.app import Platform
from automagik.testing.engines import DirectEngine
from automagik.testing.fixtures import dialect, postgres_server
from automagik.testing.postgres import PostgresServer
from automagik.testing.stores import fresh_settings

__all__ = ["dialect", "postgres_server"]


@pytest.fixture
async def open_platform(
    tmp_path: Path, dialect: Literal["sqlite", "postgresql"], request: pytest.FixtureRequest, anyio_backend: str
) -> AsyncIterator[OpenPlatform]:
    """Opens platforms on one data folder and one database; closes those that are open at the end."""
    folder = tmp_path / "agents"
    folder.mkdir()
    (folder / "echo.py").write_text(AGENTS)
    (folder / "tooled.py").write_text(TOOLED)
    server = cast("PostgresServer", request.getfixturevalue("postgres_server")) if dialect == "postgresql" else None
    async with fresh_settings(dialect, tmp_path, server=server) as settings, AsyncExitStack() as stack:

        async def open_one(**changes: object) -> Platform:
            changed = settings.model_copy(update={"model": "demo", **changes})
            return await stack.enter_async_context(Platform.open(changed, make_engine=DirectEngine))

        yield open_one


@pytest.fixture
async def platform(open_platform: OpenPlatform) -> Platform:
    return await open_platform()
