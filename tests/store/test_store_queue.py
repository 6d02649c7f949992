"""The queue: who takes which run, within which limits, and what becomes of the runs of a worker that is gone."""

import asyncio
import random
import uuid
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from store_pairs import Pair
from store_samples import accept, begin, claim, event, finish, message, start

from automagik.errors import Conflict
from automagik.store import AcceptedRun, NextTurn, Store, Transaction
from automagik.store.queue import ClaimLimits, Rescued
from automagik.types import JsonObject, RunOutcome, RunStatus, SystemClock, new_id

pytestmark = pytest.mark.anyio

LOST: JsonObject = {"code": "worker_lost", "message": "The worker is gone."}


def now() -> datetime:
    return SystemClock().now()


async def accept_many(store: Store, count: int, **changes: Any) -> list[str]:
    """The ids of new runs of the background, oldest first."""
    asked = [accept(**changes) for _ in range(count)]
    await asyncio.gather(*(store.accept_run(run) for run in asked))
    return [run.run_id for run in asked]


async def claimed_ids(store: Store, count: int = 10, **how: Any) -> list[str]:
    return [run.row.run_id for run in await claim(store, count, **how)]


async def rescue(store: Store, owner: str) -> Rescued:
    return await store.write(lambda tx: tx.queue.rescue(owner, lost=LOST))


async def run_under_way(store: Store, owner: str = "me", **changes: Any) -> AcceptedRun:
    """A run of the background that `owner` has started."""
    accepted = await store.accept_run(accept(**changes))
    await claim(store, owner=owner)
    await store.start_run(start(accepted.run_id, owner=owner, events=[event(2, "run_started")]))
    return accepted


async def types_of(store: Store, run_id: str) -> list[str]:
    return [row.type for row in await store.read(lambda tx: tx.events.list(run_id))]


# -- claims


async def test_each_run_is_claimed_once_by_two_processes_at_once(pair: Pair) -> None:
    accepted = await accept_many(pair.one, 200)

    async def work(store: Store, owner: str) -> list[str]:
        found: list[str] = []
        while taken := await claim(store, 7, owner=owner):
            assert {run.row.owner for run in taken} == {owner}
            found += [run.row.run_id for run in taken]
        return found

    works = [work(store, f"{place}") for place, store in enumerate(pair.both * 4)]
    found = [run_id for some in await asyncio.gather(*works) for run_id in some]
    assert sorted(found) == sorted(accepted)
    assert len(await pair.one.read(lambda tx: tx.queue.owners())) > 1
    assert await pair.one.read(lambda tx: tx.queue.depth(1000)) == 200, "none of them has begun"


async def test_a_claimed_run_comes_whole_and_is_nobody_elses(store: Store) -> None:
    (run_id,) = await accept_many(store, 1, labels_json='{"team":"core"}', deadline_at=now(), host="here")
    (claimed,) = await claim(store)
    row = await store.read(lambda tx: tx.runs.get(run_id))
    assert (claimed.row, claimed.last_seq) == (row, 1)
    assert (row.owner, row.status, row.attempt, row.input) == ("me", "queued", 1, {"message_content": "hello"})
    assert await claim(store, owner="other") == []
    assert await store.claimed_run(run_id, "other") is None
    assert await store.claimed_run(run_id, "me") == claimed


async def test_what_is_urgent_goes_first_then_what_is_old(store: Store) -> None:
    late = await accept_many(store, 3, priority=5)
    usual = await accept_many(store, 3)
    urgent = await accept_many(store, 3, priority=-5)
    expected = urgent + usual + late
    assert await claimed_ids(store, 4) == expected[:4]
    assert await claimed_ids(store, 100) == expected[4:]


async def test_only_what_waits_for_a_worker_and_may_be_taken_now_is_claimed(store: Store) -> None:
    session_id = uuid.uuid4()
    await store.begin_run(begin())
    await store.begin_run(begin(session_id=session_id))
    await store.begin_run(begin(session_id=session_id))
    await store.accept_run(accept(session_id=session_id))
    late = await store.accept_run(accept(queue_until=now() - timedelta(seconds=1)))
    later = await store.accept_run(accept(queue_until=now() + timedelta(seconds=60)))
    assert await store.read(lambda tx: tx.queue.expired()) == [late.run_id]
    assert await claimed_ids(store) == [later.run_id]
    assert await claim(store) == []


