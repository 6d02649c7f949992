"""The tables one by one: create, find, change, delete, list; what contradicts is a Conflict, what is missing a NotFound."""

import asyncio
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from store_samples import accept, begin, finish, make_agent, message, take_turn

from automagik.errors import Conflict, InvalidInput, NotFound, PreconditionFailed
from automagik.store import Page, Store, Transaction
from automagik.types import Caller, JsonObject, new_uuid

pytestmark = pytest.mark.anyio


async def test_agents_are_made_changed_and_deleted_by_name(store: Store) -> None:
    made = await store.write(
        lambda tx: tx.agents.create("helper", type="spec", source="api", config={"model": "test", "n": [1, None]})
    )
    assert (made.revision, made.active, made.config) == (1, True, {"model": "test", "n": [1, None]})
    with pytest.raises(Conflict, match="already an agent 'helper'"):
        await store.write(lambda tx: tx.agents.create("helper", type="spec", source="api"))
    changed = await store.write(
        lambda tx: tx.agents.update("helper", if_revision=1, active=False, description="Helps.")
    )
    assert (changed.revision, changed.active, changed.description, changed.config) == (2, False, "Helps.", made.config)
    with pytest.raises(PreconditionFailed):
        await store.write(lambda tx: tx.agents.update("helper", if_revision=1, active=True))
    with pytest.raises(PreconditionFailed):
        await store.write(lambda tx: tx.agents.delete("helper", if_revision=1))
    assert await store.read(lambda tx: tx.agents.find("helper")) == changed
    await store.write(lambda tx: tx.agents.delete("helper"))
    assert await store.read(lambda tx: tx.agents.find("helper")) is None
    with pytest.raises(NotFound) as missing:
        await store.write(lambda tx: tx.agents.update("helper", active=True))
    assert missing.value.code == "agent_not_found"


async def test_registering_an_agent_again_writes_only_what_differs(store: Store) -> None:
    first = await make_agent(store)
    assert await make_agent(store) == first
    changed = await store.write(
        lambda tx: tx.agents.register("simple", type="simple", source="code", description="Answers.")
    )
    assert (changed.id, changed.revision, changed.description) == (first.id, 2, "Answers.")


async def test_an_agents_sessions_stay_when_it_goes_its_prompts_and_memories_do_not(store: Store) -> None:
    agent = await make_agent(store)
    session_id = uuid.uuid4()
    begun = await take_turn(store, session_id, "ua", agent_id=agent.id)
    prompt = await store.write(lambda tx: tx.prompts.create(agent.id, "Hello"))
    memory = await store.write(lambda tx: tx.memories.create("a", "b", agent_id=agent.id))
    await store.write(lambda tx: tx.agents.delete("simple"))
    session = await store.read(lambda tx: tx.sessions.get(session_id))
    assert (session.agent_id, session.agent_name, session.message_count) == (None, None, 2)
    assert await store.read(lambda tx: tx.prompts.find(prompt.prompt_id)) is None
    assert await store.read(lambda tx: tx.memories.find(memory.memory_id)) is None
    assert (await store.read(lambda tx: tx.runs.get(begun.run_id))).agent_id == agent.id
    assert (await make_agent(store)).id != agent.id


def contact_of(column: str, value: str) -> dict[str, Any]:
    return {column: value}


