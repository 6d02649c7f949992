"""What a hostile client sends: values of the wrong kind, bodies that cost more than they weigh, names of other people."""

import json
from pathlib import Path
from typing import Any

import pytest
from api_house import ApiHouse, open_house

from automagik.api.bodies import decode_json
from automagik.errors import InvalidInput, TooLarge
from automagik.settings import Settings

pytestmark = pytest.mark.anyio

HELLO: dict[str, Any] = {"role": "user", "content": "hello"}
WRONG_KINDS: list[dict[str, Any]] = [
    {"messages": [{"role": [], "content": "x"}]},
    {"messages": [{"role": {}, "content": "x"}]},
    {"messages": [{"type": []}]},
    {"messages": [{"role": "user", "content": [{"type": ["text"]}]}]},
    {"messages": [{"role": "user", "content": [{"type": {}}]}]},
    {"messages": [{"role": "assistant", "tool_calls": 5}, HELLO]},
    {"messages": [{"role": "assistant", "tool_calls": True}, HELLO]},
    {"messages": [HELLO], "n": []},
    {"messages": [HELLO], "n": {}},
]


@pytest.mark.parametrize("body", WRONG_KINDS)
async def test_a_parameter_of_the_wrong_kind_is_a_400_at_the_openai_door(house: ApiHouse, body: dict[str, Any]) -> None:
    answer = await house.admin.post("/v1/chat/completions", json={"model": "echo", **body})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


async def test_a_whole_number_too_long_for_json_does_not_come_in_by_a_side_door(house: ApiHouse) -> None:
    """A lone surrogate makes another parser read the body; here it is overwritten by a second member of the same name."""
    number = b"1" * 40
    for path, body in (
        ("/api/v1/sessions", b'{"session_name":"\\ud800","session_name":"long","metadata":{"n":%b}}' % number),
        ("/api/v1/agent/echo/run", b'{"message_content":"x","context":"\\ud800","context":{"n":%b}}' % number),
    ):
        answer = await house.admin.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code in {200, 201}
    for path in ("/api/v1/sessions", "/api/v1/runs"):
        assert (await house.admin.get(path)).status_code == 200, "one row must not break the list for everybody"


