"""The statements of every run: begin, accept, start, finish, events."""

import asyncio
import json
import uuid
from decimal import Decimal
from typing import Any

import pytest
from store_samples import accept, begin, claim, event, finish, make_agent, message, start, take_turn

from automagik.errors import Conflict, InvalidInput, NotFound
from automagik.store import NextTurn, Store
from automagik.types import Usage, new_id, new_uuid

pytestmark = pytest.mark.anyio


async def test_a_run_begins_with_its_session_user_and_event_in_one_step(store: Store) -> None:
    agent = await make_agent(store)
    user_id, session_id = uuid.uuid4(), uuid.uuid4()
    asked = begin(
        agent_id=agent.id,
        session_id=session_id,
        session_name="plans",
        user_id=user_id,
        session_origin="cli",
        labels_json='{"team":"core"}',
        owner="me",
        key_id="key_1",
    )
    begun = await store.begin_run(asked)
    assert (begun.session_id, begun.user_id, begun.history, begun.variables) == (session_id, user_id, [], {})
    run = await store.read(lambda tx: tx.runs.get(asked.run_id))
    session = await store.read(lambda tx: tx.sessions.get(session_id))
    user = await store.read(lambda tx: tx.users.get(user_id))
    events = await store.read(lambda tx: tx.events.list(asked.run_id))
    assert (run.status, run.session_id, run.user_id, run.owner) == ("running", session_id, user_id, "me")
    assert (run.started_at, run.created_at) == (asked.created_at, asked.created_at)
    assert (run.labels, run.input) == ({"team": "core"}, {"message_content": "hello"})
    assert (session.session_name, session.user_id, session.agent_name) == ("plans", user_id, "simple")
    assert (session.session_origin, session.message_count, session.id) == ("cli", 0, begun.session_key)
    assert user.email is None
    assert [(row.seq, row.type, row.data) for row in events] == [(1, "run_started", {})]
    assert (begun.is_ready, run.ready, run.background) == (True, True, False)


async def test_a_run_without_a_session_makes_none(store: Store) -> None:
    begun = await store.begin_run(begin())
    assert (begun.session_id, begun.session_key) == (None, None)
    assert await store.finish_run(finish(begun.run_id))
    assert (await store.read(lambda tx: tx.sessions.list())).data == []


async def test_the_next_run_of_a_session_sees_the_messages_before_it(store: Store) -> None:
    session_id = uuid.uuid4()
    await take_turn(store, session_id, "ua")
    begun = await take_turn(store, session_id, "uta")
    assert [json.loads(payload)["text"] for payload in begun.history] == ["u0", "a1"]
    last = await store.begin_run(begin(session_id=session_id))
    assert [json.loads(payload)["text"] for payload in last.history] == ["u0", "a1", "u0", "t1", "a2"]
    session = await store.read(lambda tx: tx.sessions.get(session_id))
    assert session.message_count == 5


async def test_a_queued_run_starts_once_with_what_was_said_meanwhile(store: Store) -> None:
    session_id = uuid.uuid4()
    before = await store.begin_run(begin(session_id=session_id))
    accepted = await store.accept_run(accept(session_id=session_id))
    queued = await store.read(lambda tx: tx.runs.get(accepted.run_id))
    assert (queued.status, queued.owner, queued.started_at, queued.ready) == ("queued", None, None, False)
    events = await store.read(lambda tx: tx.events.list(accepted.run_id))
    assert [(row.seq, row.type, row.data) for row in events] == [(1, "run_queued", {"background": True})]
    await store.finish_run(finish(before.run_id, before.session_key, [message("user", "a"), message("assistant", "b")]))
    assert [run.row.run_id for run in await claim(store)] == [accepted.run_id]
    begun = await store.start_run(start(accepted.run_id, events=[event(2, "run_started")]))
    assert (begun.session_key, begun.is_ready) == (accepted.session_key, True)
    assert len(begun.history) == 2
    run = await store.read(lambda tx: tx.runs.get(accepted.run_id))
    assert (run.status, run.owner, run.started_at is not None) == ("running", "me", True)
    assert await store.read(lambda tx: tx.events.last_seq(accepted.run_id)) == 2
    with pytest.raises(Conflict) as refused:
        await store.start_run(start(accepted.run_id))
    assert refused.value.code == "run_not_queued"
    again = await store.start_run(start(accepted.run_id, started_at=run.started_at, events=[event(2, "run_started")]))
    assert again == begun, "the same start, whose answer may have been lost"


