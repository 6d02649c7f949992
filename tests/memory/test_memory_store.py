import asyncio
import uuid
from dataclasses import replace

import pytest
from memory_house import House

from automagik.errors import Conflict, InvalidInput, NotFound
from automagik.memory import MemoryInput, MemoryStore
from automagik.types import SYSTEM, Caller

pytestmark = pytest.mark.anyio


def bound(user_id: uuid.UUID) -> Caller:
    return Caller("key_bound", frozenset({"memory:read", "memory:write"}), user_id=user_id)


async def actions(house: House) -> list[str]:
    page = await house.store.read(lambda tx: tx.audit.list())
    return [row.action for row in reversed(page.data)]


async def test_the_nearest_scope_wins(house: House) -> None:
    memories = MemoryStore(house.store)
    scopes = [
        MemoryInput("tone", "agent", agent="clerk"),
        MemoryInput("tone", "user", user_id=house.ann),
        MemoryInput("tone", "agent and user", agent="clerk", user_id=house.ann),
        MemoryInput("tone", "session", session_id=house.session_id),
    ]

    async def means() -> str | None:
        found = await memories.resolve(
            ["tone"], agent_id=house.agent_id, user_id=house.ann, session_key=house.session_key
        )
        return found.get("tone")

    assert await means() is None
    for scope in scopes:
        await memories.create(scope, SYSTEM)
        assert await means() == scope.content
    other = await memories.resolve(agent_id=house.other_agent_id, user_id=house.bob, session_key=None)
    assert other == {}


async def test_a_memory_of_the_same_name_and_scope_is_replaced_and_audited(house: House) -> None:
    memories = MemoryStore(house.store)
    first = await memories.create(MemoryInput("city", "Oslo", user_id=house.ann, metadata={"by": "x"}), SYSTEM)
    second = await memories.create(MemoryInput("city", "Bergen", user_id=house.ann), SYSTEM)
    assert (second.memory_id, second.content, second.metadata) == (first.memory_id, "Bergen", {})
    changed = await memories.update(first.memory_id, SYSTEM, content="Tromsø")
    assert changed.content == "Tromsø"
    await memories.delete(first.memory_id, SYSTEM)
    with pytest.raises(NotFound):
        await memories.get(first.memory_id, SYSTEM)
    assert await actions(house) == ["memory.create", "memory.update", "memory.update", "memory.delete"]


async def test_a_batch_is_stored_whole_or_not_at_all(house: House) -> None:
    memories = MemoryStore(house.store)
    good = [MemoryInput(f"m{n}", "x", user_id=house.ann) for n in range(3)]
    with pytest.raises(InvalidInput) as refused:
        await memories.create_batch([*good, MemoryInput("m3", "x", agent="clark")], SYSTEM)
    assert refused.value.field == ("body", 3)
    assert refused.value.code == "agent_not_found"
    assert refused.value.hint == "Did you mean 'clerk'?"
    with pytest.raises(InvalidInput) as refused:
        await memories.create_batch([good[0], replace(good[1], name="no name")], SYSTEM)
    assert refused.value.field == ("body", 1, "name")
    assert (await memories.list(SYSTEM)).data == []
    assert await actions(house) == []
    assert len(await memories.create_batch(good, SYSTEM)) == 3
    assert len((await memories.list(SYSTEM)).data) == 3