async def test_a_run_that_waits_for_its_next_attempt_is_claimed_when_its_time_has_come(store: Store) -> None:
    run = await run_under_way(store)
    data: dict[str, Any] = {"background": True, "attempt": 2, "reason": "model_error"}

    async def put_back(available_at: datetime, attempt: int) -> bool:
        return await store.write(
            lambda tx: tx.queue.put_back(run.run_id, "me", attempt=attempt, available_at=available_at, data=data)
        )

    assert await put_back(now() + timedelta(seconds=60), 2)
    assert await claim(store) == []
    row = await store.read(lambda tx: tx.runs.get(run.run_id))
    assert (row.status, row.owner, row.attempt, row.started_at, row.ready) == ("queued", None, 2, None, True)
    events = await store.read(lambda tx: tx.events.list(run.run_id))
    assert [(row.seq, row.type) for row in events] == [(1, "run_queued"), (2, "run_started"), (3, "run_queued")]
    assert events[-1].data == data
    assert not await put_back(now(), 3), "it is not under way"
    await store.write(lambda tx: tx.connection.execute(text("UPDATE runs SET available_at = created_at")))
    (claimed,) = await claim(store)
    assert (claimed.row.run_id, claimed.row.attempt, claimed.last_seq) == (run.run_id, 2, 3)
    await store.start_run(start(run.run_id))
    assert not await store.write(
        lambda tx: tx.queue.put_back(run.run_id, "other", attempt=3, available_at=None, data={})
    )


async def test_a_run_between_two_attempts_keeps_the_turn_of_its_session(store: Store) -> None:
    session_id = uuid.uuid4()
    run = await run_under_way(store, session_id=session_id)
    behind = await store.accept_run(accept(session_id=session_id))
    await store.write(lambda tx: tx.queue.put_back(run.run_id, "me", attempt=2, available_at=None, data={}))
    assert not behind.is_ready
    assert await claimed_ids(store) == [run.run_id]


async def test_a_run_of_a_host_is_left_to_that_host_until_its_lease_has_ended(store: Store) -> None:
    await store.write(lambda tx: tx.executors.register(new_id("exec"), host="there", role="worker", version="1"))
    (bound,) = await accept_many(store, 1, host="there")
    (orphaned,) = await accept_many(store, 1, host="nowhere")
    assert await claimed_ids(store, host="here") == [orphaned]
    assert await claimed_ids(store, host="there") == [bound]
    (bound,) = await accept_many(store, 1, host="there")
    await asyncio.sleep(0.05)
    assert await claimed_ids(store, host="here", lease=300.0) == []
    assert await claimed_ids(store, host="here", lease=0.01) == [bound]


# -- limits


async def test_limits_are_used_up_and_never_exceeded_by_claims_at_once(pair: Pair) -> None:
    def make_key(tx: Transaction) -> str:
        key = tx.keys.create("k", prefix="amk_1", key_hash=b"1" * 32, scopes=[])
        limited = text("UPDATE api_keys SET max_concurrent_runs = 2")
        tx.connection.execute(limited)
        return key.key_id

    key_id = await pair.one.write(make_key)
    assert await pair.one.read(lambda tx: tx.queue.look("here").has_key_limits)
    await accept_many(pair.one, 20, name="a")
    await accept_many(pair.one, 20, name="b", key_id=key_id)
    await accept_many(pair.one, 20, name="c", key_id="key_other")
    limits = ClaimLimits(total=9, by_agent={"a": 4}, has_key_limits=True)
    for _ in range(2):
        works = [claim(store, 5, owner=f"{place}", limits=limits) for place, store in enumerate(pair.both * 4)]
        found = [run.row for some in await asyncio.gather(*works) for run in some]
        assert Counter(row.name for row in found) == {"a": 4, "b": 2, "c": 3}
        assert await claim(pair.two, 5, limits=limits) == []
        for row in found:
            owner = row.owner or ""
            await pair.one.start_run(start(row.run_id, owner=owner))
            assert await pair.one.finish_run(finish(row.run_id, owner=owner))


