import asyncio
from typing import Any

import pytest
from agent_house import House

from automagik.agents import AgentConfig, AgentInput
from automagik.errors import Conflict, InvalidInput, NotFound, PreconditionFailed
from automagik.types import SYSTEM

pytestmark = pytest.mark.anyio

on_both = pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])


@on_both
async def test_the_simple_agent_is_there_from_the_start(house: House) -> None:
    factory = await house.discovered()
    assert factory.names() == ["simple"]
    (info,) = factory.list_available_agents()
    assert (info.type, info.source, info.active, info.error) == ("simple", "code", True, None)
    agent = factory.get_agent("simple")
    assert factory.agents_registry["simple"] is agent
    assert agent.context == {"source": "code"}
    assert (await agent.process_message(AgentInput("hi"), house.options(agent, model="scripted"))).message == "fine"
    assert str(house.models.instructions[0]).startswith("You are simple, a helpful assistant.")
    row = await house.store.read(lambda tx: tx.agents.get("simple"))
    assert (row.id, AgentConfig.parse(row.config)) == (agent.db_id, agent.config)


async def test_an_unknown_agent_is_not_found_with_the_nearest(house: House) -> None:
    factory = await house.discovered()
    with pytest.raises(NotFound) as refused:
        factory.get_agent("simpel")
    assert refused.value.hint == "Did you mean 'simple'?"
    with pytest.raises(NotFound):
        factory.info("nobody")


@on_both
async def test_a_start_with_nothing_new_writes_nothing(house: House) -> None:
    house.write("poet.yaml", "instructions: 'Rhyme for {{user_id}}.'\n")
    first = await house.discovered()
    before = await house.store.read(lambda tx: (tx.agents.all(), tx.prompts.list(), tx.audit.list()))
    second = await house.discovered()
    assert await house.store.read(lambda tx: (tx.agents.all(), tx.prompts.list(), tx.audit.list())) == before
    assert second.names() == first.names() == ["poet", "simple"]


@on_both
async def test_processes_that_start_at_once_on_a_new_database_agree(house: House) -> None:
    factories = [house.factory() for _ in range(4)]
    await asyncio.gather(*(factory.discover_agents() for factory in factories))
    assert all(info.error is None for factory in factories for info in factory.list_available_agents())
    prompts = await house.store.read(lambda tx: tx.prompts.list())
    assert [(row.version, row.is_active) for row in prompts.data] == [(1, True)]


FILES: list[tuple[str, str, str, str]] = [
    ("counter.py", "from pydantic_ai import Agent\nagent = Agent(name='count-er')", "count-er", "pydantic_ai"),
    ("nameless.py", "from pydantic_ai import Agent\nagent = Agent()", "nameless", "pydantic_ai"),
    (
        "clerk.py",
        "from automagik.agents import SimpleAgent\nclass A(SimpleAgent):\n    _code_prompt_text = 'x'",
        "clerk",
        "simple",
    ),
    (
        "named.py",
        "from automagik.agents import SimpleAgent\nclass A(SimpleAgent):\n    name = 'called'",
        "called",
        "simple",
    ),
    (
        "made.py",
        "from automagik.agents import SimpleAgent\ndef agent():\n    return SimpleAgent(name='made_by_function')",
        "made_by_function",
        "simple",
    ),
    (
        "own.py",
        """
from automagik.agents import AgentResponse, AutomagikAgent
from automagik.types import Usage

class Parrot(AutomagikAgent):
    async def run(self, message, options):
        return AgentResponse(message.text, None, [], Usage(), [], [])
""",
        "own",
        "custom",
    ),
    ("poet.yaml", "instructions: Rhyme.", "poet", "spec"),
    ("bard.yml", "name: bard-2\ninstructions: Rhyme.", "bard-2", "spec"),
    ("json.json", '{"instructions": "Rhyme."}', "json", "spec"),
]


@pytest.mark.parametrize(("file", "text", "name", "kind"), FILES, ids=[file for file, *_ in FILES])
async def test_a_file_in_the_agents_folder_is_an_agent(
    house: House, file: str, text: str, name: str, kind: str
) -> None:
    path = house.write(file, text)
    factory = await house.discovered()
    info = factory.info(name)
    assert (info.type, info.source, info.location, info.error) == (kind, "file", str(path), None)
    assert info.revision == 1
    agent = factory.get_agent(name)
    assert (await agent.process_message(AgentInput("hi"), house.options(agent, model="scripted"))).message in {
        "fine",
        "hi",
    }


