"""Workflows over HTTP that are made to break the server: each is a 422 that names the file, and the server goes on answering."""

import asyncio
import json

import pytest
from api_house import ApiHouse

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

PROMPT = {"prompt.md": "Do it."}
BROKEN = {
    "deep TOML": ("workflow.toml", "a = " + "[" * 5000),
    "a key of many parts": ("workflow.toml", "a." * 50_000 + "a = 1"),
    "a huge number": ("workflow.toml", "model = " + "9" * 5000),
    "a pattern": ("allowed_tools.json", json.dumps(["A" + "_" * 60 + "!"])),
    "a surrogate": (".mcp.json", '{"mcpServers": {"a": {"command": "sh", "args": ["\\udc80"]}}}'),
    "a type": ("report.schema.json", '{"type": "object", "properties": {"a": {"type": [["string"]]}}}'),
    "a deep schema": ("report.schema.json", '{"type": "object", "properties": {}, "x": ' + "[" * 900 + "]" * 900 + "}"),
}


async def test_each_is_refused_by_its_file_and_the_server_goes_on_answering(house: ApiHouse) -> None:
    for name, (file, text) in BROKEN.items():
        files = {**PROMPT, file: text}
        for path in ("/api/v1/workflows/validate", "/api/v1/workflows"):
            refused = await house.admin.post(path, json={"name": "evil", "files": files})
            assert refused.status_code == 422, name
            assert refused.json()["errors"][0]["loc"] == ["body", "files", file]
    listed = (await house.admin.get("/api/v1/workflows")).json()["data"]
    assert "evil" not in {workflow["name"] for workflow in listed}


async def test_names_lead_nowhere_and_of_many_who_take_one_at_once_one_gets_it(house: ApiHouse) -> None:
    for name in ("..", ".", "a/b", "-x", "A", "x" * 65, "a\n", "\u00fc", ""):
        refused = await house.admin.post("/api/v1/workflows", json={"name": name, "files": PROMPT})
        assert refused.status_code == 422, name
    for files in ({**PROMPT, "../prompt.md": "x"}, {**PROMPT, "/etc/passwd": "x"}, {**PROMPT, "a/../prompt.md": "x"}):
        refused = await house.admin.post("/api/v1/workflows", json={"name": "evil", "files": files})
        assert refused.json()["code"] == "invalid_workflow"
    raced = await asyncio.gather(
        *(house.admin.post("/api/v1/workflows", json={"name": "race", "files": PROMPT}) for _ in range(10))
    )
    assert sorted(answer.status_code for answer in raced) == [201, *[409] * 9]
