"""Turns: the runs of a session one after the other, by order of acceptance, whichever process takes or ends them."""

import asyncio
import json
import random
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import text
from store_pairs import Pair
from store_samples import accept, begin, claim, finish, message, start

from automagik.errors import Conflict
from automagik.store import BeginRun, NextTurn, Store, Transaction
from automagik.store import postgres_columns as columns
from automagik.store import postgres_sql as sql
from automagik.store.postgres import DriverConnection, connect_postgres
from automagik.types import RunOutcome, RunStatus, SystemClock, new_uuid

pytestmark = pytest.mark.anyio

CANCELLABLE = (RunStatus.QUEUED, RunStatus.RUNNING)


async def line_of(store: Store, session_id: uuid.UUID) -> list[tuple[str, str, bool]]:
    """The open runs of a session by their turn, each with its status and whether it has the turn."""
    asked = text(
        "SELECT run_id, status, ready FROM runs WHERE session_id = :session_id AND turn IS NOT NULL"
        " AND status IN ('queued', 'running', 'waiting') ORDER BY turn"
    )
    value = str(session_id) if store.dialect == "sqlite" else session_id
    rows = await store.read(lambda tx: tx.connection.execute(asked, {"session_id": value}).all())
    return [(row[0], row[1], bool(row[2])) for row in rows]


async def counts_of(store: Store) -> list[tuple[int, int]]:
    """How many runs each session has accepted, and how many of them are open."""
    rows = await store.read(
        lambda tx: tx.connection.execute(text("SELECT turns, open_runs FROM sessions ORDER BY id")).all()
    )
    return [(row[0], row[1]) for row in rows]


async def cancel(store: Store, run_id: str) -> NextTurn | None:
    ended = await store.write(lambda tx: tx.queue.end(run_id, RunOutcome.CANCELLED, None, statuses=CANCELLABLE))
    assert ended is not None
    assert (ended.row.status, ended.row.outcome) == ("cancelled", "cancelled")
    return ended.next_turn


async def stuck(store: Store) -> list[uuid.UUID]:
    return await store.read(lambda tx: tx.queue.stuck_sessions())


async def test_runs_are_served_in_the_order_of_their_acceptance_one_at_a_time(pair: Pair) -> None:
    session_id = uuid.uuid4()
    works: list[Any] = [
        store.accept_run(accept(session_id=session_id))
        if place % 3 == 0
        else store.begin_run(begin(session_id=session_id))
        for place, store in enumerate(pair.both * 50)
    ]
    accepted = await asyncio.gather(*works)
    assert sum(run.is_ready for run in accepted) == 1
    line = await line_of(pair.one, session_id)
    assert len(line) == 100
    assert [ready for _, _, ready in line] == [True] + [False] * 99
    key: int = accepted[0].session_key
    for place, (run_id, _, _) in enumerate(line):
        store = pair.both[place % 2]
        run = await store.read(lambda tx, run_id=run_id: tx.runs.get(run_id))
        assert run.ready
        if run.background:
            assert [claimed.row.run_id for claimed in await claim(store)] == [run_id]
        else:
            assert await claim(store) == []
        if run.status == "queued":
            assert len((await store.start_run(start(run_id))).history) == place
        ended = await store.finish_run(finish(run_id, key, [message("user", f"{place}")]))
        assert ended is not None
        following = line[place + 1][0] if place < 99 else None
        assert (ended.next_turn.run_id if ended.next_turn is not None else None) == following
        if place % 10 == 0:
            assert [ready for _, _, ready in await line_of(store, session_id)] == [True] + [False] * (98 - place)
    assert await counts_of(pair.one) == [(100, 0)]


async def test_one_after_the_other_from_two_processes_keeps_its_order(pair: Pair) -> None:
    session_id = uuid.uuid4()
    asked = [begin(session_id=session_id) for _ in range(10)]
    for place, run in enumerate(asked):
        await pair.both[place % 2].begin_run(run)
    assert [run_id for run_id, _, _ in await line_of(pair.one, session_id)] == [run.run_id for run in asked]