async def test_runs_of_a_limited_agent_or_key_do_not_hold_up_the_others(store: Store) -> None:
    first, *_ = await accept_many(store, 620, name="a")
    others = await accept_many(store, 3, name="b")
    limits = ClaimLimits(by_agent={"a": 1})
    assert await claimed_ids(store, 5, limits=limits) == [first, *others]
    assert await claim(store, 5, limits=limits) == []
    assert len(await claim(store, 5, limits=ClaimLimits(by_agent={"a": 3}))) == 2
    assert await claim(store, 5, limits=ClaimLimits(total=6)) == []
    assert await claim(store, 5, limits=ClaimLimits(by_agent={"a": 0})) == []


async def test_limits_hold_while_runs_come_and_go(pair: Pair) -> None:
    limits = ClaimLimits(total=6, by_agent={"a": 3, "b": 2})
    under_way: Counter[str] = Counter()
    most: Counter[str] = Counter()
    ended = 0
    sessions = [uuid.uuid4() for _ in range(8)]
    dice = random.Random(1)
    asked = [accept(name=dice.choice("aaabbc"), session_id=dice.choice([*sessions, None])) for _ in range(150)]

    async def carry_out(store: Store, owner: str, run_id: str, name: str) -> NextTurn | None:
        begun = await store.start_run(start(run_id, owner=owner))
        await asyncio.sleep(0.001)
        under_way[name] -= 1
        finished = await store.finish_run(finish(run_id, begun.session_key, owner=owner, claims_next=True))
        assert finished is not None
        return finished.next_turn

    async def work(store: Store, owner: str) -> None:
        nonlocal ended
        while ended < len(asked):
            for claimed in await claim(store, 3, owner=owner, limits=limits):
                run_id, name = claimed.row.run_id, claimed.row.name
                while True:
                    under_way[name] += 1
                    most[name] = max(most[name], under_way[name])
                    most["all"] = max(most["all"], under_way.total())
                    following = await carry_out(store, owner, run_id, name)
                    ended += 1
                    if following is None or following.owner != owner:
                        break
                    run_id = following.run_id
            await asyncio.sleep(0.002)

    accepting = asyncio.gather(*(pair.one.accept_run(run) for run in asked))
    async with asyncio.timeout(60):
        await asyncio.gather(*(work(store, f"{place}") for place, store in enumerate(pair.both * 3)))
    await accepting
    assert ended == 150
    assert most["a"] <= 3
    assert most["b"] <= 2
    assert most["all"] <= 6


# -- the fence: an owner that was declared lost writes nothing more


async def all_of(store: Store, run_id: str, session_id: uuid.UUID) -> tuple[object, ...]:
    return await store.read(
        lambda tx: (
            tx.runs.get(run_id),
            tx.events.list(run_id),
            tx.sessions.get(session_id).message_count,
            tx.connection.scalar(text("SELECT count(*) FROM messages")),
        )
    )


