"""Background runs over several hosts, which share one PostgreSQL; each is a platform of its own in this process."""

import asyncio
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from run_house import (
    RUNNER,
    OpenPlatform,
    away,
    bind,
    declare_lost,
    ended,
    message,
    owner_of,
    read,
    sent,
    stored,
    until_status,
)

from automagik.app import Platform
from automagik.errors import QueueFull, RunFailed, ServiceUnavailable
from automagik.runs import RunRequest, RunStream
from automagik.store import Transaction
from automagik.store.heart import HeartLine, Pulse
from automagik.testing.postgres import PostgresServer
from automagik.testing.stopwatch import Stopwatch
from automagik.types import SYSTEM, RunStatus, new_uuid

pytestmark = pytest.mark.anyio


async def session_texts(platform: Platform, session: uuid.UUID) -> list[str]:
    """What was said in a session, oldest first."""

    def work(tx: Transaction) -> list[str]:
        row = tx.sessions.get(session)
        return [message.content for message in tx.messages.list(row.id, limit=200).data][::-1]

    return await platform.store.read(work)


# -- order


async def test_ten_runs_posted_at_once_over_two_hosts_are_all_stored_paired_and_in_order(
    open_host: OpenPlatform,
) -> None:
    one, other = await open_host(), await open_host()
    session = new_uuid()
    waiting = [
        asyncio.create_task(
            (one, other)[n % 2].runs.run(RunRequest("echo", f"question {n}", session_id=session), RUNNER)
        )
        for n in range(10)
    ]
    rows = await asyncio.gather(*waiting)
    seen = [int(message(row.output).split()[1].removesuffix(":")) for row in rows]
    assert sorted(seen) == list(range(1, 11)), "each sees all that came before it"
    for parity in range(2):
        assert seen[parity::2] == sorted(seen[parity::2]), "what one host took is answered in the order of its coming"
    texts = await session_texts(one, session)
    assert len(texts) == 20
    for question, answer in zip(texts[::2], texts[1::2], strict=True):
        assert answer.endswith(question)