BROKEN: list[tuple[str, str, str]] = [
    ("syntax.py", "def broken(:", "SyntaxError"),
    ("raises.py", "raise RuntimeError('at import')", "RuntimeError: at import"),
    ("exits.py", "import sys; sys.exit(3)", "SystemExit"),
    ("empty.py", "x = 1", "defines no agent"),
    ("number.py", "agent = 7", "int"),
    (
        "args.py",
        "from automagik.agents import SimpleAgent\nclass A(SimpleAgent):\n    def __init__(self, x): ...",
        "TypeError",
    ),
    (
        "binds.py",
        "from automagik.agents import SimpleAgent\nclass A(SimpleAgent):\n    def build(self):\n        1 / 0",
        "ZeroDivisionError",
    ),
    (
        "tools.py",
        "from automagik.agents import *\nclass A(SimpleAgent):\n    config = AgentConfig(tools=('memroy',))",
        "Did you mean 'memory'?",
    ),
    ("names.yaml", "instructions: 'Hi {{nobody}}'", "'nobody'"),
    ("open.yaml", "instructions: 'Hi {{x'", "not closed"),
    ("key.yaml", "instuctions: x", "Did you mean 'instructions'?"),
    ("shape.yaml", "- a\n- b", "object"),
    ("indent.yaml", "a: b: c", "can't be read"),
    ("bytes.json", "{", "can't be read"),
    ("Upper.yaml", "instructions: x", "small letters"),
]


@pytest.mark.parametrize(("file", "text", "cause"), BROKEN, ids=[file for file, *_ in BROKEN])
async def test_a_broken_file_is_listed_with_its_cause_and_stops_nothing_else(
    house: House, file: str, text: str, cause: str
) -> None:
    path = house.write(file, text)
    house.write("zzz.yaml", "instructions: fine")
    factory = await house.discovered()
    broken = factory.info(path.stem)
    assert cause in str(broken.error)
    assert broken.location == str(path)
    assert factory.names() == ["simple", "zzz"]
    with pytest.raises(NotFound, match=path.stem) as refused:
        factory.get_agent(path.stem)
    assert "could not be loaded" in str(refused.value.hint)


async def test_of_two_agents_with_one_name_the_later_is_broken_naming_both(house: House) -> None:
    first = house.write("a.yaml", "name: twin\ninstructions: one")
    second = house.write("b.yaml", "name: twin\ninstructions: two")
    house.write("c.yaml", "name: simple\ninstructions: mine")
    factory = await house.discovered()
    usable, broken = [info for info in factory.list_available_agents() if info.name == "twin"]
    assert (usable.error, usable.config.instructions) == (None, "one")
    assert str(first) in str(broken.error)
    assert str(second) in str(broken.error)
    assert factory.names() == ["simple", "twin"]
    assert factory.info("simple").source == "code"


async def test_a_file_does_not_take_the_place_of_an_agent_of_the_api(house: House) -> None:
    factory = await house.discovered()
    await factory.create("helper", {"instructions": "from the API"}, caller=SYSTEM)
    house.write("helper.yaml", "instructions: from a file")
    again = await house.discovered()
    assert again.get_agent("helper").config.instructions == "from the API"
    broken = [info for info in again.list_available_agents() if info.error]
    assert [(info.name, info.source) for info in broken] == [("helper", "file")]


@on_both
async def test_an_agent_of_the_api_lives_through_create_update_restart_and_delete(house: House) -> None:
    factory = await house.discovered()
    made = await factory.create(
        "tutor", {"instructions": "Teach.", "model": "scripted", "tools": ["datetime"]}, caller=SYSTEM
    )
    assert made.revision == 1
    changed = await factory.update(
        "tutor", {"instructions": "Teach {{subject}}.", "variables": {"subject": "sums"}, "tools": None}, caller=SYSTEM
    )
    assert (changed.revision, changed.config.tools, changed.config.model) == (2, (), "scripted")
    agent = factory.get_agent("tutor")
    await agent.process_message(AgentInput("x"), house.options(agent))
    restarted = await house.discovered()
    agent = restarted.get_agent("tutor")
    await agent.process_message(AgentInput("x"), house.options(agent))
    assert house.models.instructions == ["Teach sums.", "Teach sums."]
    assert house.models.tools == [[], []]
    await restarted.delete("tutor", caller=SYSTEM)
    assert restarted.names() == ["simple"]
    with pytest.raises(NotFound):
        await restarted.delete("tutor", caller=SYSTEM)
    audit = await house.store.read(lambda tx: tx.audit.list(target="tutor"))
    assert [row.action for row in reversed(audit.data)] == ["agent.create", "agent.update", "agent.delete"]


@on_both
async def test_a_stale_edit_is_refused_and_changes_nothing(house: House) -> None:
    factory = await house.discovered()
    made = await factory.create("tutor", {"instructions": "Teach."}, caller=SYSTEM)
    await factory.update("tutor", {"instructions": "Teach more."}, caller=SYSTEM, if_revision=made.revision)
    with pytest.raises(PreconditionFailed):
        await factory.update("tutor", {"instructions": "Mine."}, caller=SYSTEM, if_revision=made.revision)
    with pytest.raises(PreconditionFailed):
        await factory.delete("tutor", caller=SYSTEM, if_revision=made.revision)
    assert factory.get_agent("tutor").config.instructions == "Teach more."


