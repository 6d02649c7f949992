"""Background runs that fail: what is tried again, when, how often, and what becomes of what is not."""

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from run_house import RUNNER, OpenPlatform, ended, message, read, sent, stored, until_status

from automagik.app import Platform
from automagik.errors import Conflict, MissingScope, NotFound, RunFailed
from automagik.runs import RunRequest
from automagik.store.rows import RunRow
from automagik.testing.stopwatch import Stopwatch
from automagik.types import SYSTEM, Caller, JsonObject, RunStatus, new_uuid

pytestmark = pytest.mark.anyio


async def returns(platform: Platform, run_id: str) -> list[JsonObject]:
    """What is told of a run's returns to the queue."""
    events = await platform.runs.events(run_id, SYSTEM)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    return [event.data for event in events if event.type == "run_queued"][1:]


async def until_it_waits(platform: Platform, run_id: str) -> RunRow:
    """The run when it waits for its next attempt."""
    async with asyncio.timeout(40):
        while (row := await platform.runs.get(run_id, SYSTEM)).available_at is None or row.status != RunStatus.QUEUED:
            await asyncio.sleep(0.01)
    return row


async def test_a_failure_that_passes_is_tried_again_and_told(platform: Platform, tmp_path: Path) -> None:
    run = await sent(platform, "flaky", f"fail 2 passing {tmp_path / 'count'}")
    events = await read(await platform.runs.watch(run.run_id, RUNNER))
    row = await platform.runs.get(run.run_id, RUNNER)
    assert (row.outcome, row.attempt, message(row.output)) == ("completed", 3, "attempt 3")
    assert [event.type for event in events if event.type in {"run_queued", "run_started", "run_finished"}] == [
        *["run_queued", "run_started"] * 3,
        "run_finished",
    ], "a reader goes through all attempts with one stream"
    for number, data in enumerate(await returns(platform, run.run_id), 2):
        assert (data["attempt"], data["reason"], data["background"]) == (number, "model_error", True)
        assert "scripted" in str(data["detail"])
        assert "secret" not in str(data)
        assert data["available_at"] is not None


async def test_each_wait_is_twice_as_long_and_spread_at_random(platform: Platform, tmp_path: Path) -> None:
    waits: list[list[float]] = [[], []]
    runs = [await sent(platform, "flaky", f"fail 2 passing {tmp_path / str(n)}") for n in range(12)]
    for run in runs:
        await ended(platform, run.run_id)
        events = [event for event in await platform.runs.events(run.run_id, SYSTEM) if event.type == "run_queued"]
        for number, event in enumerate(events[1:]):
            wait = datetime.fromisoformat(str(event.data["available_at"])) - event.at
            waits[number].append(wait / timedelta(seconds=0.1 * 2**number))
    for spread in waits:
        assert all(wait < 1.51 for wait in spread), spread
        assert max(spread) > 0.5, spread  # storing the event takes its time of each
        assert max(spread) - min(spread) > 0.1, "they must not all come at once"


async def test_a_run_that_is_tried_in_vain_keeps_its_cause(platform: Platform, tmp_path: Path) -> None:
    run = await sent(platform, "flaky", f"fail 9 passing {tmp_path / 'count'}")
    row = await ended(platform, run.run_id)
    assert (row.status, row.outcome, row.attempt) == ("failed", "retries_exhausted", 3)
    error = row.error or {}
    assert (error["code"], error["cause"], error["retryable"]) == ("retries_exhausted", "model_error", True)
    assert "3 times" in str(error["detail"])
    assert "requeue" in str(error["hint"])
    assert (tmp_path / "count").stat().st_size == 3
    [letter] = (await platform.runs.list(SYSTEM, outcome="retries_exhausted")).data
    assert letter.run_id == run.run_id