async def test_a_run_of_this_process_waits_for_the_one_before_it_and_sees_what_that_one_said(store: Store) -> None:
    session_id = uuid.uuid4()
    first = await store.begin_run(begin(session_id=session_id))
    second = await store.begin_run(begin(session_id=session_id, message_limit=5, variable_names=None))
    assert (first.is_ready, second.is_ready, second.history) == (True, False, [])
    waiting = await store.read(lambda tx: tx.runs.get(second.run_id))
    assert (waiting.status, waiting.owner, waiting.started_at, waiting.ready) == ("queued", "me", None, False)
    events = await store.read(lambda tx: tx.events.list(second.run_id))
    assert [(row.seq, row.type, row.data) for row in events] == [(1, "run_queued", {"background": False})]
    with pytest.raises(Conflict) as refused:
        await store.start_run(start(second.run_id))
    assert refused.value.code == "run_not_queued"
    ended = await store.finish_run(finish(first.run_id, first.session_key, [message("user", "a")]))
    assert ended is not None
    assert ended.next_turn == NextTurn(second.run_id, background=False, owner="me")
    started = await store.start_run(start(second.run_id, message_limit=5))
    assert [json.loads(payload)["text"] for payload in started.history] == ["a"]


async def test_a_run_that_is_not_the_callers_is_neither_started_nor_changed(store: Store) -> None:
    session_id = uuid.uuid4()
    begun = await store.begin_run(begin(session_id=session_id))
    assert not await store.append_events(begun.run_id, "other", [event(2)])
    assert (
        await store.finish_run(finish(begun.run_id, begun.session_key, [message("user", "a")], owner="other")) is None
    )
    accepted = await store.accept_run(accept())
    with pytest.raises(Conflict):
        await store.start_run(start(accepted.run_id))
    await claim(store, owner="other")
    with pytest.raises(Conflict):
        await store.start_run(start(accepted.run_id))
    assert await store.read(lambda tx: (tx.events.last_seq(begun.run_id), tx.events.last_seq(accepted.run_id))) == (
        1,
        1,
    )
    run, session = await store.read(lambda tx: (tx.runs.get(begun.run_id), tx.sessions.get(session_id)))
    assert (run.status, session.message_count) == ("running", 0)


async def test_the_end_of_a_run_is_stored_whole(store: Store) -> None:
    session_id = uuid.uuid4()
    begun = await store.begin_run(begin(session_id=session_id))
    usage = Usage(1, 2, 3, 4, 5, 6, Decimal("0.0002100001"))
    end = finish(
        begun.run_id,
        begun.session_key,
        [message("user", "hello"), message("assistant", "hi")],
        usage=usage,
        instructions="Be kind.",
        model="openai:gpt",
        events=[event(2, "usage"), event(3, "run_finished")],
    )
    assert await store.finish_run(end)
    run = await store.read(lambda tx: tx.runs.get(begun.run_id))
    assert (run.status, run.outcome, run.output, run.error) == ("completed", "completed", {"message": "hi"}, None)
    assert (run.usage, run.instructions, run.model, run.finished_at) == (
        usage,
        "Be kind.",
        "openai:gpt",
        end.finished_at,
    )
    messages = await store.read(lambda tx: tx.messages.list(begun.session_key or 0))
    assert [(row.role, row.content, row.run_id) for row in messages.data] == [
        ("assistant", "hi", begun.run_id),
        ("user", "hello", begun.run_id),
    ]
    assert [row.message_id for row in messages.data] == [end.messages[1].message_id, end.messages[0].message_id]
    assert [row.type for row in await store.read(lambda tx: tx.events.list(begun.run_id))] == [
        "run_started",
        "usage",
        "run_finished",
    ]


async def test_a_run_that_has_ended_never_changes_again(store: Store) -> None:
    session_id = uuid.uuid4()
    begun = await store.begin_run(begin(session_id=session_id))
    assert await store.finish_run(
        finish(
            begun.run_id, status="failed", outcome="model_error", output_json=None, error_json='{"code":"model_error"}'
        )
    )
    late = finish(begun.run_id, begun.session_key, [message("user", "late")], events=[event(2)])
    assert not await store.finish_run(late)
    assert not await store.append_events(begun.run_id, "me", [event(3)])
    run = await store.read(lambda tx: tx.runs.get(begun.run_id))
    assert (run.status, run.outcome, run.error) == ("failed", "model_error", {"code": "model_error"})
    assert await store.read(lambda tx: tx.events.last_seq(begun.run_id)) == 1
    assert (await store.read(lambda tx: tx.sessions.get(session_id))).message_count == 0


