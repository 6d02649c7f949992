"""Who may do what over HTTP: keys, scopes, users, rates, headers, origins."""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from api_house import ApiHouse, open_house

from automagik.app import Platform
from automagik.settings import Settings

pytestmark = pytest.mark.anyio

RUN = "/api/v1/agent/echo/run"
HELLO = {"message_content": "hello"}


async def test_a_request_without_a_key_is_a_401_before_its_body_is_looked_at(house: ApiHouse) -> None:
    client = await house.keyless()
    for answer in (await client.post(RUN, content=b"{"), await client.get("/api/v1/runs?nonsense=1")):
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "x-api-key" in answer.json()["hint"]


@pytest.mark.parametrize("name", ["x-api-key", "api_key", "X-API-KEY", "access_token"])
async def test_a_key_in_the_query_is_refused_with_a_hint(house: ApiHouse, name: str) -> None:
    key = house.admin.headers["x-api-key"]
    answer = await (await house.keyless()).get(f"/api/v1/runs?limit=1&{name}={key}")
    assert answer.status_code == 401
    assert "query string" in answer.json()["detail"]
    assert key not in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": "amk_" + "a" * 43},
        {"x-api-key": ""},
        {"x-api-key": "amk_\xe9"},
        {"authorization": "Basic YTpi"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer nonsense"},
    ],
)
async def test_a_key_that_is_none_is_a_401(house: ApiHouse, headers: dict[str, str]) -> None:
    client = await house.keyless()
    encoded = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
    answer = await client.get("/api/v1/runs", headers=encoded)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


async def test_a_missing_scope_is_a_403_that_names_it(house: ApiHouse) -> None:
    client = await house.client("agents:tooled:run")
    for method, path, scope in (
        ("GET", "/api/v1/runs", "runs:read"),
        ("GET", "/api/v1/users", "users:read"),
        ("POST", "/api/v1/keys", "keys:write"),
        ("GET", "/api/v1/audit", "audit:read"),
        ("POST", RUN, "agents:echo:run"),
    ):
        answer = await client.request(method, path, json=HELLO if method == "POST" else None)
        assert (answer.status_code, answer.json()["code"]) == (403, "missing_scope"), path
        assert f"'{scope}'" in answer.json()["detail"]


async def test_writing_includes_reading(house: ApiHouse) -> None:
    client = await house.client("memory:write")
    assert (await client.get("/api/v1/memories")).status_code == 200
    reader = await house.client("memory:read")
    assert (await reader.post("/api/v1/memories", json={})).status_code == 403


async def test_a_key_sees_the_agents_that_it_may_run_and_hints_name_no_others(house: ApiHouse) -> None:
    client = await house.client("agents:tooled:run")
    agents = (await client.get("/api/v1/agents")).json()["data"]
    assert [(agent["name"], agent["config"]) for agent in agents] == [("tooled", None)]
    assert (await client.get("/api/v1/agents/echo")).status_code == 404
    missing = await client.post("/api/v1/agent/ecko/run", json=HELLO)
    assert missing.status_code == 404
    assert "echo" not in missing.text
    memories = await house.client("memory:write")
    answer = await memories.post("/api/v1/memories", json={"name": "a", "content": "b", "agent_name": "ecko"})
    assert "echo" not in answer.text


