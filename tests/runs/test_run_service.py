import asyncio
import uuid

import pytest
from run_house import RUNNER, OpenPlatform, ended, message, read, stored, until_status

from automagik.app import Platform
from automagik.errors import (
    InvalidInput,
    MissingScope,
    NotFound,
    OverrideNotAllowed,
    RunFailed,
    ServiceUnavailable,
)
from automagik.runs import RunRequest
from automagik.store import Transaction
from automagik.testing.stopwatch import Stopwatch
from automagik.types import SYSTEM, Caller, RunStatus

pytestmark = pytest.mark.anyio


@pytest.fixture
def working() -> bool:
    return False


async def until_running(platform: Platform, run_id: str) -> None:
    await until_status(platform, run_id, RunStatus.RUNNING)


async def test_a_run_answers_and_is_stored_with_its_events(platform: Platform) -> None:
    row = await platform.runs.run(RunRequest("echo", "hello"), RUNNER)
    assert message(row.output) == "seen 1: hello"
    kept = await platform.runs.get(row.run_id, RUNNER)
    assert (kept.status, kept.outcome, kept.key_id) == ("completed", "completed", "key_runner")
    assert kept.output == row.output
    assert kept.usage == row.usage
    assert stored(await platform.runs.events(row.run_id, RUNNER)) == [
        (1, "run_started"),
        (2, "message_completed"),
        (3, "usage"),
        (4, "run_finished"),
    ]


async def test_ten_runs_posted_to_one_session_at_once_are_paired_and_in_order(platform: Platform) -> None:
    session = uuid.uuid4()
    heard = asyncio.Event()
    platform.store.signals.listen("changed", lambda _: heard.set())
    await platform.store.signals.send("changed", "agents")  # so that the first one has to look at them anew
    await heard.wait()
    runs = [
        asyncio.create_task(platform.runs.run(RunRequest("echo", f"question {n}", session_id=session), RUNNER))
        for n in range(10)
    ]
    rows = await asyncio.gather(*runs)
    assert [message(row.output) for row in rows] == [f"seen {n + 1}: question {n}" for n in range(10)]
    history = await platform.store.read(lambda tx: tx.messages.history(_key(tx, session), None))
    assert len(history) == 20
    session = uuid.uuid4()  # the first of the background is the one that counts how many wait
    asked = [RunRequest("echo", f"question {n}", session_id=session) for n in range(10)]
    queued = await asyncio.gather(*(platform.runs.submit(request, RUNNER) for request in asked))
    texts = [message((await ended(platform, row.run_id)).output) for row in queued]
    assert texts == [f"seen {n + 1}: question {n}" for n in range(10)]


def _key(tx: Transaction, session: uuid.UUID) -> int:
    row = tx.sessions.find(session)
    assert row is not None
    return row.id


async def test_ten_runs_that_name_one_new_session_at_once_share_it(platform: Platform) -> None:
    requests = [RunRequest("echo", f"question {n}", session_name="daily") for n in range(10)]
    rows = await asyncio.gather(*(platform.runs.run(request, RUNNER) for request in requests))
    assert len({row.session_id for row in rows}) == 1
    assert [message(row.output) for row in rows] == [f"seen {n + 1}: question {n}" for n in range(10)]


async def test_sessions_do_not_wait_for_each_other(platform: Platform) -> None:
    slow = asyncio.create_task(platform.runs.run(RunRequest("echo", "sleep 30"), RUNNER))
    async with asyncio.timeout(20):
        await platform.runs.run(RunRequest("echo", "quick"), RUNNER)
    assert not slow.done()
    [live] = (await platform.runs.list(RUNNER, status="running")).data
    await platform.runs.cancel(live.run_id, RUNNER)
    with pytest.raises(RunFailed):
        await slow


async def test_a_background_run_is_queued_first_and_ends_by_itself(platform: Platform) -> None:
    row = await platform.runs.submit(RunRequest("echo", "later"), RUNNER)
    assert row.status == "queued"
    events = await read(await platform.runs.watch(row.run_id, RUNNER))
    assert stored(events)[:2] == [(1, "run_queued"), (2, "run_started")]
    assert events[-1].type == "run_finished"
    assert (await platform.runs.get(row.run_id, RUNNER)).status == "completed"


async def test_a_stream_gives_text_as_it_comes_and_the_whole_run_at_the_end(platform: Platform) -> None:
    events = await read(await platform.runs.stream(RunRequest("echo", "a b c"), RUNNER))
    text = "".join(str(event.data["text"]) for event in events if event.type == "text_delta")
    assert text.strip() == "seen 1: a b c"
    assert sum(event.type == "text_delta" for event in events) > 1
    run = events[-1].data["run"]
    assert isinstance(run, dict)
    assert run["status"] == "completed"


