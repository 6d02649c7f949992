"""Agents, sessions, users, memories, prompts, keys, tools and the audit log over HTTP."""

import asyncio
from typing import Any

import pytest
from api_house import ApiHouse

pytestmark = pytest.mark.anyio


async def test_users_are_made_found_changed_and_deleted(each_house: ApiHouse) -> None:
    admin = each_house.admin
    made = await admin.post("/api/v1/users", json={"email": "ann@example.org", "user_data": {"a": [1]}})
    user = made.json()
    assert made.status_code == 201
    path = made.headers["location"]
    assert path == f"/api/v1/users/{user['user_id']}"
    assert set(user) == {"user_id", "email", "phone_number", "user_data", "created_at", "updated_at"}
    assert user["created_at"].endswith("Z")
    assert (await admin.get(path)).json() == user
    assert (await admin.get("/api/v1/users/ann@example.org")).json() == user
    assert (await admin.get("/api/v1/users", params={"email": "ann@example.org"})).json()["data"] == [user]
    changed = (await admin.patch(path, json={"phone_number": "+1", "email": None})).json()
    assert (changed["phone_number"], changed["email"]) == ("+1", "ann@example.org")
    assert (await admin.post("/api/v1/users", json={"email": "ann@example.org"})).status_code == 409
    assert (await admin.delete(path)).status_code == 204
    assert (await admin.get(path)).status_code == 404
    for action in ("user.create", "user.update", "user.delete"):
        rows = await each_house.audit(action)
        assert [row["target"] for row in rows] == [user["user_id"]]
        assert rows[0]["key_id"].startswith("key_")
        assert rows[0]["request_id"].startswith("req_")


async def test_sessions_are_made_found_by_name_changed_and_deleted(each_house: ApiHouse) -> None:
    admin = each_house.admin
    made = await admin.post(
        "/api/v1/sessions", json={"session_name": "trip", "agent_name": "echo", "metadata": {"a": 1}}
    )
    session = made.json()
    path = made.headers["location"]
    assert (made.status_code, session["agent_name"], session["message_count"]) == (201, "echo", 0)
    assert (await admin.get(path)).json() == session
    assert (await admin.get("/api/v1/sessions/trip")).json() == session
    missing = await admin.get("/api/v1/sessions/trap")
    assert (missing.status_code, missing.json()["hint"]) == (404, "Did you mean 'trip'?")
    changed = (await admin.patch(path, json={"session_name": "journey"})).json()
    assert (changed["session_name"], changed["metadata"]) == ("journey", {"a": 1})
    await admin.post("/api/v1/agent/tooled/run", json={"message_content": "go", "session_id": session["session_id"]})
    messages = (await admin.get(f"{path}/messages")).json()["data"]
    assert [message["role"] for message in messages] == ["assistant", "tool", "assistant", "user"]
    assert messages[2]["tool_calls"][0]["tool_name"] == "work"
    assert messages[1]["tool_outputs"][0]["content"] == "done well"
    assert messages[0]["run_id"].startswith("run_")
    first = (await admin.get(f"{path}/messages", params={"limit": 1})).json()
    rest = (await admin.get(f"{path}/messages", params={"cursor": first["next_cursor"]})).json()
    assert first["data"] + rest["data"] == messages
    message = f"/api/v1/messages/{messages[0]['message_id']}"
    assert (await admin.get(message)).json()["raw_payload"]["kind"] == "response"
    assert (await admin.delete(message)).status_code == 204
    assert (await admin.get(message)).status_code == 404
    assert (await admin.get(path)).json()["message_count"] == 3
    assert (await admin.delete(path)).status_code == 204
    assert (await admin.get(f"{path}/messages")).status_code == 404


