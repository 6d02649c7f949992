"""DurableEngine: what is started is carried out once, or forgotten; on both databases, with real kills."""

import asyncio
import logging
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, cast

import pytest
from sqlalchemy import text

from automagik.errors import ConfigurationError, Internal, ServiceUnavailable
from automagik.runs.durable import APPLICATION_VERSION, DurableEngine
from automagik.store import Store
from automagik.testing.postgres import PostgresServer
from automagik.testing.stores import fresh_settings
from automagik.types import SystemClock, new_id

pytestmark = pytest.mark.anyio


@dataclass
class House:
    """A database, DBOS's rows in it, and the engines and workers that use it."""

    store: Store
    data_dir: Path
    url: str | None
    children: "list[subprocess.Popen[str]]" = field(default_factory=list["subprocess.Popen[str]"])
    engines: list[DurableEngine] = field(default_factory=list[DurableEngine])

    def engine(self, carry: Callable[[str], Awaitable[None]], executor_id: str | None = None) -> DurableEngine:
        engine = DurableEngine(
            carry,
            executor_id=executor_id or new_id("exec"),
            data_dir=self.data_dir,
            database_url=self.url,
            clock=SystemClock(),
        )
        self.engines.append(engine)
        return engine

    @asynccontextmanager
    async def opened(
        self, carry: Callable[[str], Awaitable[None]], executor_id: str | None = None
    ) -> AsyncGenerator[DurableEngine]:
        engine = self.engine(carry, executor_id)
        await engine.open()
        try:
            yield engine
        finally:
            await engine.close()

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What a query of DBOS's tables finds."""
        if self.url is None:
            connection = sqlite3.connect(self.data_dir / "durable.db")
            try:
                return connection.execute(query).fetchall()
            finally:
                connection.close()
        statement = text(query.replace(" FROM ", " FROM dbos."))
        return await self.store.read(lambda tx: [tuple(row) for row in tx.connection.execute(statement)])

    async def status(self, workflow_id: str) -> str | None:
        found = await self.rows(f"SELECT status FROM workflow_status WHERE workflow_uuid = '{workflow_id}'")
        return found[0][0] if found else None

    async def until_status(self, workflow_id: str, *wanted: str | None) -> None:
        async with asyncio.timeout(20):
            while await self.status(workflow_id) not in wanted:
                await asyncio.sleep(0.05)

    async def worker(self, *plan: str) -> "Worker":
        """A process that registers as an executor, opens an engine and starts these runs, which never end."""
        executor_id = new_id("exec")
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(self.data_dir), self.url or "", executor_id, *plan],
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
        )
        self.children.append(process)
        worker = Worker(process, executor_id)
        assert await worker.said() == "ready"
        return worker

    async def declare_lost(self, executor_id: str) -> int:
        """What a rescue does in its transaction: how many workflows were forgotten."""

        def rescue(tx: Any) -> int:
            tx.executors.retire(executor_id)
            return tx.executors.forget_workflows()

        return await self.store.write(rescue)


@dataclass
class Worker:
    process: "subprocess.Popen[str]"
    executor_id: str

    async def said(self) -> str:
        assert self.process.stdout is not None
        return (await asyncio.to_thread(self.process.stdout.readline)).strip()

    async def hears(self, *wanted: str) -> None:
        for words in wanted:
            assert await self.said() == words

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


WORKER = """
import asyncio, sys
from pathlib import Path
from automagik.runs.durable import DurableEngine
from automagik.settings import Settings
from automagik.store import Store
from automagik.telemetry import configure_logging
from automagik.types import SystemClock

data_dir, url, executor_id, *plan = sys.argv[1:]
settings = Settings.model_validate({"data_dir": data_dir, "database_url": url or None})
configure_logging(settings)

def say(words):
    print(words, flush=True)

async def main():
    if url:
        store = Store.from_settings(settings, SystemClock())
        await store.open()
        await store.write(lambda tx: tx.executors.register(executor_id, host="here", role="worker", version="1"))

    async def carry(run_id):
        say(f"begun {run_id}")
        await asyncio.sleep(60)

    engine = DurableEngine(
        carry, executor_id=executor_id, data_dir=Path(data_dir), database_url=url or None, clock=SystemClock()
    )
    await engine.open()
    say("ready")
    for run_id in plan:
        await engine.start(f"{run_id}:1", run_id)
    await asyncio.sleep(120)

asyncio.run(main())
"""


