"""Instances on one database, SQLite or PostgreSQL."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Literal, cast

import pytest
from event_house import Instance, OpenInstance, open_instance

from automagik.settings import Settings
from automagik.store.signals import Signals
from automagik.testing.fixtures import dialect, postgres_server
from automagik.testing.postgres import PostgresServer
from automagik.testing.stores import fresh_settings

__all__ = ["dialect", "postgres_server"]


@pytest.fixture
async def settings(
    dialect: Literal["sqlite", "postgresql"], tmp_path: Path, request: pytest.FixtureRequest, anyio_backend: str
) -> AsyncIterator[Settings]:
    server = cast("PostgresServer", request.getfixturevalue("postgres_server")) if dialect == "postgresql" else None
    async with fresh_settings(dialect, tmp_path, server=server) as settings:
        yield settings


@pytest.fixture
async def open_one(settings: Settings) -> AsyncIterator[OpenInstance]:
    """Opens instances on one database, and closes them at the end."""
    async with AsyncExitStack() as stack:

        async def open_one(channel: Callable[[Signals], Signals] | None = None) -> Instance:
            return await stack.enter_async_context(open_instance(settings, channel))

        yield open_one