async def test_users_have_their_own_address_and_number(store: Store) -> None:
    made = await store.write(
        lambda tx: tx.users.create(email="anna@example.org", phone_number="+49", user_data={"name": "Änna \U0001f600"})
    )
    assert made.user_data == {"name": "Änna \U0001f600"}
    for column, contact in (("email", "anna@example.org"), ("phone_number", "+49")):
        with pytest.raises(Conflict, match="email address" if column == "email" else "phone number"):
            await store.write(lambda tx, c=column, v=contact: tx.users.create(**contact_of(c, v)))
        assert await store.read(lambda tx, v=contact: tx.users.find_by_contact(v)) == made
    with pytest.raises(Conflict):
        await store.write(lambda tx: tx.users.create(user_id=made.user_id))
    other = await store.write(lambda tx: tx.users.create())
    with pytest.raises(Conflict, match="email address"):
        await store.write(lambda tx: tx.users.update(other.user_id, email="anna@example.org"))
    changed = await store.write(lambda tx: tx.users.update(made.user_id, email=None))
    assert (changed.email, changed.phone_number) == (None, "+49")
    assert await store.write(lambda tx: tx.users.ensure(made.user_id)) == changed
    assert await store.read(lambda tx: tx.users.find_by_contact("nobody")) is None


async def test_a_user_goes_with_sessions_and_memories_and_their_keys_are_revoked(store: Store) -> None:
    user_id, session_id = uuid.uuid4(), uuid.uuid4()
    begun = await take_turn(store, session_id, "ua", user_id=user_id)
    memory = await store.write(lambda tx: tx.memories.create("a", "b", user_id=user_id))
    inner = await store.write(lambda tx: tx.memories.create("a", "b", session_id=begun.session_key))
    key = await store.write(
        lambda tx: tx.keys.create("k", prefix="amk_1", key_hash=b"1" * 32, scopes=[], user_id=user_id)
    )
    await store.write(lambda tx: tx.users.delete(user_id))
    assert await store.read(lambda tx: tx.sessions.find(session_id)) is None
    assert await store.read(lambda tx: tx.messages.history(begun.session_key or 0)) == []
    for gone in (memory, inner):
        assert await store.read(lambda tx, m=gone: tx.memories.find(m.memory_id)) is None
    revoked = await store.read(lambda tx: tx.keys.get(key.key_id))
    assert (revoked.user_id, revoked.revoked_at is not None) == (user_id, True)
    run = await store.read(lambda tx: tx.runs.get(begun.run_id))
    assert (run.user_id, run.session_id) == (user_id, session_id)
    with pytest.raises(NotFound):
        await store.write(lambda tx: tx.users.delete(user_id))


async def test_sessions_are_found_by_id_and_by_name(store: Store) -> None:
    agent = await make_agent(store)
    user = await store.write(lambda tx: tx.users.create())
    made = await store.write(
        lambda tx: tx.sessions.create(
            agent_id=agent.id, user_id=user.user_id, session_name="plans", metadata={"a": {"b": None}}
        )
    )
    assert (made.agent_name, made.status, made.session_origin, made.message_count) == (
        "simple",
        "active",
        "automagik-agent",
        0,
    )
    assert await store.read(lambda tx: tx.sessions.find_by_name(user.user_id, "plans")) == made
    assert await store.read(lambda tx: tx.sessions.find_by_name(None, "plans")) is None
    assert await store.read(lambda tx: tx.sessions.find_by_key(made.id)) == made
    unowned = await store.write(lambda tx: tx.sessions.create(session_name="plans"))
    assert await store.read(lambda tx: tx.sessions.find_by_name(None, "plans")) == unowned
    for owner in (user.user_id, None):
        with pytest.raises(Conflict, match="named 'plans'"):
            await store.write(lambda tx, o=owner: tx.sessions.create(user_id=o, session_name="plans"))
    with pytest.raises(Conflict, match=str(made.session_id)):
        await store.write(lambda tx: tx.sessions.create(session_id=made.session_id))
    with pytest.raises(NotFound) as missing:
        await store.write(lambda tx: tx.sessions.create(user_id=uuid.uuid4()))
    assert missing.value.code == "user_not_found"
    other = await store.write(lambda tx: tx.sessions.create(session_name="notes"))
    with pytest.raises(Conflict, match="named 'plans'"):
        await store.write(lambda tx: tx.sessions.update(other.session_id, session_name="plans"))
    changed = await store.write(lambda tx: tx.sessions.update(other.session_id, session_name=None, metadata={"c": 1}))
    assert (changed.session_name, changed.metadata) == (None, {"c": 1})
    assert await store.read(lambda tx: tx.sessions.names()) == ["plans", "plans"]
    assert await store.read(lambda tx: tx.sessions.names(user_id=user.user_id)) == ["plans"]