@pytest.mark.parametrize(("how", "outcome"), [("refused", "model_error"), ("bug", "internal_error")])
async def test_a_failure_that_does_not_pass_is_not_tried_again(
    platform: Platform, tmp_path: Path, how: str, outcome: str
) -> None:
    run = await sent(platform, "flaky", f"fail 1 {how} {tmp_path / 'count'}")
    row = await ended(platform, run.run_id)
    assert (row.outcome, row.attempt, (row.error or {})["cause"]) == (outcome, 1, None)
    assert (tmp_path / "count").stat().st_size == 1


async def test_a_run_over_its_time_limit_is_not_tried_again(platform: Platform, tmp_path: Path) -> None:
    run = await sent(platform, "flaky", f"fail 1 slowly {tmp_path / 'count'}", timeout_seconds=0.2)
    row = await ended(platform, run.run_id)
    assert (row.outcome, row.attempt) == ("timed_out", 1)


async def test_an_agent_that_allows_one_attempt_fails_as_it_failed(platform: Platform, tmp_path: Path) -> None:
    run = await sent(platform, "once", f"fail 1 passing {tmp_path / 'count'}")
    row = await ended(platform, run.run_id)
    assert (row.outcome, row.attempt) == ("model_error", 1)


async def test_a_run_whose_caller_waits_is_not_tried_again(platform: Platform, tmp_path: Path) -> None:
    stream = await platform.runs.stream(RunRequest("flaky", f"fail 1 passing {tmp_path / 'count'}"), RUNNER)
    events = await read(stream)
    assert "model_error" in str(events[-1].data)
    assert (tmp_path / "count").stat().st_size == 1


@pytest.mark.parametrize(
    ("agent", "tool", "attempts"), [("writer", "write", 1), ("writer", "look", 2), ("repeatable", "write", 2)]
)
async def test_what_called_a_tool_is_tried_again_only_where_the_tool_reads_or_the_agent_is_repeatable(
    platform: Platform, tmp_path: Path, agent: str, tool: str, attempts: int
) -> None:
    run = await sent(platform, agent, f"{tool} {tmp_path / 'used'} then fail")
    row = await ended(platform, run.run_id)
    assert (row.attempt, (tmp_path / "used").stat().st_size) == (attempts, attempts)
    assert row.outcome == ("model_error" if attempts == 1 else "completed")
    told = [event.data["usage"] for event in await platform.runs.events(run.run_id, SYSTEM) if "usage" in event.data]
    assert len(told) == attempts - 1
    if told:
        first = told[0]
        assert isinstance(first, dict)
        alone = await ended(platform, (await sent(platform, agent, f"{tool} {tmp_path / 'other'}")).run_id)
        assert row.usage.requests == alone.usage.requests + cast("int", first["requests"])
        assert row.usage.input_tokens > alone.usage.input_tokens, "what was paid for is counted"


async def test_a_session_waits_for_the_run_that_waits_for_its_next_attempt(platform: Platform, tmp_path: Path) -> None:
    session = new_uuid()
    first = await sent(platform, "patient", f"fail 1 passing {tmp_path / 'count'}", session_id=session)
    second = await sent(platform, "echo", "second", session_id=session)
    waits = await until_it_waits(platform, first.run_id)
    third = asyncio.create_task(platform.runs.run(RunRequest("echo", "third", session_id=session), RUNNER))
    while True:
        before, after = await platform.store.read(lambda tx: [tx.runs.get(run.run_id) for run in (first, second)])
        if before.status != RunStatus.QUEUED:
            break
        assert (before.owner, after.status) == (None, "queued"), "no place is taken meanwhile"
        await asyncio.sleep(0.1)
    row = await ended(platform, first.run_id)
    assert row.started_at is not None
    assert waits.available_at is not None
    assert row.started_at >= waits.available_at
    assert message((await ended(platform, second.run_id)).output) == "seen 2: second"
    assert message((await third).output) == "seen 3: third"