async def test_events_are_added_in_order_and_twice_does_no_harm(store: Store) -> None:
    begun = await store.begin_run(begin())
    for _ in range(2):
        assert await store.append_events(begun.run_id, "me", [event(2), event(3, "tool_result", '{"content":"4"}')])
    events = await store.read(lambda tx: tx.events.list(begun.run_id, after=1))
    assert [(row.seq, row.data) for row in events] == [(2, {}), (3, {"content": "4"})]
    assert not await store.append_events("run_unknown", "me", [event(1)])


async def test_a_run_is_stored_once(store: Store) -> None:
    asked = begin()
    await store.begin_run(asked)
    with pytest.raises(Conflict):
        await store.begin_run(asked)


@pytest.mark.parametrize("by", ["id", "name", "name of a user", "both"])
async def test_a_hundred_runs_that_make_one_session_at_once_share_it(store: Store, by: str) -> None:
    session_id, user_id = new_uuid(), uuid.uuid4()
    identity = {
        "id": lambda: {"session_id": session_id},
        "name": lambda: {"session_id": new_uuid(), "session_name": "plans"},
        "name of a user": lambda: {"session_id": new_uuid(), "session_name": "plans", "user_id": user_id},
        "both": lambda: {"session_id": session_id, "session_name": "plans"},
    }[by]
    begun = await asyncio.gather(*(store.begin_run(begin(**identity())) for _ in range(100)))
    assert len({run.session_id for run in begun}) == 1
    assert len({run.session_key for run in begun}) == 1
    sessions = await store.read(lambda tx: tx.sessions.list())
    assert [session.session_id for session in sessions.data] == [begun[0].session_id]
    runs = await store.read(lambda tx: tx.runs.list(session_id=begun[0].session_id, limit=200))
    assert len(runs.data) == 100
    assert sum(run.is_ready for run in begun) == sum(run.ready for run in runs.data) == 1


async def test_two_stores_on_one_database_that_make_one_session_agree(store: Store) -> None:
    async def turn(place: int) -> uuid.UUID | None:
        accepted = await store.accept_run(accept(session_id=new_uuid(), session_name=f"plan {place % 7}"))
        return accepted.session_id

    found = await asyncio.gather(*(turn(place) for place in range(70)))
    assert len(set(found)) == 7


async def test_names_are_of_one_user_each(store: Store) -> None:
    anna, ben = uuid.uuid4(), uuid.uuid4()
    found = [
        (await store.begin_run(begin(session_id=new_uuid(), session_name="plans", user_id=user))).session_id
        for user in (anna, ben, None, anna, ben, None)
    ]
    assert found[:3] == found[3:]
    assert len(set(found)) == 3


async def test_an_unknown_session_is_not_made_where_that_is_not_asked(store: Store) -> None:
    session_id = uuid.uuid4()
    for asked in (begin(session_id=session_id, create_session=False), begin(session_name="plans")):
        with pytest.raises(NotFound) as missing:
            await store.begin_run(asked)
        assert missing.value.code == "session_not_found"
        assert await store.read(lambda tx, run_id=asked.run_id: tx.runs.find(run_id)) is None


async def test_an_unknown_user_is_not_made_where_that_is_not_asked(store: Store) -> None:
    with pytest.raises(NotFound) as missing:
        await store.begin_run(begin(user_id=uuid.uuid4(), create_user=False))
    assert missing.value.code == "user_not_found"
    known = await store.write(lambda tx: tx.users.create())
    await store.begin_run(begin(user_id=known.user_id, create_user=False))


async def test_the_session_of_somebody_else_is_not_found_and_nothing_is_stored(store: Store) -> None:
    anna, ben, session_id = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    await take_turn(store, session_id, "ua", user_id=anna)
    asked = begin(session_id=session_id, user_id=ben, visible_to=ben)
    with pytest.raises(NotFound):
        await store.begin_run(asked)
    with pytest.raises(NotFound):
        await store.accept_run(accept(session_id=session_id, user_id=ben, visible_to=ben))
    assert await store.read(lambda tx: tx.runs.find(asked.run_id)) is None
    assert await store.read(lambda tx: tx.users.find(ben)) is None
    assert await store.read(lambda tx: tx.events.list(asked.run_id)) == []
    own = await store.begin_run(begin(session_id=session_id, user_id=anna, visible_to=anna))
    assert len(own.history) == 2


async def test_a_session_that_is_nobodys_is_not_seen_by_a_key_of_a_user(store: Store) -> None:
    session_id, anna = uuid.uuid4(), uuid.uuid4()
    await store.begin_run(begin(session_id=session_id))
    with pytest.raises(NotFound):
        await store.begin_run(begin(session_id=session_id, user_id=anna, visible_to=anna))