@pytest.fixture
async def house(
    dialect: Literal["sqlite", "postgresql"], tmp_path: Path, request: pytest.FixtureRequest, anyio_backend: str
) -> AsyncIterator[House]:
    server = cast("PostgresServer", request.getfixturevalue("postgres_server")) if dialect == "postgresql" else None
    async with fresh_settings(dialect, tmp_path, server=server) as settings:
        store = Store.from_settings(settings, SystemClock())
        await store.open()
        url = settings.database_url.get_secret_value() if settings.database_url is not None else None
        made = House(store, tmp_path, url)
        try:
            yield made
        finally:
            for child in made.children:
                child.kill()
                child.wait()
                if child.stdout is not None:
                    child.stdout.close()
            for engine in made.engines:
                await engine.close()
            await store.close()


async def nothing(run_id: str) -> None:
    del run_id


# -- carrying out


async def test_what_is_started_is_carried_out_once_in_the_event_loop_that_opened_the_engine(house: House) -> None:
    carried: list[tuple[str, int]] = []

    async def carry(run_id: str) -> None:
        await asyncio.sleep(0)
        carried.append((run_id, threading.get_ident()))

    async with house.opened(carry) as engine:
        for number in range(5):
            await engine.start(f"run_{number}:1", f"run_{number}")
        await engine.start("run_0:1", "run_0")
        for number in range(5):
            await house.until_status(f"run_{number}:1", "SUCCESS")
    assert sorted(carried) == [(f"run_{number}", threading.get_ident()) for number in range(5)]
    stored = await house.rows("SELECT name, application_version, serialization FROM workflow_status")
    assert set(stored) == {("carry_out", APPLICATION_VERSION, "portable_json")}, "nothing is pickled"


async def test_dbos_is_not_even_imported_before_an_engine_opens() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import sys, automagik.app, automagik.runs.durable; print('dbos' in sys.modules, 'psycopg' in sys.modules)",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "False"]


async def test_the_engine_opens_itself_with_the_first_start(house: House) -> None:
    engine = house.engine(nothing)
    assert not engine.is_open
    await asyncio.gather(*(engine.start(f"run_{number}:1", f"run_{number}") for number in range(3)))
    assert engine.is_open
    await engine.close(1)
    assert not engine.is_open
    with pytest.raises(ServiceUnavailable):
        await engine.start("run_9:1", "run_9")


async def test_a_carrier_that_raises_ends_its_workflow_and_no_other(house: House) -> None:
    async def carry(run_id: str) -> None:
        if run_id == "run_bad":
            raise Internal("Something is broken.")

    async with house.opened(carry) as engine:
        await engine.start("run_bad:1", "run_bad")
        await engine.start("run_good:1", "run_good")
        await house.until_status("run_bad:1", "ERROR")
        await house.until_status("run_good:1", "SUCCESS")


async def test_a_second_engine_in_one_process_is_refused_until_the_first_is_closed(house: House) -> None:
    first, second = house.engine(nothing), house.engine(nothing)
    await first.open()
    await first.open()
    with pytest.raises(ConfigurationError, match="Another Platform") as refused:
        await second.open()
    assert "process" in (refused.value.hint or "")
    await first.start("run_a:1", "run_a")
    await house.until_status("run_a:1", "SUCCESS")
    await first.close()
    await first.close()
    await second.open()
    await second.start("run_b:1", "run_b")
    await house.until_status("run_b:1", "SUCCESS")
    await second.close()


async def test_an_engine_that_can_not_start_says_why_and_leaves_the_way_open_for_the_next(house: House) -> None:
    good = house.engine(nothing)
    away = "postgresql://nobody@127.0.0.1:9/nothing"
    refused = [(away, ServiceUnavailable), (f"{away}?ssl=require", ConfigurationError)]
    if house.url is not None:
        powerless = f"powerless_{new_id('x')}"
        await house.store.write(lambda tx: tx.connection.execute(text(f"CREATE ROLE {powerless} LOGIN")))
        refused.append((house.url.replace("postgres@", f"{powerless}@"), ConfigurationError))
    for url, error in refused:
        bad = DurableEngine(
            nothing, executor_id=new_id("exec"), data_dir=house.data_dir, database_url=url, clock=SystemClock()
        )
        with pytest.raises(error) as raised:
            await bad.open()
        assert raised.value.__cause__ is not None
        assert not bad.is_open
        await bad.close()
    await good.start("run_a:1", "run_a")
    await house.until_status("run_a:1", "SUCCESS")


async def test_closing_waits_for_what_is_under_way_and_cancels_the_rest_before_it_returns(house: House) -> None:
    said: list[str] = []

    async def carry(run_id: str) -> None:
        try:
            await asyncio.sleep(0.3 if run_id == "run_short" else 60)
            said.append(f"{run_id} ended")
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)
            said.append(f"{run_id} cancelled")
            raise

    engine = house.engine(carry)
    for run_id in ("run_short", "run_long"):
        await engine.start(f"{run_id}:1", run_id)
    await engine.close(1)
    assert sorted(said) == ["run_long cancelled", "run_short ended"]
    assert await house.status("run_short:1") == "SUCCESS"
    assert await house.status("run_long:1") == "SUCCESS", "for DBOS it is over: what becomes of the run is in our rows"


