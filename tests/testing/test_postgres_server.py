"""PostgresServer: a server for a test run that always ends, and is one for all who name the same folder."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from automagik.errors import ServiceUnavailable
from automagik.store import Store
from automagik.testing.postgres import PostgresServer
from automagik.testing.stores import fresh_settings, open_store
from automagik.types import SystemClock

pytestmark = pytest.mark.anyio

HOLDER = """
import sys, time
from pathlib import Path
from automagik.testing.postgres import PostgresServer
server = PostgresServer(Path(sys.argv[1]))
server.start()
print(server.home, flush=True)
time.sleep(60)
"""


def _hold(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)


def _home_of(holder: "subprocess.Popen[str]") -> Path:
    assert holder.stdout is not None
    return Path(holder.stdout.readline().strip())


def _ends(home: Path) -> bool:
    deadline = time.monotonic() + 20
    while home.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not home.exists()


def test_processes_that_name_one_folder_share_a_server_which_ends_with_the_last_killed_or_not(tmp_path: Path) -> None:
    holders = [_hold(tmp_path) for _ in range(3)]
    homes = {_home_of(holder) for holder in holders}
    assert len(homes) == 1
    home = homes.pop()
    with PostgresServer(tmp_path) as server:
        assert server.home == home
        for holder in holders:
            holder.send_signal(signal.SIGKILL)
            holder.communicate()
        server.drop_database(server.create_database())
    assert _ends(home)
    with PostgresServer(tmp_path) as again:
        assert again.home != home
        later = again.home
    assert _ends(later)


def test_the_data_is_reachable_for_nobody_else(tmp_path: Path) -> None:
    with PostgresServer(tmp_path) as server:
        home, data = server.home, (server.home / "data").resolve()
        assert home.stat().st_mode & 0o077 == 0
        assert data.stat().st_mode & 0o077 == 0
    assert _ends(home)
    assert not data.exists()  # it may have been in memory, where nobody else clears up
    with pytest.raises(RuntimeError):
        _ = server.home


async def test_each_database_is_fresh_and_has_the_tables(postgres_server: PostgresServer, tmp_path: Path) -> None:
    async with (
        open_store("postgresql", tmp_path, server=postgres_server) as one,
        open_store("postgresql", tmp_path, server=postgres_server) as two,
    ):
        await one.write(lambda tx: tx.agents.create("a", type="t", source="api"))
        assert await two.read(lambda tx: tx.agents.all()) == []


async def test_settings_for_postgresql_need_a_server(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="server"):
        await fresh_settings("postgresql", tmp_path).__aenter__()


async def test_a_server_that_is_halted_refuses_and_answers_as_before_when_it_is_revived(tmp_path: Path) -> None:
    with PostgresServer() as server:
        async with fresh_settings("postgresql", tmp_path, server=server) as settings:
            store = Store.from_settings(settings, SystemClock())
            await store.open()
            await store.write(lambda tx: tx.agents.register("kept", type="simple", source="code"))
            server.halt()
            with pytest.raises(ServiceUnavailable):
                await store.check()
            server.revive()
            await store.check()
            assert [agent.name for agent in (await store.read(lambda tx: tx.agents.list())).data] == ["kept"]
            await store.close()
        home = server.home
    assert _ends(home)