async def test_a_run_that_names_no_user_is_of_its_sessions_user(store: Store) -> None:
    session_id, anna, ben = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    await store.begin_run(begin(session_id=session_id, user_id=anna))
    for begun in (
        await store.begin_run(begin(session_id=session_id)),
        await store.accept_run(accept(session_id=session_id)),
    ):
        assert begun.user_id == anna
        assert (await store.read(lambda tx, run_id=begun.run_id: tx.runs.get(run_id))).user_id == anna
    with pytest.raises(Conflict) as refused:
        await store.begin_run(begin(session_id=session_id, user_id=ben))
    assert refused.value.code == "session_of_another_user"


async def test_messages_of_a_session_that_was_deleted_meanwhile_go_nowhere(store: Store) -> None:
    session_id = uuid.uuid4()
    begun = await store.begin_run(begin(session_id=session_id))
    await store.write(lambda tx: tx.sessions.delete(session_id))
    other = await store.begin_run(begin(session_id=uuid.uuid4()))
    assert other.session_key != begun.session_key
    assert await store.finish_run(finish(begun.run_id, begun.session_key, [message("user", "lost")]))
    run = await store.read(lambda tx: tx.runs.get(begun.run_id))
    assert (run.status, run.session_id) == ("completed", session_id)
    assert (await store.read(lambda tx: tx.messages.list(other.session_key or 0))).data == []


async def test_a_name_that_no_database_can_carry_is_refused(store: Store) -> None:
    for name in ("a\x00b", "a\ud800b"):
        with pytest.raises(InvalidInput) as refused:
            await store.begin_run(begin(session_id=new_uuid(), session_name=name))
        assert refused.value.field == ("body", "session_name")


async def test_what_a_model_wrote_is_kept_without_loss(store: Store) -> None:
    session_id = uuid.uuid4()
    begun = await store.begin_run(begin(session_id=session_id))
    odd = message("assistant", "x")
    payload = '{"text":"nul \\u0000, half \\ud800, \U0001f600, 1e400, 12345678901234567890123"}'
    odd = type(odd)(odd.message_id, "user", "nul \x00, half \ud800, \U0001f600", payload)
    await store.finish_run(
        finish(begun.run_id, begun.session_key, [odd], output_json='{"m":"\\u0000"}', instructions="a\x00b\ud800")
    )
    stored = await store.read(lambda tx: tx.messages.get(odd.message_id))
    assert stored.raw_payload == payload
    assert stored.content == "nul \ufffd, half \ufffd, \U0001f600"
    assert await store.read(lambda tx: tx.messages.history(begun.session_key or 0)) == [payload]
    run = await store.read(lambda tx: tx.runs.get(begun.run_id))
    assert (run.instructions, run.output) == ("a\ufffdb\ufffd", {"m": "\x00"})


HISTORY = [
    # what a session holds, the limit, what the next run sees
    ("", None, ""),
    ("uaua", None, "uaua"),
    ("uaua", 0, ""),
    ("uaua", 1, "ua"),
    ("uaua", 2, "ua"),
    ("uaua", 3, "ua"),
    ("uaua", 4, "uaua"),
    ("uaua", 9, "uaua"),
    ("uatauata", 5, "uata"),
    ("uatauata", 3, "uata"),
    ("uatatata", 2, "uatatata"),
    ("uauu", 1, "u"),
    ("uauu", 2, "uu"),
    ("at", 5, ""),
    ("at", None, ""),
    ("auata", 3, "uata"),
]


async def test_history_is_cut_only_where_a_users_turn_begins(store: Store) -> None:
    for roles, limit, seen in HISTORY:
        session_id = uuid.uuid4()
        first = await take_turn(store, session_id, roles)
        expected = [f"{role}{len(roles) - len(seen) + place}" for place, role in enumerate(seen)]
        begun = await store.begin_run(begin(session_id=session_id, message_limit=limit))
        accepted = await store.accept_run(accept(session_id=session_id))
        await store.finish_run(finish(begun.run_id, begun.session_key))
        await claim(store)
        started = await store.start_run(start(accepted.run_id, message_limit=limit))
        key = first.session_key or 0
        read = await store.read(lambda tx, key=key, limit=limit: tx.messages.history(key, limit))
        for payloads in (begun.history, started.history, read):
            assert [json.loads(payload)["text"] for payload in payloads] == expected, (roles, limit)