async def test_a_session_meant_by_its_id_and_by_its_name_has_one_line(pair: Pair) -> None:
    session_id, user_id = new_uuid(), uuid.uuid4()
    first = await pair.one.begin_run(begin(session_id=session_id, session_name="plans", user_id=user_id))
    await pair.one.finish_run(finish(first.run_id, first.session_key))
    names: list[dict[str, Any]] = [{"session_id": session_id}, {"session_name": "plans", "user_id": user_id}]
    asked = [begin(**names[place % 2]) for place in range(60)]
    begun = await asyncio.gather(*(pair.one.begin_run(run) for run in asked))
    assert sum(run.is_ready for run in begun) == 1
    assert [ready for _, _, ready in await line_of(pair.one, session_id)] == [True] + [False] * 59
    assert await counts_of(pair.one) == [(61, 60)]
    turns = text("SELECT count(DISTINCT turn) FROM runs")
    assert await pair.one.read(lambda tx: tx.connection.scalar(turns)) == 61


async def test_a_refused_run_takes_no_place(pair: Pair) -> None:
    session_id, user_id = uuid.uuid4(), uuid.uuid4()
    await pair.one.begin_run(begin(session_id=session_id, user_id=user_id))
    with pytest.raises(Conflict):
        await pair.one.begin_run(begin(session_id=session_id, user_id=uuid.uuid4()))
    assert await counts_of(pair.one) == [(1, 1)]


async def test_runs_that_end_before_their_turn_leave_the_line(store: Store) -> None:
    session_id = uuid.uuid4()
    first, second, third = [await store.accept_run(accept(session_id=session_id)) for _ in range(3)]
    fourth = await store.begin_run(begin(session_id=session_id))
    last = await store.begin_run(begin(session_id=session_id, owner="other"))
    assert await cancel(store, second.run_id) is None, "it was in the middle"
    assert await cancel(store, first.run_id) == NextTurn(third.run_id, background=True, owner=None), "nobody had it yet"
    ended = await store.finish_run(finish(fourth.run_id, fourth.session_key, status="cancelled", outcome="cancelled"))
    assert ended is not None, "its owner ends it while it waits"
    assert ended.next_turn is None
    assert [run_id for run_id, _, _ in await line_of(store, session_id)] == [third.run_id, last.run_id]
    await claim(store)
    await store.start_run(start(third.run_id))
    assert await cancel(store, third.run_id) == NextTurn(last.run_id, background=False, owner="other")
    assert await store.finish_run(finish(third.run_id, third.session_key)) is None
    await store.start_run(start(last.run_id, owner="other"))
    ended = await store.finish_run(finish(last.run_id, last.session_key, owner="other"))
    assert ended is not None
    assert ended.next_turn is None
    assert await counts_of(store) == [(5, 0)]
    run = await store.read(lambda tx: tx.runs.get(second.run_id))
    events = await store.read(lambda tx: tx.events.list(second.run_id))
    assert run.finished_at is not None
    assert [(row.seq, row.type, row.data) for row in events][1:] == [(2, "run_finished", {})]


async def test_a_run_that_ends_together_with_one_that_is_anothers_gives_that_one_the_turn(store: Store) -> None:
    session_id = uuid.uuid4()
    first = await store.begin_run(begin(session_id=session_id))
    anothers = await store.begin_run(begin(session_id=session_id, owner="other"))
    last = await store.begin_run(begin(session_id=session_id))
    await store.begin_run(begin(session_id=session_id))
    ends = await asyncio.gather(*(store.finish_run(finish(run.run_id)) for run in (first, anothers, last)))
    assert ends[1] is None
    assert ends[0] is not None
    assert ends[0].next_turn == NextTurn(anothers.run_id, background=False, owner="other")


async def test_the_next_run_goes_to_the_worker_that_ended_one_like_it(store: Store) -> None:
    cases: list[tuple[dict[str, Any], bool]] = [
        ({}, True),
        ({"name": "other"}, False),
        ({"key_id": "key_2"}, False),
        ({"host": "here"}, False),
        ({"queue_until": SystemClock().now()}, False),
    ]
    for changes, is_claimed in cases:
        session_id = uuid.uuid4()
        first = await store.accept_run(accept(session_id=session_id, key_id="key_1"))
        following = await store.accept_run(accept(**{"session_id": session_id, "key_id": "key_1", **changes}))
        await claim(store)
        await store.start_run(start(first.run_id))
        ended = await store.finish_run(finish(first.run_id, first.session_key, claims_next=True))
        assert ended is not None
        assert ended.next_turn is not None
        assert ended.next_turn == NextTurn(following.run_id, background=True, owner="me" if is_claimed else None)
        claimed = await store.claimed_run(following.run_id, "me")
        assert (claimed is not None) == is_claimed
        assert ended.next_turn.claimed == (claimed if store.dialect == "postgresql" else None)
        if claimed is not None:
            assert (claimed.row.run_id, claimed.row.input, claimed.last_seq) == (
                following.run_id,
                {"message_content": "hello"},
                1,
            )
            assert await claim(store, owner="other") == []
    session_id = uuid.uuid4()
    first = await store.begin_run(begin(session_id=session_id))
    following = await store.accept_run(accept(session_id=session_id))
    ended = await store.finish_run(finish(first.run_id, first.session_key, claims_next=True))
    assert ended is not None, "a run that a caller waited for had no place among those under way, so it leaves none"
    assert ended.next_turn == NextTurn(following.run_id, background=True, owner=None)


