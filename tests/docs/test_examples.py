"""Every example in README and docs is executed: files are written, commands run against a real server, Python runs."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from automagik.testing.needs import need
from automagik.testing.postgres import PostgresServer
from automagik.testing.servers import RunningServer
from automagik.testing.warm import WarmPython

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("[qh]*/*.md")),
    "docs/quickstart.md",
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"\A# file: (\S+)\n")


@dataclass(frozen=True)
class Example:
    language: str
    text: str

    @property
    def file(self) -> str | None:
        named = FILE.match(self.text)
        return named.group(1) if named else None


def examples(page: str) -> list[Example]:
    return [Example(language, text) for language, text in FENCE.findall((ROOT / page).read_text(encoding="utf-8"))]


def run(command: list[str], environment: dict[str, str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A folder whose path is short enough for sockets, which pytest's is not."""
    with tempfile.TemporaryDirectory(prefix="am", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_work(
    page: str, tmp_path: Path, request: pytest.FixtureRequest, warm: WarmPython, sockets: Path
) -> None:
    found = examples(page)
    if any(re.search(r"\bcurl ", example.text) for example in found if example.language == "bash"):
        need("curl")
    if any("automagik workflows run" in example.text for example in found if example.language == "bash"):
        need("claude")
        need("bubblewrap")
    data = tmp_path / "data"
    for example in found:
        if example.file is not None:
            path = (data if example.file.startswith("agents/") else tmp_path) / example.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(example.text, encoding="utf-8")
    # What a page that has its own receiver tells its reader to set.
    commands = tmp_path / "bin"
    commands.mkdir()
    warm.script(commands / "automagik")
    settings = {"AUTOMAGIK_OUTBOUND_ALLOW": "127.0.0.1", "AUTOMAGIK_RUNTIME_DIR": str(sockets)}
    with RunningServer(data, settings=settings, warm=warm) as server:
        environment = {**server.environment, "PATH": f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
        if any("$POSTGRESQL_URL" in example.text for example in found):
            postgres: PostgresServer = request.getfixturevalue("postgres_server")
            environment["POSTGRESQL_URL"] = postgres.create_empty_database()
        for example in found:
            if example.language == "bash":
                if "$AUTOMAGIK_URL" in example.text:  # a reader has no such variable before the page makes it
                    assert "export AUTOMAGIK_URL=" in example.text
                script = f'set -euo pipefail\n{example.text}\nprintenv KEY > "$PWD/.key" || rm "$PWD/.key"'
                run(["bash", "-c", script], environment, tmp_path)
                if (tmp_path / ".key").exists():
                    environment["KEY"] = (tmp_path / ".key").read_text().strip()
            elif example.language == "python" and example.file is None:
                run([sys.executable, "-c", example.text], environment, tmp_path)


def test_every_make_target_that_the_docs_name_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in [*PAGES, "CONTRIBUTING.md", "ARCHITECTURE.md"]:
        text = (ROOT / page).read_text(encoding="utf-8")
        commands = [example for _, example in FENCE.findall(text)] + re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
        named = {found for command in commands for found in re.findall(r"\bmake ([a-z-]+)(?:\s|$)", command)}
        assert named <= targets, page


def test_every_link_in_the_docs_leads_somewhere() -> None:
    for page in [*PAGES, "CONTRIBUTING.md", "ARCHITECTURE.md"]:
        for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8")):
            assert (ROOT / page).parent.joinpath(link).exists(), f"{page}: {link}"
