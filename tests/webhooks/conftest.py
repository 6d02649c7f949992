"""Every test that takes `house` runs on SQLite and on PostgreSQL."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal, cast

import pytest
from webhook_house import WebhookHouse, open_webhook_house

from automagik.testing.fixtures import dialect, postgres_server
from automagik.testing.postgres import PostgresServer
from automagik.testing.stores import fresh_settings

__all__ = ["dialect", "postgres_server"]


@pytest.fixture
async def house(
    dialect: Literal["sqlite", "postgresql"], tmp_path: Path, request: pytest.FixtureRequest, anyio_backend: str
) -> AsyncIterator[WebhookHouse]:
    server = cast("PostgresServer", request.getfixturevalue("postgres_server")) if dialect == "postgresql" else None
    async with fresh_settings(dialect, tmp_path, server=server) as settings, open_webhook_house(settings) as opened:
        yield opened
