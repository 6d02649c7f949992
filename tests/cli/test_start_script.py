"""What `make start` runs: server, key, question, and a server that stays until Ctrl-C."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "start.py"
STAYS = "Ctrl-C stops the server."


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    return {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "HOME": str(tmp_path),
        "AUTOMAGIK_DATA_DIR": str(tmp_path / "data"),
        "AUTOMAGIK_CONFIG_DIR": str(tmp_path / "config"),
        "AUTOMAGIK_MODEL": "demo",
        "AUTOMAGIK_PORT": str(port),
    }


@contextmanager
def started(environment: dict[str, str], output: Path) -> Generator["subprocess.Popen[bytes]"]:
    """The script, up to the moment when its server stays."""
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT)], env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    try:
        deadline = time.monotonic() + 60
        while STAYS not in output.read_text() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert STAYS in output.read_text(), output.read_text()
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=30)


def whole(environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def profile_key(folder: Path) -> str:
    return json.loads((folder / "config" / "profile.json").read_text())["key"]


def is_free(port: str) -> bool:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", int(port)))
        except OSError:
            return False
    return True


def test_it_starts_asks_and_stays_until_a_signal_and_does_so_again(environment: dict[str, str], tmp_path: Path) -> None:
    for round_, number in enumerate((signal.SIGINT, signal.SIGTERM)):
        output = tmp_path / f"output{round_}"
        with started(environment, output) as process:
            told = output.read_text()
            assert "Ready at http://127.0.0.1:" in told
            assert "You said: “Hello! What can you do?”" in told
            assert '{"' not in told  # the server's log goes to its file
            process.send_signal(number)
            assert process.wait(timeout=30) == 0
        assert is_free(environment["AUTOMAGIK_PORT"])
        assert profile_key(tmp_path) not in told
    log = tmp_path / "data" / "server.log"
    assert "server_ready" in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert profile_key(tmp_path) not in log.read_text()


def test_a_server_that_runs_already_is_asked_and_left_alone(environment: dict[str, str], tmp_path: Path) -> None:
    with started(environment, tmp_path / "output"):
        again = whole({**environment, "AUTOMAGIK_KEY": "amk_" + "x" * 43, "AUTOMAGIK_URL": "http://127.0.0.1:1"})
        assert again.returncode == 0, again
        assert "running already" in again.stdout
        assert "You said:" in again.stdout
        key, log = profile_key(tmp_path), (tmp_path / "data" / "server.log").stat().st_ino
        other = whole({**environment, "AUTOMAGIK_DATA_DIR": str(tmp_path / "b")})
        assert other.returncode == 1
        assert "another data folder" in other.stdout
        assert profile_key(tmp_path) == key  # the server that runs knows this one
        second = whole({**environment, "AUTOMAGIK_PORT": "0"})
        assert second.returncode == 1
        assert "already, on another port" in second.stdout
        assert (tmp_path / "data" / "server.log").stat().st_ino == log


def test_a_port_that_something_else_holds_is_told_with_the_way_out(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", int(environment["AUTOMAGIK_PORT"]))):
        done = whole(environment)
    assert done.returncode == 1
    assert f"(process {os.getpid()})" in done.stdout or "another program" in done.stdout
    assert "AUTOMAGIK_PORT=" in done.stdout
    assert not Path(environment["AUTOMAGIK_CONFIG_DIR"]).exists()


def test_a_server_that_dies_is_told_with_its_last_words(environment: dict[str, str]) -> None:
    done = whole({**environment, "AUTOMAGIK_DATABASE_URL": "mysql://nowhere"})
    assert done.returncode == 1
    assert "stopped before it was ready" in done.stdout
    assert "AUTOMAGIK_DATABASE_URL" in done.stdout
    assert "server.log" in done.stdout


def test_a_data_folder_that_can_not_be_used_is_told(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = whole({**environment, "AUTOMAGIK_DATA_DIR": str(tmp_path / "file" / "below")})
    assert done.returncode == 1
    assert "AUTOMAGIK_DATA_DIR" in done.stderr
    assert whole({**environment, "AUTOMAGIK_PORT": "high"}).returncode == 1
