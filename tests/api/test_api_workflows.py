"""Workflows over HTTP: what is shown to whom, and how one's own are made, checked, changed and deleted."""

import pytest
from api_house import ApiHouse

pytestmark = pytest.mark.anyio

FILES = {
    "prompt.md": "Look at {{repository}}.",
    "workflow.toml": 'display_name = "Look"\n[limits]\nmax_turns = 5\n[budget]\nlimit_usd = 1.5\n',
    "allowed_tools.json": '["Read"]',
}


async def test_a_workflow_is_made_changed_and_deleted(each_house: ApiHouse) -> None:
    api = each_house.admin
    made = await api.post("/api/v1/workflows", json={"name": "look", "files": FILES})
    assert made.status_code == 201
    assert (made.headers["location"], made.headers["etag"]) == ("/api/v1/workflows/look", '"1"')
    assert made.json()["definition"]["max_turns"] == 5
    assert made.json()["definition"]["budget_usd"] == "1.5"

    changed = await api.patch(
        "/api/v1/workflows/look",
        json={"files": {**FILES, "prompt.md": "Look twice."}},
        headers={"if-match": made.headers["etag"]},
    )
    assert (changed.status_code, changed.json()["revision"]) == (200, 2)
    stale = await api.patch("/api/v1/workflows/look", json={"active": False}, headers={"if-match": '"1"'})
    assert (stale.status_code, stale.json()["code"]) == (412, "stale_edit")
    assert (await api.get("/api/v1/workflows/look")).json()["files"]["prompt.md"] == "Look twice."

    assert (await api.delete("/api/v1/workflows/look", headers={"if-match": '"1"'})).status_code == 412
    assert (await api.delete("/api/v1/workflows/look")).status_code == 204
    assert (await api.get("/api/v1/workflows/look")).status_code == 404
    assert [row["action"] for row in await each_house.audit("workflow.create")] == ["workflow.create"]
    assert [row["target"] for row in await each_house.audit("workflow.delete")] == ["look"]


async def test_all_are_listed_by_name_a_page_at_a_time(house: ApiHouse) -> None:
    await house.admin.post("/api/v1/workflows", json={"name": "look", "files": FILES})
    first = (await house.admin.get("/api/v1/workflows", params={"limit": 5})).json()
    second = (await house.admin.get("/api/v1/workflows", params={"cursor": first["next_cursor"]})).json()
    names = [workflow["name"] for workflow in first["data"] + second["data"]]
    assert names == ["architect", "document", "fix", "implement", "look", "pr", "refactor", "review", "test"]
    assert second["next_cursor"] is None
    assert {workflow["source"] for workflow in first["data"]} == {"builtin", "api"}
    assert "files" not in first["data"][0]


async def test_a_broken_one_is_refused_by_file_and_key(house: ApiHouse) -> None:
    for path in ("/api/v1/workflows", "/api/v1/workflows/validate"):
        files = {**FILES, "workflow.toml": "[limits]\nmax_turn = 5"}
        refused = await house.admin.post(path, json={"name": "look", "files": files})
        assert refused.status_code == 422
        problem = refused.json()
        assert problem["code"] == "invalid_workflow"
        assert "limits.max_turn" in problem["detail"]
        assert problem["hint"] == "Did you mean 'limits.max_turns'?"
        assert problem["errors"][0]["loc"] == ["body", "files", "workflow.toml"]
    named = await house.admin.post("/api/v1/workflows", json={"name": "Look!", "files": FILES})
    assert named.json()["errors"][0]["loc"] == ["body", "name"]
    dockerfile = {**FILES, "workflow.toml": 'dockerfile = "Dockerfile"', "Dockerfile": "FROM scratch"}
    refused = await house.admin.post("/api/v1/workflows", json={"name": "look", "files": dockerfile})
    assert "outside of the sandbox" in refused.json()["detail"]


async def test_a_check_stores_nothing_and_tells_what_is_odd(house: ApiHouse) -> None:
    files = {"prompt.md": "{{house_rules}}"}
    checked = await house.admin.post("/api/v1/workflows/validate", json={"name": "look", "files": files})
    assert checked.status_code == 200
    assert any("house_rules" in warning for warning in checked.json()["warnings"])
    assert (await house.admin.get("/api/v1/workflows/look")).status_code == 404


async def test_a_workflow_of_the_platform_is_not_changed(house: ApiHouse) -> None:
    for answer in (
        await house.admin.patch("/api/v1/workflows/fix", json={"active": False}),
        await house.admin.delete("/api/v1/workflows/fix"),
        await house.admin.post("/api/v1/workflows", json={"name": "fix", "files": FILES}),
    ):
        assert answer.status_code == 409
        assert answer.json()["hint"]


async def test_a_key_sees_what_its_scopes_say(house: ApiHouse) -> None:
    await house.admin.post("/api/v1/workflows", json={"name": "look", "files": FILES})
    runner = await house.client("workflows:look:run")
    listed = (await runner.get("/api/v1/workflows")).json()["data"]
    assert [workflow["name"] for workflow in listed] == ["look"]
    shown = (await runner.get("/api/v1/workflows/look")).json()
    assert (shown["files"], shown["definition"]) == (None, None)
    assert (await runner.get("/api/v1/workflows/fix")).status_code == 404

    reader = await house.client("workflows:read")
    assert (await reader.get("/api/v1/workflows/fix")).json()["files"]["prompt.md"].startswith("# Fix")
    for client in (runner, reader):
        refused = await client.post("/api/v1/workflows", json={"name": "x", "files": FILES})
        assert (refused.status_code, refused.json()["code"]) == (403, "missing_scope")
        assert (await client.patch("/api/v1/workflows/look", json={"active": False})).status_code == 403
        assert (await client.delete("/api/v1/workflows/look")).status_code == 403
        assert (await client.post("/api/v1/workflows/validate", json={"name": "x", "files": FILES})).status_code == 403
    nobody = await house.client("agents:echo:run")
    assert (await nobody.get("/api/v1/workflows")).json()["data"] == []


async def test_unknown_fields_and_wrong_types_are_refused(house: ApiHouse) -> None:
    for body in (
        {"name": "x", "files": FILES, "more": 1},
        {"name": "x"},
        {"name": "x", "files": {"prompt.md": 3}},
        {"name": "x", "files": {f"f{n}": "" for n in range(11)}},
        {"name": "x", "files": {"../prompt.md": "x"}},
    ):
        assert (await house.admin.post("/api/v1/workflows", json=body)).status_code == 422, body
    await house.admin.post("/api/v1/workflows", json={"name": "look", "files": FILES})
    assert (await house.admin.patch("/api/v1/workflows/look", json={"active": "no"})).status_code == 422


async def test_a_folders_workflow_is_there_as_soon_as_its_files_are(house: ApiHouse) -> None:
    folder = house.platform.settings.workflows_folder / "own"
    folder.mkdir(parents=True)
    (folder / "prompt.md").write_text("{{")
    await house.platform.workflows.refresh(max_age_seconds=0)
    broken = (await house.admin.get("/api/v1/workflows/own")).json()
    assert "not closed" in broken["error"]
    assert not broken["active"]
    assert (await (await house.client("workflows:own:run")).get("/api/v1/workflows/own")).status_code == 404
    (folder / "prompt.md").write_text("Do it, then.")
    await house.platform.workflows.refresh(max_age_seconds=0)
    assert (await house.admin.get("/api/v1/workflows/own")).json()["error"] is None