async def test_a_run_that_waits_for_its_next_attempt_outlives_its_host(
    open_platform: OpenPlatform, tmp_path: Path
) -> None:
    first = await open_platform()
    run = await sent(first, "patient", f"fail 1 passing {tmp_path / 'count'}", queue_timeout_seconds=1)
    await until_it_waits(first, run.run_id)
    await open_platform.close(first)
    second = await open_platform()
    row = await ended(second, run.run_id)
    assert (row.outcome, row.attempt) == ("completed", 2), (
        "what it waits for an attempt is not what it waited in the queue"
    )


# -- requeue


async def test_a_run_is_requeued_with_what_it_asked(platform: Platform, tmp_path: Path) -> None:
    ada = (await platform.store.write(lambda tx: tx.users.create())).user_id
    run = await sent(
        platform,
        "flaky",
        f"fail 3 passing {tmp_path / 'count'}",
        session_name="daily",
        user_id=ada,
        labels={"a": "b"},
        priority=7,
        timeout_seconds=20.0,
    )
    letter = await ended(platform, run.run_id)
    assert letter.outcome == "retries_exhausted"
    again = await platform.runs.requeue(run.run_id, RUNNER)
    assert again.run_id != run.run_id
    assert (again.requeue_of, again.session_id, again.user_id) == (run.run_id, letter.session_id, ada)
    assert (again.labels, again.priority, again.attempt) == ({"a": "b"}, 7, 1)
    row = await ended(platform, again.run_id)
    assert (row.outcome, message(row.output), row.requeue_of) == ("completed", "attempt 4", run.run_id)
    assert await platform.runs.get(run.run_id, RUNNER) == letter, "the old one stays as it is"


async def test_only_what_has_ended_is_requeued_and_only_by_who_may_ask_that(platform: Platform) -> None:
    ada, bob = await platform.store.write(lambda tx: [tx.users.create().user_id for _ in range(2)])
    run = await sent(platform, "echo", "sleep 2", user_id=ada)
    await until_status(platform, run.run_id, RunStatus.RUNNING)
    with pytest.raises(Conflict) as early:
        await platform.runs.requeue(run.run_id, RUNNER)
    assert early.value.code == "run_not_ended"
    await platform.runs.cancel(run.run_id, RUNNER)
    scopes = frozenset({"agents:*:run", "runs:write"})
    with pytest.raises(NotFound):
        await platform.runs.requeue(run.run_id, Caller("bobs", scopes, bob))
    with pytest.raises(MissingScope):
        await platform.runs.requeue(run.run_id, Caller("other", frozenset({"agents:tooled:run", "runs:write"})))
    again = await platform.runs.requeue(run.run_id, Caller("adas", scopes, ada))
    assert (await ended(platform, again.run_id)).outcome == "completed"


async def test_a_synchronous_run_is_requeued_in_the_background(platform: Platform) -> None:
    with pytest.raises(RunFailed) as failed:
        await platform.runs.run(RunRequest("echo", "boom"), RUNNER)
    assert failed.value.run_id is not None
    again = await platform.runs.requeue(failed.value.run_id, RUNNER)
    assert again.background
    assert (await ended(platform, again.run_id)).outcome == "internal_error"


async def test_a_conversation_that_its_caller_keeps_is_not_requeued(platform: Platform) -> None:
    row = await platform.runs.run(RunRequest("echo", "hello", history=[]), RUNNER)
    with pytest.raises(Conflict) as refused:
        await platform.runs.requeue(row.run_id, RUNNER)
    assert refused.value.code == "conversation_not_kept"


async def test_a_dead_letter_is_requeued_once_for_one_idempotency_key(platform: Platform, tmp_path: Path) -> None:
    run = await sent(platform, "once", f"fail 1 passing {tmp_path / 'count'}")
    await ended(platform, run.run_id)
    again = [await platform.runs.requeue(run.run_id, RUNNER, idempotency_key="mended") for _ in range(2)]
    assert again[0].run_id == again[1].run_id
    with Stopwatch() as took:
        assert (await ended(platform, again[0].run_id)).outcome == "completed"
    assert took.seconds < 5
    assert stored(await platform.runs.events(again[0].run_id, SYSTEM))[0] == (1, "run_queued")