async def test_synchronous_and_background_runs_of_a_session_keep_one_order_over_two_hosts(
    open_host: OpenPlatform,
) -> None:
    one, other = await open_host(), await open_host()
    session = new_uuid()
    asked: list[asyncio.Task[object]] = []
    queued: list[str] = []
    for n in range(12):
        host = (one, other)[n // 2 % 2]
        request = RunRequest("echo", f"question {n}", session_id=session)
        if n % 3:
            asked.append(asyncio.create_task(host.runs.run(request, RUNNER)))
            await _until_accepted(one, session, n + 1)
        else:
            queued.append((await host.runs.submit(request, RUNNER)).run_id)
    await asyncio.gather(*asked)
    for run_id in queued:
        assert (await ended(one, run_id)).outcome == "completed"
    texts = await session_texts(one, session)
    assert texts[::2] == [f"question {n}" for n in range(12)]
    assert [text.strip() for text in texts[1::2]] == [f"seen {n + 1}: question {n}" for n in range(12)]


async def _until_accepted(platform: Platform, session: uuid.UUID, count: int) -> None:
    async with asyncio.timeout(20):
        while len((await platform.runs.list(SYSTEM, session_id=session)).data) < count:
            await asyncio.sleep(0.005)


async def test_a_long_line_in_one_session_ends_in_its_order_and_other_sessions_are_not_kept_waiting(
    open_host: OpenPlatform,
) -> None:
    one, other = await open_host(max_concurrent_background_runs=1), await open_host(max_concurrent_background_runs=1)
    session = new_uuid()
    line = [await sent(one, "echo", f"{n}", session_id=session) for n in range(60)]
    apart = await sent(other, "echo", "apart")
    await ended(one, apart.run_id)
    rows = [await ended(one, run.run_id, seconds=60) for run in line]
    assert [message(row.output) for row in rows] == [f"seen {n + 1}: {n}" for n in range(60)]
    assert len({row.owner for row in rows}) >= 1


async def test_no_connection_is_held_while_a_model_answers(open_host: OpenPlatform) -> None:
    platform = await open_host(database_pool_size=2, max_concurrent_background_runs=64)
    waiting = [asyncio.create_task(platform.runs.run(RunRequest("echo", "sleep 60"), RUNNER)) for _ in range(60)]
    queued = [await sent(platform, "echo", "sleep 60") for _ in range(60)]
    line = new_uuid()
    in_line = [
        asyncio.create_task(platform.runs.run(RunRequest("echo", "sleep 0.1", session_id=line), RUNNER))
        for _ in range(20)
    ]
    async with asyncio.timeout(50):
        while len((await platform.runs.list(SYSTEM, status="running", limit=100)).data) < 100:
            await asyncio.sleep(0.05)
    with Stopwatch() as took:
        assert message((await platform.runs.run(RunRequest("echo", "quick"), RUNNER)).output) == "seen 1: quick"
    assert took.seconds < 1
    await asyncio.gather(*in_line)
    for run in queued:
        await platform.runs.cancel(run.run_id, SYSTEM)
    while running := (await platform.runs.list(SYSTEM, status="running", limit=100)).data:
        for run in running:
            await platform.runs.cancel(run.run_id, SYSTEM)
    ends = await asyncio.gather(*waiting, return_exceptions=True)
    assert {end.outcome if isinstance(end, RunFailed) else str(end) for end in ends} == {"cancelled"}


# -- cancelling


async def test_a_queued_run_is_cancelled_at_once_by_any_host(open_host: OpenPlatform) -> None:
    one, other = await open_host(role="api"), await open_host(role="api")
    run = await sent(one, "echo", "never")
    async with asyncio.timeout(20):
        row = await other.runs.cancel(run.run_id, RUNNER)  # which waits for nobody: no worker is there
    assert (row.status, row.outcome, row.started_at) == ("cancelled", "cancelled", None)
    assert stored(await one.runs.events(run.run_id, SYSTEM)) == [(1, "run_queued"), (2, "run_finished")]
    assert (await ended(await open_host(), run.run_id)).started_at is None


async def test_a_waiting_synchronous_run_is_cancelled_from_another_host(open_host: OpenPlatform) -> None:
    one, other = await open_host(), await open_host()
    session = new_uuid()
    first = asyncio.create_task(one.runs.run(RunRequest("echo", "sleep 60", session_id=session), RUNNER))
    await _until_accepted(one, session, 1)
    second = asyncio.create_task(one.runs.run(RunRequest("echo", "never", session_id=session), RUNNER))
    await _until_accepted(one, session, 2)
    [waiting] = (await other.runs.list(SYSTEM, status="queued")).data
    with Stopwatch() as took:
        assert (await other.runs.cancel(waiting.run_id, RUNNER)).status == "cancelled"
        with pytest.raises(RunFailed) as failed:
            await second
    assert took.seconds < 1, "its caller is told at once"
    assert (failed.value.outcome, failed.value.run_id) == ("cancelled", waiting.run_id)
    [running] = (await other.runs.list(SYSTEM, status="running")).data
    await one.runs.cancel(running.run_id, RUNNER)
    with pytest.raises(RunFailed):
        await first
    third = await other.runs.run(RunRequest("echo", "go on", session_id=session), RUNNER)
    assert message(third.output) == "seen 1: go on"


@pytest.mark.parametrize("background", [False, True], ids=["waiting caller", "background"])
async def test_a_run_that_runs_on_another_host_is_cancelled_within_a_second(
    open_host: OpenPlatform, background: bool
) -> None:
    one, other = await open_host(), await open_host(role="api")
    caller: asyncio.Task[object] | None = None
    if background:
        run_id = (await sent(other, "echo", "sleep 60")).run_id
        await until_status(one, run_id, RunStatus.RUNNING)
    else:
        caller = asyncio.create_task(one.runs.run(RunRequest("echo", "sleep 60"), RUNNER))
        while not (running := (await other.runs.list(SYSTEM, status="running")).data):
            await asyncio.sleep(0.01)
        run_id = running[0].run_id
    with Stopwatch() as took:
        row = await other.runs.cancel(run_id, RUNNER)
    assert took.seconds < 1
    assert (row.status, row.outcome) == ("cancelled", "cancelled")
    if caller is not None:
        with pytest.raises(RunFailed):
            await caller


async def test_a_wish_to_cancel_whose_signal_is_lost_is_found_in_the_store(open_host: OpenPlatform) -> None:
    platform = await open_host()
    run = await sent(platform, "echo", "sleep 60")
    await until_status(platform, run.run_id, RunStatus.RUNNING)
    await platform.store.write(lambda tx: tx.connection.exec_driver_sql(
        f"UPDATE runs SET cancel_requested = true WHERE run_id = '{run.run_id}'"
    ))  # fmt: skip
    assert (await ended(platform, run.run_id, seconds=5)).outcome == "cancelled"


async def test_a_run_whose_next_attempt_waits_is_cancelled_at_once(open_platform: OpenPlatform, tmp_path: Path) -> None:
    platform = await open_platform()
    tries = 0
    while True:
        tries += 1
        run = await sent(platform, "patient", f"fail 9 passing {tmp_path / str(tries)}")
        async with asyncio.timeout(40):
            while (await platform.runs.get(run.run_id, SYSTEM)).available_at is None:
                await asyncio.sleep(0.02)
        row = await platform.runs.cancel(run.run_id, RUNNER)
        assert (row.status, row.outcome) in {("cancelled", "cancelled"), ("failed", "retries_exhausted")}
        if row.attempt == 2 or tries == 4:  # else this process was held up until it did not wait any more
            break
    assert (row.status, row.outcome, row.attempt) == ("cancelled", "cancelled", 2)


async def test_a_run_of_a_host_whose_places_are_taken_is_stopped_there_within_seconds_and_takes_none(
    open_platform: OpenPlatform, tmp_path: Path
) -> None:
    """Whatever else bounds what is under way."""
    platform = await open_platform(max_concurrent_background_runs=1, max_total_background_runs=1)
    long = await sent(platform, "echo", "sleep 60")
    await until_status(platform, long.run_id, RunStatus.RUNNING)
    session = new_uuid()
    runs = [await sent(platform, "outliving", str(tmp_path / f"taken {number}")) for number in range(3)]
    runs.append(await sent(platform, "outliving", str(tmp_path / "taken 3"), session_id=session))
    following = await sent(platform, "echo", "after it", session_id=session)
    for run in runs:
        await bind(platform, run.run_id)
    with Stopwatch() as took:
        rows = await asyncio.gather(*(platform.runs.cancel(run.run_id, RUNNER) for run in runs[1:]))
    assert took.seconds < 5
    assert [(row.status, row.outcome) for row in rows] == [("cancelled", "cancelled")] * 3
    assert sorted(path.name for path in tmp_path.glob("taken *")) == ["taken 1", "taken 2", "taken 3"]
    for run in (runs[0], following):
        assert (await platform.runs.get(run.run_id, SYSTEM)).status == "queued"
    assert (await platform.runs.get(long.run_id, SYSTEM)).status == "running"
    await platform.runs.cancel(long.run_id, RUNNER)
    await until_status(platform, runs[0].run_id, RunStatus.RUNNING)
    assert (await platform.runs.cancel(runs[0].run_id, RUNNER)).outcome == "cancelled"
    assert (await ended(platform, following.run_id)).outcome == "completed"


async def test_a_run_that_is_to_be_stopped_when_its_host_is_lost_is_not_begun_anew(open_host: OpenPlatform) -> None:
    one, other = await open_host(), await open_host(role="api")
    run = await sent(other, "echo", "sleep 60")
    await until_status(one, run.run_id, RunStatus.RUNNING)
    lost = await owner_of(one, run.run_id)

    def ask(tx: Transaction) -> None:
        tx.connection.exec_driver_sql(f"UPDATE runs SET cancel_requested = true WHERE run_id = '{run.run_id}'")

    await other.store.write(ask)
    rescued = await declare_lost(other, lost)
    assert [(gone.row.run_id, gone.row.outcome) for gone in rescued.failed] == [(run.run_id, "cancelled")]


# -- hosts that are lost


async def test_a_host_that_was_declared_lost_writes_nothing_more_and_goes_on_under_another_name(
    open_host: OpenPlatform, tmp_path: Path
) -> None:
    answers = f"until {tmp_path / 'answers'}"
    one, other = await open_host(), await open_host(role="api")
    session = new_uuid()
    waiting = asyncio.create_task(one.runs.run(RunRequest("echo", answers, session_id=session), RUNNER))
    await _until_accepted(one, session, 1)
    [run] = (await other.runs.list(SYSTEM)).data
    stream = await one.runs.stream(RunRequest("echo", answers), RUNNER)
    lost = await owner_of(other, run.run_id)
    rescued = await declare_lost(other, lost)
    (tmp_path / "answers").touch()
    assert {gone.row.run_id for gone in rescued.failed} == {run.run_id, stream.row.run_id}
    with pytest.raises(RunFailed) as failed:
        await waiting
    assert (failed.value.outcome, failed.value.run_id) == ("worker_lost", run.run_id)
    events = await read(stream)
    assert events[-1].type == "run_finished", "a reader is told the end that others gave it"
    assert "worker_lost" in str(events[-1].data)
    await asyncio.sleep(1)
    assert await session_texts(other, session) == [], "its answer came too late"
    row = await one.runs.run(RunRequest("echo", "and now", session_id=session), RUNNER)
    assert message(row.output) == "seen 1: and now"
    assert await owner_of(one, row.run_id) != lost
    background = await sent(other, "echo", "later")
    assert (await ended(other, background.run_id)).outcome == "completed", "it takes work again"


async def test_a_background_run_goes_on_at_another_host_with_its_next_attempt(
    open_host: OpenPlatform, tmp_path: Path
) -> None:
    one = await open_host()
    run = await sent(one, "flaky", f"fail 1 slowly {tmp_path / 'count'}")
    await until_status(one, run.run_id, RunStatus.RUNNING)
    await _until_size(tmp_path / "count", 1)
    other = await open_host()
    lost = await owner_of(one, run.run_id)
    await declare_lost(other, lost)
    row = await ended(other, run.run_id)
    assert (row.outcome, row.attempt, message(row.output)) == ("completed", 2, "attempt 2")
    assert row.owner != lost
    kinds = stored(await other.runs.events(run.run_id, SYSTEM))
    assert [seq for seq, _ in kinds] == list(range(1, len(kinds) + 1))
    assert [kind for _, kind in kinds if kind.startswith("run_")] == [
        "run_queued",
        "run_started",
        "run_queued",
        "run_started",
        "run_finished",
    ]


async def _until_size(path: Path, size: int) -> None:
    async with asyncio.timeout(40):
        while not path.exists() or path.stat().st_size < size:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("agent", "tool", "outcome"),
    [("writer", "write", "worker_lost"), ("writer", "look", "completed"), ("repeatable", "write", "completed")],
)
async def test_what_a_lost_host_had_begun_is_repeated_only_where_that_is_safe(
    open_host: OpenPlatform, tmp_path: Path, agent: str, tool: str, outcome: str
) -> None:
    one = await open_host()
    run = await sent(one, agent, f"{tool} {tmp_path / 'used'} then wait")
    await _until_size(tmp_path / "used", 1)
    other = await open_host()
    await declare_lost(other, await owner_of(one, run.run_id))
    row = await ended(other, run.run_id)
    assert (row.outcome, row.attempt) == (outcome, 2)
    if outcome == "worker_lost":
        assert (tmp_path / "used").stat().st_size == 1, "it was not done twice"
        assert "'write'" in str((row.error or {})["detail"])
        assert "repeatable" in str((row.error or {})["hint"])
        assert (row.error or {})["retryable"] is False
    else:
        assert (tmp_path / "used").stat().st_size == 2
    last = (await other.runs.events(run.run_id, SYSTEM))[-1]
    assert last.type == "run_finished"