async def test_a_key_that_is_bound_to_a_user_sees_only_theirs(each_house: ApiHouse) -> None:
    house = each_house
    ann, bob = await house.user(), await house.user()
    areas = ("agents:*:run", "runs:write", "sessions:write", "memory:write", "users:write", "keys:write")
    mine, theirs = await house.client(*areas, user_id=ann), await house.client(*areas, user_id=bob)
    run = (await theirs.post(RUN, json={**HELLO, "session_name": "secret"})).json()
    memory = (await theirs.post("/api/v1/memories", json={"name": "a", "content": "b"})).json()
    assert memory["user_id"] == str(bob)
    message = (await theirs.get("/api/v1/sessions/secret/messages")).json()["data"][0]
    for path in ("/api/v1/runs", "/api/v1/sessions", "/api/v1/memories"):
        assert (await mine.get(path)).json()["data"] == [], path
        assert len((await theirs.get(path)).json()["data"]) == 1, path
        assert len((await house.admin.get(path)).json()["data"]) == 1, path
        assert (await mine.get(path, params={"user_id": str(bob)})).json().get("data", []) == [], path
    hidden = [
        f"/api/v1/runs/{run['run_id']}",
        f"/api/v1/runs/{run['run_id']}/events",
        f"/api/v1/sessions/{run['session_id']}",
        "/api/v1/sessions/secret",
        f"/api/v1/sessions/{run['session_id']}/messages",
        f"/api/v1/messages/{message['message_id']}",
        f"/api/v1/memories/{memory['memory_id']}",
        f"/api/v1/users/{bob}",
    ]
    for path in hidden:
        answer = await mine.get(path)
        assert answer.status_code == 404, path
        assert "Did you mean" not in answer.text
        assert (await theirs.get(path)).status_code == 200, path
    for path in (hidden[2], hidden[5], hidden[6], hidden[7]):
        assert (await mine.delete(path)).status_code == 404, path
    assert (await mine.post(f"{hidden[0]}/cancel")).status_code == 404
    assert (await mine.post(RUN, json={**HELLO, "session_id": run["session_id"]})).status_code == 404
    assert (await mine.post(RUN, json={**HELLO, "user_id": str(bob)})).status_code == 404
    assert [user["user_id"] for user in (await mine.get("/api/v1/users")).json()["data"]] == [str(ann)]
    assert (await mine.post("/api/v1/users", json={})).status_code == 403
    made = (await mine.post("/api/v1/keys", json={"name": "a", "scopes": ["runs:read"]})).json()
    assert made["user_id"] == str(ann)
    assert [key["user_id"] for key in (await mine.get("/api/v1/keys")).json()["data"]] == [str(ann)] * 2


async def test_a_key_makes_none_that_is_stronger(house: ApiHouse) -> None:
    client = await house.client("keys:write", "runs:read")
    assert (await client.post("/api/v1/keys", json={"name": "a", "scopes": ["runs:read"]})).status_code == 201
    answer = await client.post("/api/v1/keys", json={"name": "a", "scopes": ["admin"]})
    assert (answer.status_code, answer.json()["code"]) == (403, "missing_scope")