async def test_the_event_loop_keeps_its_own_threads(house: House) -> None:
    names: list[str] = []

    async def carry(run_id: str) -> None:
        names.append(await asyncio.to_thread(lambda: threading.current_thread().name))

    engine = house.engine(carry)
    await engine.start("run_a:1", "run_a")
    await house.until_status("run_a:1", "SUCCESS")
    await engine.close()
    names.append(await asyncio.to_thread(lambda: threading.current_thread().name))
    assert not [name for name in names if "dbos" in name]


async def test_a_workflow_that_is_begun_while_another_is_carried_out_is_not_its_child(house: House) -> None:
    async def carry(run_id: str) -> None:
        if run_id == "run_a":
            await engine.start("run_b:1", "run_b")

    engine = house.engine(carry)
    await engine.start("run_a:1", "run_a")
    await house.until_status("run_b:1", "SUCCESS")
    await engine.close()
    assert await house.rows("SELECT workflow_uuid FROM workflow_status WHERE parent_workflow_id IS NOT NULL") == []


async def test_dbos_says_only_what_is_wrong_and_says_it_where_all_logs_go(
    house: House, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async with house.opened(nothing) as engine:
        await engine.start("run_a:1", "run_a")
        await house.until_status("run_a:1", "SUCCESS")
    assert not [record for record in caplog.records if record.name == "dbos"]
    assert capfd.readouterr().out == ""
    assert [type(handler) for handler in logging.getLogger("dbos").handlers] == [logging.NullHandler]
    assert logging.getLogger("dbos").propagate


# -- when a process dies


async def test_what_a_killed_process_carried_out_is_forgotten_and_never_run_again(house: House) -> None:
    first = await house.worker("run_a")
    await first.hears("begun run_a")
    first.kill()
    assert await house.status("run_a:1") == "PENDING"
    if house.url is not None:
        assert await house.declare_lost(first.executor_id) == 1
    again: list[str] = []

    async def carry(run_id: str) -> None:
        again.append(run_id)

    async with house.opened(carry, first.executor_id if house.url is not None else None) as engine:
        assert await house.status("run_a:1") == "CANCELLED"
        await engine.start("run_a:2", "run_a")
        await house.until_status("run_a:2", "SUCCESS")
        await asyncio.sleep(1.5)
    assert again == ["run_a"]


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
async def test_a_process_that_was_taken_for_dead_ends_its_forgotten_work_quietly(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    executor_id = new_id("exec")
    await house.store.write(lambda tx: tx.executors.register(executor_id, host="here", role="worker", version="1"))
    go_on, ended = asyncio.Event(), asyncio.Event()

    async def carry(run_id: str) -> None:
        await go_on.wait()
        ended.set()

    async with house.opened(carry, executor_id) as engine:
        await engine.start("run_a:1", "run_a")
        assert await house.declare_lost(executor_id) == 1
        go_on.set()
        await ended.wait()
    assert await house.status("run_a:1") == "CANCELLED"
    levels = [record.levelno for record in caplog.records if record.name == "dbos"]
    assert levels == [logging.WARNING]


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
async def test_workflows_of_living_executors_are_not_forgotten(house: House) -> None:
    worker = await house.worker("run_a")
    await worker.hears("begun run_a")
    dead = await house.worker()
    assert await house.declare_lost(dead.executor_id) == 0
    assert await house.status("run_a:1") == "PENDING"


async def test_a_database_that_is_away_for_a_while_ends_nothing_that_is_under_way(tmp_path: Path) -> None:
    with PostgresServer() as server:
        async with fresh_settings("postgresql", tmp_path, server=server) as settings:
            assert settings.database_url is not None
            store = Store.from_settings(settings, SystemClock())
            await store.open()
            house = House(store, tmp_path, settings.database_url.get_secret_value())
            go_on = asyncio.Event()

            async def carry(run_id: str) -> None:
                await go_on.wait()

            async with house.opened(carry) as engine:
                await engine.start("run_a:1", "run_a")
                await asyncio.to_thread(server.halt)
                go_on.set()
                start = asyncio.create_task(engine.start("run_b:1", "run_b"))
                await asyncio.sleep(3)
                await asyncio.to_thread(server.revive)
                await start
                for run_id in ("run_a", "run_b"):
                    await house.until_status(f"{run_id}:1", "SUCCESS")
            await store.close()


# -- housekeeping


async def test_pruning_deletes_what_ended_before_and_keeps_what_is_under_way(house: House) -> None:
    go_on = asyncio.Event()

    async def carry(run_id: str) -> None:
        if run_id == "run_open":
            await go_on.wait()
        elif run_id == "run_bad":
            raise Internal("Something is broken.")

    async with house.opened(carry) as engine:
        for run_id in ("run_a", "run_b", "run_bad", "run_open"):
            await engine.start(f"{run_id}:1", run_id)
        for run_id, status in (("run_a", "SUCCESS"), ("run_b", "SUCCESS"), ("run_bad", "ERROR")):
            await house.until_status(f"{run_id}:1", status)
        assert await engine.prune(timedelta(hours=1)) == 0
        await asyncio.sleep(0.01)
        assert await engine.prune(timedelta(0)) == 3
        assert await house.rows("SELECT workflow_uuid FROM workflow_status") == [("run_open:1",)]
        assert await house.rows("SELECT workflow_uuid FROM workflow_input") == [("run_open:1",)]
        assert await house.rows("SELECT workflow_uuid FROM workflow_output") == []
        go_on.set()
        await house.until_status("run_open:1", "SUCCESS")


class TurnedClock(SystemClock):
    """The machine's clock, turned on by as much as the test says."""

    turned = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.turned

    def monotonic(self) -> float:
        return super().monotonic() + self.turned.total_seconds()


async def test_the_engine_deletes_what_ended_an_hour_ago_by_itself(house: House) -> None:
    clock = TurnedClock()
    engine = DurableEngine(
        nothing, executor_id=new_id("exec"), data_dir=house.data_dir, database_url=house.url, clock=clock
    )
    house.engines.append(engine)
    for run_id in ("run_a", "run_b"):
        await engine.start(f"{run_id}:1", run_id)
        await house.until_status(f"{run_id}:1", "SUCCESS")
    clock.turned = timedelta(minutes=50)
    await engine.start("run_c:1", "run_c")
    await house.until_status("run_c:1", "SUCCESS")
    await asyncio.sleep(0.3)
    assert await house.status("run_a:1") == "SUCCESS"
    clock.turned = timedelta(minutes=61)
    await engine.start("run_d:1", "run_d")
    for run_id in ("run_a", "run_b", "run_c"):
        await house.until_status(f"{run_id}:1", None)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
async def test_on_sqlite_dbos_has_a_file_of_its_own_that_only_its_owner_reads(house: House) -> None:
    async with house.opened(nothing) as engine:
        await engine.start("run_a:1", "run_a")
        files = [path for path in house.data_dir.iterdir() if path.name.startswith("durable.db")]
        assert len(files) == 3
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    connection = sqlite3.connect(house.data_dir / "durable.db")
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    connection.close()
    assert "workflow_status" in tables
    assert "runs" not in tables


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
async def test_dbos_holds_at_most_four_connections(house: House) -> None:
    async with house.opened(nothing) as engine:
        await asyncio.gather(*(engine.start(f"run_{number}:1", f"run_{number}") for number in range(50)))
        count = text(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'automagik durable' AND datname = :name"
        )
        name = str(house.url).split("/")[3].split("?")[0]
        held = await house.store.read(lambda tx: tx.connection.scalar(count, {"name": name}))
        assert 1 <= (held or 0) <= 4
        for number in range(50):
            await house.until_status(f"run_{number}:1", "SUCCESS")


# -- what is used of DBOS beyond its public parts


COLUMNS = {
    "workflow_status": "workflow_uuid status name executor_id application_version owner_xid queue_name deduplication_id"
    " started_at_epoch_ms updated_at completed_at",
    "workflow_input": "workflow_uuid inputs",
    "workflow_output": "workflow_uuid output error",
}


async def test_dbos_has_the_columns_words_and_functions_that_the_store_and_the_engine_use(house: House) -> None:
    from dbos import WorkflowStatusString
    from dbos._error import DBOSAwaitedWorkflowCancelledError

    async with house.opened(nothing) as engine:
        await engine.start("run_a:1", "run_a")
        await house.until_status("run_a:1", "SUCCESS")
        for table, columns in COLUMNS.items():
            await house.rows(f"SELECT {', '.join(columns.split())} FROM {table}")
        (found,) = await house.rows("SELECT executor_id, owner_xid, completed_at > 1700000000000 FROM workflow_status")
        assert found[0].startswith("exec_")
        assert found[1:] in [(None, True), (None, 1)], "times are milliseconds, and what has ended has no owner"
    words = {status.value for status in WorkflowStatusString}
    assert words == {
        "PENDING",
        "SUCCESS",
        "ERROR",
        "CANCELLED",
        "ENQUEUED",
        "DELAYED",
        "MAX_RECOVERY_ATTEMPTS_EXCEEDED",
    }
    assert DBOSAwaitedWorkflowCancelledError.__name__ == "DBOSAwaitedWorkflowCancelledError"
