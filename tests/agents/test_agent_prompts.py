"""How the three kinds of agents fill their prompts, through real runs."""

import uuid
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
from agent_house import House
from pydantic_ai import Agent

from automagik.agents import AgentConfig, AgentFactory, AgentInput, AutomagikAgent
from automagik.errors import InvalidInput, RunFailed
from automagik.memory import MemoryInput
from automagik.types import SYSTEM

pytestmark = pytest.mark.anyio

PROMPT = "You are {{agent_name}} for {{user_id}}. Style: {{style}}. Colour: {{colour}}. {{nothing}}|"
VARIABLES = {"style": "plain", "colour": "", "nothing": ""}
HOSTILE = "{{agent_name}} {{#each this}} {{{style}}} {{ current_date }} \\{{x}}"


async def from_code(house: House) -> AgentFactory:
    house.write(
        "asker.py",
        f"""
from automagik.agents import AgentConfig, SimpleAgent

class Asker(SimpleAgent):
    config = AgentConfig(variables={VARIABLES!r}, tools=("memory",), model="scripted")
    _code_prompt_text = {PROMPT!r}
""",
    )
    return await house.discovered()


async def from_spec(house: House) -> AgentFactory:
    house.write(
        "asker.yaml",
        f"""
model: scripted
instructions: ["{PROMPT}"]
deps_schema: {{type: object, properties: {{style: {{default: plain}}}}}}
variables: {{colour: "", nothing: ""}}
tools: [memory]
""",
    )
    return await house.discovered()


async def from_api(house: House) -> AgentFactory:
    factory = await house.discovered()
    await factory.create(
        "asker",
        {"model": "scripted", "instructions": PROMPT, "variables": VARIABLES, "tools": ["memory"]},
        caller=SYSTEM,
    )
    return factory


async def from_pydantic(house: House) -> AgentFactory:
    house.write(
        "asker.py",
        f"""
from pydantic_ai import Agent
from automagik.agents import AgentConfig, PydanticAgent

agent = PydanticAgent(
    Agent(name="asker", instructions="The author's own."),
    config=AgentConfig(instructions={PROMPT!r}, variables={VARIABLES!r}, model="scripted"),
)
""",
    )
    return await house.discovered()


Kind = Callable[[House], Awaitable[AgentFactory]]
KINDS = [from_code, from_spec, from_api, from_pydantic]


@pytest.fixture(params=KINDS, ids=[kind.__name__ for kind in KINDS])
async def factory(house: House, request: pytest.FixtureRequest) -> AgentFactory:
    factory = await cast("Kind", request.param)(house)
    assert [info.error for info in factory.list_available_agents() if info.error] == []
    return factory


def told(house: House) -> str:
    instructions = house.models.instructions[-1]
    assert instructions is not None
    return instructions.removeprefix("The author's own.").strip()


async def ask(house: House, agent: AutomagikAgent, user: uuid.UUID, **changes: object) -> str:
    variables = await house.memories.resolve(
        agent.variable_names(), agent_id=agent.db_id, user_id=user, session_key=None
    )
    response = await agent.process_message(
        AgentInput("hello"), house.options(agent, user_id=user, variables=variables, **changes)
    )
    assert response.message == "fine"
    return told(house)


async def test_what_a_memory_holds_is_never_expanded(house: House, factory: AgentFactory) -> None:
    user = await house.store.write(lambda tx: tx.users.create().user_id)
    agent = factory.get_agent("asker")
    await house.memories.create(MemoryInput("colour", HOSTILE, user_id=user), SYSTEM)
    assert await ask(house, agent, user) == f"You are asker for {user}. Style: plain. Colour: {HOSTILE}. |"
    given = await ask(house, agent, user, prompt_variables={"style": HOSTILE})
    assert given == f"You are asker for {user}. Style: {HOSTILE}. Colour: {HOSTILE}. |"


