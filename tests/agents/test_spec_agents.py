from collections.abc import Callable
from typing import Any

import pytest
from agent_house import House
from pydantic_ai.capabilities import CAPABILITY_TYPES

from automagik.agents import ALLOWED_CAPABILITIES, AgentInput
from automagik.errors import InvalidInput
from automagik.types import SYSTEM

pytestmark = pytest.mark.anyio

SPEC: dict[str, Any] = {
    "model": "scripted",
    "description": "Helps.",
    "instructions": "Help {{name}}.",
    "variables": {"name": "you"},
    "model_settings": {"temperature": 0.1, "max_tokens": 100},
    "retries": {"tools": 2, "output": 3},
    "tool_timeout": 20,
    "metadata": {"team": "core"},
    "end_strategy": "early",
    "capabilities": [
        "Citations",
        {"Thinking": {"effort": "low"}},
        {"name": "ToolSearch", "arguments": {"max_results": 3}},
        {"PrefixTools": {"prefix": "x", "capability": {"Caching": {"retention": "1h"}}}},
        "ReinjectSystemPrompt",
        "RaiseContentFilterError",
        "IncludeToolReturnSchemas",
    ],
}


def test_every_capability_of_the_library_was_read() -> None:
    """A capability that a newer library brings is refused until somebody has read it and listed it here or allowed it."""
    refused = {
        "BatchModelRequests",
        "FileUnderstanding",
        "ImageGeneration",
        "Instrumentation",
        "LocalWorkspace",
        "MCP",
        "NativeTool",
        "SetToolMetadata",
        "WebFetch",
        "WebSearch",
        "XSearch",
    }
    assert set(CAPABILITY_TYPES) == refused | ALLOWED_CAPABILITIES


async def test_a_spec_with_allowed_capabilities_runs(house: House) -> None:
    factory = await house.discovered()
    info = await factory.create("helper", SPEC, caller=SYSTEM)
    assert (info.type, info.source, info.error) == ("spec", "api", None)
    agent = factory.get_agent("helper")
    assert (await agent.process_message(AgentInput("hi"), house.options(agent))).message == "fine"
    assert house.models.instructions == ["Help you."]


SHAPES: list[Callable[[str], Any]] = [
    lambda name: name,
    lambda name: {name: {"url": "http://127.0.0.1/"}},
    lambda name: {"name": name, "arguments": None},
    lambda name: {"PrefixTools": {"prefix": "x", "capability": name}},
    lambda name: {
        "PrefixTools": {"prefix": "x", "capability": {"PrefixTools": {"prefix": "y", "capability": {name: {}}}}}
    },
    lambda name: {"name": "PrefixTools", "arguments": {"prefix": "x", "capability": {"name": name, "arguments": {}}}},
]


async def test_a_capability_that_reaches_out_is_refused_in_every_shape(house: House) -> None:
    factory = await house.discovered()
    for name in sorted(set(CAPABILITY_TYPES) - ALLOWED_CAPABILITIES):
        for shape in SHAPES:
            with pytest.raises(InvalidInput) as refused:
                await factory.create("evil", {"capabilities": [shape(name)]}, caller=SYSTEM)
            assert refused.value.code == "capability_not_allowed"
            assert refused.value.field[:4] == ("body", "spec", "capabilities", 0)
            assert f"'{name}'" in refused.value.detail
    assert factory.names() == ["simple"]


def deep(levels: int) -> Any:
    value: Any = "Thinking"
    for _ in range(levels):
        value = {"PrefixTools": {"prefix": "x", "capability": value}}
    return value