async def test_a_session_goes_with_its_messages_and_memories_its_runs_stay(store: Store) -> None:
    session_id = uuid.uuid4()
    begun = await take_turn(store, session_id, "ua")
    memory = await store.write(lambda tx: tx.memories.create("a", "b", session_id=begun.session_key))
    await store.write(lambda tx: tx.sessions.delete(session_id))
    assert await store.read(lambda tx: tx.memories.find(memory.memory_id)) is None
    assert (await store.read(lambda tx: tx.messages.list(begun.session_key or 0))).data == []
    assert (await store.read(lambda tx: tx.runs.get(begun.run_id))).session_id == session_id
    with pytest.raises(NotFound):
        await store.write(lambda tx: tx.sessions.delete(session_id))


async def test_messages_are_appended_and_deleted_and_the_session_counts_them(store: Store) -> None:
    session = await store.write(lambda tx: tx.sessions.create())
    added = [message("user", "one"), message("assistant", "two")]
    await store.write(lambda tx: tx.messages.append(session.id, added, run_id="run_1"))
    stored = await store.read(lambda tx: tx.messages.get(added[0].message_id))
    assert (stored.role, stored.content, stored.raw_payload, stored.run_id) == (
        "user",
        "one",
        '{"text":"one"}',
        "run_1",
    )
    await store.write(lambda tx: tx.messages.delete(added[0].message_id))
    assert (await store.read(lambda tx: tx.sessions.get(session.session_id))).message_count == 1
    assert await store.read(lambda tx: tx.messages.find(added[0].message_id)) is None
    with pytest.raises(NotFound):
        await store.write(lambda tx: tx.messages.append(session.id + 1, added))


async def test_a_memory_is_one_of_its_name_in_its_scope(store: Store) -> None:
    agent = await make_agent(store)
    user = await store.write(lambda tx: tx.users.create())
    session = await store.write(lambda tx: tx.sessions.create())
    scopes: list[dict[str, Any]] = [
        {"agent_id": agent.id},
        {"user_id": user.user_id},
        {"session_id": session.id},
        {"agent_id": agent.id, "user_id": user.user_id},
        {"agent_id": agent.id, "user_id": user.user_id, "session_id": session.id},
    ]
    made = [await store.write(lambda tx, s=scope: tx.memories.create("tone", "kind", **s)) for scope in scopes]
    assert made[0].agent_name == "simple"
    assert made[2].session_uuid == session.session_id
    for scope, memory in zip(scopes, made, strict=True):
        with pytest.raises(Conflict, match="already a memory 'tone'"):
            await store.write(lambda tx, s=scope: tx.memories.create("tone", "again", **s))
        assert await store.read(lambda tx, s=scope: tx.memories.find_in_scope("tone", **s)) == memory
        put = await store.write(lambda tx, s=scope: tx.memories.put("tone", "dry", **s))
        assert (put.memory_id, put.content) == (memory.memory_id, "dry")
    await store.write(lambda tx: tx.memories.put("mood", "good", agent_id=agent.id, description="How it goes."))
    with pytest.raises(Conflict):
        await store.write(lambda tx: tx.memories.update(made[0].memory_id, name="mood"))
    with pytest.raises(InvalidInput):
        await store.write(lambda tx: tx.memories.create("lost", "x"))
    with pytest.raises(NotFound):
        await store.write(lambda tx: tx.memories.create("lost", "x", user_id=uuid.uuid4()))
    assert await store.read(lambda tx: tx.memories.known_names(agent.id)) == ["mood", "tone"]
    assert await store.read(lambda tx: tx.memories.known_names(agent.id + 1)) == ["tone"]
    await store.write(lambda tx: tx.memories.delete(made[0].memory_id))
    with pytest.raises(NotFound) as missing:
        await store.read(lambda tx: tx.memories.get(made[0].memory_id))
    assert missing.value.code == "memory_not_found"


