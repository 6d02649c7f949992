"""Schedules on several hosts over one PostgreSQL, with real processes that are killed."""

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from automagik.testing.postgres import PostgresServer
from automagik.testing.servers import RunningServer
from automagik.testing.warm import WarmPython

SECOND = timedelta(seconds=1)

DIES_AT_FIRING = """
import asyncio, os, signal, sys

from automagik.app import Platform
from automagik.runs import Scheduler
from automagik.settings import Settings


class Deadly:
    def __init__(self, runs):
        self._runs = runs

    async def submit(self, *arguments, **options):
        run = await self._runs.submit(*arguments, **options)
        print(run.run_id, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)  # the run is stored, the schedule has not moved on


async def main():
    async with Platform.open(Settings(), role="api") as platform:
        await Scheduler(
            store=platform.store, runs=Deadly(platform.runs), keys=platform.keys, limits=platform.limits,
            clock=platform.clock
        ).run()


asyncio.run(main())
"""


def client_of(server: RunningServer, key: str) -> httpx2.Client:
    return httpx2.Client(base_url=f"{server.url}/api/v1", headers={"x-api-key": key}, timeout=30)


def scheduled(client: httpx2.Client, name: str) -> list[dict[str, Any]]:
    """The runs of a schedule, the earliest time first."""
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = client.get("/runs", params={"limit": 100, **({"cursor": cursor} if cursor else {})}).json()
        found += [
            run for run in page["data"] if run["labels"].get("schedule") == name and "scheduled_at" in run["labels"]
        ]
        cursor = page["next_cursor"]
        if cursor is None:
            return sorted(found, key=lambda run: str(run["labels"]["scheduled_at"]))


def times_of(runs: list[dict[str, Any]]) -> list[datetime]:
    return [datetime.fromisoformat(run["labels"]["scheduled_at"]) for run in runs]


def make(client: httpx2.Client, name: str, **changes: Any) -> dict[str, Any]:
    body = {"name": name, "agent_name": "simple", "request": {"message_content": "tick"}, **changes}
    made = client.post("/schedules", json=body)
    assert made.status_code == 201, made.text
    return made.json()


@pytest.mark.long
@pytest.mark.timeout(180)
def test_two_hosts_fire_each_second_once_also_when_one_is_killed(
    tmp_path: Path, postgres_server: PostgresServer, warm: WarmPython
) -> None:
    database = {
        "AUTOMAGIK_DATABASE_URL": postgres_server.create_database(),
        "AUTOMAGIK_SECRET_KEY": "A" * 43 + "=",
    }
    with ExitStack() as stack:
        first = stack.enter_context(RunningServer(tmp_path / "a", settings=database, warm=warm))
        second = RunningServer(tmp_path / "b", settings=database, warm=warm)
        second.start()
        stack.callback(second.stop)
        client = stack.enter_context(client_of(first, first.key))
        names = ["tick", "tock", "tack"]
        for name in names:
            make(client, name, cron="* * * * * *")
        time.sleep(4)
        second.kill()
        time.sleep(4)
        second.start()
        time.sleep(4)
        for name in names:
            assert client.patch(f"/schedules/{name}", json={"active": False}).status_code == 200
        for name in names:
            times = times_of(scheduled(client, name))
            assert len(times) >= 10
            assert times == [times[0] + n * SECOND for n in range(len(times))], name
            assert client.get(f"/schedules/{name}").json()["last_error"] is None
        runs = scheduled(client, "tick")
        deadline = time.monotonic() + 60
        while any(run["status"] in {"queued", "running"} for run in runs) and time.monotonic() < deadline:
            time.sleep(0.5)
            runs = scheduled(client, "tick")
        assert {run["status"] for run in runs} <= {"completed", "failed"}, "every accepted run ends"


@pytest.mark.timeout(120)
def test_a_kill_between_the_run_and_the_next_time_gives_no_second_run(
    tmp_path: Path, postgres_server: PostgresServer, warm: WarmPython
) -> None:
    database = {"AUTOMAGIK_DATABASE_URL": postgres_server.create_database()}
    with RunningServer(tmp_path / "a", settings=database, warm=warm) as server:
        with client_of(server, server.key) as client:
            make(client, "tick", cron="*/2 * * * * *")
            key = server.key
            server.kill()
        dying = subprocess.run(
            [sys.executable, "-c", DIES_AT_FIRING],
            env={**server.environment, "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert dying.returncode == -9, dying.stderr
        run_id = dying.stdout.strip()
        server.start()
        with client_of(server, key) as client:
            deadline = time.monotonic() + 30
            while len(runs := scheduled(client, "tick")) < 4:
                assert time.monotonic() < deadline
                time.sleep(0.2)
            times = times_of(runs)
            assert times == [times[0] + 2 * n * SECOND for n in range(len(times))], "none twice, none missing"
            assert run_id in [run["run_id"] for run in runs]