async def test_memories_fill_prompts_and_one_of_the_same_name_is_replaced(each_house: ApiHouse) -> None:
    admin = each_house.admin
    body = {"name": "style", "content": "warm", "agent_name": "echo", "metadata": {"a": 1}, "read_mode": "system"}
    made = await admin.post("/api/v1/memories", json=body)
    memory = made.json()
    assert made.status_code == 201
    path = made.headers["location"]
    assert (memory["agent_name"], memory["user_id"], memory["active"]) == ("echo", None, True)
    assert (await admin.get(path)).json() == memory
    again = await admin.post("/api/v1/memories", json={**body, "content": "cool"})
    assert (again.status_code, again.json()["memory_id"]) == (200, memory["memory_id"])
    answer = await admin.post("/api/v1/agent/echo/run", json={"message_content": "hi"})
    assert answer.json()["message"] == "1: hi / Be cool."
    changed = (await admin.patch(path, json={"content": "{{name}}"})).json()
    assert (changed["content"], changed["read_mode"]) == ("{{name}}", "system")
    answer = await admin.post("/api/v1/agent/echo/run", json={"message_content": "hi"})
    assert answer.json()["message"] == "1: hi / Be {{name}}."
    assert (await admin.get("/api/v1/memories", params={"agent_name": "echo", "name": "style"})).json()["data"] == [
        changed
    ]
    assert (await admin.delete(path)).status_code == 204
    assert (await admin.get(path)).status_code == 404


async def test_prompts_have_versions_of_which_one_is_active(each_house: ApiHouse) -> None:
    admin = each_house.admin
    first = (await admin.get("/api/v1/prompts", params={"agent_name": "echo"})).json()["data"][0]
    assert (first["prompt_text"], first["is_default_from_code"], first["is_active"]) == ("Be {{style}}.", True, True)
    made = await admin.post(
        "/api/v1/prompts", json={"agent_name": "echo", "prompt_text": "Rather {{style}}!", "name": "b"}
    )
    prompt, path = made.json(), made.headers["location"]
    assert (made.status_code, prompt["version"], prompt["is_active"], prompt["status_key"]) == (
        201,
        2,
        False,
        "default",
    )
    assert (await admin.post(f"{path}/activate")).json()["is_active"] is True
    answer = await admin.post("/api/v1/agent/echo/run", json={"message_content": "hi"})
    assert answer.json()["message"] == "1: hi / Rather plain!"
    assert (await admin.delete(path)).status_code == 409
    tag = (await admin.get(path)).headers["etag"]
    changed = await admin.patch(path, json={"prompt_text": "Very {{style}}!"}, headers={"if-match": tag})
    assert (changed.status_code, changed.json()["prompt_text"]) == (200, "Very {{style}}!")
    stale = await admin.patch(path, json={"name": "c"}, headers={"if-match": tag})
    assert (stale.status_code, stale.json()["code"]) == (412, "stale_edit")
    assert (await admin.post(f"{path}/deactivate")).json()["is_active"] is False
    assert (await admin.delete(path)).status_code == 204
    code = await admin.patch(f"/api/v1/prompts/{first['prompt_id']}", json={"prompt_text": "x"})
    assert code.status_code == 409


async def test_an_agent_made_through_the_api_can_be_run_at_once(each_house: ApiHouse) -> None:
    admin = each_house.admin
    config: dict[str, Any] = {
        "description": "Teaches.",
        "instructions": "Teach {{what}}.",
        "variables": {"what": "Welsh"},
    }
    made = await admin.post("/api/v1/agents", json={"name": "tutor", "config": {**config, "tools": ["datetime"]}})
    agent, path = made.json(), made.headers["location"]
    assert (made.status_code, agent["source"], agent["description"]) == (201, "api", "Teaches.")
    assert agent["config"]["tools"] == ["datetime"]
    assert (await admin.get(path)).json() == agent
    assert (await admin.post("/api/v1/agent/tutor/run", json={"message_content": "hi"})).status_code == 200
    tag = (await admin.get(path)).headers["etag"]
    changed = (
        await admin.patch(path, json={"config": {**config, "description": "Sings."}}, headers={"if-match": tag})
    ).json()
    assert (changed["description"], "tools" in changed["config"]) == ("Sings.", False)
    stale = await admin.patch(path, json={"active": False}, headers={"if-match": tag})
    assert stale.status_code == 412
    copy = (await admin.post(f"{path}/copy", json={"name": "tutor2", "config": {"description": "Copies."}})).json()
    assert (copy["description"], copy["config"]["variables"]) == ("Copies.", {"what": "Welsh"})
    assert (await admin.patch(path, json={"active": False}, headers={"if-match": '"x"'})).status_code == 412
    assert (await admin.patch(path, json={"active": False})).json()["active"] is False
    assert (await admin.post("/api/v1/agent/tutor/run", json={"message_content": "hi"})).status_code == 404
    assert (await admin.delete(path)).status_code == 204
    assert (await admin.get(path)).status_code == 404
    assert (await admin.delete("/api/v1/agents/echo")).status_code == 409
    assert len(await each_house.audit("agent.update")) == 2