@pytest.mark.parametrize("begun", ["claimed", "running", "synchronous"])
async def test_an_owner_that_was_declared_lost_writes_nothing(pair: Pair, begun: str) -> None:
    session_id = uuid.uuid4()
    if begun == "synchronous":
        run = await pair.one.begin_run(begin(session_id=session_id, owner="lost"))
    elif begun == "running":
        run = await run_under_way(pair.one, owner="lost", session_id=session_id)
    else:
        run = await pair.one.accept_run(accept(session_id=session_id))
        await claim(pair.one, owner="lost")
    await rescue(pair.two, "lost")
    for again in (False, True):
        if again and begun != "synchronous":
            assert await claimed_ids(pair.two, owner="rescuer") == [run.run_id]
        before = await all_of(pair.two, run.run_id, session_id)
        with pytest.raises(Conflict):
            await pair.one.start_run(start(run.run_id, owner="lost", events=[event(9)]))
        assert not await pair.one.append_events(run.run_id, "lost", [event(9)])
        late = finish(run.run_id, run.session_key, [message("user", "late")], owner="lost", events=[event(9)])
        assert await pair.one.finish_run(late) is None
        assert not await pair.one.write(lambda tx: tx.queue.let_go(run.run_id, "lost"))
        assert not await pair.one.write(
            lambda tx: tx.queue.put_back(run.run_id, "lost", attempt=7, available_at=None, data={})
        )
        ended = await pair.one.write(
            lambda tx: tx.queue.end(
                run.run_id, RunOutcome.COMPLETED, None, statuses=(RunStatus.QUEUED, RunStatus.RUNNING), owner="lost"
            )
        )
        assert ended is None
        assert await all_of(pair.two, run.run_id, session_id) == before


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
async def test_a_statement_that_was_frozen_writes_nothing_once_its_owner_is_lost(pair: Pair) -> None:
    running = [await run_under_way(pair.one, owner="lost", session_id=uuid.uuid4()) for _ in range(2)]
    claimed = await pair.one.accept_run(accept(session_id=uuid.uuid4()))
    await claim(pair.one, owner="lost")

    has_rescued = asyncio.Event()

    def rescue_slowly(tx: Transaction) -> Rescued:
        rescued = tx.queue.rescue("lost", lost=LOST)
        has_rescued.set()
        tx.connection.execute(text("SELECT pg_advisory_xact_lock(77)"))
        return rescued

    def hold(tx: Transaction) -> None:
        tx.connection.execute(text("SELECT pg_advisory_xact_lock(77)"))
        holds.set()
        for _ in range(1000):
            if not go_on.is_set():
                tx.connection.execute(text("SELECT pg_sleep(0.02)"))

    holds, go_on = asyncio.Event(), asyncio.Event()
    holding = asyncio.create_task(pair.one.write(hold))
    await holds.wait()
    rescuing = asyncio.create_task(pair.two.write(rescue_slowly))
    await has_rescued.wait()
    last = finish(running[0].run_id, running[0].session_key, [message("user", "late")], owner="lost")
    ending = asyncio.create_task(pair.one.finish_run(last))
    await asyncio.sleep(0.05)  # statements of one kind go together: each its own
    adding = asyncio.create_task(pair.one.append_events(running[1].run_id, "lost", [event(3)]))
    await asyncio.wait([ending, adding], timeout=0.1)
    assert not (ending.done() or adding.done() or rescuing.done()), "all wait for the rescuer's transaction"
    go_on.set()
    await holding
    with pytest.raises(Conflict):
        await pair.one.start_run(start(claimed.run_id, owner="lost", events=[event(2)]))
    assert sorted((await rescuing).queued) == sorted(run.run_id for run in [*running, claimed])
    assert (await ending, await adding) == (None, False)
    assert await pair.one.read(lambda tx: tx.connection.scalar(text("SELECT count(*) FROM messages"))) == 0
    for run in running:
        assert await types_of(pair.one, run.run_id) == ["run_queued", "run_started", "run_queued"]
    assert await types_of(pair.one, claimed.run_id) == ["run_queued"]


# -- what becomes of the runs of a worker that is gone


async def test_a_lost_workers_runs_fail_where_a_caller_waits_and_else_are_queued_again(store: Store) -> None:
    one, other = uuid.uuid4(), uuid.uuid4()
    running = await run_under_way(store, owner="lost")
    taken = await store.accept_run(accept())
    await claim(store, owner="lost")
    first = await store.begin_run(begin(session_id=one, owner="lost"))
    second = await store.begin_run(begin(session_id=one, owner="lost"))
    third = await store.begin_run(begin(session_id=one, owner="living"))
    alone = await store.begin_run(begin(owner="lost"))
    ended = await store.begin_run(begin(owner="lost"))
    await store.finish_run(finish(ended.run_id, owner="lost"))
    livings = await store.begin_run(begin(session_id=other, owner="living"))
    behind = await store.begin_run(begin(session_id=other, owner="lost"))
    nobodys = await store.accept_run(accept())
    assert await store.read(lambda tx: tx.queue.owners()) in (["living", "lost"], ["lost", "living"])

    rescued = await rescue(store, "lost")
    failed = {end.row.run_id: end for end in rescued.failed}
    assert list(failed) == [first.run_id, second.run_id, alone.run_id, behind.run_id]
    assert failed[first.run_id].next_turn is None, "the one behind it has ended too"
    assert failed[second.run_id].next_turn == NextTurn(third.run_id, background=False, owner="living")
    assert failed[behind.run_id].next_turn is None
    for end in rescued.failed:
        row = end.row
        assert (row.status, row.outcome, row.error) == ("failed", "worker_lost", LOST)
        assert row.finished_at is not None
        events = await store.read(lambda tx, run_id=row.run_id: tx.events.list(run_id))
        assert [(item.seq, item.type, item.data) for item in events][1:] == [(2, "run_finished", {})]
    assert rescued.queued == [running.run_id, taken.run_id]
    rows = await store.read(lambda tx: [tx.runs.get(run.run_id) for run in (running, taken)])
    assert [(row.status, row.owner, row.attempt) for row in rows] == [("queued", None, 2), ("queued", None, 1)]
    last = (await store.read(lambda tx: tx.events.list(running.run_id)))[-1]
    assert (last.seq, last.type) == (3, "run_queued")
    assert last.data == {"background": True, "attempt": 2, "reason": "worker_lost"}
    assert await types_of(store, taken.run_id) == ["run_queued"]
    for run, status in ((third, "queued"), (livings, "running"), (ended, "completed")):
        assert (await store.read(lambda tx, run_id=run.run_id: tx.runs.get(run_id))).status == status
    assert await claimed_ids(store) == [running.run_id, taken.run_id, nobodys.run_id]
    assert (await store.start_run(start(third.run_id, owner="living"))).is_ready
    again = await rescue(store, "lost")
    assert (again.failed, again.queued) == ([], [])
    assert await store.read(lambda tx: tx.queue.stuck_sessions()) == []