async def test_a_tool_call_is_stored_before_the_tool_runs(open_host: OpenPlatform, tmp_path: Path) -> None:
    platform = await open_host()
    run = await sent(platform, "writer", f"write {tmp_path / 'hang'}")
    await _until_size(tmp_path / "hang", 1)
    kinds = [event.type for event in await platform.runs.events(run.run_id, SYSTEM)]
    assert kinds[-1] == "tool_call"


async def test_a_tool_does_not_begin_in_a_run_that_belongs_to_others(open_host: OpenPlatform, tmp_path: Path) -> None:
    """Between the model's answer and the tool stands the store, which knows whose run it is."""
    one, other = await open_host(), await open_host(role="api")
    run = await sent(one, "writer", f"write {tmp_path / 'used'} later")
    await until_status(one, run.run_id, RunStatus.RUNNING)
    await declare_lost(other, await owner_of(one, run.run_id))
    (tmp_path / "used.go").touch()
    row = await ended(other, run.run_id)
    assert (row.outcome, row.attempt, message(row.output)) == ("completed", 2, "the tool said wrote 1")
    calls = [event for event in await other.runs.events(run.run_id, SYSTEM) if event.type == "tool_call"]
    assert (len(calls), (tmp_path / "used").stat().st_size) == (1, 1)


