"""What was accepted ends visibly and keeps its answer, whatever the database, the server or the agent's author does."""

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from run_house import AGENTS, OpenPlatform, away, ended, sent, until_status

from automagik.app import Platform
from automagik.errors import RunFailed, ServiceUnavailable
from automagik.runs import RunRequest
from automagik.settings import Settings
from automagik.testing.engines import DirectEngine
from automagik.testing.postgres import PostgresServer
from automagik.types import SYSTEM, RunStatus

pytestmark = pytest.mark.anyio

CARELESS = """
from automagik.agents import AgentInput, AgentResponse, AutomagikAgent, RunOptions
from automagik.types import Usage


class Careless(AutomagikAgent):
    name = "careless"

    async def run(self, message: AgentInput, options: RunOptions) -> AgentResponse:
        options.emit("tool_call", {"tool_call_id": "1", "tool_name": "x", "args": {}})
        if message.text == "event":
            options.emit("tool_result", {"tool_call_id": "1", "content": object()})
        data = 10**40 if message.text == "number" else object()
        return AgentResponse("answer", data, [], Usage(), [], [])
"""


async def test_an_answer_waits_for_a_database_that_is_away_for_long(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    folder = tmp_path / "agents"
    folder.mkdir()
    (folder / "echo.py").write_text(AGENTS)
    url = postgres_server.create_database()
    settings = Settings.model_validate({"data_dir": tmp_path, "database_url": url, "model": "demo"})
    async with Platform.open(settings, make_engine=DirectEngine) as platform:
        answers = tmp_path / "answers"
        asked = asyncio.create_task(platform.runs.run(RunRequest("echo", f"until {answers}"), SYSTEM))
        async with asyncio.timeout(20):
            while not (await platform.runs.list(SYSTEM, status="running")).data:
                await asyncio.sleep(0.02)
        late = await platform.runs.stream(RunRequest("echo", "sleep 5"), SYSTEM)
        async with away(postgres_server, urlsplit(url).path[1:]):
            answers.touch()
            with pytest.raises(ServiceUnavailable, match=r"run_\w+"):
                await asyncio.wait_for(asked, 20)
        events = [event async for batch in late for event in batch]
        assert events[-1].type == "run_finished"
        async with asyncio.timeout(40):
            while [row.outcome for row in (await platform.runs.list(SYSTEM)).data] != ["completed"] * 2:
                await asyncio.sleep(0.05)
    postgres_server.drop_database(url)


async def test_a_stop_leaves_background_runs_to_the_next_start(open_platform: OpenPlatform, tmp_path: Path) -> None:
    first = await open_platform(shutdown_grace_seconds=0, max_concurrent_background_runs=1)
    running = await sent(first, "echo", f"until {tmp_path / 'answers'}")
    await until_status(first, running.run_id, RunStatus.RUNNING)
    queued = [await sent(first, "echo", f"later {number}") for number in range(3)]
    in_line = await sent(first, "echo", "in line", session_id=queued[0].session_id)
    await open_platform.close(first)
    (tmp_path / "answers").touch()
    second = await open_platform()
    for row in [running, *queued, in_line]:
        assert ((await ended(second, row.run_id)).outcome, row.attempt) == ("completed", 1)
    returned = [event.data for event in await second.runs.events(running.run_id, SYSTEM) if event.type == "run_queued"]
    assert [event.get("reason") for event in returned] == [None, "worker_lost"]


@pytest.mark.parametrize("what", ["data", "number", "event"])
async def test_a_run_whose_answer_cannot_be_stored_ends_as_failed(
    open_platform: OpenPlatform, tmp_path: Path, what: str
) -> None:
    (tmp_path / "agents" / "careless.py").write_text(CARELESS)
    platform = await open_platform()
    with pytest.raises(RunFailed):
        await platform.runs.run(RunRequest("careless", what), SYSTEM)
    [row] = (await platform.runs.list(SYSTEM)).data
    assert (row.status, row.outcome) == ("failed", "internal_error")
    events = await platform.runs.events(row.run_id, SYSTEM)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert events[-1].type == "run_finished"