# -- sessions that go, and turns that were not given


@pytest.mark.parametrize("way", ["session", "user"])
async def test_the_runs_of_a_session_that_is_deleted_wait_no_more(store: Store, way: str) -> None:
    session_id, user_id = uuid.uuid4(), uuid.uuid4()
    running = await store.begin_run(begin(session_id=session_id, user_id=user_id))
    waiting = await store.begin_run(begin(session_id=session_id))
    queued = await store.accept_run(accept(session_id=session_id))

    def delete(tx: Transaction) -> None:
        if way == "session":
            tx.sessions.delete(session_id)
        else:
            tx.users.delete(user_id)

    await store.write(delete)
    assert await store.read(lambda tx: tx.queue.ready([running.run_id, waiting.run_id, queued.run_id])) != []
    assert [run.row.run_id for run in await claim(store)] == [queued.run_id]
    again = await store.begin_run(begin(session_id=session_id))
    assert (again.is_ready, again.history) == (True, [])
    for run in (waiting, queued):
        assert (await store.start_run(start(run.run_id))).history == []
    behind = await store.begin_run(begin(session_id=session_id))
    for run in (running, waiting, queued):
        ended = await store.finish_run(finish(run.run_id, run.session_key, [message("user", "lost")]))
        assert ended is not None
        assert ended.next_turn is None
    assert await counts_of(store) == [(2, 2)], "those of the earlier session are not of this one's line"
    session = await store.read(lambda tx: tx.sessions.get(session_id))
    assert session.message_count == 0
    ended = await store.finish_run(finish(again.run_id, again.session_key, [message("user", "kept")]))
    assert ended is not None
    assert ended.next_turn == NextTurn(behind.run_id, background=False, owner="me")
    assert await stuck(store) == []


async def test_a_run_of_a_deleted_session_is_ended_from_outside(store: Store) -> None:
    session_id = uuid.uuid4()
    old = await store.begin_run(begin(session_id=session_id))
    await store.write(lambda tx: tx.sessions.delete(session_id))
    new = await store.begin_run(begin(session_id=session_id))
    behind = await store.begin_run(begin(session_id=session_id))
    assert await cancel(store, old.run_id) is None
    assert await counts_of(store) == [(2, 2)]
    assert [row[0] for row in await line_of(store, session_id)] == [new.run_id, behind.run_id]


async def test_a_turn_that_was_not_given_is_found_and_given(store: Store) -> None:
    session_id = uuid.uuid4()
    first = await store.begin_run(begin(session_id=session_id))
    queued = await store.accept_run(accept(session_id=session_id))
    last = await store.begin_run(begin(session_id=session_id))
    assert await stuck(store) == []
    await store.finish_run(finish(first.run_id, first.session_key))

    def forget(tx: Transaction) -> None:
        """As a process leaves it that dies between an end and the next turn; and with a count that is wrong."""
        tx.connection.execute(text("UPDATE runs SET ready = false"))
        tx.connection.execute(text("UPDATE sessions SET open_runs = 7"))

    await store.write(forget)
    assert await claim(store) == []
    assert await stuck(store) == [session_id]
    given = await store.write(lambda tx: tx.queue.give_turn(session_id))
    assert given == NextTurn(queued.run_id, background=True, owner=None)
    assert await stuck(store) == []
    assert await store.write(lambda tx: tx.queue.give_turn(session_id)) is None, "one has it"
    assert [run.row.run_id for run in await claim(store)] == [queued.run_id]
    assert await cancel(store, queued.run_id) == NextTurn(last.run_id, background=False, owner="me")
    assert await cancel(store, last.run_id) is None
    assert await counts_of(store) == [(3, 0)]
    assert (await store.begin_run(begin(session_id=session_id))).is_ready


