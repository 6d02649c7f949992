"""Budgets and usage over HTTP: set, shown, deleted; what they refuse, whom they are shown to, and how a run ends by them."""

import uuid
from typing import Any

import pytest
from api_house import ApiHouse, read_events

pytestmark = pytest.mark.anyio

PATH = "/api/v1/budgets"


def body(scope: str = "organisation", scope_id: str | None = None, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"scope": scope, "period": "month", "limit_usd": "25"}
    return {**made, **({"scope_id": scope_id} if scope_id else {}), **changes}


async def test_a_budget_is_set_shown_changed_and_deleted(each_house: ApiHouse) -> None:
    admin = each_house.admin
    made = await admin.post(PATH, json=body(soft_limit_usd="20.5"))
    budget, path = made.json(), made.headers["location"]
    assert made.status_code == 201 and path == f"{PATH}/{budget['budget_id']}"
    expected = {
        "scope": "organisation",
        "scope_id": None,
        "period": "month",
        "limit_usd": "25.000000",
        "soft_limit_usd": "20.500000",
        "spent_usd": "0.000000",
        "reserved_usd": "0.000000",
        "revision": 1,
    }
    assert {name: budget[name] for name in expected} == expected
    assert set(budget) == {*expected, "budget_id", "period_start", "key_id", "created_at", "updated_at"}
    shown = await admin.get(path)
    assert (shown.json(), shown.headers["etag"]) == (budget, made.headers["etag"])
    assert (await admin.get(PATH)).json() == {"data": [budget], "next_cursor": None}
    changed = await admin.post(PATH, json=body(limit_usd="30"), headers={"if-match": made.headers["etag"]})
    assert changed.status_code == 200
    assert {**changed.json(), "updated_at": budget["updated_at"]} == {
        **budget,
        "limit_usd": "30.000000",
        "soft_limit_usd": None,
        "revision": 2,
    }
    stale = await admin.post(PATH, json=body(limit_usd="31"), headers={"if-match": made.headers["etag"]})
    assert (stale.status_code, stale.json()["code"]) == (412, "stale_edit")
    assert (await admin.delete(path, headers={"if-match": made.headers["etag"]})).status_code == 412
    assert (await admin.delete(path, headers={"if-match": changed.headers["etag"]})).status_code == 204
    assert (await admin.get(path)).status_code == (await admin.delete(path)).status_code == 404
    for action in ("budget.create", "budget.update", "budget.delete"):
        (entry,) = await each_house.audit(action)
        assert entry["target"] == budget["budget_id"] and entry["details"]["scope"] == "organisation"


BAD: list[tuple[dict[str, Any], str]] = [
    (body("organisation", "x"), "scope_id"),
    (body("key"), "scope_id"),
    (body("user", "nobody"), "scope_id"),
    (body("agent", "eco"), "scope_id"),
    (body("epic", "../x"), "scope_id"),
    (body(limit_usd="-1"), "limit_usd"),
    (body(limit_usd=25), "limit_usd"),
    (body(limit_usd="1e9"), "limit_usd"),
    (body(limit_usd="0.0000000001"), "limit_usd"),
    (body(soft_limit_usd="25"), "soft_limit_usd"),
    (body(period="week"), "period"),
    (body("team", "x"), "scope"),
    (body(limit="3"), "limit"),
]


@pytest.mark.parametrize(("asked", "field"), BAD)
async def test_what_is_wrong_is_named_by_its_field(shared_house: ApiHouse, asked: dict[str, Any], field: str) -> None:
    refused = await shared_house.admin.post(PATH, json=asked)
    assert refused.status_code == 422
    assert [error["loc"] for error in refused.json()["errors"]] == [["body", field]]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"group_by": "days"}, "group_by"),
        ({"group_by": ""}, "group_by"),
        ({"from": "yesterday"}, "from"),
        ({"from": "0001-01-01"}, "from"),
        ({"to": "9999-12-31"}, "to"),
        ({"from": "2026-11-02", "to": "2026-11-01"}, "to"),
        ({"user_id": "me"}, "user_id"),
        ({"cursor": "?"}, "cursor"),
        ({"since": "2026-11-01"}, "since"),
    ],
)
async def test_a_question_for_usage_that_makes_no_sense_is_refused(
    shared_house: ApiHouse, query: dict[str, str], field: str
) -> None:
    refused = await shared_house.admin.get("/api/v1/usage", params=query)
    assert refused.status_code == 422
    assert [error["loc"] for error in refused.json()["errors"]] == [["query", field]]


