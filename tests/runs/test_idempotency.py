"""Idempotency keys: a request that is sent again, by whichever door and to whichever host, is the same run."""

import asyncio

import pytest
from run_house import RUNNER, OpenPlatform, ended, message, read, stored, until_status

from automagik.app import Platform
from automagik.errors import Conflict, InvalidInput, NotFound, QueueFull, RunFailed
from automagik.runs import RunRequest
from automagik.testing.stopwatch import Stopwatch
from automagik.types import SYSTEM, Caller, RunStatus, new_uuid

pytestmark = pytest.mark.anyio


@pytest.fixture
def working() -> bool:
    return False


async def count(platform: Platform) -> int:
    return len((await platform.runs.list(SYSTEM, limit=100)).data)


async def test_a_run_that_is_asked_for_again_answers_the_same(platform: Platform) -> None:
    request = RunRequest("echo", "hello", session_name="daily")
    first = await platform.runs.run(request, RUNNER, idempotency_key="one")
    again = await platform.runs.run(request, RUNNER, idempotency_key="one")
    assert (again.run_id, again.output) == (first.run_id, first.output)
    other = await platform.runs.run(request, RUNNER, idempotency_key="two")
    assert message(other.output) == "seen 2: hello"
    assert await count(platform) == 2


async def test_whoever_asks_again_while_the_run_is_under_way_waits_for_its_answer(platform: Platform) -> None:
    request = RunRequest("echo", "sleep 0.5")
    rows = await asyncio.gather(*(platform.runs.run(request, RUNNER, idempotency_key="one") for _ in range(5)))
    assert len({row.run_id for row in rows}) == 1
    assert {message(row.output) for row in rows} == {"seen 1: sleep 0.5"}
    assert await count(platform) == 1


async def test_a_run_that_failed_fails_again_and_is_not_repeated(platform: Platform) -> None:
    failures: list[RunFailed] = []
    for _ in range(2):
        with pytest.raises(RunFailed) as failed:
            await platform.runs.run(RunRequest("echo", "boom"), RUNNER, idempotency_key="one")
        failures.append(failed.value)
    assert failures[0].run_id == failures[1].run_id
    assert failures[0].detail == failures[1].detail


async def test_a_stream_that_is_asked_for_again_begins_at_its_start(platform: Platform) -> None:
    request = RunRequest("echo", "sleep 0.3 a b c")
    first = await platform.runs.stream(request, RUNNER, idempotency_key="one")
    again = await platform.runs.stream(request, RUNNER, idempotency_key="one")
    assert first.row.run_id == again.row.run_id
    events, repeated = await asyncio.gather(read(first), read(again))
    assert stored(events) == stored(repeated)
    assert events[0].type == repeated[0].type == "run_started"
    late = await read(await platform.runs.stream(request, RUNNER, idempotency_key="one"))
    assert stored(late) == stored(events)


async def test_a_background_run_that_is_sent_again_is_the_same(platform: Platform) -> None:
    request = RunRequest("echo", "later", labels={"a": "1", "b": "2"}, user_id=None)
    first = await platform.runs.submit(request, RUNNER, idempotency_key="one")
    again = await platform.runs.submit(
        RunRequest("echo", "later", labels={"b": "2", "a": "1"}), RUNNER, idempotency_key="one"
    )
    assert first.run_id == again.run_id
    row = await ended(platform, first.run_id)
    last = await platform.runs.submit(request, RUNNER, idempotency_key="one")
    assert (last.run_id, last.status, last.output) == (row.run_id, "completed", row.output)


async def test_requests_with_one_key_that_come_at_once_to_two_hosts_are_one_run(open_host: OpenPlatform) -> None:
    one, other = await open_host(), await open_host()
    session = new_uuid()
    request = RunRequest("echo", "sleep 0.3", session_id=session)
    hosts = (one, other)
    rows = await asyncio.gather(
        *(hosts[n % 2].runs.run(request, RUNNER, idempotency_key="one") for n in range(8)),
        *(hosts[n % 2].runs.submit(RunRequest("echo", "x"), RUNNER, idempotency_key="two") for n in range(8)),
    )
    assert len({row.run_id for row in rows[:8]}) == 1
    assert {message(row.output) for row in rows[:8]} == {"seen 1: sleep 0.3"}
    assert len({row.run_id for row in rows[8:]}) == 1
    assert await count(one) == 2
    turn = await one.store.read(lambda tx: tx.sessions.get(session))
    assert turn.message_count == 2
    assert (
        message((await other.runs.run(RunRequest("echo", "next", session_id=session), RUNNER)).output) == "seen 2: next"
    )


