"""A gateway before a scripted Messages API, with the real ledger, on SQLite and on PostgreSQL."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, cast

import pytest
from gateway_house import House, OpenHouse

from automagik.testing.fixtures import dialect, postgres_server
from automagik.testing.postgres import PostgresServer
from automagik.testing.scripted_messages import ScriptedMessages
from automagik.testing.stores import fresh_settings

__all__ = ["dialect", "postgres_server"]


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder whose path is short enough for a unix socket."""
    with TemporaryDirectory(prefix="gw-") as folder:
        yield Path(folder)


@pytest.fixture
async def api(anyio_backend: str) -> AsyncIterator[ScriptedMessages]:
    """The provider."""
    async with ScriptedMessages() as provider:
        yield provider


@pytest.fixture
async def open_house(tmp_path: Path, sockets: Path, anyio_backend: str) -> AsyncIterator[OpenHouse]:
    """Opens gateways on one SQLite database, each of which stands for a process."""
    async with fresh_settings("sqlite", tmp_path) as settings:
        opening = OpenHouse(settings, sockets)
        yield opening
        await opening.close_all()


@pytest.fixture
async def house(open_house: OpenHouse, api: ScriptedMessages) -> House:
    return await open_house(anthropic_base_url=api.base_url)


@pytest.fixture
async def either_house(
    tmp_path: Path,
    sockets: Path,
    api: ScriptedMessages,
    dialect: Literal["sqlite", "postgresql"],
    request: pytest.FixtureRequest,
    anyio_backend: str,
) -> AsyncIterator[House]:
    """The same on each database in turn."""
    server = cast("PostgresServer", request.getfixturevalue("postgres_server")) if dialect == "postgresql" else None
    async with fresh_settings(dialect, tmp_path, server=server) as settings:
        opening = OpenHouse(settings, sockets)
        yield await opening(anthropic_base_url=api.base_url)
        await opening.close_all()