async def test_a_key_bound_to_a_user_sees_and_changes_that_users_memories_only(house: House) -> None:
    memories = MemoryStore(house.store)
    ann, bob = bound(house.ann), bound(house.bob)
    secret = await memories.create(MemoryInput("secret", "1", agent="clerk"), ann)
    assert secret.user_id == house.ann
    await memories.create(MemoryInput("shared", "1", agent="clerk"), SYSTEM)
    assert [row.name for row in (await memories.list(ann)).data] == ["secret"]
    assert (await memories.list(bob)).data == []
    assert (await memories.list(bob, user_id=house.ann)).data == []
    for attempt in (
        memories.get(secret.memory_id, bob),
        memories.update(secret.memory_id, bob, content="2"),
        memories.delete(secret.memory_id, bob),
        memories.create(MemoryInput("secret", "2", user_id=house.ann), bob),
        memories.create(MemoryInput("secret", "2", session_id=house.session_id), bob),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert (await memories.get(secret.memory_id, ann)).content == "1"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "two words"}, "name"),
        ({"name": "x" * 129}, "name"),
        ({"content": "a\x00b"}, "content"),
        ({"content": "a\ud800"}, "content"),
        ({"content": "x" * 51}, "content"),
        ({"description": "x" * 4001}, "description"),
        ({"memory_type": "x" * 65}, "memory_type"),
        ({"user_id": None}, "agent_id"),
    ],
)
async def test_bad_input_names_its_field(house: House, changes: dict[str, str | None], field: str) -> None:
    memories = MemoryStore(house.store, max_text_chars=50)
    memory = MemoryInput("name", "content", user_id=house.ann)
    with pytest.raises(InvalidInput) as refused:
        await memories.create(replace(memory, **changes), SYSTEM)
    assert refused.value.field == ("body", field)


async def test_a_name_that_is_taken_and_owners_that_are_unknown_are_refused(house: House) -> None:
    memories = MemoryStore(house.store)
    await memories.create(MemoryInput("a", "1", user_id=house.ann), SYSTEM)
    b = await memories.create(MemoryInput("b", "1", user_id=house.ann), SYSTEM)
    with pytest.raises(Conflict):
        await memories.update(b.memory_id, SYSTEM, name="a")
    for memory in (
        MemoryInput("x", "1", agent="nobody"),
        MemoryInput("x", "1", user_id=uuid.uuid4()),
        MemoryInput("x", "1", session_id=uuid.uuid4()),
    ):
        with pytest.raises(NotFound):
            await memories.create(memory, SYSTEM)


async def test_an_agents_door_reads_the_nearest_and_writes_its_own_scope_only(house: House) -> None:
    memories = MemoryStore(house.store)
    await memories.create(MemoryInput("team", "blue", agent="clerk"), SYSTEM)
    await memories.create(MemoryInput("city", "Oslo", user_id=house.ann), SYSTEM)
    await memories.create(MemoryInput("city", "Rome", user_id=house.bob), SYSTEM)
    door = memories.for_agent(house.agent_id, user_id=house.ann, session_key=house.session_key)
    assert await door.values() == {"team": "blue", "city": "Oslo"}
    await door.store("team", "red")
    assert await door.get("team") == "red"
    stored = (await memories.list(SYSTEM, name="team", user_id=house.ann)).data[0]
    assert (stored.agent_name, stored.session_id) == ("clerk", None)
    assert await door.delete("team")
    assert await door.get("team") == "blue"
    assert not await door.delete("team")
    assert not await door.delete("city")
    elsewhere = memories.for_agent(house.other_agent_id, user_id=house.bob, session_key=None)
    assert await elsewhere.values() == {"city": "Rome"}


async def test_without_a_user_the_door_writes_to_the_session(house: House) -> None:
    memories = MemoryStore(house.store)
    door = memories.for_agent(house.agent_id, user_id=None, session_key=house.session_key)
    await door.store("mood", "fine\x00")
    assert await door.get("mood") == "fine\ufffd"
    other = memories.for_agent(house.other_agent_id, user_id=None, session_key=house.session_key)
    assert await other.values() == {}
    nowhere = memories.for_agent(house.agent_id, user_id=None, session_key=None)
    with pytest.raises(InvalidInput):
        await nowhere.store("mood", "fine")
    with pytest.raises(InvalidInput):
        await door.store("two words", "fine")


async def test_one_name_stored_by_many_at_once_is_one_memory(house: House) -> None:
    stores = [MemoryStore(house.store) for _ in range(4)]
    await asyncio.gather(
        *(memories.create(MemoryInput("city", f"{n}", user_id=house.ann), SYSTEM) for n, memories in enumerate(stores)),
        *(
            memories.for_agent(house.agent_id, user_id=house.ann, session_key=None).store("city", "door")
            for memories in stores
        ),
    )
    rows = (await stores[0].list(SYSTEM)).data
    assert sorted((row.name, row.agent_name or "") for row in rows) == [("city", ""), ("city", "clerk")]
