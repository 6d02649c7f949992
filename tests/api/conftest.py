"""Houses: `house` and `shared_house` on SQLite, `each_house` on SQLite and on PostgreSQL."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal, cast

import pytest
from api_house import ApiHouse, open_house

from automagik.settings import Settings
from automagik.testing.fixtures import dialect, postgres_server
from automagik.testing.postgres import PostgresServer
from automagik.testing.stores import fresh_settings

__all__ = ["dialect", "postgres_server"]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[ApiHouse]:
    async with fresh_settings("sqlite", tmp_path) as settings, open_house(settings) as opened:
        yield opened


@pytest.fixture
async def priced_house(tmp_path: Path) -> AsyncIterator[ApiHouse]:
    """One in which the scripted agents' models have a price."""
    async with open_house(Settings(data_dir=tmp_path), model_prices=["function:*=10/100"]) as opened:
        yield opened


@pytest.fixture(scope="module")
async def shared_house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ApiHouse]:
    """One for a whole table of requests that change nothing."""
    async with open_house(Settings(data_dir=tmp_path_factory.mktemp("house"))) as opened:
        yield opened


@pytest.fixture
async def each_house(
    dialect: Literal["sqlite", "postgresql"], tmp_path: Path, request: pytest.FixtureRequest, anyio_backend: str
) -> AsyncIterator[ApiHouse]:
    server = cast("PostgresServer", request.getfixturevalue("postgres_server")) if dialect == "postgresql" else None
    async with fresh_settings(dialect, tmp_path, server=server) as settings, open_house(settings) as opened:
        yield opened