async def test_agents_are_listed_in_pages_and_as_the_earlier_api_did(house: ApiHouse) -> None:
    names = [agent["name"] for agent in (await house.admin.get("/api/v1/agents")).json()["data"]]
    assert names == sorted(names)
    assert {"echo", "tooled", "simple"} <= set(names)
    seen: list[str] = []
    cursor: str | None = None
    for _ in names:
        params = {"limit": "1"} | ({"cursor": cursor} if cursor else {})
        page = (await house.admin.get("/api/v1/agents", params=params)).json()
        seen += [agent["name"] for agent in page["data"]]
        cursor = page["next_cursor"]
    assert (seen, cursor) == (names, None)
    earlier = (await house.admin.get("/api/v1/agent/list")).json()
    assert {"id": "echo", "name": "echo", "description": "Says it again."} in earlier


async def test_keys_are_made_shown_once_and_revoked_at_once(each_house: ApiHouse) -> None:
    admin = each_house.admin
    wanted = {"name": "ci", "scopes": ["agents:*:run"], "rate_limit": "100/minute", "max_concurrent_runs": 4}
    made = await admin.post("/api/v1/keys", json=wanted)
    key = made.json()
    assert (made.status_code, key["key"][:4], key["prefix"]) == (201, "amk_", key["key"][:8])
    path = made.headers["location"]
    shown = (await admin.get(path)).json()
    assert "key" not in shown
    assert shown["scopes"] == ["agents:*:run"]
    client = await each_house.keyless(headers={"authorization": f"Bearer {key['key']}"})
    own = (await client.get("/api/v1/keys/self")).json()
    assert (own["key_id"], own["name"], own["rate_limit"]) == (key["key_id"], "ci", "100/minute")
    assert own["max_concurrent_runs"] == key["max_concurrent_runs"] == 4
    assert (await admin.delete(path)).status_code == 204
    assert (await client.get("/api/v1/keys/self")).status_code == 401
    assert (await admin.get(path)).json()["revoked_at"] is not None
    assert key["key"] not in str(await each_house.audit("key.create"))


async def test_tools_are_listed_with_their_parameters(house: ApiHouse) -> None:
    tools = (await house.admin.get("/api/v1/tools")).json()["data"]
    assert {tool["group"] for tool in tools} >= {"memory", "datetime"}
    assert all(tool["parameters"]["type"] == "object" for tool in tools)


async def test_the_audit_log_names_key_and_request(house: ApiHouse) -> None:
    answer = await house.admin.post("/api/v1/users", json={}, headers={"x-request-id": "my-request.1"})
    assert answer.headers["x-request-id"] == "my-request.1"
    row = (await house.audit("user.create"))[0]
    assert (row["request_id"], row["target"]) == ("my-request.1", answer.json()["user_id"])
    own = (await house.admin.get("/api/v1/keys/self")).json()
    assert row["key_id"] == own["key_id"]


async def test_lists_are_stable_while_rows_are_added(each_house: ApiHouse) -> None:
    admin = each_house.admin
    made = [(await admin.post("/api/v1/users", json={})).json()["user_id"] for _ in range(5)]
    first = (await admin.get("/api/v1/users", params={"limit": 2})).json()
    await asyncio.gather(*(admin.post("/api/v1/users", json={}) for _ in range(3)))
    rest = (await admin.get("/api/v1/users", params={"cursor": first["next_cursor"]})).json()
    assert [user["user_id"] for user in first["data"] + rest["data"]] == made[::-1]
