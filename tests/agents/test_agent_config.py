from decimal import Decimal
from typing import Any

import pytest

from automagik.agents import AgentConfig, agent_document
from automagik.errors import InvalidInput

FULL: dict[str, Any] = {
    "description": "Helps.",
    "model": "openai:gpt-x",
    "fallback_models": ["anthropic:y"],
    "instructions": "Hi {{name}}",
    "tools": ["memory"],
    "variables": {"name": "you"},
    "allow_overrides": ["model", "system_prompt"],
    "allowed_models": ["openai:*"],
    "message_limit": 5,
    "timeout_seconds": 9.5,
    "request_limit": 3,
    "tool_calls_limit": 4,
    "total_tokens_limit": 1000,
    "cost_limit_usd": "0.25",
    "spec": {"model_settings": {"temperature": 0}, "capabilities": ["Thinking"]},
}


def test_a_config_is_its_json_and_back() -> None:
    config = AgentConfig.parse(FULL)
    assert config.to_json() == FULL
    assert AgentConfig.parse(config.to_json()) == config
    assert AgentConfig.parse(agent_document(config, name="helper")) == config
    assert AgentConfig.parse({}).to_json() == {}


def test_limits_are_those_of_pydantic_ai() -> None:
    limits = AgentConfig.parse(FULL).usage_limits
    assert (limits.request_limit, limits.tool_calls_limit, limits.total_tokens_limit) == (3, 4, 1000)
    assert limits.cost_limit == Decimal("0.25")
    assert AgentConfig().usage_limits.request_limit == 50


def test_a_pydantic_ai_spec_becomes_a_config() -> None:
    config = AgentConfig.parse(
        {
            "$schema": "./x.json",
            "name": "helper",
            "model": "openai-chat:x",
            "instructions": ["You help {{user_name}}.", "Be brief."],
            "deps_schema": {
                "type": "object",
                "properties": {"user_name": {"type": "string", "default": "somebody"}, "n": {}},
            },
            "variables": {"n": "3"},
            "retries": 2,
            "tool_timeout": 20,
            "metadata": {"team": "core"},
            "capabilities": [{"Thinking": {"effort": "low"}}],
            "tools": None,
        }
    )
    assert config.instructions == "You help {{user_name}}.\n\nBe brief."
    assert config.variables == {"user_name": "somebody", "n": "3"}
    assert config.spec == {
        "retries": 2,
        "tool_timeout": 20,
        "metadata": {"team": "core"},
        "capabilities": [{"Thinking": {"effort": "low"}}],
    }


@pytest.mark.parametrize(
    ("data", "field", "says"),
    [
        ({"tolls": []}, ("body", "tolls"), "Did you mean 'tools'?"),
        ({"instruction": ""}, ("body", "instruction"), "Did you mean 'instructions'?"),
        ({"qqq": 1}, ("body", "qqq"), "Known are"),
        ({"model": 7}, ("body", "model"), "string"),
        ({"message_limit": -1}, ("body", "message_limit"), "greater"),
        ({"cost_limit_usd": "NaN"}, ("body", "cost_limit_usd"), "finite"),
        ({"tools": ["x", 3]}, ("body", "tools", 1), "string"),
        ({"variables": {"two words": ""}}, ("body", "variables"), "no name"),
        ({"allow_overrides": ["tools"]}, ("body", "allow_overrides", 0), "model"),
        ({"spec": {"instructions": "x"}}, ("body", "spec"), "unknown key"),
        ({"spec": 3}, ("body", "spec"), "dictionary"),
        ({"instructions": ["a", 3]}, ("body", "instructions", 1), "text"),
        ({"deps_schema": 3}, ("body", "deps_schema"), "object"),
    ],
)
def test_what_is_no_config_is_refused_by_its_key(data: dict[str, Any], field: tuple[Any, ...], says: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        AgentConfig.parse(data, field=("body",))
    assert refused.value.field == field
    assert says in f"{refused.value.detail} {refused.value.hint}"


@pytest.mark.parametrize(
    ("config", "model", "allowed"),
    [
        ({}, "openai:x", False),
        ({"allow_overrides": ["system_prompt"]}, "openai:x", False),
        ({"allow_overrides": ["model"]}, "openai:x", True),
        ({"allow_overrides": ["model"], "allowed_models": ["openai:*", "demo"]}, "openai:x", True),
        ({"allow_overrides": ["model"], "allowed_models": ["openai:*", "demo"]}, "anthropic:x", False),
        ({"allowed_models": ["openai:*"]}, "openai:x", False),
    ],
)
def test_a_caller_may_ask_for_the_models_that_the_config_opens(
    config: dict[str, Any], model: str, allowed: bool
) -> None:
    assert AgentConfig.parse(config).allows_model(model) is allowed
