"""Platforms with agents whose model is scripted, on SQLite and on PostgreSQL, for tests that go through RunService."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal, cast

import pytest
from run_house import OpenPlatform, write_agents

from automagik.app import Platform
from automagik.testing.fixtures import dialect, postgres_server
from automagik.testing.postgres import PostgresServer
from automagik.testing.stores import fresh_settings

__all__ = ["dialect", "postgres_server"]


@pytest.fixture
def working() -> bool:
    """Whether all agents are there. A module that asks `echo` and `tooled` only says no: seven more double the cost of a start."""
    return True


@pytest.fixture
async def open_platform(
    tmp_path: Path,
    dialect: Literal["sqlite", "postgresql"],
    working: bool,
    request: pytest.FixtureRequest,
    anyio_backend: str,
) -> AsyncIterator[OpenPlatform]:
    """Opens platforms on one data folder and one database; closes those that are open at the end."""
    write_agents(tmp_path / "agents", working=working)
    server = cast("PostgresServer", request.getfixturevalue("postgres_server")) if dialect == "postgresql" else None
    async with fresh_settings(dialect, tmp_path, server=server) as settings:
        opening = OpenPlatform(settings)
        yield opening
        await opening.close_all()


@pytest.fixture
async def open_host(
    tmp_path: Path, postgres_server: PostgresServer, working: bool, anyio_backend: str
) -> AsyncIterator[OpenPlatform]:
    """Opens platforms on one PostgreSQL, each of which stands for a host."""
    write_agents(tmp_path / "agents", working=working)
    async with fresh_settings("postgresql", tmp_path, server=postgres_server) as settings:
        opening = OpenPlatform(settings)
        yield opening
        await opening.close_all()


@pytest.fixture
async def platform(open_platform: OpenPlatform) -> Platform:
    return await open_platform()