async def test_a_lost_workers_run_that_was_to_be_stopped_is_cancelled(store: Store) -> None:
    runs = [await run_under_way(store, owner="lost", session_id=uuid.uuid4()) for _ in range(3)]
    waiting = await store.begin_run(begin(session_id=runs[0].session_id))
    webhook = await store.write(lambda tx: tx.webhooks.create("https://example.org", events=["run.cancelled"]))
    for run in runs[:2]:
        await store.write(lambda tx, run_id=run.run_id: tx.queue.request_cancel(run_id))
    assert not await store.write(
        lambda tx: tx.queue.put_back(runs[1].run_id, "lost", attempt=2, available_at=None, data={})
    ), "it is to be stopped"
    assert sorted(await store.read(lambda tx: tx.queue.owned("lost"))) == [run.run_id for run in runs]
    error: JsonObject = {"code": "cancelled"}
    rescued = await store.write(
        lambda tx: tx.queue.rescue("lost", lost=LOST, cancelled=error, run_ids=[run.run_id for run in runs[:2]])
    )
    assert [(end.row.run_id, end.row.outcome, end.row.error) for end in rescued.failed] == [
        (run.run_id, "cancelled", error) for run in runs[:2]
    ]
    assert rescued.failed[0].next_turn == NextTurn(waiting.run_id, background=False, owner="me")
    assert rescued.queued == []
    assert await store.read(lambda tx: tx.queue.owned("lost")) == [runs[2].run_id]
    deliveries = await store.read(lambda tx: tx.webhooks.deliveries(webhook.webhook_id).data)
    assert sorted(row.run_id or "" for row in deliveries) == [run.run_id for run in runs[:2]]


async def test_a_run_is_rescued_once_by_two_at_once(pair: Pair) -> None:
    runs = [await run_under_way(pair.one, owner="lost", session_id=uuid.uuid4()) for _ in range(5)]
    waited = [await pair.one.begin_run(begin(session_id=uuid.uuid4(), owner="lost")) for _ in range(5)]
    rescued = await asyncio.gather(*(rescue(store, "lost") for store in pair.both * 2))
    assert sorted(run_id for some in rescued for run_id in some.queued) == sorted(run.run_id for run in runs)
    failed = [end.row.run_id for some in rescued for end in some.failed]
    assert sorted(failed) == sorted(run.run_id for run in waited)
    rows = await pair.one.read(lambda tx: [tx.runs.get(run.run_id) for run in runs])
    assert {row.attempt for row in rows} == {2}


async def test_a_claimed_run_is_let_go_by_its_owner_alone(store: Store) -> None:
    (run_id,) = await accept_many(store, 1)
    assert not await store.write(lambda tx: tx.queue.let_go(run_id, "me"))
    await claim(store)
    assert not await store.write(lambda tx: tx.queue.let_go(run_id, "other"))
    assert await store.write(lambda tx: tx.queue.let_go(run_id, "me"))
    row = await store.read(lambda tx: tx.runs.get(run_id))
    assert (row.owner, row.attempt) == (None, 1)
    await claim(store)
    await store.start_run(start(run_id))
    assert not await store.write(lambda tx: tx.queue.let_go(run_id, "me")), "it has begun"