# -- two processes at one moment (PostgreSQL)


@dataclass
class Held:
    """A statement of another process that is done but not committed."""

    connection: DriverConnection

    async def commit(self) -> None:
        await self.connection.execute("COMMIT")
        await self.connection.close()


async def hold(pair: Pair, statement: str, parameters: list[list[Any]]) -> Held:
    connection = await connect_postgres(pair.url, lane=True)
    await connection.execute("BEGIN")
    prepared = await connection.prepare(statement)
    assert len(await prepared.fetch(*parameters)) == 1
    return Held(connection)


async def waits(task: "asyncio.Task[Any]") -> bool:
    await asyncio.wait([task], timeout=0.2)
    return not task.done()


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
async def test_an_end_gives_the_turn_to_a_run_that_its_statement_could_not_see(pair: Pair) -> None:
    for background in (False, True):
        session_id = uuid.uuid4()
        first = await pair.one.begin_run(begin(session_id=session_id))
        coming = accept(session_id=session_id) if background else begin(session_id=session_id)
        held = await hold(pair, sql.BEGIN, columns.of_begin([coming]))
        ending = asyncio.create_task(pair.one.finish_run(finish(first.run_id, first.session_key)))
        assert await waits(ending)
        await held.commit()
        ended = await ending
        assert ended is not None
        assert ended.next_turn == NextTurn(coming.run_id, background=background, owner=coming.owner)
        assert [ready for _, _, ready in await line_of(pair.two, session_id)] == [True]


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
async def test_a_run_that_waited_for_the_end_of_another_begins_with_what_that_one_said(pair: Pair) -> None:
    session_id = uuid.uuid4()
    first = await pair.one.begin_run(begin(session_id=session_id))
    last_words = finish(first.run_id, first.session_key, [message("user", "a"), message("assistant", "b")])
    held = await hold(pair, sql.FINISH, columns.of_finish([last_words]))
    coming = asyncio.create_task(pair.one.begin_run(begin(session_id=session_id, message_limit=20)))
    assert await waits(coming)
    await held.commit()
    begun = await coming
    assert begun.is_ready
    assert [json.loads(payload)["text"] for payload in begun.history] == ["a", "b"]


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
async def test_an_end_and_a_cancel_of_the_next_at_one_moment_give_the_turn_to_the_one_behind(pair: Pair) -> None:
    session_id = uuid.uuid4()
    first = await pair.one.begin_run(begin(session_id=session_id))
    following = await pair.two.begin_run(begin(session_id=session_id, owner="two"))
    last = await pair.two.begin_run(begin(session_id=session_id, owner="two"))
    cancelled = finish(following.run_id, following.session_key, owner="two", status="cancelled", outcome="cancelled")
    held = await hold(pair, sql.FINISH, columns.of_finish([cancelled]))
    ending = asyncio.create_task(pair.one.finish_run(finish(first.run_id, first.session_key)))
    assert await waits(ending)
    await held.commit()
    ended = await ending
    assert ended is not None
    assert ended.next_turn == NextTurn(last.run_id, background=False, owner="two")


@pytest.mark.parametrize("dialect", ["postgresql"], indirect=True)
async def test_a_session_that_is_deleted_while_a_run_is_accepted_leaves_nobody_waiting(pair: Pair) -> None:
    session_id = uuid.uuid4()
    first = await pair.one.begin_run(begin(session_id=session_id))
    coming = accept(session_id=session_id)
    held = await hold(pair, sql.BEGIN, columns.of_begin([coming]))
    deleting = asyncio.create_task(pair.one.write(lambda tx: tx.sessions.delete(session_id)))
    assert await waits(deleting)
    await held.commit()
    await deleting
    assert [run.row.run_id for run in await claim(pair.one)] == [coming.run_id]
    assert await pair.one.finish_run(finish(first.run_id, first.session_key))