async def test_prompts_count_their_versions_and_one_is_active(store: Store) -> None:
    agent = await make_agent(store)
    first = await store.write(lambda tx: tx.prompts.create(agent.id, "One", is_active=True, is_default_from_code=True))
    second = await store.write(lambda tx: tx.prompts.create(agent.id, "Two"))
    other = await store.write(lambda tx: tx.prompts.create(agent.id, "Calm", status_key="angry", is_active=True))
    assert [(row.version, row.is_active) for row in (first, second, other)] == [(1, True), (2, False), (1, True)]
    await store.write(lambda tx: tx.prompts.activate(second.prompt_id))
    assert (await store.read(lambda tx: tx.prompts.get(first.prompt_id))).is_active is False
    active = await store.read(lambda tx: tx.prompts.find_active(agent.id))
    assert active is not None
    assert (active.prompt_id, active.agent_name) == (second.prompt_id, "simple")
    assert (await store.write(lambda tx: tx.prompts.activate(second.prompt_id))) == active
    third = await store.write(lambda tx: tx.prompts.create(agent.id, "Three", is_active=True))
    assert (await store.read(lambda tx: tx.prompts.find_active(agent.id))) == third
    code = await store.read(lambda tx: tx.prompts.find_from_code(agent.id))
    assert code is not None
    assert code.prompt_id == first.prompt_id
    await store.write(lambda tx: tx.prompts.deactivate(third.prompt_id))
    assert await store.read(lambda tx: tx.prompts.find_active(agent.id)) is None
    changed = await store.write(lambda tx: tx.prompts.update(second.prompt_id, template="Two!", name="twice"))
    assert (changed.template, changed.name, changed.version) == ("Two!", "twice", 2)
    stale = changed.updated_at - timedelta(seconds=1)
    with pytest.raises(PreconditionFailed):
        await store.write(lambda tx: tx.prompts.update(second.prompt_id, if_updated_at=stale, name="x"))
    await store.write(lambda tx: tx.prompts.delete(second.prompt_id))
    with pytest.raises(NotFound):
        await store.read(lambda tx: tx.prompts.get(second.prompt_id))


async def test_prompts_made_at_once_follow_each_other(store: Store) -> None:
    agent = await make_agent(store)
    made = await asyncio.gather(
        *(store.write(lambda tx, n=n: tx.prompts.create(agent.id, f"{n}", is_active=True)) for n in range(12))
    )
    assert sorted(row.version for row in made) == list(range(1, 13))
    rows = await store.read(lambda tx: tx.prompts.list(agent_id=agent.id))
    assert [row.version for row in rows.data if row.is_active] == [12]


async def test_keys_are_found_by_hash_touched_and_revoked(store: Store) -> None:
    assert await store.read(lambda tx: tx.keys.count()) == 0
    made = await store.write(
        lambda tx: tx.keys.create(
            "ci", prefix="amk_ab", key_hash=bytes(range(32)), scopes=["admin"], expires_at=tx.now + timedelta(days=1)
        )
    )
    assert made.key_id.startswith("key_")
    assert (made.scopes, made.key_hash, made.last_used_at, made.revoked_at) == (["admin"], bytes(range(32)), None, None)
    assert await store.read(lambda tx: tx.keys.find_by_hash(bytes(range(32)))) == made
    assert await store.read(lambda tx: tx.keys.find_by_hash(b"x" * 32)) is None
    await store.write(lambda tx: tx.keys.touch(made.key_id, tx.now))
    used = await store.read(lambda tx: tx.keys.get(made.key_id))
    assert used.last_used_at is not None
    revoked = await store.write(lambda tx: tx.keys.revoke(made.key_id))
    assert revoked.revoked_at is not None
    assert await store.write(lambda tx: tx.keys.revoke(made.key_id)) == revoked
    with pytest.raises(NotFound) as missing:
        await store.write(lambda tx: tx.keys.revoke("key_x"))
    assert missing.value.code == "key_not_found"
    with pytest.raises(NotFound):
        await store.write(lambda tx: tx.keys.create("k", prefix="p", key_hash=b"2", scopes=[], user_id=uuid.uuid4()))


