"""Runs of workflows over HTTP, asked by keys of few scopes and by hostile people: each is refused by its field, and nothing leaks."""

import json
import uuid

import httpx2
import pytest
from api_house import ApiHouse

from automagik.store import BeginRun
from automagik.types import SystemClock, new_id

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

BUNDLE = {"bundle": "a" * 64}
RUNS = ("workflows:*:run", "runs:read", "runs:write")
PLACES = (
    "file:///etc",
    "ext::sh -c 'touch x'",
    "fd::7",
    "-c core.sshCommand=x",
    "--upload-pack=x",
    "../../etc",
    "/etc",
    "/root/../etc",
    "ssh://-oProxyCommand=x/a",
    "ssh://git@-oProxyCommand=x/a",
    "git@-oProxyCommand=x:a/b",
    "https://ada:hunter2@example.org/a/b",
    "https://hunter2@example.org/a/b",
    "ssh://ada:hunter2@example.org/a",
    "https://example.org/a?token=hunter2",
    "http://169.254.169.254/a/b",
    "git://example.org/a",
    "https://example.org/a\nb",
    "https://example.org/a\u202eb",
)


async def ask(client: httpx2.AsyncClient, workflow: str = "review", **body: object) -> httpx2.Response:
    asked = {"message_content": "Look at it", "demo": True, **({} if "resume_of" in body else {"repository": BUNDLE})}
    return await client.post(f"/api/v1/workflows/{workflow}/run", json=asked | body)


async def a_run(house: ApiHouse, *, user: uuid.UUID | None = None, key_id: str | None = None) -> str:
    """A workflow's run that waits, of a user or a key."""
    run_id = new_id("run")
    work = {"work": {"workflow": "review", "demo": True, "repository": BUNDLE}, "message_content": "Secret plans"}
    begin = BeginRun(
        run_id=run_id,
        kind="workflow",
        name="review",
        created_at=SystemClock().now(),
        background=True,
        input_json=json.dumps(work),
        user_id=user,
        key_id=key_id,
    )
    await house.platform.store.accept_run(begin)
    return run_id


async def test_places_that_are_no_repository_are_refused_and_their_passwords_told_to_nobody(
    house: ApiHouse, capfd: pytest.CaptureFixture[str]
) -> None:
    client = await house.client(*RUNS)
    for place in (*PLACES, str(house.platform.settings.data_dir)):
        refused = await ask(client, repository={"place": place})
        assert refused.status_code == 422, (place, refused.text)
        assert "hunter2" not in refused.text
    assert (await client.get("/api/v1/runs")).json()["data"] == []
    logged = "".join(capfd.readouterr())
    assert "/api/v1/workflows/review/run" in logged and "hunter2" not in logged


async def test_a_run_of_another_user_is_as_if_it_were_not_there(house: ApiHouse) -> None:
    client = await house.client(*RUNS, user_id=await house.user())
    theirs = await a_run(house, user=await house.user())
    nobodys = new_id("run")
    for method, path, body in (
        ("GET", "", None),
        ("GET", "/events", None),
        ("GET", "/diff", None),
        ("GET", "/bundle", None),
        ("POST", "/cancel", None),
        ("POST", "/requeue", None),
        ("POST", "/interrupt", None),
        ("POST", "/messages", {"message_content": "Stop"}),
    ):
        answers = [
            await client.request(method, f"/api/v1/runs/{run_id}{path}", json=body) for run_id in (theirs, nobodys)
        ]
        told = [answer.text.replace(theirs, "").replace(nobodys, "") for answer in answers]
        assert [answer.status_code for answer in answers] == [404, 404], path
        assert [json.loads(text)["code"] for text in told] == ["run_not_found", "run_not_found"]
        assert "Secret" not in told[0]
    resumed = [await ask(client, resume_of=run_id) for run_id in (theirs, nobodys)]
    assert [answer.json()["code"] for answer in resumed] == ["invalid_input", "invalid_input"]
    assert (await house.platform.store.read(lambda tx: tx.runs.get(theirs))).status == "queued"


async def test_who_may_not_read_runs_goes_on_with_none_of_another_key(house: ApiHouse) -> None:
    """The new run would tell what the earlier one did."""
    runner = await house.client("workflows:review:run")
    other = await a_run(house, key_id=new_id("key"))
    await house.admin.post(f"/api/v1/runs/{other}/cancel")
    refused = await ask(runner, resume_of=other)
    assert (refused.status_code, refused.json()["code"]) == (403, "missing_scope")
    assert "runs:read" in refused.json()["detail"]
    reader = await house.client("workflows:review:run", "runs:read")
    assert (await ask(reader, resume_of=other)).status_code == 202

    keys = (await house.admin.get("/api/v1/keys")).json()["data"]
    own = await a_run(house, key_id=next(key["key_id"] for key in keys if key["scopes"] == ["workflows:review:run"]))
    await house.admin.post(f"/api/v1/runs/{own}/cancel")
    assert (await ask(runner, resume_of=own)).status_code == 202


async def test_what_a_request_may_not_widen_is_refused_by_name(house: ApiHouse) -> None:
    files = {
        "prompt.md": "Do {{what}}.",
        "workflow.toml": 'models = ["a-*"]\n[budget]\nlimit_usd = 1.0\n[variables]\nwhat = "it"',
    }
    assert (await house.admin.post("/api/v1/workflows", json={"name": "small", "files": files})).status_code == 201
    client = await house.client("workflows:small:run")
    for field, value in (("max_turns", 101), ("budget_usd", "1.01"), ("model", "b-large"), ("executor", "local")):
        refused = await ask(client, "small", **{field: value})
        assert (refused.status_code, refused.json()["code"]) == (403, "override_not_allowed"), field
        assert field in refused.json()["detail"]
    for field, value in (
        ("budget_usd", 0), ("budget_usd", "-1"), ("budget_usd", "NaN"), ("budget_usd", "1e9"), ("max_turns", 0),
        ("timeout_seconds", -1), ("allowed_tools", ["Bash"]), ("egress", ["evil.example"]), ("setup", ["x"]),
        ("prompt_variables", {"run_id": "x"}), ("prompt_variables", {"what": 5}), ("publish", True), ("message_content", ""),
        ("message_content", "a\u0000b"), ("repository", {**BUNDLE, "name": "a\u0000b"}), ("repository", {**BUNDLE, "place": "/x"}),
        ("repository", {"bundle": "../../etc/passwd"}), ("resume_of", "run_1"),
    ):  # fmt: skip
        refused = await ask(client, "small", **{field: value})
        assert refused.status_code == 422, (field, value, refused.text)
        assert field in json.dumps(refused.json()["errors"])
    assert (await ask(client, "review")).status_code == 403
    assert (await ask(client, "..%2F..%2Fsmall")).status_code in {403, 404}
