"""Two stores on one database, for tests of what two processes do at once."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import pytest

from automagik.store import Store
from automagik.testing.postgres import PostgresServer
from automagik.testing.stores import fresh_settings
from automagik.types import SystemClock

__all__ = ["Pair", "pair"]


@dataclass
class Pair:
    """Two stores on one database, as two processes have them; on SQLite the one store that a data folder has."""

    one: Store
    two: Store
    url: str

    @property
    def both(self) -> tuple[Store, Store]:
        return self.one, self.two


@pytest.fixture
async def pair(
    dialect: Literal["sqlite", "postgresql"], tmp_path: Path, request: pytest.FixtureRequest, anyio_backend: str
) -> AsyncIterator[Pair]:
    server = cast("PostgresServer", request.getfixturevalue("postgres_server")) if dialect == "postgresql" else None
    async with fresh_settings(dialect, tmp_path, server=server) as settings:
        opened = [Store.from_settings(settings, SystemClock()) for _ in range(1 if server is None else 2)]
        for store in opened:
            await store.open()
        yield Pair(opened[0], opened[-1], settings.database_url.get_secret_value() if settings.database_url else "")
        for store in opened:
            await store.close()
