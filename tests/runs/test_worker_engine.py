"""A worker whose engine does not start: it waits longer each time, and says so where people look."""

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from pydantic import SecretStr
from run_house import RUNNER, bind, sent, until_status, write_agents

from automagik.app import Platform
from automagik.errors import ConfigurationError
from automagik.runs.worker import Carry
from automagik.settings import Settings
from automagik.testing.engines import DirectEngine
from automagik.testing.postgres import PostgresServer
from automagik.testing.stores import fresh_settings
from automagik.types import RunStatus

pytestmark = pytest.mark.anyio


class _Broken:
    """Makes engines that don't open until `works`."""

    def __init__(self) -> None:
        self.works = False
        self.tried_at: list[float] = []

    def __call__(self, carry: Carry, executor_id: str) -> DirectEngine:
        house = self

        class Engine(DirectEngine):
            async def open(self) -> None:
                house.tried_at.append(time.monotonic())
                if not house.works:
                    raise ConfigurationError("The engine's tables are damaged.")

        return Engine(carry, executor_id)


async def test_a_worker_apart_that_can_not_begin_is_named_with_its_host_where_requests_are_answered(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    async with fresh_settings("postgresql", tmp_path, server=postgres_server) as shared, AsyncExitStack() as stack:
        write_agents(shared.agents_folder)
        shared = shared.model_copy(
            update={"secret_key": SecretStr("A" * 43 + "="), "agents_dir": shared.agents_folder, "model": "demo"}
        )
        front = shared.model_copy(update={"host_name": "front"})
        back = shared.model_copy(update={"host_name": "back", "data_dir": tmp_path / "back"})
        api = await stack.enter_async_context(Platform.open(front, role="api"))
        broken = _Broken()

        async def told(word: str) -> str:
            """What an administrator is told of other workers, when it has this word; nothing where all is well."""
            async with asyncio.timeout(20):
                while True:
                    [check] = [check for check in (await api.ready()).checks if check.name == "workers"]
                    assert check.status == ("degraded" if check.detail else "ok")
                    detail = check.detail or ""
                    if word in detail if word else not detail:
                        return detail
                    await asyncio.sleep(0.1)

        assert await told("") == ""
        with pytest.raises(ConfigurationError, match="damaged"):
            async with Platform.open(back, role="worker", make_engine=broken):
                pass
        detail = await told("did not start")
        assert "host 'back' (exec_" in detail and "which has ended): The worker did not start: The engine's" in detail

        worker = await stack.enter_async_context(Platform.open(back, role="all", make_engine=broken))
        assert await told("") == "", "another one is there in its place"
        run = await sent(api, "echo", "hello")
        detail = await told("tried again")
        assert "host 'back' (exec_" in detail and "damaged" in detail and "ended" not in detail
        assert "workers" not in {check.name for check in (await worker.ready()).checks if check.status != "ok"}, (
            "its own is told as `worker`"
        )
        broken.works = True
        await until_status(api, run.run_id, RunStatus.COMPLETED)
        assert await told("") == ""


async def test_an_engine_that_does_not_start_is_tried_ever_more_rarely_and_told_of(tmp_path: Path) -> None:
    write_agents(tmp_path / "agents")
    broken = _Broken()
    async with Platform.open(Settings(data_dir=tmp_path, model="demo"), make_engine=broken) as platform:
        assert {check.name: check.status for check in (await platform.ready()).checks}["worker"] == "ok"
        runs = [await sent(platform, "echo", f"number {number}") for number in range(3)]
        async with asyncio.timeout(20):
            while len(broken.tried_at) < 4:
                await asyncio.sleep(0.05)
        waits = [later - earlier for earlier, later in zip(broken.tried_at, broken.tried_at[1:], strict=False)]
        assert all(wait >= least for wait, least in zip(waits, (0.5, 1.0, 2.0), strict=True)), waits

        [check] = [check for check in (await platform.ready()).checks if check.name == "worker"]
        assert check.status == "degraded"
        assert "tried again within 4 seconds: The engine's tables are damaged." in (check.detail or "")
        assert (await platform.runs.get(runs[0].run_id, RUNNER)).status == "queued"

        lost = await sent(platform, "outliving", str(tmp_path / "taken"))
        await bind(platform, lost.run_id)
        assert (await platform.runs.cancel(lost.run_id, RUNNER)).outcome == "cancelled", "that needs no engine"
        assert (tmp_path / "taken").exists()

        broken.works = True
        for run in runs:
            await until_status(platform, run.run_id, RunStatus.COMPLETED)
        assert [check.status for check in (await platform.ready()).checks if check.name == "worker"] == ["ok"]
