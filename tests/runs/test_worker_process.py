"""`automagik serve --api-only` and `automagik worker`: real processes, with DBOS, over one PostgreSQL."""

import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx2
import pytest
from run_house import away, write_agents

from automagik.testing.postgres import PostgresServer
from automagik.testing.servers import RunningServer
from automagik.testing.stopwatch import Stopwatch
from automagik.testing.warm import WarmPython

pytestmark = [pytest.mark.long, pytest.mark.alone]


class House:
    """A server that only answers, and workers that are started as they are needed."""

    def __init__(self, folder: Path, url: str, stack: ExitStack, warm: WarmPython) -> None:
        self.url = url
        self._warm = warm
        self._folder = folder
        self._stack = stack
        self._workers = 0
        write_agents(folder / "agents")
        self.server = stack.enter_context(
            RunningServer(folder / "server", settings=self._settings, command=("serve", "--api-only"), warm=warm)
        )
        headers = {"x-api-key": self.server.key}
        base = f"{self.server.url}/api/v1"
        self.client = stack.enter_context(httpx2.Client(base_url=base, headers=headers, timeout=30))

    @property
    def _settings(self) -> dict[str, str]:
        return {
            "AUTOMAGIK_DATABASE_URL": self.url,
            "AUTOMAGIK_SECRET_KEY": "A" * 43 + "=",
            "AUTOMAGIK_AGENTS_DIR": str(self._folder / "agents"),
            "AUTOMAGIK_SHUTDOWN_GRACE_SECONDS": "1",
            "AUTOMAGIK_MAX_CONCURRENT_BACKGROUND_RUNS": "4",
        }

    def worker(self) -> RunningServer:
        """Another worker, ready."""
        self._workers += 1
        folder = self._folder / f"worker{self._workers}"
        return self._stack.enter_context(
            RunningServer(folder, settings=self._settings, command=("worker",), warm=self._warm)
        )

    def submit(self, agent: str, text: str, **more: Any) -> str:
        """A background run's id."""
        answer = self.client.post(f"/agent/{agent}/run/async", json={"message_content": text, **more})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["run_id"])

    def run(self, run_id: str) -> dict[str, Any]:
        """The run as it stands."""
        return self.client.get(f"/runs/{run_id}").json()

    def until(self, run_id: str, *statuses: str, seconds: float = 30) -> dict[str, Any]:
        """The run when it has one of the statuses."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            run = self.run(run_id)
            if run["status"] in statuses:
                return run
            time.sleep(0.05)
        raise AssertionError(f"{run_id} is {self.run(run_id)['status']}")

    def ended(self, run_id: str, *, seconds: float = 30) -> dict[str, Any]:
        """The run when it has ended."""
        return self.until(run_id, "completed", "failed", "cancelled", seconds=seconds)


@pytest.fixture
def house(tmp_path: Path, postgres_server: PostgresServer, warm: WarmPython) -> Iterator[House]:
    url = postgres_server.create_database()
    with ExitStack() as stack:
        yield House(tmp_path, url, stack, warm)
    postgres_server.drop_database(url)


def noted(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def until_noted(path: Path, size: int) -> None:
    deadline = time.monotonic() + 20
    while noted(path) < size:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_worker_carries_out_what_a_server_accepts_and_hands_it_back_when_it_is_stopped(
    house: House, tmp_path: Path
) -> None:
    worker = house.worker()
    assert house.ended(house.submit("echo", "hello"))["outcome"] == "completed"
    slow = house.submit("flaky", f"fail 1 slowly {tmp_path / 'count'}")
    until_noted(tmp_path / "count", 1)
    with Stopwatch() as took:
        assert worker.stop() == 0
    assert took.seconds < 8
    run = house.run(slow)
    assert (run["status"], run["attempt"]) == ("queued", 1)
    worker.start()
    run = house.ended(slow)
    assert (run["outcome"], run["attempt"], run["output"]["message"].strip()) == ("completed", 1, "attempt 2")
    assert worker.stop() == 0
    worker.start()


def test_a_worker_that_is_killed_is_missed_and_its_runs_go_on_elsewhere(house: House, tmp_path: Path) -> None:
    worker = house.worker()
    slow = house.submit("flaky", f"fail 1 slowly {tmp_path / 'count'}")
    wrote = house.submit("writer", f"write {tmp_path / 'hang'}")
    until_noted(tmp_path / "count", 1)
    until_noted(tmp_path / "hang", 1)
    house.worker()
    with Stopwatch() as took:
        worker.kill()
        run = house.ended(slow)
    assert took.seconds < 12
    assert (run["outcome"], run["attempt"]) == ("completed", 2)
    run = house.ended(wrote)
    assert (run["outcome"], noted(tmp_path / "hang")) == ("worker_lost", 1)
    worker.start()


def test_a_worker_that_was_frozen_writes_nothing_more_and_then_works_again(house: House, tmp_path: Path) -> None:
    frozen = house.worker()
    slow = house.submit("flaky", f"fail 1 slowly {tmp_path / 'count'}")
    until_noted(tmp_path / "count", 1)
    frozen.freeze()
    other = house.worker()
    run = house.ended(slow)
    assert (run["outcome"], run["attempt"]) == ("completed", 2)
    frozen.thaw()
    deadline = time.monotonic() + 15
    while "executor_renewed" not in frozen.output:
        assert time.monotonic() < deadline, frozen.output
        time.sleep(0.05)
    assert other.stop() == 0
    for number in range(3):
        assert house.ended(house.submit("echo", f"again {number}"))["outcome"] == "completed"
    assert house.run(slow) == run
    other.start()


def test_a_worker_stops_in_time_while_the_database_is_away(
    house: House, tmp_path: Path, postgres_server: PostgresServer
) -> None:
    worker = house.worker()
    slow = house.submit("flaky", f"fail 1 slowly {tmp_path / 'count'}")
    until_noted(tmp_path / "count", 1)
    with database_away(postgres_server, house.url):
        time.sleep(1)
        with Stopwatch() as took:
            worker.stop()
        assert took.seconds < 25
    house.worker()
    assert house.ended(slow)["outcome"] == "completed", "what it could not hand back is missed"
    worker.start()


@contextmanager
def database_away(server: PostgresServer, url: str) -> Generator[None]:
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(away(server, urlsplit(url).path[1:])),
    ):
        yield


@pytest.mark.parametrize("command", [("worker",), ("serve", "--api-only")])
def test_processes_apart_need_a_database_that_they_can_share(tmp_path: Path, command: tuple[str, ...]) -> None:
    server = RunningServer(tmp_path, command=command)
    done = subprocess.run(
        [sys.executable, "-m", "automagik", *command],
        env=server.environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode != 0
    assert "AUTOMAGIK_DATABASE_URL" in done.stdout + done.stderr
