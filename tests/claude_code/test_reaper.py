"""Reaping: what runs have left goes when they are over, and nothing of one that is open does."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from executor_house import short_folder

from automagik.claude_code.factory import ExecutorFactory
from automagik.claude_code.reaper import reap
from automagik.settings import Settings
from automagik.store import BeginRun, Store
from automagik.testing.needs import need
from automagik.types import SystemClock, new_id

pytestmark = pytest.mark.anyio


@pytest.fixture
async def folder() -> AsyncIterator[Path]:
    with short_folder() as made:
        yield made


async def test_places_of_open_runs_stay_and_those_of_others_go(folder: Path) -> None:
    need("bubblewrap")
    settings = Settings(data_dir=folder, executor="local")
    clock = SystemClock()
    store = Store.from_settings(settings, clock)
    await store.open()
    executors = ExecutorFactory(settings)
    try:
        local = executors.named("local")
        opened, unknown = new_id("run"), new_id("run")
        begin = BeginRun(run_id=opened, kind="workflow", name="plain", created_at=clock.now(), background=True)
        await store.accept_run(begin)
        for run_id in (opened, unknown):
            await local.prepare(run_id)

        assert await reap(store, executors, host="here") == [unknown]
        assert await local.places() == [opened]
    finally:
        await executors.close()
        await store.close()