async def test_a_rate_limit_ends_in_a_429_that_says_when_to_come_back(house: ApiHouse) -> None:
    client = await house.client("runs:read", rate_limit="3/hour")
    answers = [await client.get("/api/v1/runs") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert 3590 <= int(answers[-1].headers["retry-after"]) <= 3600
    assert answers[-1].json()["code"] == "rate_limited"
    assert (await (await house.client("runs:read", rate_limit="3/hour")).get("/api/v1/runs")).status_code == 200


async def test_every_answer_has_a_request_id_and_the_headers_that_protect_browsers(house: ApiHouse) -> None:
    client = await house.keyless()
    for path, status in (("/health", 200), ("/api/v1/runs", 401), ("/nothing", 404), ("/docs", 200)):
        answer = await client.get(path)
        assert answer.status_code == status
        assert answer.headers["x-request-id"].startswith("req_")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == ("no-cache" if path == "/docs" else "no-store")
    for given, kept in (("abc.DEF-1_2", True), ("a b", False), ("x" * 65, False), ("a\tb", False)):
        answer = await client.get("/health", headers={"x-request-id": given})
        assert (answer.headers["x-request-id"] == given) is kept


async def test_no_origin_is_allowed_unless_it_is_configured(house: ApiHouse) -> None:
    asked = {"origin": "https://app.example.org", "access-control-request-method": "POST"}
    preflight = await (await house.keyless()).options(RUN, headers=asked)
    assert preflight.status_code == 405
    assert "access-control-allow-origin" not in preflight.headers


async def test_a_configured_origin_is_allowed_without_a_key_for_the_preflight(tmp_path: Path) -> None:
    async with open_house(Settings(data_dir=tmp_path), cors_origins=["https://app.example.org"]) as house:
        client = await house.keyless()
        asked = {
            "origin": "https://app.example.org",
            "access-control-request-method": "POST",
            "access-control-request-headers": "x-api-key,content-type",
        }
        preflight = await client.options(RUN, headers=asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://app.example.org"
        assert preflight.headers["x-request-id"].startswith("req_")
        other = await client.options(RUN, headers={**asked, "origin": "https://evil.example.org"})
        assert "access-control-allow-origin" not in other.headers
        refused = await client.post(RUN, json=HELLO, headers={"origin": "https://app.example.org"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://app.example.org"
        assert "X-Request-ID" in refused.headers["access-control-expose-headers"]


async def test_metrics_are_open_on_loopback_and_need_an_admin_elsewhere(house: ApiHouse) -> None:
    await house.admin.post(RUN, json=HELLO)
    local = await house.keyless()
    answer = await local.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'automagik_runs_total{kind="agent",name="echo",outcome="completed"} 1.0' in answer.text
    assert 'route="/api/v1/agent/{name}/run"' in answer.text
    assert (await local.get("/metrics", headers={"x-forwarded-for": "203.0.113.9"})).status_code == 401
    remote = await house.keyless(peer=("203.0.113.9", 1))
    assert (await remote.get("/metrics")).status_code == 401
    assert (await remote.get("/metrics", headers=house.admin.headers)).status_code == 200
    weak = await house.client("runs:read")
    assert (await remote.get("/metrics", headers=weak.headers)).status_code == 403


async def test_ready_says_degraded_and_tells_the_cause_to_administrators_only(tmp_path: Path) -> None:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "broken.py").write_text("import nothing_of_that_name\n")
    async with open_house(Settings(data_dir=tmp_path)) as house:
        answer = await (await house.keyless()).get("/ready")
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
        assert "nothing_of_that_name" not in answer.text
        told = await house.admin.get("/ready")
        assert "nothing_of_that_name" in told.text
        agents = (await house.admin.get("/api/v1/agents")).json()["data"]
        broken = next(agent for agent in agents if agent["name"] == "broken")
        assert "nothing_of_that_name" in broken["error"]
        assert (await house.admin.post(RUN, json=HELLO)).status_code == 200
        wrong = await (await house.keyless()).get("/ready", headers={"x-api-key": "nonsense"})
        assert wrong.status_code == 200


async def test_a_deleted_users_keys_are_worthless_at_once(each_house: ApiHouse) -> None:
    user = await each_house.user()
    client = await each_house.client("runs:read", user_id=user)
    assert (await client.get("/api/v1/runs")).status_code == 200
    assert (await each_house.admin.delete(f"/api/v1/users/{user}")).status_code == 204
    assert (await client.get("/api/v1/runs")).status_code == 401


async def test_a_session_of_another_user_than_the_request_names_is_a_409(house: ApiHouse) -> None:
    ann, bob = await house.user(), await house.user()
    session_id = str(uuid.uuid4())
    await house.admin.post(RUN, json={**HELLO, "session_id": session_id, "user_id": str(ann)})
    answer = await house.admin.post(RUN, json={**HELLO, "session_id": session_id, "user_id": str(bob)})
    assert answer.status_code == 409


async def test_without_its_database_the_platform_is_alive_and_not_ready(house: ApiHouse) -> None:
    client = await house.keyless()
    await house.platform.store.close()
    assert (await client.get("/health")).status_code == 200
    ready = await client.get("/ready")
    assert (ready.status_code, ready.json()["status"]) == (503, "failed")
    for answer in (ready, await house.admin.get("/api/v1/runs"), await house.admin.post(RUN, json=HELLO)):
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) > 0


@dataclass
class TurnedClock:
    seconds: float = 1000.0

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return self.seconds


async def test_without_its_artifact_store_the_platform_serves_and_says_degraded(tmp_path: Path) -> None:
    clock = TurnedClock()
    settings = Settings(data_dir=tmp_path, model="demo")
    async with Platform.open(settings, clock=clock, role="api") as platform:

        async def status() -> tuple[str, str]:
            report = await platform.ready()
            return report.status, next(check.status for check in report.checks if check.name == "artifacts")

        assert await status() == ("ok", "ok")
        folder = tmp_path / "artifacts"
        folder.rename(folder.with_name("away"))
        folder.write_text("in the way")
        assert await status() == ("ok", "ok"), "probes that come every second don't write an object each"
        clock.seconds += 11
        assert await status() == ("degraded", "degraded")
        folder.unlink()
        folder.with_name("away").rename(folder)
        clock.seconds += 11
        assert await status() == ("ok", "ok")
