"""A server that only answers and two workers with a name and a data folder each, over one PostgreSQL and one store of artefacts."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from executor_house import test_image
from git_house import make_repository
from workflow_house import KEY, WorkflowHouse, write_workflow

from automagik.testing.needs import need
from automagik.testing.postgres import PostgresServer
from automagik.testing.scripted_messages import ScriptedMessages
from automagik.testing.servers import RunningServer
from automagik.testing.warm import WarmPython
from automagik.types import JsonObject

__all__ = ["Hosts", "several_hosts"]

COMMIT = (
    "[ -e /tmp/made ] || { touch /tmp/made; n=one; [ -f one.txt ] && n=two; [ -f two.txt ] && n=three;"
    " echo $n > $n.txt; git add -A; git commit -q -m $n; }"
)
"""One commit in each sandbox, also where a message that comes late has the script begin again."""


def bash(command: str) -> JsonObject:
    return {"text": "I work.", "tool_use": [{"name": "Bash", "input": {"command": command, "description": "Work"}}]}


SCRIPT: JsonObject = {
    "rules": [
        {
            "when": {"tools": True},
            # Where the first commit is the newest, it works for ever: until its host is gone.
            "turns": [bash(COMMIT), bash("[ -f two.txt ] || perl -e 'sleep 600'"), {"text": "Done."}],
        }
    ],
    "default": {"text": "OK"},
}


class Hosts(WorkflowHouse):
    """The server, and workers by the names of their hosts."""

    workers: dict[str, RunningServer]

    async def start(self, host: str) -> None:
        """Have a worker on the host."""
        await asyncio.to_thread(self.workers[host].start)

    def kill_all(self) -> None:
        """Leave nothing at work."""
        for name, worker in self.workers.items():
            with contextlib.suppress(RuntimeError):  # it was never started
                worker.kill()
            if self.executor == "docker":
                for container in self._docker(name, "ps", "--all"):
                    subprocess.run(
                        ["docker", "rm", "--force", "--volumes", container], capture_output=True, check=False
                    )
                for volume in self._docker(name, "volume", "ls"):
                    subprocess.run(["docker", "volume", "rm", volume], capture_output=True, check=False)
                continue
            for pid in self._processes(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)

    def data(self, host: str) -> Path:
        """The data folder of a host."""
        return self.folder / host

    async def left(self, host: str) -> list[str]:
        """Which runs have a place on the host."""
        if self.executor == "docker":
            label = '{{.Label "automagik.run_id"}}'
            return sorted({*await asyncio.to_thread(self._docker, host, "volume", "ls", shown=label)} - {""})
        folder = self.data(host) / "executions"
        return sorted(path.name for path in folder.iterdir() if path.name.startswith("run_")) if folder.exists() else []

    async def at_work(self, host: str) -> list[str]:
        """Processes in sandboxes of the host, or its containers that run."""
        if self.executor == "docker":
            return sorted(await asyncio.to_thread(self._docker, host, "ps"))
        return self._processes(host)

    def _processes(self, host: str) -> list[str]:
        wanted = str(self.data(host) / "executions").encode()
        found: list[str] = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (process / "cmdline").read_bytes():
                    found.append(process.name)
            except OSError:
                continue  # it has ended
        return found

    def _docker(self, host: str, *listing: str, shown: str = "") -> list[str]:
        """What the engine has of the host, by the label of its data folder."""
        instance = self.data(host) / "docker-instance"
        if not instance.exists():
            return []
        wanted = ["--filter", f"label=automagik.instance={instance.read_text()}"]
        form = ["--format", shown] if shown else ["--quiet"]
        said = subprocess.run(["docker", *listing, *wanted, *form], capture_output=True, text=True, check=True)
        return said.stdout.split()

    async def until_told(self, run_ids: Sequence[str], kind: str, count: int) -> None:
        """Return when each of the runs has had so many events of this type."""
        async with asyncio.timeout(60):
            for run_id in run_ids:
                while len(self.of(kind, await self.events(run_id))) < count:
                    await asyncio.sleep(0.1)

    @staticmethod
    def of(kind: str, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The data of events of this type."""
        return [event["data"] for event in events if event["type"] == kind]


@asynccontextmanager
async def several_hosts(executor: str, postgres_server: PostgresServer, warm: WarmPython) -> AsyncGenerator[Hosts]:
    """The server is up, the workers `one` and `two` are to be started."""
    need("claude")
    need("bubblewrap" if executor == "local" else "docker")
    image = {"AUTOMAGIK_SANDBOX_IMAGE": await test_image()} if executor == "docker" else {}
    folder = Path(tempfile.mkdtemp(prefix="sh"))
    url = postgres_server.create_database()
    try:
        async with AsyncExitStack() as stack:
            api = await stack.enter_async_context(ScriptedMessages(SCRIPT, port=0))
            write_workflow(folder / "workflows" / "plain")
            write_workflow(folder / "workflows" / "again", toml='host_gone = "restart"\n')
            once = 'host_gone = "restart"\n[limits]\nmax_restarts = 0\n'
            write_workflow(folder / "workflows" / "once", toml=once)
            (folder / "shared").mkdir()
            settings = {
                "ANTHROPIC_API_KEY": KEY,
                "ANTHROPIC_BASE_URL": api.base_url,
                "AUTOMAGIK_ARTIFACTS_URL": f"file://{folder / 'shared'}",
                "AUTOMAGIK_DATABASE_URL": url,
                "AUTOMAGIK_EXECUTOR": executor,
                **image,
                "AUTOMAGIK_HOST_LEASE_SECONDS": "8",
                "AUTOMAGIK_MODEL_PRICES": "claude-*=1000/1000",
                "AUTOMAGIK_SECRET_KEY": "A" * 43 + "=",
                "AUTOMAGIK_WORKFLOWS_DIR": str(folder / "workflows"),
            }

            def process(name: str, *command: str) -> RunningServer:
                return RunningServer(
                    folder / name, settings={**settings, "AUTOMAGIK_HOST_NAME": name}, command=command, warm=warm
                )

            server = process("front", "serve", "--api-only")
            await asyncio.to_thread(server.__enter__)
            stack.callback(server.stop)
            house = Hosts(folder, server, api, make_repository(folder / "mine"), executor)
            stack.push_async_callback(house.close)
            house.workers = {name: process(name, "worker") for name in ("one", "two")}
            stack.callback(house.kill_all)
            yield house
    finally:
        postgres_server.drop_database(url)
        shutil.rmtree(folder, ignore_errors=True)
