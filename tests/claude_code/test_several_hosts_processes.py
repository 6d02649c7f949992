"""Runs of workflows on several hosts: a server that only answers and two workers with a name and a data folder each, over one
PostgreSQL and one store of artefacts."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from git_house import git, make_repository
from workflow_house import KEY, WorkflowHouse, write_workflow

from automagik.testing.needs import need
from automagik.testing.postgres import PostgresServer
from automagik.testing.scripted_messages import ScriptedMessages
from automagik.testing.servers import RunningServer
from automagik.testing.warm import WarmPython
from automagik.types import JsonObject

pytestmark = [pytest.mark.anyio, pytest.mark.long, pytest.mark.timeout(300)]

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
            for pid in self.at_work(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def data(self, host: str) -> Path:
        """The data folder of a host."""
        return self.folder / host

    def left(self, host: str) -> list[str]:
        """Which runs have a place on the host."""
        folder = self.data(host) / "executions"
        return sorted(path.name for path in folder.iterdir() if path.name.startswith("run_")) if folder.exists() else []

    def at_work(self, host: str) -> list[int]:
        """Processes in sandboxes of the host."""
        wanted = str(self.data(host) / "executions").encode()
        found: list[int] = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
            except OSError:
                continue  # it has ended
        return found

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


@pytest.fixture
async def hosts(postgres_server: PostgresServer, warm: WarmPython) -> AsyncGenerator[Hosts]:
    need("bubblewrap")
    need("claude")
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
                "AUTOMAGIK_EXECUTOR": "local",
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
            house = Hosts(folder, server, api, make_repository(folder / "mine"), "local")
            stack.push_async_callback(house.close)
            house.workers = {name: process(name, "worker") for name in ("one", "two")}
            stack.callback(house.kill_all)
            yield house
    finally:
        postgres_server.drop_database(url)
        shutil.rmtree(folder, ignore_errors=True)


async def test_runs_outlive_a_worker_and_then_their_host_and_are_had_from_every_other(hosts: Hosts) -> None:
    await hosts.start("one")
    lost, again = await hosts.begin("Lose it"), await hosts.begin("Save it", workflow="again")
    both = (lost, again)
    once, spent = await hosts.begin(workflow="once"), await hosts.begin(workflow="again", max_turns=2)
    await hosts.until_told([*both, once, spent], "tool_call", 2)
    words = {"message_content": "Mind the gap."}
    assert (await hosts.client.post(f"/runs/{again}/messages", json=words)).status_code == 202
    await hosts.until_told([again], "guidance", 1)
    hosts.workers["one"].kill()

    # Another worker of the same host finds them, and takes out at once what the first one owed.
    await hosts.start("one")
    await hosts.until_told(both, "commit", 1)
    for run_id in both:
        run = await hosts.run(run_id)
        assert (run["status"], run["attempt"]) == ("running", 1)
        assert [commit["subject"] for commit in run["workspace"]["commits"]] == ["one"]
        assert "+one" in (await hosts.client.get(f"/runs/{run_id}/diff")).text
    hosts.workers["one"].freeze()
    assert hosts.left("one") == sorted([*both, once, spent])
    assert hosts.at_work("one")

    # The host is taken for gone.
    await hosts.start("two")
    gone = await hosts.ended(lost)
    assert gone["outcome"] == "sandbox_lost"
    assert [commit["subject"] for commit in gone["workspace"]["commits"]] == ["one"]
    assert "+one" in (await hosts.client.get(f"/runs/{lost}/diff")).text
    hosts.server.environment["HOME"] = str(hosts.folder)
    await asyncio.to_thread(
        hosts.server.command, "runs", "apply", lost, "--repo", str(hosts.repository), "--branch", "got"
    )
    assert git(hosts.repository, "log", "-1", "--format=%s", "got") == "one"

    # What has lost its host too often, or has used its turns up, does not begin again.
    for run_id, outcome in ((once, "sandbox_lost"), (spent, "max_turns")):
        ended = await hosts.ended(run_id)
        assert (ended["outcome"], len(hosts.of("tool_call", await hosts.events(run_id)))) == (outcome, 2)

    saved = await hosts.ended(again)
    assert saved["outcome"] == "completed", saved["error"]
    assert [commit["subject"] for commit in saved["workspace"]["commits"]] == ["one", "two"]
    assert saved["workspace"]["base_commit"] == gone["workspace"]["base_commit"]
    assert saved["turns"] == 2 + hosts.of("message_completed", await hosts.events(again))[-1]["turn"]
    told = await hosts.events(again)
    assert [commit["subject"] for commit in hosts.of("commit", told)] == ["one", "two"]
    assert len(hosts.of("tool_call", told)) in (4, 6), "the message is read with a tool's result, or as a further turn"
    assert "sandbox_lost" in [warning["code"] for warning in hosts.of("warning", told)]
    assert "begins again here" in json.dumps(hosts.api.calls[-1].body["system"])
    assert "Mind the gap." in json.dumps(hosts.api.calls[-1].body["messages"])
    used = [run["usage"] for run in (gone, saved, await hosts.run(once), await hosts.run(spent))]
    assert sum(usage["requests"] for usage in used if usage) == len(hosts.api.calls)

    # The host comes back: it ends what it has at work for them, and changes nothing of what is told.
    hosts.workers["one"].thaw()
    async with asyncio.timeout(30):
        while "executor_renewed" not in hosts.workers["one"].output:
            await asyncio.sleep(0.1)
    hosts.workers["one"].kill()
    await hosts.start("one")
    async with asyncio.timeout(60):
        while hosts.left("one") or hosts.at_work("one"):
            await asyncio.sleep(0.2)
    assert [await hosts.run(lost), await hosts.run(again)] == [gone, saved]
    assert await hosts.events(again) == told

    # It goes on with what the other one made: commits and conversation.
    assert hosts.workers["two"].stop() == 0
    further = await hosts.ended(await hosts.begin("And further", workflow="again", resume_of=again))
    assert further["outcome"] == "completed", further["error"]
    assert further["workspace"]["base_commit"] == saved["workspace"]["head_commit"]
    assert [commit["subject"] for commit in further["workspace"]["commits"]] == ["three"]
    assert "Save it" in json.dumps(hosts.api.calls[-1].body["messages"])
    assert "+three" in (await hosts.client.get(f"/runs/{further['run_id']}/diff")).text
    without = await hosts.ended(await hosts.begin("On from there", resume_of=lost))
    assert [commit["subject"] for commit in without["workspace"]["commits"]] == ["two"]
    warnings = [warning["code"] for warning in hosts.of("warning", await hosts.events(without["run_id"]))]
    assert warnings == ["conversation_lost"]

    # A host that is away when somebody stops its run ends what is at work for it when it comes back.
    stopped = await hosts.begin("Stop it")
    await hosts.until_told([stopped], "tool_call", 2)
    hosts.workers["one"].kill()
    cancelled = (await hosts.client.post(f"/runs/{stopped}/cancel")).json()
    assert (cancelled["status"], cancelled["outcome"]) == ("cancelled", "cancelled")
    assert "while its host was away" in cancelled["error"]["detail"]
    assert cancelled["usage"]["requests"] >= 2
    assert (hosts.left("one"), bool(hosts.at_work("one"))) == ([stopped], True)
    await hosts.start("one")
    async with asyncio.timeout(60):
        while hosts.left("one") or hosts.at_work("one"):
            await asyncio.sleep(0.2)
    assert await hosts.run(stopped) == cancelled