async def test_the_requests_variables_win_over_memories_and_these_over_defaults(
    house: House, factory: AgentFactory
) -> None:
    user = await house.store.write(lambda tx: tx.users.create().user_id)
    agent = factory.get_agent("asker")
    assert "Style: plain." in await ask(house, agent, user)
    await house.memories.create(MemoryInput("style", "of the agent", agent="asker"), SYSTEM)
    assert "Style: of the agent." in await ask(house, agent, user)
    await house.memories.create(MemoryInput("style", "of the user", user_id=user), SYSTEM)
    assert "Style: of the user." in await ask(house, agent, user)
    assert "Style: asked." in await ask(house, agent, user, prompt_variables={"style": "asked"})


async def test_a_prompt_that_a_person_activates_is_used_at_once(house: House, factory: AgentFactory) -> None:
    user = await house.store.write(lambda tx: tx.users.create().user_id)
    agent = factory.get_agent("asker")
    await agent.dependencies.prompts.create(
        agent.db_id, "Mine, {{style}}.", known=agent.known_variables, caller=SYSTEM, is_active=True
    )
    assert agent.variable_names() == ("style",)
    assert await ask(house, agent, user) == "Mine, plain."


async def test_the_requests_prompt_is_taken_literally(house: House, factory: AgentFactory) -> None:
    user = await house.store.write(lambda tx: tx.users.create().user_id)
    agent = factory.get_agent("asker")
    assert await ask(house, agent, user, system_prompt="Say {{style}} {{#if}}") == "Say {{style}} {{#if}}"


async def test_only_declared_variables_may_be_given(house: House, factory: AgentFactory) -> None:
    agent = factory.get_agent("asker")
    agent.check_prompt_variables({"style": "x"})
    with pytest.raises(InvalidInput) as refused:
        agent.check_prompt_variables({"stile": "x"})
    assert refused.value.field == ("body", "prompt_variables", "stile")
    assert refused.value.hint == "Did you mean 'style'?"


async def test_a_memory_that_another_processs_prompt_needs_is_fetched(house: House) -> None:
    factory = await from_api(house)
    agent = factory.get_agent("asker")
    user = await house.store.write(lambda tx: tx.users.create().user_id)
    await house.memories.create(MemoryInput("hat", "bowler", user_id=user), SYSTEM)
    await house.prompts.create(agent.db_id, "Hat: {{hat}}", known=set(), caller=SYSTEM, is_active=True)
    assert agent.variable_names() == ("agent_name", "user_id", "style", "colour", "nothing")
    agent.dependencies.prompts.forget(agent.db_id)
    assert await ask(house, agent, user) == "Hat: bowler"


async def test_the_tools_that_a_config_names_are_really_attached(house: House) -> None:
    factory = await from_api(house)
    await ask(house, factory.get_agent("asker"), await house.store.write(lambda tx: tx.users.create().user_id))
    assert house.models.tools[-1] == ["store_memory", "get_memory", "list_memories", "delete_memory"]


async def test_an_agents_own_model_that_can_not_be_had_is_the_runs_failure(house: House) -> None:
    house.write("lost.yaml", "model: nosuchvendor:x\ninstructions: hi")
    agent = (await house.discovered()).get_agent("lost")
    with pytest.raises(RunFailed) as failed:
        await agent.process_message(AgentInput("x"), house.options(agent))
    assert failed.value.outcome == "model_error"
    with pytest.raises(InvalidInput):
        await agent.process_message(AgentInput("x"), house.options(agent, model="nosuchvendor:y"))


async def test_the_requests_model_and_fallbacks_are_used(house: House) -> None:
    house.write("other.yaml", "model: demo\nfallback_models: [test]\ninstructions: hi")
    agent = (await house.discovered()).get_agent("other")
    assert (await agent.process_message(AgentInput("x"), house.options(agent, model="scripted"))).model == "scripted"
    assert "demo" in (await agent.process_message(AgentInput("x"), house.options(agent))).message


def test_an_agent_shows_its_prompt_and_limits_before_it_is_bound() -> None:
    from automagik.agents import PydanticAgent, SimpleAgent

    agent = SimpleAgent()
    assert "{{agent_name}}" in agent.code_prompt
    assert agent.usage_limits.request_limit == 50
    assert PydanticAgent(Agent(name="x"), config=AgentConfig(instructions="y")).code_prompt == "y"