async def test_a_run_under_way_is_asked_to_stop_and_a_queued_one_is_ended(store: Store) -> None:
    run = await run_under_way(store)
    assert await store.read(lambda tx: tx.queue.cancels("me")) == []
    assert await store.write(lambda tx: tx.queue.request_cancel(run.run_id))
    assert await store.read(lambda tx: (tx.queue.cancels("me"), tx.queue.cancels("other"))) == ([run.run_id], [])
    ended = await store.write(
        lambda tx: tx.queue.end(run.run_id, RunOutcome.CANCELLED, None, statuses=(RunStatus.QUEUED,))
    )
    assert ended is None, "it is under way"
    await store.finish_run(finish(run.run_id, status="cancelled", outcome="cancelled"))
    assert await store.read(lambda tx: tx.queue.cancels("me")) == []
    assert not await store.write(lambda tx: tx.queue.request_cancel(run.run_id))
    (queued,) = await accept_many(store, 1)
    error: JsonObject = {"code": "timed_out"}
    late = await store.write(lambda tx: tx.queue.end(queued, RunOutcome.TIMED_OUT, error, statuses=(RunStatus.QUEUED,)))
    assert late is not None
    assert (late.row.status, late.row.outcome, late.row.error, late.next_turn) == ("failed", "timed_out", error, None)
    assert await claim(store) == []
    assert await store.read(lambda tx: tx.queue.depth(10)) == 0
    assert (
        await store.write(lambda tx: tx.queue.end("run_none", RunOutcome.CANCELLED, None, statuses=RunStatus)) is None
    )


async def test_runs_whose_turn_has_come_or_that_have_ended_are_found(store: Store) -> None:
    session_id = uuid.uuid4()
    first = await store.begin_run(begin(session_id=session_id))
    second = await store.begin_run(begin(session_id=session_id))
    third = await store.begin_run(begin(session_id=session_id))
    asked = [second.run_id, third.run_id]
    assert await store.read(lambda tx: tx.queue.ready(asked)) == []
    await store.finish_run(finish(first.run_id, first.session_key))
    assert await store.read(lambda tx: tx.queue.ready(asked)) == [second.run_id]
    await store.finish_run(finish(third.run_id, status="cancelled", outcome="cancelled"))
    assert sorted(await store.read(lambda tx: tx.queue.ready(asked))) == asked


async def test_the_queues_depth_is_counted_up_to_what_is_asked(store: Store) -> None:
    await accept_many(store, 12)
    await store.begin_run(begin())
    assert await store.read(lambda tx: (tx.queue.depth(5), tx.queue.depth(100))) == (5, 12)


# -- signals (PostgreSQL: other processes hear them)


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
async def test_other_processes_hear_of_work_turns_cancels_and_ends(pair: Pair) -> None:
    heard: list[str] = []
    await pair.two.signals.open()
    for topic in ("work", "ready", "cancel", "ended"):
        pair.two.signals.listen(topic, lambda run_id, topic=topic: heard.append(f"{topic} {run_id}".strip()))

    async def expect(*messages: str) -> None:
        async with asyncio.timeout(20):
            while len(heard) < len(messages):
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert heard == list(messages)
        heard.clear()

    session_id = uuid.uuid4()
    first = await pair.one.accept_run(accept(session_id=session_id))
    await expect("work")
    second = await pair.one.begin_run(begin(session_id=session_id))
    third = await pair.one.accept_run(accept(session_id=session_id))
    await claim(pair.one)
    await pair.one.start_run(start(first.run_id))
    await pair.one.finish_run(finish(first.run_id, first.session_key))
    await expect(f"ready {second.run_id}")
    await pair.one.finish_run(finish(second.run_id, second.session_key))
    await expect("work")
    await pair.one.write(lambda tx: tx.queue.request_cancel(third.run_id))
    await pair.one.write(lambda tx: tx.queue.end(third.run_id, RunOutcome.CANCELLED, None, statuses=RunStatus))
    await expect(f"cancel {third.run_id}", f"ended {third.run_id}")