@pytest.mark.parametrize("scope", ["key", "user", "run"])
async def test_a_budget_of_what_is_not_there_is_not_found(shared_house: ApiHouse, scope: str) -> None:
    name = str(uuid.uuid4()) if scope == "user" else f"{scope}_none"
    refused = await shared_house.admin.post(PATH, json=body(scope, name))
    assert (refused.status_code, refused.json()["code"]) == (404, f"{scope}_not_found")


async def test_scopes_say_who_may_see_and_change(house: ApiHouse) -> None:
    reader, writer = await house.client("budgets:read"), await house.client("budgets:write")
    other = await house.client("runs:read")
    made = (await writer.post(PATH, json=body())).json()
    assert (await writer.get(PATH)).status_code == (await reader.get(PATH)).status_code == 200
    assert (await reader.get("/api/v1/usage")).status_code == 200
    for refused in (
        await reader.post(PATH, json=body()),
        await reader.delete(f"{PATH}/{made['budget_id']}"),
        await other.get(PATH),
        await other.get("/api/v1/usage"),
    ):
        assert refused.status_code == 403 and "budgets:" in refused.json()["detail"]


async def test_a_key_bound_to_a_user_sees_only_its_own(house: ApiHouse) -> None:
    ana, ben = await house.user(), await house.user()
    hers = await house.client("budgets:write", "agents:*:run", user_id=ana)
    key_id = (await house.admin.get("/api/v1/keys")).json()["data"][0]["key_id"]
    await house.admin.post(PATH, json=body())
    his = (await house.admin.post(PATH, json=body("user", str(ben)))).json()
    own = [
        (await house.admin.post(PATH, json=body("user", str(ana)))).json(),
        (await house.admin.post(PATH, json=body("key", key_id))).json(),
    ]
    assert (await hers.get(PATH)).json()["data"] == own[::-1]
    assert (await hers.get(f"{PATH}/{his['budget_id']}")).status_code == 404
    assert (await hers.delete(f"{PATH}/{his['budget_id']}")).status_code == 404
    assert (await hers.post(PATH, json=body("user", str(ben)))).status_code == 404
    assert (await hers.post(PATH, json=body())).status_code == 403
    assert (await hers.post(PATH, json=body("user", str(ana), limit_usd="20"))).status_code == 200
    for user in (ana, ben):
        run = {"message_content": "hi", "user_id": str(user)}
        assert (await house.admin.post("/api/v1/agent/simple/run", json=run)).status_code == 200
    used = (await hers.get("/api/v1/usage", params={"group_by": "user"})).json()
    assert [(group["user_id"], group["runs"]) for group in used["data"]] == [(str(ana), 1)]
    assert used["total"]["runs"] == 1
    assert (await hers.get("/api/v1/usage", params={"user_id": str(ben)})).status_code == 404
    assert (await house.admin.get("/api/v1/usage")).json()["total"]["runs"] == 2


