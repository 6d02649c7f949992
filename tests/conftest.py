"""What every test has: asyncio as the one loop, and logs as a server writes them."""

import pytest

from automagik.settings import Settings
from automagik.telemetry import configure_logging

__all__: list[str] = []


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def logs() -> None:
    """Structured logs: structlog's own default renders tracebacks with their local variables, at seconds each."""
    configure_logging(Settings.model_validate({"log_format": "json"}))