async def test_a_host_whose_first_beats_come_too_late_begins_under_a_fresh_name(
    open_host: OpenPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat, late = HeartLine.beat, list[HeartLine]()

    async def slow(line: HeartLine) -> Pulse:
        if not late or line in late:
            late.append(line)
            raise ServiceUnavailable("It did not answer in time.")
        return await beat(line)

    monkeypatch.setattr(HeartLine, "beat", slow)
    one = await open_host()
    assert (await ended(one, (await sent(one, "echo", "hello")).run_id)).outcome == "completed"
    living = await one.store.read(lambda tx: tx.executors.living())
    assert list(living) == [one.runs.executor_id], "nothing is left of the name that it did not begin under"


# -- stopping


async def test_a_host_that_stops_hands_back_what_can_be_done_again_and_tells_whoever_waits(
    open_host: OpenPlatform, tmp_path: Path
) -> None:
    one = await open_host(shutdown_grace_seconds=0.5)
    again = await sent(one, "flaky", f"fail 1 slowly {tmp_path / 'count'}")
    wrote = await sent(one, "writer", f"write {tmp_path / 'hang'}")
    await _until_size(tmp_path / "count", 1)
    await _until_size(tmp_path / "hang", 1)
    other = await open_host(role="api")
    session = new_uuid()
    waiting = asyncio.create_task(one.runs.run(RunRequest("echo", "sleep 60", session_id=session), RUNNER))
    await _until_accepted(other, session, 1)
    in_line = asyncio.create_task(one.runs.run(RunRequest("echo", "behind it", session_id=session), RUNNER))
    quick = asyncio.create_task(one.runs.run(RunRequest("echo", "sleep 0.1"), RUNNER))
    await _until_accepted(other, session, 2)
    with Stopwatch() as took:
        await open_host.close(one)
    assert took.seconds < 3
    assert (await quick).outcome == "completed"
    for caller in (waiting, in_line):
        with pytest.raises(RunFailed) as failed:
            await caller
        assert failed.value.outcome == "worker_lost"
    row = await other.runs.get(again.run_id, SYSTEM)
    assert (row.status, row.attempt, row.owner) == ("queued", 1, None), "no attempt is counted"
    row = await other.runs.get(wrote.run_id, SYSTEM)
    assert (row.outcome, "'write'" in str((row.error or {})["detail"])) == ("worker_lost", True)
    third = await open_host()
    assert (await ended(third, again.run_id)).outcome == "completed"
    assert await other.store.read(lambda tx: tx.queue.owners()) == []


async def test_a_long_line_is_not_left_with_a_host_that_stops(open_host: OpenPlatform) -> None:
    one = await open_host(shutdown_grace_seconds=1)
    session = new_uuid()
    line = [await sent(one, "echo", f"sleep 0.3 {n}", session_id=session) for n in range(5)]
    await until_status(one, line[0].run_id, RunStatus.RUNNING)
    await open_host.close(one)
    other = await open_host()
    rows = [await ended(other, run.run_id) for run in line]
    assert [message(row.output) for row in rows] == [f"seen {n + 1}: sleep 0.3 {n}" for n in range(5)]
    assert {row.attempt for row in rows} == {1}


# -- the queue


async def test_a_run_that_waits_too_long_ends_as_timed_out(open_platform: OpenPlatform) -> None:
    platform = await open_platform(max_concurrent_background_runs=1)
    before = await sent(platform, "echo", "sleep 60")
    await until_status(platform, before.run_id, RunStatus.RUNNING)
    late = await sent(platform, "echo", "never", queue_timeout_seconds=0.2)
    with Stopwatch() as took:
        row = await ended(platform, late.run_id)
    assert took.seconds < 3
    assert (row.outcome, row.started_at) == ("timed_out", None)
    assert "queue" in str((row.error or {})["detail"])
    await platform.runs.cancel(before.run_id, SYSTEM)


async def test_the_platforms_setting_says_how_long_a_run_waits_that_does_not(open_platform: OpenPlatform) -> None:
    platform = await open_platform(max_concurrent_background_runs=1, queue_timeout_seconds=0.2)
    before = await sent(platform, "echo", "sleep 60", queue_timeout_seconds=60)
    await until_status(platform, before.run_id, RunStatus.RUNNING)
    late = await sent(platform, "echo", "never")
    patient = await sent(platform, "echo", "now", queue_timeout_seconds=60)
    assert (await ended(platform, late.run_id)).outcome == "timed_out"
    await platform.runs.cancel(before.run_id, SYSTEM)
    assert (await ended(platform, patient.run_id)).outcome == "completed"


async def test_smaller_priorities_go_first(open_platform: OpenPlatform) -> None:
    platform = await open_platform(max_concurrent_background_runs=1)
    first = await sent(platform, "echo", "sleep 1")
    await until_status(platform, first.run_id, RunStatus.RUNNING)
    order = [0, 5, -5, 0, -10]
    runs = [await sent(platform, "echo", f"{n}", priority=priority) for n, priority in enumerate(order)]
    rows = [await ended(platform, run.run_id) for run in runs]
    begun = sorted(range(5), key=lambda n: rows[n].started_at or rows[n].created_at)
    assert begun == [4, 2, 0, 3, 1]
    assert [row.priority for row in rows] == order


async def test_a_session_with_a_long_line_does_not_keep_a_more_urgent_run_waiting(open_platform: OpenPlatform) -> None:
    platform = await open_platform(max_concurrent_background_runs=1)
    session = new_uuid()
    line = [await sent(platform, "echo", f"sleep 0.5 {n}", session_id=session) for n in range(30)]
    await until_status(platform, line[0].run_id, RunStatus.RUNNING)
    urgent = await sent(platform, "echo", "now", priority=-1)
    await ended(platform, urgent.run_id)
    left = [run for run in line if (await platform.runs.get(run.run_id, SYSTEM)).finished_at is None]
    assert len(left) > 20
    await asyncio.gather(*(platform.runs.cancel(run.run_id, SYSTEM) for run in left))


async def most_at_once(platform: Platform, run_ids: list[str], expected: int, go: Path) -> int:
    """How many of the runs, which wait for the file `go`, were under way together at the most."""
    most, waited = 0, False
    async with asyncio.timeout(60):
        while True:
            rows = await platform.store.read(lambda tx: [tx.runs.get(run_id) for run_id in run_ids])  # at one moment
            most = max(most, sum(row.status == RunStatus.RUNNING for row in rows))
            if all(row.finished_at is not None for row in rows):
                return most
            if waited:
                go.touch()
            elif most >= expected:
                waited = True
                await asyncio.sleep(0.3)  # for more to begin


async def test_an_agents_limit_holds_over_two_hosts(open_host: OpenPlatform, tmp_path: Path) -> None:
    one, other = await open_host(), await open_host()
    hosts = (one, other)
    runs = [await sent(hosts[n % 2], "narrow", f"fail 0 never {tmp_path / 'count'}") for n in range(4)]
    slow = [await sent(hosts[n % 2], "narrow", f"fail 99 slowly {tmp_path / 'slow'}") for n in range(4)]
    free = await sent(one, "echo", "not bound by it")
    assert (await ended(one, free.run_id)).outcome == "completed"
    for run in runs:
        assert (await ended(one, run.run_id)).outcome == "completed"
    await asyncio.sleep(2.5)
    statuses = [(await one.runs.get(run.run_id, SYSTEM)).status for run in slow]
    assert sorted(statuses) == ["queued", "queued", "running", "running"]
    for run in slow:
        await other.runs.cancel(run.run_id, SYSTEM)


async def test_the_limit_in_total_holds_over_two_hosts(open_host: OpenPlatform, tmp_path: Path) -> None:
    one, other = await open_host(max_total_background_runs=3), await open_host(max_total_background_runs=3)
    go = tmp_path / "go"
    runs = [await sent((one, other)[n % 2], "echo", f"until {go}") for n in range(9)]
    assert await most_at_once(one, [run.run_id for run in runs], 3, go) == 3


async def test_a_keys_limit_holds_over_two_hosts(open_host: OpenPlatform, tmp_path: Path) -> None:
    one, other = await open_host(), await open_host()
    row, key = await one.keys.create("bounded", ["agents:*:run"], caller=SYSTEM, max_concurrent_runs=2)
    caller = await one.keys.authenticate(key.get_secret_value())
    await asyncio.sleep(1.1)  # what the limits are is remembered for a second
    go = tmp_path / "go"
    runs = [await (one, other)[n % 2].runs.submit(RunRequest("echo", f"until {go}"), caller) for n in range(6)]
    assert {run.key_id for run in runs} == {row.key_id}
    assert await most_at_once(one, [run.run_id for run in runs], 2, go) == 2
    free = await sent(one, "echo", "of another key")
    assert (await ended(one, free.run_id)).outcome == "completed"


async def test_a_full_queue_refuses_further_background_runs_and_no_others(open_host: OpenPlatform) -> None:
    platform = await open_host(max_queued_runs=3, max_concurrent_background_runs=1)
    first = await sent(platform, "echo", "sleep 60")
    await until_status(platform, first.run_id, RunStatus.RUNNING)
    await asyncio.sleep(0.6)  # the count may be half a second old
    for _ in range(3):
        await sent(platform, "echo", "later")
    with pytest.raises(QueueFull) as refused:
        await sent(platform, "echo", "too much")
    assert refused.value.retry_after_seconds > 0
    assert (await platform.runs.run(RunRequest("echo", "at once"), RUNNER)).outcome == "completed"
    await platform.runs.cancel(first.run_id, SYSTEM)
    async with asyncio.timeout(40):
        while True:
            try:
                last = await sent(platform, "echo", "now there is room")
                break
            except QueueFull:
                await asyncio.sleep(0.1)
    assert (await ended(platform, last.run_id)).outcome == "completed"


async def test_a_run_of_an_agent_that_is_gone_fails_visibly(open_host: OpenPlatform, tmp_path: Path) -> None:
    accepting = await open_host(role="api")
    session = new_uuid()
    run = await sent(accepting, "flaky", f"fail 0 never {tmp_path / 'count'}", session_id=session)
    behind = await sent(accepting, "echo", "behind it", session_id=session)
    (tmp_path / "agents" / "flaky.py").unlink()
    working = await open_host()
    row = await ended(working, run.run_id)
    assert (row.outcome, row.error is not None and "flaky" in str(row.error["detail"])) == ("internal_error", True)
    assert stored(await working.runs.events(run.run_id, SYSTEM))[-1] == (2, "run_finished")
    assert (await ended(working, behind.run_id)).outcome == "completed", "it holds nobody up"


async def test_a_process_that_only_answers_leaves_queued_work_to_workers(open_host: OpenPlatform) -> None:
    answering = await open_host(role="api")
    run = await sent(answering, "echo", "later")
    await asyncio.sleep(1.5)
    assert (await answering.runs.get(run.run_id, SYSTEM)).status == "queued"
    with Stopwatch() as took:
        await open_host(role="worker")
        assert (await ended(answering, run.run_id)).outcome == "completed"
    assert took.seconds < 5


async def _read_all(stream: RunStream) -> list[str]:
    return [event.type async for batch in stream for event in batch]


def _delete_run(tx: Transaction, run_id: str) -> None:
    for table in ("run_events", "runs"):
        tx.connection.exec_driver_sql(f"DELETE FROM {table} WHERE run_id = '{run_id}'")


async def test_a_reader_of_a_run_that_is_deleted_is_let_go(open_host: OpenPlatform) -> None:
    answering = await open_host(role="api")
    run = await sent(answering, "echo", "never")
    stream = await answering.runs.watch(run.run_id, SYSTEM)
    reading = asyncio.create_task(_read_all(stream))
    await asyncio.sleep(0.3)
    await answering.store.write(lambda tx: _delete_run(tx, run.run_id))
    async with asyncio.timeout(20):
        assert await reading == ["run_queued"]


async def test_runs_survive_a_database_that_is_away_for_some_seconds(
    open_host: OpenPlatform, postgres_server: PostgresServer
) -> None:
    one = await open_host(max_concurrent_background_runs=4)
    session = new_uuid()
    ending = [await sent(one, "echo", "sleep 1") for _ in range(3)]
    line = [await sent(one, "echo", f"sleep 0.2 {n}", session_id=session) for n in range(8)]
    waiting = [await sent(one, "echo", f"later {n}") for n in range(10)]
    asked = asyncio.create_task(one.runs.run(RunRequest("echo", "sleep 1"), RUNNER))
    stopped = asyncio.create_task(one.runs.run(RunRequest("echo", "sleep 60"), RUNNER))
    await until_status(one, ending[0].run_id, RunStatus.RUNNING)
    async with asyncio.timeout(20):  # what is not accepted yet would be refused, and rightly
        while sum(not run.background for run in (await one.runs.list(SYSTEM)).data) < 2:
            await asyncio.sleep(0.02)
    url = one.settings.database_url
    assert url is not None
    for _ in range(2):
        async with away(postgres_server, urlsplit(url.get_secret_value()).path[1:]):
            await asyncio.sleep(2.5)
            with pytest.raises(ServiceUnavailable):
                await sent(one, "echo", "not now")
        await asyncio.sleep(1)
    assert message((await asked).output) == "seen 1: sleep 1"
    for run in [*ending, *line, *waiting]:
        assert (await ended(one, run.run_id, seconds=30)).outcome == "completed"
    texts = await session_texts(one, session)
    assert texts[::2] == [f"sleep 0.2 {n}" for n in range(8)]
    [long] = (await one.runs.list(SYSTEM, status="running")).data
    await one.runs.cancel(long.run_id, SYSTEM)
    with pytest.raises(RunFailed):
        await stopped
    assert (await ended(one, (await sent(one, "echo", "and now")).run_id)).outcome == "completed"
