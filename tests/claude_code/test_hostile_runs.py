"""Runs whose agents, repositories and owners mean harm, as the platform and the others see them: a real server, CLI and sandbox."""

import asyncio
import json
from typing import Any

import pytest
from git_house import git
from workflow_house import WorkflowHouse, workflow_house

from automagik.testing.needs import need
from automagik.testing.warm import WarmPython

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(240)]


def bash(command: str) -> dict[str, Any]:
    call = {"name": "Bash", "input": {"command": command, "description": "Look"}}
    return {"text": "I look.", "tool_use": [call]}


def script(*turns: dict[str, Any]) -> dict[str, Any]:
    return {"rules": [{"when": {"tools": True}, "turns": [*turns, {"text": "Done."}]}], "default": {"text": "OK"}}


async def as_user(house: WorkflowHouse, name: str) -> dict[str, str]:
    """The headers of somebody of their own, who may run workflows."""
    user = await house.client.post("/users", json={"email": f"{name}@example.org"})
    assert user.status_code == 201, user.text
    body = {"name": name, "user_id": user.json()["user_id"], "scopes": ["workflows:*:run", "runs:read", "runs:write"]}
    made = await house.client.post("/keys", json=body)
    assert made.status_code == 201, made.text
    return {"x-api-key": made.json()["key"]}


async def begin_as(house: WorkflowHouse, headers: dict[str, str], workflow: str) -> str:
    """The id of a run of theirs, on what the repository's HEAD is now."""
    bundle = house.folder / "theirs.bundle"
    await asyncio.to_thread(git, house.repository, "bundle", "create", "-q", str(bundle), "HEAD")
    sent = await house.client.post("/repositories", content=bundle.read_bytes(), headers=headers)
    asked = {"message_content": "Make it", "repository": {"bundle": sent.json()["bundle"]}}
    begun = await house.client.post(f"/workflows/{workflow}/run", json=asked, headers=headers)
    assert begun.status_code == 202, begun.text
    return str(begun.json()["run_id"])


async def results(house: WorkflowHouse, run_id: str) -> str:
    """What the tools of a run answered."""
    return json.dumps([event["data"] for event in await house.events(run_id) if event["type"] == "tool_result"])


@pytest.mark.long
async def test_a_toolchain_that_one_owner_prepared_is_given_to_nobody_else(warm: WarmPython) -> None:
    need("bubblewrap")
    need("claude")
    settings = {"AUTOMAGIK_REGISTRY_HOSTS": "registry.invalid"}
    async with workflow_house(script(bash('cat "$TOOLCHAIN/tool"')), settings=settings, warm=warm) as house:
        files = {
            "prompt.md": "Do what you are asked.",
            "allowed_tools.json": '["Bash"]',
            "workflow.toml": 'setup = ["cp tool.txt \\"$TOOLCHAIN/tool\\""]',
        }
        made = await house.client.post("/workflows", json={"name": "tools", "files": files})
        assert made.status_code == 201, made.text
        seen: list[str] = []
        keys: dict[str, dict[str, str]] = {}
        for owner, text in (("mallory", "poisoned"), ("alice", "of alice"), ("alice", "later")):
            (house.repository / "tool.txt").write_text(text)
            git(house.repository, "add", "-A")
            git(house.repository, "commit", "-q", "-m", text)
            if owner not in keys:
                keys[owner] = await as_user(house, owner)
            run_id = await begin_as(house, keys[owner], "tools")
            run = await house.ended(run_id)
            assert run["outcome"] == "completed", run["error"]
            seen.append(await results(house, run_id))
    assert ["poisoned" in text for text in seen] == [True, False, False]
    assert ["of alice" in text for text in seen] == [False, True, True]  # the second time from the cache


@pytest.mark.long
async def test_what_a_run_wrote_is_kept_where_its_commits_are_refused(warm: WarmPython) -> None:
    need("bubblewrap")
    need("claude")
    large = "truncate -s 110000000 large.bin; echo late > late.txt; git add -A; git commit -q -m Large"
    async with workflow_house(script(bash(large)), warm=warm) as house:
        run_id = await house.begin()
        run = await house.ended(run_id)
        assert (run["outcome"], run["workspace"]["commits"]) == ("sandbox_error", [])
        assert "110000000 bytes" in run["error"]["detail"]
        assert "runs diff RUN --wip" in run["error"]["hint"]
        diff = (await house.client.get(f"/runs/{run_id}/diff", params={"wip": "true"})).text
    assert "+late" in diff
    assert "large.bin" not in diff
