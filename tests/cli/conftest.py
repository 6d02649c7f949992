"""The command with folders of its own, and a server that answers as the test tells it."""

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_harness import Command, StubApi

from automagik.testing.fixtures import postgres_server
from automagik.testing.warm import WarmPython

__all__ = ["api", "command", "postgres_server"]


@pytest.fixture
def command(tmp_path: Path, warm: WarmPython) -> Iterator[Command]:
    made = Command(tmp_path, warm)
    with tempfile.TemporaryDirectory(
        prefix="am", dir="/tmp"
    ) as sockets:  # short enough for them, which pytest's is not
        made.environment["AUTOMAGIK_RUNTIME_DIR"] = sockets
        yield made


@pytest.fixture
def api(command: Command) -> Iterator[StubApi]:
    stub = StubApi()
    command.environment["AUTOMAGIK_URL"] = stub.url
    command.environment["AUTOMAGIK_KEY"] = "amk_" + "e" * 43
    thread = threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield stub
    stub.shutdown()
    thread.join()
    stub.server_close()