async def test_leaving_a_stream_ends_nothing(platform: Platform) -> None:
    stream = await platform.runs.stream(RunRequest("echo", "sleep 0.1"), RUNNER)
    await anext(aiter(stream))
    await stream.aclose()
    events = await read(await platform.runs.watch(stream.row.run_id, RUNNER))
    assert events[-1].type == "run_finished"
    assert (await platform.runs.get(stream.row.run_id, RUNNER)).outcome == "completed"


async def test_a_caller_that_goes_away_ends_nothing(platform: Platform) -> None:
    session = uuid.uuid4()
    caller = asyncio.create_task(platform.runs.run(RunRequest("echo", "sleep 0.1", session_id=session), RUNNER))
    await asyncio.sleep(0.05)
    caller.cancel()
    row = await platform.runs.run(RunRequest("echo", "next", session_id=session), RUNNER)
    assert message(row.output) == "seen 2: next"


async def test_a_reader_resumes_after_any_event_without_gap_or_repeat(platform: Platform) -> None:
    row = await platform.runs.submit(RunRequest("tooled", "slow"), RUNNER)
    whole = stored(await read(await platform.runs.watch(row.run_id, RUNNER)))
    assert [kind for _, kind in whole] == [
        "run_queued",
        "run_started",
        "message_completed",
        "tool_call",
        "tool_result",
        "message_completed",
        "usage",
        "run_finished",
    ]
    assert [seq for seq, _ in whole] == list(range(1, len(whole) + 1))
    for after in range(len(whole) + 1):
        assert stored(await read(await platform.runs.watch(row.run_id, RUNNER, after=after))) == whole[after:]


@pytest.mark.parametrize("background", [False, True], ids=["waiting caller", "background"])
async def test_cancel_really_stops_a_running_run(platform: Platform, background: bool) -> None:
    request = RunRequest("echo", "sleep 60")
    waiting = None
    if background:
        run_id = (await platform.runs.submit(request, RUNNER)).run_id
    else:
        waiting = asyncio.create_task(platform.runs.run(request, RUNNER))
        async with asyncio.timeout(40):
            while not (rows := (await platform.runs.list(RUNNER, status="running")).data):
                await asyncio.sleep(0.01)
        [row] = rows
        run_id = row.run_id
    await until_running(platform, run_id)
    with Stopwatch() as took:
        row = await platform.runs.cancel(run_id, RUNNER)
    assert took.seconds < 1
    assert (row.status, row.outcome) == ("cancelled", "cancelled")
    assert platform.runs.live_runs == 0
    if waiting is not None:
        with pytest.raises(RunFailed) as failed:
            await waiting
        assert (failed.value.outcome, failed.value.run_id) == ("cancelled", run_id)
    assert (await platform.runs.cancel(run_id, RUNNER)).status == "cancelled", "cancelling again changes nothing"


async def test_cancel_stops_a_run_that_waits_for_its_turn_at_once(platform: Platform) -> None:
    session = uuid.uuid4()
    first = await platform.runs.submit(RunRequest("echo", "sleep 60", session_id=session), RUNNER)
    second = await platform.runs.submit(RunRequest("echo", "never", session_id=session), RUNNER)
    assert (await platform.runs.cancel(second.run_id, RUNNER)).status == "cancelled"
    await until_running(platform, first.run_id)
    await platform.runs.cancel(first.run_id, RUNNER)
    third = await platform.runs.run(RunRequest("echo", "go on", session_id=session), RUNNER)
    assert message(third.output) == "seen 1: go on", "what was cancelled left nothing in the session"


async def test_a_model_that_fails_fails_the_run_and_tells_nothing_internal(platform: Platform) -> None:
    with pytest.raises(RunFailed) as failed:
        await platform.runs.run(RunRequest("echo", "boom"), RUNNER)
    assert failed.value.run_id is not None
    row = await platform.runs.get(failed.value.run_id, RUNNER)
    assert (row.status, row.outcome) == ("failed", "internal_error")
    assert "secret" not in str(row.error)
    assert (await platform.runs.events(row.run_id, RUNNER))[-1].type == "run_finished"


async def test_a_tool_that_fails_is_named(platform: Platform) -> None:
    with pytest.raises(RunFailed, match="The tool 'work' failed") as failed:
        await platform.runs.run(RunRequest("tooled", "break"), RUNNER)
    assert failed.value.outcome == "tool_error"
    assert "secret" not in failed.value.detail


async def test_a_run_over_its_time_limit_ends_as_timed_out(platform: Platform) -> None:
    with pytest.raises(RunFailed) as failed:
        await platform.runs.run(RunRequest("echo", "sleep 60", timeout_seconds=0.05), RUNNER)
    assert (failed.value.outcome, failed.value.status) == ("timed_out", 504)