@pytest.mark.parametrize(
    "body",
    [
        b'{"message_content":"x","messages":[' + b"{}," * 300_000 + b"{}]}",
        b'{"message_content":"x","context":{"a":[' + b"1," * 300_000 + b"1]}}",
    ],
)
async def test_a_body_of_more_values_than_can_be_read_at_once_is_a_413(house: ApiHouse, body: bytes) -> None:
    answer = await house.admin.post(
        "/api/v1/agent/echo/run", content=body, headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_a_text_may_look_like_many_values() -> None:
    body = {"text": '{"a":[1,2,3]},\\' * 100_000}
    assert decode_json(json.dumps(body).encode()) == body
    for hostile in (b'["' + b'",1,"' * 300_000 + b'"]', b'\\"' * 1_000_000 + b"," * 300_000):
        with pytest.raises((TooLarge, InvalidInput)):
            decode_json(hostile)


async def test_what_stands_in_every_list_is_small(house: ApiHouse) -> None:
    large = {"text": "x" * 70_000}
    for path, body in (
        ("/api/v1/sessions", {"metadata": large}),
        ("/api/v1/users", {"user_data": large}),
        ("/api/v1/memories", {"name": "a", "content": "b", "agent_name": "echo", "metadata": large}),
    ):
        answer = await house.admin.post(path, json=body)
        assert answer.status_code == 422
        assert "65536 bytes" in answer.json()["detail"]


async def test_a_key_bound_to_a_user_reads_only_that_users_audit(house: ApiHouse) -> None:
    ada, bob = await house.user(), await house.user()
    scopes = ["audit:read", "memory:write", "agents:write", "prompts:write"]
    hers, his = await house.client(*scopes, user_id=ada), await house.client(*scopes, user_id=bob)
    for client, name in ((hers, "hers"), (his, "his")):
        stored = await client.post("/api/v1/memories", json={"name": name, "content": "x", "agent_name": "echo"})
        assert stored.status_code == 201
    rows = (await hers.get("/api/v1/audit")).json()["data"]
    assert [row["details"]["name"] for row in rows] == ["hers"]
    assert len((await house.admin.get("/api/v1/audit")).json()["data"]) > len(rows)


async def test_the_hint_for_an_unknown_variable_names_no_memory_of_another_user(house: ApiHouse) -> None:
    ada, bob = await house.user(), await house.user()
    scopes = ["memory:write", "agents:write", "prompts:write"]
    hers, his = await house.client(*scopes, user_id=ada), await house.client(*scopes, user_id=bob)
    await his.post("/api/v1/memories", json={"name": "diagnosis_of_bob", "content": "x", "agent_name": "echo"})
    prompt = {"agent_name": "echo", "prompt_text": "{{diagnosis_of_bo}}"}
    agent = {"name": "spy", "config": {"instructions": "{{diagnosis_of_bo}}"}}
    for path, body in (("/api/v1/prompts", prompt), ("/api/v1/agents", agent)):
        answer = await hers.post(path, json=body)
        assert answer.json()["code"] == "unknown_variable"
        assert "diagnosis_of_bob" not in answer.text
    assert "diagnosis_of_bob" in (await his.post("/api/v1/prompts", json=prompt)).text


@pytest.mark.parametrize(
    "config",
    [
        {"deps_schema": {"properties": {"x": {}}}, "variables": [1]},
        {"retries": "999999"},
        {"retries": 1e9},
        {"retries": {"tools": "50"}},
    ],
)
async def test_a_config_of_the_wrong_kind_is_refused(house: ApiHouse, config: dict[str, Any]) -> None:
    answer = await house.admin.post("/api/v1/agents", json={"name": "odd", "config": config})
    assert answer.status_code == 422


async def test_a_prompt_that_would_fill_the_memory_ends_its_run_instead(house: ApiHouse) -> None:
    config = {"instructions": "{{a}}" * 10_000, "variables": {"a": "x" * 100_000}, "model": "demo"}
    assert (await house.admin.post("/api/v1/agents", json={"name": "bomb", "config": config})).status_code == 201
    answer = await house.admin.post("/api/v1/agent/bomb/run", json={"message_content": "x"})
    assert answer.status_code < 500
    assert "4000000" in answer.json()["detail"]


DEEP = """
from pydantic_ai import Agent, ModelResponse, TextPart
from pydantic_ai.messages import ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import FunctionModel


async def answer(messages, info):
    if isinstance(messages[-1].parts[-1], ToolReturnPart):
        return ModelResponse(parts=[TextPart("done")])
    return ModelResponse(parts=[ToolCallPart("give", {})])


agent = Agent(FunctionModel(answer), name="deep")


@agent.tool_plain
async def give() -> object:
    value = []
    for _ in range(250):
        value = [value]
    return value
"""


async def test_what_a_tool_gives_however_deep_leaves_its_run_and_its_session_to_be_seen(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "deep.py").write_text(DEEP)
    async with open_house(Settings(data_dir=tmp_path)) as house:
        told = await house.admin.post("/api/v1/agent/deep/run", json={"message_content": "go"})
        assert told.status_code == 200
        run, session = told.json()["run_id"], told.json()["session_id"]
        for path in (f"runs/{run}", f"runs/{run}/events", f"sessions/{session}/messages"):
            answer = await house.admin.get(f"/api/v1/{path}")
            assert answer.status_code == 200, path
        stream = await house.admin.get(f"/api/v1/runs/{run}/events", headers={"accept": "text/event-stream"})
        assert stream.text.count("event: run_finished") == 1
        assert "nested too deep" in stream.text
