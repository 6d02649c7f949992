"""What becomes of runs when the database's answer to a statement is lost with its connection: it was done, and nobody knows."""

import asyncio
from pathlib import Path
from typing import Any, TypeVar

import pytest
from run_house import RUNNER, OpenPlatform, ended, message, owner_of, sent, stored

from automagik.app import Platform
from automagik.errors import RunFailed, ServiceUnavailable
from automagik.runs import RunRequest
from automagik.store.queue import ClaimLimits
from automagik.types import SYSTEM, new_uuid

pytestmark = pytest.mark.anyio


@pytest.fixture
def working() -> bool:
    return False


T = TypeVar("T")


class Deaf:
    """A hot path that does what it is asked, and whose answers are lost for some calls of one method."""

    def __init__(self, platform: Platform, method: str, *, times: int = 1) -> None:
        hot: Any = platform.store._backend.hot  # pyright: ignore[reportPrivateUsage]
        self._method = getattr(hot, method)
        self.left = times
        setattr(hot, method, self)

    async def __call__(self, *arguments: Any) -> Any:
        answer = await self._method(*arguments)
        if self.left:
            self.left -= 1
            raise ServiceUnavailable("The connection broke.")
        return answer


async def executor_of(platform: Platform) -> str:
    return await owner_of(platform, (await platform.runs.run(RunRequest("echo", "x"), RUNNER)).run_id)


async def test_a_start_whose_answer_is_lost_is_the_same_start_when_it_is_repeated(platform: Platform) -> None:
    Deaf(platform, "start_run", times=2)
    row = await ended(platform, (await sent(platform, "echo", "hello")).run_id)
    assert (row.outcome, row.attempt, message(row.output)) == ("completed", 1, "seen 1: hello")
    assert [kind for _, kind in stored(await platform.runs.events(row.run_id, SYSTEM))].count("run_started") == 1


async def test_an_end_whose_answer_is_lost_is_told_all_the_same(platform: Platform) -> None:
    Deaf(platform, "finish_run")
    stream = await platform.runs.stream(RunRequest("echo", "hello"), RUNNER)
    events = [event async for batch in stream for event in batch]
    assert events[-1].type == "run_finished"
    Deaf(platform, "finish_run")
    assert message((await platform.runs.run(RunRequest("echo", "hello"), RUNNER)).output) == "seen 1: hello"


async def test_a_line_goes_on_when_the_answer_to_an_end_is_lost_that_gave_the_turn(platform: Platform) -> None:
    session = new_uuid()
    first = await sent(platform, "echo", "sleep 0.5", session_id=session)
    line = [await sent(platform, "echo", f"{n}", session_id=session) for n in range(4)]
    Deaf(platform, "finish_run", times=2)
    rows = [await ended(platform, run.run_id) for run in (first, *line)]
    assert [row.outcome for row in rows] == ["completed"] * 5
    assert message(rows[-1].output) == "seen 5: 3"
    assert {row.attempt for row in rows} == {1}


async def test_an_acceptance_whose_answer_is_lost_ends_visibly_and_holds_nobody_up(platform: Platform) -> None:
    session = new_uuid()
    Deaf(platform, "begin_run")
    request = RunRequest("echo", "hello", session_id=session)
    with pytest.raises(ServiceUnavailable):
        await platform.runs.run(request, RUNNER, idempotency_key="one")
    [lost] = (await platform.runs.list(SYSTEM)).data
    after = asyncio.create_task(platform.runs.run(RunRequest("echo", "after", session_id=session), RUNNER))
    with pytest.raises(RunFailed) as failed:
        await platform.runs.run(request, RUNNER, idempotency_key="one")
    assert (failed.value.outcome, failed.value.run_id) == ("worker_lost", lost.run_id)
    async with asyncio.timeout(40):
        assert message((await after).output) == "seen 1: after"


async def test_a_claim_whose_answer_is_lost_is_given_back(open_platform: OpenPlatform, tmp_path: Path) -> None:
    platform = await open_platform(max_concurrent_background_runs=1)
    owner = await executor_of(platform)
    await sent(platform, "echo", f"until {tmp_path / 'claimed'}")
    run = await sent(platform, "echo", "hello")

    async with asyncio.timeout(40):
        while not await platform.store.write(
            lambda tx: tx.queue.claim(owner, "here", 1, limits=ClaimLimits(), host_lease_seconds=60)
        ):
            await asyncio.sleep(0.01)
    (tmp_path / "claimed").touch()
    row = await ended(platform, run.run_id)
    assert (row.outcome, row.attempt) == ("completed", 1)


async def test_a_caller_that_goes_away_while_its_run_is_accepted_leaves_it_to_be_carried_out(
    platform: Platform,
) -> None:
    session = new_uuid()
    for delay in (0.0, 0.001, 0.003, 0.006, 0.01):
        caller = asyncio.create_task(platform.runs.run(RunRequest("echo", "x", session_id=session), RUNNER))
        await asyncio.sleep(delay)
        caller.cancel()
    last = await platform.runs.run(RunRequest("echo", "last", session_id=session), RUNNER)
    rows = (await platform.runs.list(SYSTEM, session_id=session)).data
    assert {row.outcome for row in rows} == {"completed"}
    assert message(last.output) == f"seen {len(rows)}: last"