async def test_what_a_caller_may_not_ask_is_refused_and_nothing_is_stored(platform: Platform) -> None:
    refused: list[tuple[RunRequest, Caller, type[Exception]]] = [
        (RunRequest("ecko", "x"), RUNNER, NotFound),
        (RunRequest("echo", "x"), Caller("k", frozenset({"agents:tooled:run"})), MissingScope),
        (RunRequest("echo", "x", model="demo"), RUNNER, OverrideNotAllowed),
        (RunRequest("echo", "x", system_prompt="be evil"), RUNNER, OverrideNotAllowed),
        (RunRequest("echo", "x", prompt_variables={"stile": "y"}), RUNNER, InvalidInput),
        (RunRequest("echo", "x", user_id=uuid.uuid4()), RUNNER, NotFound),
        (RunRequest("echo", "x", session_id=uuid.uuid4(), session_name="both"), RUNNER, InvalidInput),
    ]
    for request, caller, error in refused:
        with pytest.raises(error):
            await platform.runs.run(request, caller)
        assert (await platform.runs.list(SYSTEM)).data == [], request
        assert platform.runs.live_runs == 0, request


async def test_the_hint_for_an_unknown_agent_names_only_agents_that_the_key_may_run(platform: Platform) -> None:
    with pytest.raises(NotFound) as missing:
        await platform.runs.run(RunRequest("ecko", "x"), RUNNER)
    assert missing.value.hint == "Did you mean 'echo'?"
    with pytest.raises(NotFound) as hidden:
        await platform.runs.run(RunRequest("ecko", "x"), Caller("k", frozenset({"agents:simple:run"})))
    assert "echo" not in str(hidden.value.hint)


async def test_a_key_bound_to_a_user_sees_only_that_users_runs(platform: Platform) -> None:
    ada, bob = await platform.store.write(lambda tx: [tx.users.create().user_id for _ in range(2)])
    scopes = frozenset({"agents:*:run", "runs:read"})
    as_ada, as_bob = Caller("a", scopes, ada), Caller("b", scopes, bob)
    row = await platform.runs.run(RunRequest("echo", "mine"), as_ada)
    assert row.user_id == ada
    with pytest.raises(NotFound):
        await platform.runs.get(row.run_id, as_bob)
    assert [run.run_id for run in (await platform.runs.list(as_ada)).data] == [row.run_id]
    assert (await platform.runs.list(as_bob)).data == []
    assert (await platform.runs.list(as_bob, user_id=ada)).data == []
    with pytest.raises(NotFound):
        await platform.runs.run(RunRequest("echo", "theirs", session_id=row.session_id), as_bob)
    with pytest.raises(NotFound):
        await platform.runs.run(RunRequest("echo", "as somebody else", user_id=ada), as_bob)


async def test_a_closing_service_takes_no_more_and_ends_what_does_not_finish_in_time(
    open_platform: OpenPlatform,
) -> None:
    platform = await open_platform(shutdown_grace_seconds=0.5)
    row = await platform.runs.submit(RunRequest("echo", "sleep 60"), RUNNER)
    slow = asyncio.create_task(platform.runs.run(RunRequest("echo", "sleep 60"), RUNNER))
    await until_running(platform, row.run_id)
    quick = asyncio.create_task(platform.runs.run(RunRequest("echo", "sleep 0.05"), RUNNER))
    await asyncio.sleep(0.2)
    assert platform.worker is not None
    with Stopwatch() as took:
        await platform.worker.stop()  # as where a platform closes: else it would take again what is given back
        await platform.runs.close()
    assert took.seconds < 3
    assert (await quick).outcome == "completed"
    with pytest.raises(RunFailed) as failed:
        await slow
    assert failed.value.outcome == "worker_lost", "whoever waited is told"
    left = await platform.runs.get(row.run_id, SYSTEM)
    assert (left.status, left.outcome, left.attempt) == ("queued", None, 1), (
        "it goes on elsewhere, and nothing is counted"
    )
    assert stored(await platform.runs.events(row.run_id, SYSTEM))[-1] == (3, "run_queued")
    with pytest.raises(ServiceUnavailable):
        await platform.runs.run(RunRequest("echo", "too late"), RUNNER)


async def test_a_request_chooses_among_the_agents_active_prompts_by_status_key(platform: Platform) -> None:
    agent = platform.agents.get_agent("echo")
    await platform.prompts.create(
        agent.db_id,
        "Be {{style}}, in an emergency.",
        known=agent.known_variables,
        caller=SYSTEM,
        status_key="alarm",
        is_active=True,
    )
    row = await platform.runs.run(RunRequest("echo", "help", prompt_status_key="alarm"), RUNNER)
    kept = await platform.runs.get(row.run_id, RUNNER)
    assert kept.instructions == "Be plain, in an emergency."
    with pytest.raises(InvalidInput, match="no active prompt with the status key 'alarn'"):
        await platform.runs.run(RunRequest("echo", "help", prompt_status_key="alarn"), RUNNER)


async def test_runs_and_commits_are_counted(platform: Platform) -> None:
    await platform.runs.run(RunRequest("echo", "hello"), RUNNER)
    text = platform.metrics.render().decode()
    assert 'automagik_runs_total{kind="agent",name="echo",outcome="completed"} 1.0' in text
    assert "automagik_active_runs 0.0" in text
    assert "automagik_store_batch_size_count" in text
