"""Schemathesis over our OpenAPI document, against the real server: no 5xx, no undocumented status, answers as described."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from api_house import AGENTS, TOOLED

from automagik.testing.servers import RunningServer
from automagik.testing.warm import WarmPython

SEMANTIC = "positive_data_acceptance,negative_data_rejection"
"""A body may fit the schema and name an agent, a user or a tool that is not there: that is refused, rightly. And a
query's `true` is a text as good as any, which the other check takes for a boolean."""

TIMED_OUT = "[checks.not_a_server_error]\nexpected-statuses = ['2xx', '3xx', '4xx', '504']\n"
"""Who gives a run a millisecond is told, with a 504, that it took longer."""


@pytest.fixture
def server(tmp_path: Path, warm: WarmPython) -> Iterator[RunningServer]:
    agents = tmp_path / "agents"
    agents.mkdir()
    (agents / "echo.py").write_text(AGENTS)
    (agents / "tooled.py").write_text(TOOLED)
    with RunningServer(tmp_path, warm=warm) as running:
        yield running


def check(server: RunningServer, folder: Path, *options: str) -> None:
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        *("run", f"{server.url}/openapi.json", "--no-color", "--exclude-checks", SEMANTIC),
        *("-H", f"x-api-key: {server.key}"),
        *options,
    ]
    (folder / "schemathesis.toml").write_text(TIMED_OUT)
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_no_operation_answers_what_it_does_not_document(server: RunningServer, tmp_path: Path) -> None:
    check(server, tmp_path, "--phases", "fuzzing", "--max-examples", "4", "--seed", "1")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_no_operation_answers_what_it_does_not_document_whatever_it_is_asked(
    server: RunningServer, tmp_path: Path
) -> None:
    check(server, tmp_path, "--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "60")