async def test_usage_is_told_apart_as_it_is_asked(each_house: ApiHouse) -> None:
    admin = each_house.admin
    for agent in ("echo", "simple", "echo"):
        await admin.post(f"/api/v1/agent/{agent}/run", json={"message_content": "hi"})
    used = (await admin.get("/api/v1/usage", params={"group_by": "agent,workflow"})).json()
    assert used["group_by"] == ["agent", "workflow"] and used["next_cursor"] is None
    assert [(group["agent"], group["workflow"], group["day"], group["runs"]) for group in used["data"]] == [
        ("simple", None, None, 1),
        ("echo", None, None, 2),
    ]
    assert used["total"]["runs"] == 3 and used["total"]["requests"] == 3
    assert used["total"]["unpriced_runs"] == 2 and used["total"]["cost_usd"] == "0.000000"
    only = (await admin.get("/api/v1/usage", params={"agent": "simple"})).json()
    assert [(group["day"], group["runs"]) for group in only["data"]] == [(used["to"], 1)]
    assert (await admin.get("/api/v1/usage", params={"to": "2020-01-01", "from": "2020-01-01"})).json()["data"] == []


async def test_a_run_that_its_budget_has_no_room_for_ends_as_budget_exceeded(house: ApiHouse) -> None:
    await house.admin.post(PATH, json=body("agent", "echo", limit_usd="0.000001"))
    ask = {"message_content": "hi"}
    refused = await house.admin.post("/api/v1/agent/echo/run", json=ask)
    assert (refused.status_code, refused.json()["code"]) == (403, "policy")  # `function` models have no price
    assert "AUTOMAGIK_MODEL_PRICES" in refused.json()["hint"]
    assert (await house.admin.post("/api/v1/agent/simple/run", json=ask)).status_code == 200


async def test_a_priced_model_under_a_budget_streams_warns_and_is_refused_at_last(priced_house: ApiHouse) -> None:
    admin = priced_house.admin
    ask = {"message_content": "hi"}
    budget = (await admin.post(PATH, json=body("agent", "echo", limit_usd="0.5", soft_limit_usd="0.000001"))).json()
    async with admin.stream("POST", "/api/v1/agent/echo/run/stream", json=ask) as streamed:
        events = read_events((await streamed.aread()).decode())
    (warning,) = [event.data for event in events if event.type == "budget_warning"]
    assert warning["data"]["budget_id"] == budget["budget_id"]
    assert events[-1].data["data"]["run"]["status"] == "completed"
    shown = (await admin.get(f"{PATH}/{budget['budget_id']}")).json()
    assert float(shown["spent_usd"]) > 0 and float(shown["reserved_usd"]) == 0
    await admin.post(PATH, json=body("agent", "echo", limit_usd="0.000002"))
    refused = await admin.post("/api/v1/agent/echo/run", json=ask)
    assert (refused.status_code, refused.json()["code"]) == (403, "budget_exceeded")
    assert "agent 'echo'" in refused.json()["detail"]
    run = (await admin.get(f"/api/v1/runs/{refused.json()['run_id']}")).json()
    assert (run["status"], run["outcome"]) == ("failed", "budget_exceeded")


async def test_a_run_whose_model_answers_beyond_what_was_reserved_ends_as_budget_exceeded(
    priced_house: ApiHouse,
) -> None:
    admin = priced_house.admin
    budget = (await admin.post(PATH, json=body("agent", "echo", limit_usd="0.06"))).json()
    ask = {"message_content": "a " * 700}  # said again, with fewer tokens allowed
    async with admin.stream("POST", "/api/v1/agent/echo/run/stream", json=ask) as streamed:
        events = read_events((await streamed.aread()).decode())
    run = events[-1].data["data"]["run"]
    assert (run["status"], run["outcome"]) == ("failed", "budget_exceeded")
    assert "did not keep to the limit of its answer" in run["error"]["detail"]
    assert 100 < len([event for event in events if event.type == "text_delta"]) < 700
    spent = float((await admin.get(f"{PATH}/{budget['budget_id']}")).json()["spent_usd"])
    assert 0.06 < spent < 0.09
    await admin.post(PATH, json=body("agent", "echo", limit_usd=str(round(spent + 0.06, 2))))
    whole = await admin.post("/api/v1/agent/echo/run", json=ask)
    assert (whole.status_code, whole.json()["code"]) == (403, "budget_exceeded")
    assert "it cost more than was reserved" in whole.json()["detail"]
