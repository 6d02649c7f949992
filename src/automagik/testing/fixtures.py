"""Pytest fixtures for tests that need a store: import them into a conftest.py, `store` runs each test on both databases."""

import os
from collections.abc import AsyncIterator, Iterator
from typing import Literal, cast

import pytest

from automagik.store import Store
from automagik.testing.postgres import PostgresServer
from automagik.testing.stores import open_store
from automagik.testing.warm import WarmPython

__all__ = ["dialect", "postgres_server", "store", "warm"]


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole test run, whatever the number of its workers."""
    base = tmp_path_factory.getbasetemp()
    with PostgresServer(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) as server:
        yield server


@pytest.fixture(scope="session")
def warm() -> Iterator[WarmPython]:
    """Commands without the cost of a start of Python each."""
    with WarmPython() as python:
        yield python


@pytest.fixture(params=["sqlite", "postgresql"])
def dialect(request: pytest.FixtureRequest) -> Literal["sqlite", "postgresql"]:
    """Each database in turn."""
    return cast("Literal['sqlite', 'postgresql']", request.param)


@pytest.fixture
async def store(
    dialect: Literal["sqlite", "postgresql"],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    anyio_backend: str,
) -> AsyncIterator[Store]:
    """An open store on a fresh database, once on SQLite and once on PostgreSQL."""
    server = cast("PostgresServer", request.getfixturevalue("postgres_server")) if dialect == "postgresql" else None
    async with open_store(dialect, tmp_path_factory.mktemp("data"), server=server) as opened:
        yield opened
