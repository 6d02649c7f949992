"""A process that is killed in the middle of writing: what it was told is stored is there, and nothing is half there."""

import asyncio
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from automagik.settings import Settings
from automagik.store import Store, Transaction
from automagik.testing.postgres import PostgresServer
from automagik.types import SystemClock

pytestmark = pytest.mark.anyio

WRITER = """
import asyncio, sys, uuid
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from pydantic import SecretStr
from automagik.settings import Settings
from automagik.store import Store
from automagik.types import SystemClock
from store_samples import begin, event, finish, message
async def main():
    settings = Settings(data_dir=Path(sys.argv[1]), database_url=SecretStr(sys.argv[2]) if sys.argv[2] else None)
    store = Store.from_settings(settings, SystemClock())
    await store.open()
    await store.acquire_ownership("first")
    async def work():
        session_id = uuid.uuid4()
        while True:
            begun = await store.begin_run(begin(session_id=session_id, owner="first"))
            print("begun", begun.run_id, flush=True)
            messages = [message("user", "a"), message("assistant", "b")]
            events = [event(2, "usage"), event(3, "run_finished")]
            ending = finish(begun.run_id, begun.session_key, messages, events=events, owner="first")
            assert await store.finish_run(ending)
            print("finished", begun.run_id, flush=True)
    await asyncio.gather(*(work() for _ in range(8)))
asyncio.run(main())
"""


async def _wait_for_the_server_to_notice(store: Store, killed: datetime) -> None:
    """Return when the dead process has no session at the server any more: its last statements may end after it."""
    old = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_start < :killed")
    while await store.read(lambda tx: tx.connection.scalar(old, {"killed": killed})):
        await asyncio.sleep(0.01)


async def test_after_kill_9_what_was_confirmed_is_there_and_nothing_is_half_there(
    dialect: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server: PostgresServer | None = None
    url = ""
    if dialect == "postgresql":
        server = cast("PostgresServer", request.getfixturevalue("postgres_server"))
        url = server.create_database()
    here = str(Path(__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), url, here], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        lines = [await asyncio.to_thread(writer.stdout.readline) for _ in range(200)]
        writer.send_signal(signal.SIGKILL)
        lines += (await asyncio.to_thread(writer.stdout.read)).splitlines(keepends=True)
    killed = datetime.now(UTC)
    told = {tuple(line.split()) for line in lines if line.endswith("\n")}
    assert len(told) >= 200

    settings = Settings(data_dir=tmp_path, database_url=SecretStr(url) if url else None)
    store = Store.from_settings(settings, SystemClock())
    await store.open()
    await store.acquire_ownership("second")
    if server is not None:
        await _wait_for_the_server_to_notice(store, killed)

    def wholes(tx: Transaction) -> tuple[dict[str, str], set[str], int]:
        statuses = {row[0]: row[1] for row in tx.connection.execute(text("SELECT run_id, status FROM runs"))}
        whole = (
            "SELECT r.run_id FROM runs r WHERE (SELECT count(*) FROM messages m WHERE m.run_id = r.run_id) = 2"
            " AND (SELECT count(*) FROM run_events e WHERE e.run_id = r.run_id) = 3"
        )
        wrong = (
            "SELECT count(*) FROM sessions s WHERE s.message_count <>"
            " (SELECT count(*) FROM messages m WHERE m.session_id = s.id)"
        )
        return statuses, {row[0] for row in tx.connection.execute(text(whole))}, tx.connection.scalar(text(wrong)) or 0

    statuses, whole, wrong = await store.read(wholes)
    assert {run_id for _, run_id in told} <= statuses.keys()
    assert {run_id for word, run_id in told if word == "finished"} <= whole
    assert whole == {run_id for run_id, status in statuses.items() if status == "completed"}
    assert wrong == 0
    running = {run_id for run_id, status in statuses.items() if status == "running"}
    rescued = await store.write(lambda tx: tx.queue.rescue("first", lost={"code": "worker_lost"}))
    assert {ended.row.run_id for ended in rescued.failed} == running
    assert await store.read(lambda tx: tx.queue.owners()) == []
    counted = "SELECT count(*) FROM sessions WHERE open_runs <> 0"
    assert await store.read(lambda tx: tx.connection.scalar(text(counted))) == 0
    await store.close()
    if server is not None:
        server.drop_database(url)