@dataclass
class Crowd:
    """Clients and workers of two processes that use the same few sessions at once, and what they see."""

    pair: Pair
    sessions: list[uuid.UUID]
    turns: dict[str, asyncio.Event] = field(default_factory=dict[str, asyncio.Event])
    ended: Counter[uuid.UUID] = field(default_factory=Counter[uuid.UUID])
    last_said: dict[uuid.UUID, str] = field(default_factory=dict[uuid.UUID, str])
    under_way: set[uuid.UUID] = field(default_factory=set[uuid.UUID])
    work: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    cancelled: int = 0

    async def ask(self, store: Store, dice: random.Random) -> None:
        """A run from its acceptance to its end: here, by a worker, or cancelled while it waits."""
        session_id = dice.choice(self.sessions)
        if dice.random() < 0.3:
            accepted = await store.accept_run(accept(session_id=session_id))
            if accepted.is_ready:
                self.work.release()
            return
        asked = begin(session_id=session_id, message_limit=1)
        came = self.turns[asked.run_id] = asyncio.Event()
        begun = await store.begin_run(asked)
        history = begun.history
        if not begun.is_ready:
            if dice.random() < 0.2:
                await asyncio.sleep(dice.random() * 0.01)
                if not came.is_set() and await self.gives_up(store, asked):
                    return
            async with asyncio.timeout(30):
                await came.wait()
            history = (await store.start_run(start(asked.run_id, message_limit=1))).history
        await self.carry_out(store, session_id, asked.run_id, begun.session_key or 0, history)

    async def gives_up(self, store: Store, asked: BeginRun) -> bool:
        ended = await store.write(
            lambda tx: tx.queue.end(asked.run_id, RunOutcome.CANCELLED, None, statuses=(RunStatus.QUEUED,))
        )
        assert ended is not None
        self.cancelled += 1
        self.tell(ended.next_turn)
        return True

    async def carry_out(self, store: Store, session_id: uuid.UUID, run_id: str, key: int, history: list[str]) -> None:
        assert session_id not in self.under_way, "one at a time"
        self.under_way.add(session_id)
        said = [json.loads(payload)["text"] for payload in history]
        assert said == ([self.last_said[session_id]] if session_id in self.last_said else [])
        await asyncio.sleep(0)
        self.under_way.remove(session_id)
        self.last_said[session_id] = run_id
        self.ended[session_id] += 1
        ended = await store.finish_run(finish(run_id, key, [message("user", run_id)]))
        assert ended is not None
        self.tell(ended.next_turn)

    def tell(self, following: NextTurn | None) -> None:
        if following is None:
            return
        if following.background:
            self.work.release()
        else:
            self.turns[following.run_id].set()

    async def serve(self, store: Store) -> None:
        """A worker that never ends by itself."""
        while True:
            await self.work.acquire()
            for claimed in await claim(store, 1):
                row = claimed.row
                assert row.session_id is not None
                begun = await store.start_run(start(row.run_id, message_limit=1))
                await self.carry_out(store, row.session_id, row.run_id, begun.session_key or 0, begun.history)


@pytest.mark.parametrize("sessions", [5, 16])
async def test_no_run_of_a_crowd_is_forgotten_and_none_overtakes(pair: Pair, sessions: int) -> None:
    """With few sessions many runs wait in each; with more the next run often comes at the moment in which one ends."""
    crowd = Crowd(pair, [uuid.uuid4() for _ in range(sessions)])

    async def client(store: Store, number: int) -> None:
        dice = random.Random(number)
        for _ in range(50):
            await crowd.ask(store, dice)

    workers = [asyncio.create_task(crowd.serve(store)) for store in pair.both * 3]
    await asyncio.gather(*(client(store, number) for number, store in enumerate(pair.both * 12)))
    open_runs = text("SELECT count(*) FROM runs WHERE status NOT IN ('completed', 'cancelled')")
    async with asyncio.timeout(30):
        while await pair.one.read(lambda tx: tx.connection.scalar(open_runs)):
            assert await stuck(pair.one) == []
            await asyncio.sleep(0.05)
    for worker in workers:
        worker.cancel()
    await asyncio.wait(workers)
    assert [worker.cancelled() for worker in workers] == [True] * 6
    assert sum(crowd.ended.values()) + crowd.cancelled == 1200
    assert sum(turns for turns, _ in await counts_of(pair.one)) == 1200
    assert {opened for _, opened in await counts_of(pair.one)} == {0}
    told = await pair.one.read(lambda tx: {row.session_id: row.message_count for row in tx.sessions.list().data})
    assert told == crowd.ended
    if pair.one.dialect == "postgresql":
        deadlocks = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        assert await pair.one.read(lambda tx: tx.connection.scalar(deadlocks)) == 0
