"""Runs of workflows on several hosts: what is at work on one outlives its worker, and is had from every other when it is gone."""

import asyncio
import json
from collections.abc import AsyncGenerator

import pytest
from git_house import git
from hosts_house import Hosts, several_hosts

from automagik.testing.postgres import PostgresServer
from automagik.testing.warm import WarmPython

pytestmark = [pytest.mark.anyio, pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture
async def hosts(postgres_server: PostgresServer, warm: WarmPython) -> AsyncGenerator[Hosts]:
    async with several_hosts("local", postgres_server, warm) as opened:
        yield opened


@pytest.fixture
async def docker_hosts(postgres_server: PostgresServer, warm: WarmPython) -> AsyncGenerator[Hosts]:
    async with several_hosts("docker", postgres_server, warm) as opened:
        yield opened


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
    assert await hosts.left("one") == sorted([*both, once, spent])
    assert await hosts.at_work("one")

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
    assert await hosts.at_work("one"), "nobody of another host touches what is at work on this one"
    ran = (gone, saved, await hosts.run(once), await hosts.run(spent))
    used = [run["usage"] for run in ran]
    assert sum(usage["requests"] for usage in used if usage) == len(hosts.api.calls)
    results = [len(hosts.of("tool_result", await hosts.events(run["run_id"]))) for run in ran]
    assert [usage["tool_calls"] for usage in used] == results and min(results) > 0, (
        "each once, also of hosts that are gone"
    )

    # The host comes back: it ends what it has at work for them, and changes nothing of what is told.
    hosts.workers["one"].thaw()
    async with asyncio.timeout(30):
        while "executor_renewed" not in hosts.workers["one"].output:
            await asyncio.sleep(0.1)
    hosts.workers["one"].kill()
    await hosts.start("one")
    async with asyncio.timeout(60):
        while await hosts.left("one") or await hosts.at_work("one"):
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
    assert cancelled["usage"]["requests"] >= 2 and cancelled["usage"]["tool_calls"] >= 1
    assert (await hosts.left("one"), bool(await hosts.at_work("one"))) == ([stopped], True)
    await hosts.start("one")
    async with asyncio.timeout(60):
        while await hosts.left("one") or await hosts.at_work("one"):
            await asyncio.sleep(0.2)
    assert await hosts.run(stopped) == cancelled


async def test_on_one_engine_each_host_finds_rescues_and_ends_its_own_containers_only(docker_hosts: Hosts) -> None:
    hosts = docker_hosts
    await hosts.start("one")
    lost, again = await hosts.begin("Lose it"), await hosts.begin("Save it", workflow="again")
    both = (lost, again)
    await hosts.until_told(both, "tool_call", 2)
    containers = await hosts.at_work("one")
    assert len(containers) == 2
    hosts.workers["one"].kill()
    assert await hosts.at_work("one") == containers

    # Another worker of the same host finds the very containers.
    await hosts.start("one")
    await hosts.until_told(both, "commit", 1)
    assert await hosts.at_work("one") == containers
    assert [(run["status"], run["attempt"]) for run in [await hosts.run(run_id) for run_id in both]] == [
        ("running", 1),
        ("running", 1),
    ]
    hosts.workers["one"].freeze()

    # The host is taken for gone; its containers are not another one's to end.
    await hosts.start("two")
    assert (await hosts.ended(lost))["outcome"] == "sandbox_lost"
    saved = await hosts.ended(again)
    assert saved["outcome"] == "completed", saved["error"]
    assert [commit["subject"] for commit in saved["workspace"]["commits"]] == ["one", "two"]
    assert await hosts.at_work("one") == containers
    assert await hosts.left("one") == sorted(both)

    # It comes back, and lets go of them itself.
    hosts.workers["one"].kill()
    await hosts.start("one")
    async with asyncio.timeout(60):
        while await hosts.left("one") or await hosts.at_work("one"):
            await asyncio.sleep(0.2)
        while await hosts.left("two"):
            await asyncio.sleep(0.2)
    assert (await hosts.run(again))["outcome"] == "completed"
