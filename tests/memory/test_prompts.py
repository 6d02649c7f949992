import asyncio
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from memory_house import House

from automagik.errors import Conflict, InvalidInput, NotFound, PreconditionFailed
from automagik.memory import MemoryInput, MemoryStore, Prompts
from automagik.types import SYSTEM

pytestmark = pytest.mark.anyio

KNOWN = frozenset({"style"})


class Hands:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return datetime(2026, 11, 24, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds


async def active_text(prompts: Prompts, house: House) -> str | None:
    template = await prompts.active_template(house.agent_id)
    return None if template is None else template.text


async def test_a_prompt_from_code_is_a_new_version_only_when_its_text_changed(house: House) -> None:
    prompts = Prompts(house.store)
    first = await prompts.register_from_code(house.agent_id, "one {{style}}", known=KNOWN)
    assert (first.version, first.is_active, first.is_default_from_code) == (1, True, True)
    assert await prompts.register_from_code(house.agent_id, "one {{style}}", known=KNOWN) == first
    second = await prompts.register_from_code(house.agent_id, "two", known=KNOWN)
    assert (second.version, second.is_active) == (2, True)
    assert await active_text(prompts, house) == "two"


async def test_a_prompt_from_code_never_overwrites_what_a_person_activated(house: House) -> None:
    prompts = Prompts(house.store)
    first = await prompts.register_from_code(house.agent_id, "one", known=KNOWN)
    await prompts.create(house.agent_id, "mine", known=KNOWN, caller=SYSTEM, is_active=True)
    second = await prompts.register_from_code(house.agent_id, "two", known=KNOWN)
    assert not second.is_active
    assert await active_text(prompts, house) == "mine"
    await prompts.activate(first.prompt_id, caller=SYSTEM)
    third = await prompts.register_from_code(house.agent_id, "three", known=KNOWN)
    assert not third.is_active
    assert await active_text(prompts, house) == "one"


async def test_a_version_from_code_is_not_edited(house: House) -> None:
    prompts = Prompts(house.store)
    row = await prompts.register_from_code(house.agent_id, "one", known=KNOWN)
    with pytest.raises(Conflict) as refused:
        await prompts.update(row.prompt_id, template="mine", known=KNOWN, caller=SYSTEM)
    assert refused.value.code == "prompt_from_code"
    assert (await prompts.update(row.prompt_id, name="first", known=KNOWN, caller=SYSTEM)).name == "first"


async def test_one_version_is_active_for_each_agent_and_key(house: House) -> None:
    prompts = Prompts(house.store)
    one = await prompts.create(house.agent_id, "one", known=KNOWN, caller=SYSTEM, is_active=True)
    two = await prompts.create(house.agent_id, "two", known=KNOWN, caller=SYSTEM)
    other = await prompts.create(house.agent_id, "o", known=KNOWN, caller=SYSTEM, status_key="night", is_active=True)
    assert (one.version, two.version, other.version) == (1, 2, 1)
    assert await active_text(prompts, house) == "one"
    await prompts.activate(two.prompt_id, caller=SYSTEM)
    assert await active_text(prompts, house) == "two"
    assert not (await prompts.get(one.prompt_id)).is_active
    assert (await prompts.get(other.prompt_id)).is_active
    with pytest.raises(Conflict):
        await prompts.delete(two.prompt_id, caller=SYSTEM)
    await prompts.deactivate(two.prompt_id, caller=SYSTEM)
    assert await active_text(prompts, house) is None
    await prompts.delete(two.prompt_id, caller=SYSTEM)
    page = await prompts.list(agent_id=house.agent_id, status_key="default")
    assert [row.template for row in page.data] == ["one"]
    audit = await house.store.read(lambda tx: tx.audit.list())
    assert [row.action for row in audit.data][:3] == ["prompt.delete", "prompt.deactivate", "prompt.activate"]


async def test_a_template_is_checked_when_it_is_saved(house: House) -> None:
    prompts = Prompts(house.store, max_text_chars=100)
    await MemoryStore(house.store).create(MemoryInput("home_town", "Oslo", user_id=house.ann), SYSTEM)
    await prompts.create(
        house.agent_id, "{{style}} {{home_town}} {{current_date}}", known=KNOWN, caller=SYSTEM, is_active=True
    )
    row = await prompts.create(house.agent_id, "fine", known=KNOWN, caller=SYSTEM)
    for text, says in [
        ("{{home_twon}}", "home_twon"),
        ("{{style", "not closed"),
        ("a\x00", "NUL"),
        ("a\ud800", "surrogate"),
        ("x" * 101, "limit is 100"),
    ]:
        with pytest.raises(InvalidInput) as refused:
            await prompts.create(house.agent_id, text, known=KNOWN, caller=SYSTEM)
        assert says in refused.value.detail
        assert refused.value.field == ("body", "prompt_text")
        with pytest.raises(InvalidInput):
            await prompts.update(row.prompt_id, template=text, known=KNOWN, caller=SYSTEM)
    with pytest.raises(InvalidInput) as refused:
        await prompts.create(house.agent_id, "{{home_twon}}", known=KNOWN, caller=SYSTEM)
    assert refused.value.hint == "Did you mean 'home_town'?"


async def test_a_stale_edit_is_refused(house: House) -> None:
    prompts = Prompts(house.store)
    row = await prompts.create(house.agent_id, "one", known=KNOWN, caller=SYSTEM)
    changed = await prompts.update(
        row.prompt_id, template="two", known=KNOWN, caller=SYSTEM, if_updated_at=row.updated_at
    )
    assert changed.template == "two"
    with pytest.raises(PreconditionFailed):
        await prompts.update(row.prompt_id, template="three", known=KNOWN, caller=SYSTEM, if_updated_at=row.updated_at)


async def test_a_prompt_of_another_agent_is_not_found(house: House) -> None:
    prompts = Prompts(house.store)
    row = await prompts.create(house.agent_id, "one", known=KNOWN, caller=SYSTEM)
    with pytest.raises(NotFound):
        await prompts.get(row.prompt_id, agent_id=house.other_agent_id)
    with pytest.raises(NotFound):
        await prompts.activate(row.prompt_id, agent_id=house.other_agent_id, caller=SYSTEM)
    with pytest.raises(NotFound):
        await prompts.delete(uuid.uuid4(), caller=SYSTEM)


async def test_what_another_process_activates_is_seen_within_five_seconds(house: House) -> None:
    clock = Hands()
    here, elsewhere = Prompts(house.store, clock=clock), Prompts(house.store)
    await here.create(house.agent_id, "one", known=KNOWN, caller=SYSTEM, is_active=True)
    assert await active_text(here, house) == "one"
    await elsewhere.create(house.agent_id, "two", known=KNOWN, caller=SYSTEM, is_active=True)
    clock.seconds += 4
    assert await active_text(here, house) == "one"
    clock.seconds += 2
    assert await active_text(here, house) == "two"


async def test_two_versions_made_at_once_get_different_numbers(house: House) -> None:
    prompts = Prompts(house.store)
    rows = await asyncio.gather(
        *(prompts.create(house.agent_id, f"v{n}", known=KNOWN, caller=SYSTEM) for n in range(10))
    )
    assert sorted(row.version for row in rows) == list(range(1, 11))
