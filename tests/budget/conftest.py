"""Every test that takes `store` or `house` runs on SQLite and on PostgreSQL."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal, cast

import pytest
from ledger_house import LedgerHouse, TurnedClock

from automagik.testing.fixtures import dialect, postgres_server, store
from automagik.testing.postgres import PostgresServer
from automagik.testing.stores import open_store

__all__ = ["dialect", "postgres_server", "store"]


@pytest.fixture
async def house(
    dialect: Literal["sqlite", "postgresql"], tmp_path: Path, request: pytest.FixtureRequest, anyio_backend: str
) -> AsyncIterator[LedgerHouse]:
    """A store with its ledger and budgets, by a clock that can be turned."""
    server = cast("PostgresServer", request.getfixturevalue("postgres_server")) if dialect == "postgresql" else None
    clock = TurnedClock()
    async with open_store(dialect, tmp_path, clock, server=server) as opened:
        await opened.signals.open()
        async with LedgerHouse(opened, clock) as house:
            yield house