HOSTILE: list[tuple[dict[str, Any], tuple[str | int, ...]]] = [
    ({"capabilities": ["NoSuchThing"]}, ("capabilities", 0)),
    ({"capabilities": "Thinking"}, ("capabilities",)),
    ({"capabilities": [{"Thinking": {}, "Caching": {}}]}, ("capabilities", 0)),
    ({"capabilities": [{"Thinking": {"nonsense": 1}}]}, ()),
    ({"capabilities": [7]}, ("capabilities", 0)),
    ({"capabilities": [deep(50)]}, ("capabilities",)),
    (
        {"capabilities": [{"ToolSearch": {"tool_description": "{{deps}}"}}]},
        ("capabilities", 0, "ToolSearch", "tool_description"),
    ),
    ({"metadata": {"a": ["{{x}}"]}}, ("metadata", "a", 0)),
    ({"metadata": {"{{x}}": 1}}, ("metadata", "{{x}}")),
    ({"metadata": {"a": "\x00"}}, ("metadata", "a")),
    ({"output_schema": {"type": "object", "description": "{{x}}"}}, ("output_schema", "description")),
    ({"output_schema": 3}, ("output_schema",)),
    ({"output_schema": {"type": "text"}}, ()),
    ({"model_settings": {"extra_body": {"tools": []}}}, ("model_settings", "extra_body")),
    ({"model_settings": {"extra_headers": {}}}, ("model_settings", "extra_headers")),
    ({"model_settings": {"openai_user": "x"}}, ("model_settings", "openai_user")),
    ({"model_settings": [1]}, ("model_settings",)),
    ({"retries": 1000}, ("retries",)),
    ({"retries": {"tools": -1}}, ("retries",)),
    ({"retries": "x"}, ()),
    ({"tool_timeout": -1}, ()),
    ({"end_strategy": "never"}, ()),
]


@pytest.mark.parametrize(("spec", "field"), HOSTILE)
async def test_a_hostile_or_broken_spec_is_refused_at_its_place(house: House, spec: dict[str, Any], field: Any) -> None:
    factory = await house.discovered()
    with pytest.raises(InvalidInput) as refused:
        await factory.create("evil", spec, caller=SYSTEM)
    assert refused.value.field[: 2 + len(field)] == ("body", "spec", *field)
    assert factory.names() == ["simple"]


@pytest.mark.parametrize(
    ("config", "field", "says"),
    [
        ({"instructions": "Hi {{nmae}}", "variables": {"name": ""}}, ("instructions",), "Did you mean 'name'?"),
        ({"instructions": "Hi {{name"}, ("instructions",), "not closed"),
        ({"instructions": "{{#if x}}"}, ("instructions",), "no name"),
        ({"instructions": "a\x00"}, ("instructions",), "NUL"),
        ({"description": "a\ud800"}, ("description",), "unicode"),
        ({"tools": ["memroy"]}, ("tools", 0), "Did you mean 'memory'?"),
        ({"model": "openai"}, ("model",), "model"),
        ({"model": "demo", "fallback_models": ["nosuch:x"]}, ("fallback_models",), "nosuch"),
        ({"variables": {"a": "\x00"}}, ("variables",), "NUL"),
        ({"colour": 1}, ("colour",), "no key 'colour'"),
    ],
)
async def test_a_config_is_checked_when_it_is_saved(
    house: House, config: dict[str, Any], field: Any, says: str
) -> None:
    factory = await house.discovered()
    with pytest.raises(InvalidInput) as refused:
        await factory.create("mine", config, caller=SYSTEM)
    assert refused.value.field == ("body", *field)
    assert says in f"{refused.value.detail} {refused.value.hint}"


async def test_a_file_may_use_any_capability_but_no_hidden_template(house: House) -> None:
    house.write("local.yaml", f"capabilities:\n  - LocalWorkspace: {{working_dir: '{house.settings.data_dir}'}}\n")
    house.write("hidden.yaml", "instructions: fine\nmetadata: {who: '{{name}}'}\n")
    house.write("described.yaml", "description: 'For {{name}}'\n")
    factory = await house.discovered()
    errors = {info.name: info.error for info in factory.list_available_agents()}
    assert errors["local"] is None
    assert "metadata.who" in str(errors["hidden"])
    assert errors["described"] is None, "a description of ours is a plain text, never expanded"


async def test_a_structured_output_is_declared_by_a_schema(house: House) -> None:
    from pydantic_ai import ModelResponse
    from pydantic_ai.messages import ToolCallPart

    house.models.answer = lambda _, info: ModelResponse(
        parts=[ToolCallPart(info.output_tools[0].name, {"city": "Oslo"})]
    )
    factory = await house.discovered()
    schema = {"type": "object", "title": "Place", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    await factory.create("places", {"model": "scripted", "output_schema": schema}, caller=SYSTEM)
    agent = factory.get_agent("places")
    response = await agent.process_message(AgentInput("where?"), house.options(agent))
    assert (response.data, response.message) == ({"city": "Oslo"}, '{"city":"Oslo"}')