async def test_a_change_that_is_refused_leaves_the_agent_as_it_was(house: House) -> None:
    factory = await house.discovered()
    await factory.create("tutor", {"instructions": "Teach."}, caller=SYSTEM)
    for change in ({"tools": ["nothing"]}, {"instructions": "{{x"}, {"capabilities": ["MCP"]}, {"x": 1}):
        with pytest.raises(InvalidInput):
            await factory.update("tutor", change, caller=SYSTEM)
    assert factory.info("tutor").revision == 1


@on_both
async def test_agents_that_come_from_code_are_switched_but_not_edited(house: House) -> None:
    factory = await house.discovered()
    with pytest.raises(Conflict) as refused:
        await factory.update("simple", {"model": "demo"}, caller=SYSTEM)
    assert refused.value.code == "agent_not_editable"
    with pytest.raises(Conflict):
        await factory.delete("simple", caller=SYSTEM)
    assert not (await factory.update("simple", {}, active=False, caller=SYSTEM)).active
    with pytest.raises(NotFound):
        factory.get_agent("simple")
    restarted = await house.discovered()
    assert restarted.names() == []
    await restarted.update("simple", {}, active=True, caller=SYSTEM)
    assert restarted.get_agent("simple").name == "simple"


@pytest.mark.parametrize("name", ["", "Tutor", "1st", "two words", "x" * 65, "ünter", "a/b", "a\n"])
async def test_a_bad_name_is_refused(house: House, name: str) -> None:
    factory = await house.discovered()
    with pytest.raises(InvalidInput) as refused:
        await factory.create(name, {}, caller=SYSTEM)
    assert refused.value.field == ("body", "name")


@on_both
async def test_a_name_is_taken_once_also_when_two_ask_at_once(house: House) -> None:
    factory, elsewhere = await house.discovered(), await house.discovered()
    results = await asyncio.gather(
        factory.create("tutor", {}, caller=SYSTEM),
        factory.create("tutor", {}, caller=SYSTEM),
        elsewhere.create("tutor", {}, caller=SYSTEM),
        return_exceptions=True,
    )
    assert sorted(type(result).__name__ for result in results) == ["AgentInfo", "Conflict", "Conflict"]


@on_both
async def test_a_copy_has_the_active_prompt_and_the_changes(house: House) -> None:
    factory = await house.discovered()
    simple = factory.get_agent("simple")
    await simple.dependencies.prompts.create(
        simple.db_id, "Be kind, {{user_id}}.", known=simple.known_variables, caller=SYSTEM, is_active=True
    )
    copy = await factory.copy("simple", "kind", {"model": "scripted"}, caller=SYSTEM)
    assert (copy.source, copy.config.instructions, copy.config.tools) == (
        "api",
        "Be kind, {{user_id}}.",
        ("memory", "datetime"),
    )
    with pytest.raises(Conflict):
        await factory.copy("simple", "kind", {}, caller=SYSTEM)
    house.write("own.py", "from pydantic_ai import Agent\nagent = Agent(name='own')")
    with pytest.raises(Conflict):
        await (await house.discovered()).copy("own", "mine", {}, caller=SYSTEM)


@on_both
async def test_what_another_process_made_is_taken_over(house: House) -> None:
    here, elsewhere = await house.discovered(), await house.discovered()
    await elsewhere.create("tutor", {"instructions": "one"}, caller=SYSTEM)
    with pytest.raises(NotFound):
        here.get_agent("tutor")
    await here.refresh(max_age_seconds=60)
    assert "tutor" not in here.names()
    await here.refresh(max_age_seconds=0)
    assert here.get_agent("tutor").config.instructions == "one"
    await elsewhere.update("tutor", {"instructions": "two"}, caller=SYSTEM)
    await elsewhere.update("simple", {}, active=False, caller=SYSTEM)
    await here.refresh(max_age_seconds=0)
    assert here.get_agent("tutor").config.instructions == "two"
    assert here.names() == ["tutor"]
    await elsewhere.delete("tutor", caller=SYSTEM)
    await here.refresh(max_age_seconds=0)
    assert here.names() == []


async def test_a_stored_config_that_can_not_be_used_is_broken_and_can_be_mended(house: House) -> None:
    config: dict[str, Any] = {"capabilities": ["MCP"]}
    await house.store.write(lambda tx: tx.agents.create("old", type="spec", source="api", config=config))
    factory = await house.discovered()
    assert "MCP" in str(factory.info("old").error)
    assert factory.names() == ["simple"]
    mended = await factory.update("old", {"capabilities": None}, caller=SYSTEM)
    assert mended.error is None
    assert factory.names() == ["old", "simple"]
    assert [info.error for info in factory.list_available_agents()] == [None, None]


async def test_agents_give_back_what_they_hold_when_the_platform_closes(house: House) -> None:
    house.write(
        "own.py",
        """
from automagik.agents import SimpleAgent
closed = []
class Own(SimpleAgent):
    async def cleanup(self):
        closed.append(self.name)
""",
    )
    factory = await house.discovered()
    agent = factory.get_agent("own")
    await factory.cleanup()
    import sys

    assert sys.modules[type(agent).__module__].closed == ["own"]