async def test_the_nearest_variable_wins(store: Store) -> None:
    agent, other = await make_agent(store), await make_agent(store, "other")
    session_id, anna, ben = uuid.uuid4(), uuid.uuid4(), uuid.uuid4()
    begun = await store.begin_run(begin(session_id=session_id, user_id=anna, agent_id=agent.id))
    await store.begin_run(begin(user_id=ben))
    scopes: dict[str, dict[str, Any]] = {
        "agent": {"agent_id": agent.id},
        "user": {"user_id": anna},
        "pair": {"agent_id": agent.id, "user_id": anna},
        "session": {"session_id": begun.session_key},
        "other": {"agent_id": other.id},
        "ben": {"user_id": ben},
        "other pair": {"agent_id": other.id, "user_id": anna},
    }
    names = {"a": ["agent"], "b": ["agent", "user"], "c": ["agent", "user", "pair"], "d": ["user", "session", "pair"]}
    names |= {"e": ["other", "ben", "other pair"], "f": ["session"]}
    for name, holders in names.items():
        for holder in holders:
            await store.write(lambda tx, n=name, h=holder: tx.memories.create(n, h, **scopes[h]))
    hidden = await store.write(lambda tx: tx.memories.create("g", "hidden", agent_id=agent.id))
    await store.write(lambda tx: tx.memories.update(hidden.memory_id, active=False))

    every = {"a": "agent", "b": "user", "c": "pair", "d": "session", "f": "session"}
    who: dict[str, Any] = {"session_id": session_id, "agent_id": agent.id}
    cases: list[tuple[list[str] | None, dict[str, str]]] = [
        (None, every),
        ([], {}),
        (["b", "d", "e", "x"], {"b": "user", "d": "session"}),
    ]
    cases.append(([f"n{place}" for place in range(40)] + ["a"], {"a": "agent"}))
    last = begun
    for wanted, expected in cases:
        await store.finish_run(finish(last.run_id, last.session_key))
        last = await store.begin_run(begin(**who, variable_names=wanted))
        assert last.variables == expected
        accepted = await store.accept_run(accept(**who))
        await store.finish_run(finish(last.run_id, last.session_key))
        await claim(store)
        last = await store.start_run(start(accepted.run_id, variable_names=wanted))
        assert last.variables == expected
        again = await store.read(
            lambda tx, names=wanted: tx.memories.variables(
                agent_id=agent.id, user_id=anna, session_id=begun.session_key, names=names
            )
        )
        assert again == expected
    alone = await store.begin_run(begin(agent_id=agent.id, variable_names=None))
    assert alone.variables == {"a": "agent", "b": "agent", "c": "agent"}
    assert (await store.begin_run(begin(variable_names=None))).variables == {}


async def test_runs_that_end_at_once_in_one_session_all_count(store: Store) -> None:
    session_id = uuid.uuid4()
    begun = [await store.begin_run(begin(session_id=session_id)) for _ in range(20)]
    ends = [finish(run.run_id, run.session_key, [message("user", "a"), message("assistant", "b")]) for run in begun]
    assert all(await asyncio.gather(*(store.finish_run(end) for end in ends)))
    assert (await store.read(lambda tx: tx.sessions.get(session_id))).message_count == 40
    history = await store.read(lambda tx: tx.messages.history(begun[0].session_key or 0))
    assert [json.loads(payload)["text"] for payload in history] == ["a", "b"] * 20
    last = await store.begin_run(begin(session_id=session_id))
    assert (last.is_ready, len(last.history)) == (True, 40)


async def test_one_bad_run_among_many_fails_alone(store: Store) -> None:
    taken = begin()
    await store.begin_run(taken)
    asked = [begin(session_id=uuid.uuid4()) for _ in range(10)]
    results = await asyncio.gather(
        *(store.begin_run(run) for run in [*asked[:5], taken, *asked[5:]]), return_exceptions=True
    )
    assert isinstance(results[5], Conflict)
    assert [getattr(result, "run_id", None) for result in results[:5] + results[6:]] == [run.run_id for run in asked]
    for run in asked:
        assert (await store.read(lambda tx, run_id=run.run_id: tx.runs.get(run_id))).status == "running"


async def test_a_cancelled_wait_loses_nothing(store: Store) -> None:
    asked = [begin(session_id=uuid.uuid4(), run_id=new_id("run")) for _ in range(20)]
    tasks = [asyncio.create_task(store.begin_run(run)) for run in asked]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.wait(tasks)
    await store.close()
    await store.open()
    for run in asked:
        assert await store.read(lambda tx, run_id=run.run_id: tx.runs.find(run_id)) is not None
