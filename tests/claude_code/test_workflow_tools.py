"""What the tools of the eight workflows allow, asked of the real Claude CLI: rules that it reads otherwise than meant protect nothing."""

import asyncio
import uuid
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from git_house import make_repository

from automagik.claude_code.command import CliSpec, command, environment, user_message
from automagik.claude_code.transcript import Transcript
from automagik.claude_code.workflow import Workflow
from automagik.claude_code.workflow_files import BUILTIN_FOLDER
from automagik.testing.needs import claude_cli, need
from automagik.testing.scripted_messages import ScriptedMessages

pytestmark = pytest.mark.anyio


def builtin(name: str) -> Workflow:
    return Workflow.parse(name, {path.name: path.read_text() for path in (BUILTIN_FOLDER / name).iterdir()})


def write(path: str) -> tuple[str, dict[str, Any]]:
    return "Write", {"file_path": path, "content": "x\n"}


def bash(line: str) -> tuple[str, dict[str, Any]]:
    return "Bash", {"command": line, "description": "x"}


async def tried(workflow: Workflow, folder: Path, calls: list[tuple[str, dict[str, Any]]]) -> list[bool]:
    """Of each call whether the CLI carried it out."""
    need("claude")
    workspace = make_repository(folder / "ws")
    for name in ("home", "config", "tmp"):
        (folder / name).mkdir()
    turns: list[dict[str, Any]] = []
    for tool, given in calls:
        path = given.get("file_path")
        whole = {**given, "file_path": str(workspace / str(path))} if path is not None else given
        turns.append({"tool_use": [{"name": tool, "input": whole}]})
    script: Any = {"rules": [{"name": "main", "turns": [*turns, {"text": "done"}]}]}
    socket = folder / "api.sock"
    env = environment(
        socket=str(socket),
        token="run-token",
        home=str(folder / "home"),
        config_dir=str(folder / "config"),
        tmp=str(folder / "tmp"),
        extra={
            "GIT_AUTHOR_NAME": "A",
            "GIT_AUTHOR_EMAIL": "a@b",
            "GIT_COMMITTER_NAME": "A",
            "GIT_COMMITTER_EMAIL": "a@b",
        },
    )
    spec = CliSpec(
        session_id=uuid.uuid4(), allowed_tools=workflow.allowed_tools, disallowed_tools=workflow.disallowed_tools
    )
    async with ScriptedMessages(script, socket=socket):
        process = await asyncio.create_subprocess_exec(
            *command(spec, cli=str(claude_cli())), cwd=workspace, env=env, stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        async with asyncio.timeout(60):
            output, errors = await process.communicate(user_message("Go on."))
    transcript = Transcript()
    events = [*transcript.feed(output), *transcript.finish()]
    results = [event.data["is_error"] is not True for event in events if event.type == "tool_result"]
    assert len(results) == len(calls), errors.decode()
    return results


async def test_an_architect_writes_documents_and_no_code(tmp_path: Path) -> None:
    calls = [
        write("docs/decisions/0001-x.md"),
        write("docs/x.md"),
        write("ARCHITECTURE.md"),
        write("src/x.py"),
        write("x.py"),
        write("src/docs/x.py"),
        bash("git add docs"),
        bash("git commit -q -m 'Decide'"),
        bash("git log --oneline"),
        bash("touch src/y.py"),
        bash("git push origin HEAD"),
        bash("git add docs && touch src/z.py"),
    ]
    assert await tried(builtin("architect"), tmp_path, calls) == [
        *(True, True, True),
        *(False, False, False),
        *(True, True, True),
        *(False, False, False),
    ]
    assert not list((tmp_path / "ws" / "src").glob("?.py"))


async def test_a_review_changes_nothing(tmp_path: Path) -> None:
    calls = [
        ("Read", {"file_path": "a.txt"}),
        bash("git diff HEAD"),
        bash("git show --stat HEAD"),
        bash("git merge-base HEAD HEAD"),
        write("a.txt"),
        ("Edit", {"file_path": "a.txt", "old_string": "one", "new_string": "two"}),
        bash("echo x > a.txt"),
        bash("git commit --allow-empty -m x"),
        bash("git diff --output=a.txt HEAD"),
    ]
    assert await tried(builtin("review"), tmp_path, calls) == [*[True] * 4, *[False] * 5]
    assert (tmp_path / "ws" / "a.txt").read_text() == "one\n"


async def test_a_pull_request_is_prepared_with_git_alone(tmp_path: Path) -> None:
    calls = [
        bash("git log --oneline"),
        ("Edit", {"file_path": "a.txt", "old_string": "one", "new_string": "1"}),
        bash("git add a.txt"),
        bash("git commit -q -m 'Tell of it'"),
        write("src/x.py"),
        bash("git push origin HEAD"),
        bash("git remote add x https://example.org/x"),
        bash("rm -rf src"),
        bash("git log --output=a.txt"),
    ]
    assert await tried(builtin("pr"), tmp_path, calls) == [*[True] * 4, *[False] * 5]


async def test_those_who_build_have_their_tools(tmp_path: Path) -> None:
    calls = [write("src/x.py"), bash("python3 src/x.py; git add -A; git commit -q -m 'Add'")]
    for name in ("implement", "test", "fix", "refactor", "document"):
        folder = tmp_path / name
        folder.mkdir()
        assert (await tried(builtin(name), folder, calls))[0]