async def test_another_request_with_the_same_key_is_refused(platform: Platform) -> None:
    asked = RunRequest("echo", "hello")
    await platform.runs.run(asked, RUNNER, idempotency_key="one")
    for other in (
        RunRequest("echo", "hallo"),
        RunRequest("tooled", "hello"),
        RunRequest("echo", "hello", session_name="named"),
        RunRequest("echo", "hello", labels={"a": "b"}),
        RunRequest("echo", "hello", timeout_seconds=5),
    ):
        with pytest.raises(Conflict) as refused:
            await platform.runs.run(other, RUNNER, idempotency_key="one")
        assert refused.value.code == "idempotency_key_reused"
    with pytest.raises(Conflict):
        await platform.runs.submit(asked, RUNNER, idempotency_key="one")
    assert await count(platform) == 1


async def test_a_key_that_cannot_be_one_is_refused_by_its_headers_name(platform: Platform) -> None:
    for key in ("", "x" * 256, "schlüssel", "two\nlines", "\x00"):
        with pytest.raises(InvalidInput) as refused:
            await platform.runs.run(RunRequest("echo", "hello"), RUNNER, idempotency_key=key)
        assert refused.value.field == ("header", "idempotency-key"), key
        assert await count(platform) == 0, key


async def test_the_longest_key_is_taken(platform: Platform) -> None:
    first = await platform.runs.run(RunRequest("echo", "hello"), RUNNER, idempotency_key="~" * 255)
    again = await platform.runs.run(RunRequest("echo", "hello"), RUNNER, idempotency_key="~" * 255)
    assert first.run_id == again.run_id


async def test_a_word_of_one_api_key_says_nothing_about_anothers(platform: Platform) -> None:
    ada, bob = await platform.store.write(lambda tx: [tx.users.create().user_id for _ in range(2)])
    scopes = frozenset({"agents:*:run", "runs:read"})
    as_ada, as_bob, unbound = Caller("adas", scopes, ada), Caller("bobs", scopes, bob), Caller("x", scopes)
    request = RunRequest("echo", "mine")
    hers = await platform.runs.run(request, as_ada, idempotency_key="guess me")
    his = await platform.runs.run(request, as_bob, idempotency_key="guess me")
    theirs = await platform.runs.run(request, unbound, idempotency_key="guess me")
    systems = await platform.runs.run(request, SYSTEM, idempotency_key="guess me")
    assert len({hers.run_id, his.run_id, theirs.run_id, systems.run_id}) == 4
    assert (hers.user_id, his.user_id, theirs.user_id) == (ada, bob, None)
    other = RunRequest("echo", "something else")
    assert (await platform.runs.run(other, Caller("another", scopes, ada), idempotency_key="guess me")).user_id == ada


async def test_a_refused_request_uses_up_no_key(platform: Platform) -> None:
    with pytest.raises(NotFound):
        await platform.runs.run(RunRequest("ecko", "hello"), RUNNER, idempotency_key="one")
    with pytest.raises(NotFound):
        await platform.runs.submit(RunRequest("echo", "hello", user_id=new_uuid()), RUNNER, idempotency_key="one")
    assert (await platform.runs.run(RunRequest("echo", "hello"), RUNNER, idempotency_key="one")).outcome == "completed"


async def test_a_full_queue_still_tells_of_the_run_that_it_holds(open_platform: OpenPlatform) -> None:
    platform = await open_platform(max_queued_runs=1, max_concurrent_background_runs=1)
    first = await platform.runs.submit(RunRequest("echo", "sleep 60"), RUNNER)
    await until_status(platform, first.run_id, RunStatus.RUNNING)
    await asyncio.sleep(0.6)
    queued = await platform.runs.submit(RunRequest("echo", "later"), RUNNER, idempotency_key="one")
    with pytest.raises(QueueFull):
        await platform.runs.submit(RunRequest("echo", "too much"), RUNNER, idempotency_key="two")
    again = await platform.runs.submit(RunRequest("echo", "later"), RUNNER, idempotency_key="one")
    assert again.run_id == queued.run_id
    await platform.runs.cancel(first.run_id, RUNNER)


async def test_a_waiting_caller_of_a_run_on_another_host_hears_of_its_end(open_host: OpenPlatform) -> None:
    one, other = await open_host(), await open_host()
    request = RunRequest("echo", "sleep 1")
    first = asyncio.create_task(one.runs.run(request, RUNNER, idempotency_key="one"))
    await asyncio.sleep(0.3)
    again = asyncio.create_task(other.runs.run(request, RUNNER, idempotency_key="one"))
    row = await first
    with Stopwatch() as took:
        assert (await again).output == row.output
    assert took.seconds < 1