async def test_audit_rows_are_part_of_the_change(store: Store) -> None:
    caller = Caller(key_id="key_1", scopes=frozenset({"admin"}))

    def change(tx: Transaction, *, fails: bool) -> None:
        tx.audit.append("user.create", "u", caller=caller, request_id="req_1", details={"email": None})
        if fails:
            raise ValueError("no")

    await store.write(lambda tx: change(tx, fails=False))
    with pytest.raises(ValueError, match="no"):
        await store.write(lambda tx: change(tx, fails=True))
    await store.write(lambda tx: tx.audit.append("key.create", "key_2"))
    rows = (await store.read(lambda tx: tx.audit.list())).data
    assert [(row.action, row.target, row.key_id, row.request_id, row.details) for row in rows] == [
        ("key.create", "key_2", None, None, {}),
        ("user.create", "u", "key_1", "req_1", {"email": None}),
    ]
    assert len((await store.read(lambda tx: tx.audit.list(action="key.create"))).data) == 1
    assert len((await store.read(lambda tx: tx.audit.list(target="u"))).data) == 1


async def test_runs_are_listed_by_what_they_are_and_without_what_is_big(store: Store) -> None:
    session_id, user_id = uuid.uuid4(), uuid.uuid4()
    special = await store.begin_run(
        begin(session_id=session_id, user_id=user_id, key_id="key_1", parent_id="run_p", name="other", kind="workflow")
    )
    plain = await store.begin_run(begin())
    failed = await store.begin_run(begin())
    await store.finish_run(finish(plain.run_id, instructions="Be kind."))
    await store.finish_run(finish(failed.run_id, status="failed", outcome="tool_error"))
    queued = await store.accept_run(accept())
    everything = [queued.run_id, failed.run_id, plain.run_id, special.run_id]
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({}, everything),
        ({"status": "completed"}, [plain.run_id]),
        ({"status": "running"}, [special.run_id]),
        ({"status": "queued"}, [queued.run_id]),
        ({"outcome": "tool_error"}, [failed.run_id]),
        ({"outcome": "completed"}, [plain.run_id]),
        ({"name": "other"}, [special.run_id]),
        ({"kind": "workflow"}, [special.run_id]),
        ({"session_id": session_id}, [special.run_id]),
        ({"user_id": user_id}, [special.run_id]),
        ({"key_id": "key_1"}, [special.run_id]),
        ({"parent_id": "run_p"}, [special.run_id]),
        ({"status": "waiting"}, []),
        ({"status": "completed", "outcome": "tool_error"}, []),
    ]
    for filters, expected in cases:
        page = await store.read(lambda tx, f=filters: tx.runs.list(**f))
        assert [row.run_id for row in page.data] == expected, filters
        assert all(row.input is None and row.output is None and row.instructions is None for row in page.data)
    whole = await store.read(lambda tx: tx.runs.get(plain.run_id))
    assert (whole.output, whole.instructions) == ({"message": "hi"}, "Be kind.")
    with pytest.raises(NotFound):
        await store.read(lambda tx: tx.runs.get("run_x"))


Lister = Callable[[Transaction, int, str | None], Page[Any]]
Maker = Callable[[Transaction, int], Any]

