"""A platform on SQLite with agents whose model is scripted, for tests that go through RunService."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from run_house import AGENTS, TOOLED, OpenPlatform

from automagik.app import Platform
from automagik.settings import Settings


@pytest.fixture
async def open_platform(tmp_path: Path) -> AsyncIterator[OpenPlatform]:
    """Opens platforms on one data folder; closes those that are open at the end. Call `.aclose` by leaving the stack."""
    folder = tmp_path / "agents"
    folder.mkdir()
    (folder / "echo.py").write_text(AGENTS)
    (folder / "tooled.py").write_text(TOOLED)
    async with AsyncExitStack() as stack:

        async def open_one(**changes: object) -> Platform:
            settings = Settings.model_validate({"data_dir": tmp_path, "model": "demo", **changes})
            return await stack.enter_async_context(Platform.open(settings))

        yield open_one


@pytest.fixture
async def platform(open_platform: OpenPlatform) -> Platform:
    return await open_platform()
