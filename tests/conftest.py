"""What every test has: asyncio as the one loop. Services (PostgreSQL, servers) come from fixtures beside this file."""

import pytest

__all__: list[str] = []


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