LISTS: dict[str, tuple[Maker, Lister]] = {
    "agents": (
        lambda tx, n: tx.agents.create(f"agent {n}", type="t", source="api").id,
        lambda tx, limit, cursor: tx.agents.list(source="api", active=True, limit=limit, cursor=cursor),
    ),
    "users": (
        lambda tx, n: tx.users.create(user_data={"n": n}).user_id,
        lambda tx, limit, cursor: tx.users.list(limit=limit, cursor=cursor),
    ),
    "sessions": (
        lambda tx, n: tx.sessions.create(session_name=f"{n}").session_id,
        lambda tx, limit, cursor: tx.sessions.list(limit=limit, cursor=cursor),
    ),
    "keys": (
        lambda tx, n: tx.keys.create(f"{n}", prefix="p", key_hash=bytes([n]) * 32, scopes=[]).key_id,
        lambda tx, limit, cursor: tx.keys.list(limit=limit, cursor=cursor),
    ),
    "audit": (
        lambda tx, n: tx.audit.append("a.b", f"{n}"),
        lambda tx, limit, cursor: tx.audit.list(action="a.b", limit=limit, cursor=cursor),
    ),
}


@pytest.mark.parametrize("name", LISTS)
async def test_pages_show_everything_once_newest_first_while_rows_are_added(store: Store, name: str) -> None:
    make, page_of = LISTS[name]
    for n in range(7):
        await store.write(lambda tx, n=n: make(tx, n))
    whole = await store.read(lambda tx: page_of(tx, 50, None))
    assert (len(whole.data), whole.next_cursor) == (7, None)
    seen: list[Any] = []
    cursor = None
    for step in range(3):
        page = await store.read(lambda tx, c=cursor: page_of(tx, 3, c))
        seen += page.data
        cursor = page.next_cursor
        assert (cursor is None) == (step == 2)
        await store.write(lambda tx, n=100 + step: make(tx, n))
    assert seen == whole.data
    newest = await store.read(lambda tx: page_of(tx, 3, None))
    assert newest.data[0] not in whole.data


BAD_CURSORS = [
    *("x", "", "%%", "\x00", "é", "Wy" * 3000),
    *("bnVsbA", "eyJhIjoxfQ", "W10", "WzEsMl0"),  # null, {"a":1}, [], [1,2]
    *("Wy0xXQ", "WzFlOTk5XQ", "WzkyMjMzNzIwMzY4NTQ3NzU4MDhd"),  # [-1], [1e999], [2**63]
    *("W1siYSJdXQ", "W3RydWVd", "WyJcdTAwMDAiXQ"),  # [["a"]], [true], ["\u0000"]
]


async def test_a_cursor_that_no_page_gave_is_refused_by_name(store: Store) -> None:
    for _, page_of in LISTS.values():
        for cursor in BAD_CURSORS:
            with pytest.raises(InvalidInput) as refused:
                await store.read(lambda tx, p=page_of, c=cursor: p(tx, 3, c))
            assert refused.value.field == ("query", "cursor")


async def test_values_that_no_database_can_carry_are_refused_everywhere(store: Store) -> None:
    works: list[Callable[[Transaction], Any]] = [
        lambda tx: tx.users.create(email="a\x00"),
        lambda tx: tx.users.find_by_contact("a\ud800"),
        lambda tx: tx.sessions.list(session_name="\x00"),
        lambda tx: tx.agents.find("\udfff"),
        lambda tx: tx.runs.find("run_\x00"),
        lambda tx: tx.memories.list(name="\x00"),
    ]
    for work in works:
        with pytest.raises(InvalidInput):
            await store.write(work)
    data: JsonObject = {"a": "\x00 \ud800 \U0001f600", "n": 2**70, "f": 1.5e300}
    made = await store.write(lambda tx: tx.users.create(user_id=new_uuid(), user_data=data))
    assert (await store.read(lambda tx: tx.users.get(made.user_id))).user_data == data
