"""A real server that carries out workflows with the real Claude CLI, against a scripted Messages API."""

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx2
from git_house import git, make_repository

from automagik.testing.scripted_messages import ScriptedMessages
from automagik.testing.servers import RunningServer
from automagik.testing.warm import WarmPython

__all__ = ["KEY", "WorkflowHouse", "committing", "workflow_house", "write_workflow"]

KEY = "sk-ant-a-secret-of-the-platform"
"""The real key, which must be nowhere but in the gateway's requests."""


def committing(*, delay: float = 0.0) -> dict[str, Any]:
    """A script that writes a file, commits it and reports."""
    return {
        "rules": [
            {
                "when": {"tools": True},
                "turns": [
                    {
                        "text": "I write it.",
                        "tool_use": [{"name": "Write", "input": {"file_path": "{cwd}/made.txt", "content": "made\n"}}],
                    },
                    {
                        "text": "I commit it.",
                        "delay": delay,
                        "tool_use": [
                            {
                                "name": "Bash",
                                "input": {
                                    "command": "git add made.txt && git commit -m 'Make it'",
                                    "description": "Commit",
                                },
                            }
                        ],
                    },
                    {"text": "Done."},
                ],
            }
        ],
        "default": {"text": "OK"},
    }


@dataclass
class WorkflowHouse:
    """The server, the API that its models are, and a repository of the user's."""

    folder: Path
    server: RunningServer
    api: ScriptedMessages
    repository: Path
    executor: str
    _client: httpx2.AsyncClient | None = field(default=None)
    _old: list[httpx2.AsyncClient] = field(default_factory=list[httpx2.AsyncClient])

    async def close(self) -> None:
        for client in (*self._old, *([self._client] if self._client is not None else [])):
            await client.aclose()

    @property
    def client(self) -> httpx2.AsyncClient:
        """The server's API; made anew after the server came back under another address."""
        if self._client is None or str(self._client.base_url).rstrip("/") != f"{self.server.url}/api/v1":
            if self._client is not None:
                self._old.append(self._client)
            self._client = httpx2.AsyncClient(
                base_url=f"{self.server.url}/api/v1",
                headers={"x-api-key": self.server.key},
                timeout=60,
                trust_env=False,
            )
        return self._client

    async def begin(self, task: str = "Make it", *, workflow: str = "plain", **body: Any) -> str:
        """The id of a new run on the user's repository."""
        if "resume_of" not in body and "repository" not in body:
            bundle = self.folder / "upload.bundle"
            await asyncio.to_thread(git, self.repository, "bundle", "create", "-q", str(bundle), "HEAD")
            sent = await self.client.post(
                "/repositories", content=bundle.read_bytes(), headers={"content-type": "application/x-git-bundle"}
            )
            assert sent.status_code == 201, sent.text
            body["repository"] = {"bundle": sent.json()["bundle"], "name": "mine"}
        asked = {"message_content": task, "executor": self.executor, **body}
        answer = await self.client.post(f"/workflows/{workflow}/run", json=asked)
        assert answer.status_code == 202, answer.text
        return cast("str", answer.json()["run_id"])

    async def run(self, run_id: str) -> dict[str, Any]:
        """The run as it stands."""
        return cast("dict[str, Any]", (await self.client.get(f"/runs/{run_id}")).json())

    async def ended(self, run_id: str, *, seconds: float = 90) -> dict[str, Any]:
        """The run when it has ended."""
        async with asyncio.timeout(seconds):
            while (run := await self.run(run_id))["status"] in {"queued", "running"}:
                await asyncio.sleep(0.1)
        return run

    async def events(self, run_id: str) -> list[dict[str, Any]]:
        """Its stored events."""
        return cast("list[dict[str, Any]]", (await self.client.get(f"/runs/{run_id}/events")).json()["data"])

    async def until_event(self, run_id: str, kind: str, *, seconds: float = 60) -> dict[str, Any]:
        """The first event of this type, when it is stored."""
        async with asyncio.timeout(seconds):
            while True:
                for event in await self.events(run_id):
                    if event["type"] == kind:
                        return event
                await asyncio.sleep(0.1)

    def places(self) -> list[str]:
        """Which runs have a folder of an execution."""
        folder = self.folder / "data" / "executions"
        return sorted(path.name for path in folder.iterdir() if path.name.startswith("run_")) if folder.exists() else []


def write_workflow(folder: Path, *, toml: str = "", prompt: str = "Do what you are asked.", schema: Any = None) -> None:
    """A workflow that may do what the tests do."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompt.md").write_text(prompt)
    (folder / "allowed_tools.json").write_text(json.dumps({"allow": ["Bash", "Write", "Edit", "Read"]}))
    (folder / "workflow.toml").write_text(f'display_name = "Plain"\ndescription = "For tests"\n{toml}')
    if schema is not None:
        (folder / "report.schema.json").write_text(json.dumps(schema))


@asynccontextmanager
async def workflow_house(
    script: dict[str, Any],
    *,
    executor: str = "local",
    settings: dict[str, str] | None = None,
    warm: WarmPython | None = None,
) -> AsyncGenerator[WorkflowHouse]:
    """The house, whose paths are short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="wf"))
    try:
        write_workflow(folder / "data" / "workflows" / "plain")
        repository = make_repository(folder / "mine")
        async with ScriptedMessages(script, port=0) as api:
            given = {
                "ANTHROPIC_API_KEY": KEY,
                "ANTHROPIC_BASE_URL": api.base_url,
                "AUTOMAGIK_EXECUTOR": executor,
                "AUTOMAGIK_MODEL_PRICES": "claude-*=1000/1000",
                **(settings or {}),
            }
            server = RunningServer(folder / "data", settings=given, warm=warm)
            await asyncio.to_thread(server.__enter__)
            house = WorkflowHouse(folder, server, api, repository, executor)
            try:
                yield house
            finally:
                await house.close()
                await asyncio.to_thread(server.stop)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
