"""Workflows from everywhere: the platform's own, a folder's, the API's; what overrides what, and what is seen without a restart."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from automagik.claude_code.workflow import WORKFLOW_VARIABLES
from automagik.claude_code.workflow_files import BUILTIN_FOLDER, Workflows
from automagik.errors import Conflict, InvalidInput, NotFound, PreconditionFailed
from automagik.memory import MemoryInput, MemoryStore
from automagik.settings import Settings
from automagik.store import Store
from automagik.types import SYSTEM, SystemClock

pytestmark = pytest.mark.anyio

EIGHT = ["architect", "document", "fix", "implement", "pr", "refactor", "review", "test"]
FILES = {"prompt.md": "Do it.", "allowed_tools.json": '["Read"]'}


@pytest.fixture
async def workflows(store: Store, tmp_path: Path) -> AsyncIterator[Workflows]:
    opened = await open_workflows(store, tmp_path)
    yield opened
    await opened.close()


async def open_workflows(store: Store, folder: Path) -> Workflows:
    opened = Workflows(settings=Settings(data_dir=folder), store=store, clock=SystemClock())
    await opened.open()
    return opened


def write(folder: Path, name: str, **files: str) -> None:
    path = folder / "workflows" / name
    path.mkdir(parents=True, exist_ok=True)
    for file, text in (files or {"prompt": "Do it."}).items():
        (path / {"prompt": "prompt.md", "toml": "workflow.toml"}.get(file, file)).write_text(text)


async def test_the_eight_come_with_the_platform(workflows: Workflows) -> None:
    assert workflows.names() == EIGHT
    for info in workflows.infos():
        workflow = workflows.get(info.name)
        assert (info.source, info.error, info.overrides) == ("builtin", None, None)
        assert workflow.description
        assert workflow.unknown_variables == ()
        assert {"branch", "base_commit", "repository", "team_conventions"} <= set(workflow.prompt.names)
        assert workflow.budget_usd is not None
        assert workflow.egress == ()
        schema = cast("dict[str, Any]", workflow.report_schema)
        assert schema["additionalProperties"] is False
        assert set(schema["required"]) == set(schema["properties"])
        for heading in ("Where you are", "Your limits", "How you work", "When you are stuck", "Your report"):
            assert f"## {heading}\n" in workflow.prompt.text, info.name
        filled = workflow.instructions(dict.fromkeys(WORKFLOW_VARIABLES, "VALUE"))
        assert "{{" not in filled
        # What the prompt says of the report is in the report.
        report = workflow.prompt.text.partition("## Your report")[2]
        for word in ("decision", "complete", "cause", "behaviour_kept", "untried", "title"):
            assert f"`{word}`" not in report or word in schema["properties"]


async def test_tools_fit_what_each_of_the_eight_may_do(workflows: Workflows) -> None:
    tools = {name: workflows.get(name).allowed_tools for name in EIGHT}
    for name in ("implement", "test", "fix", "refactor", "document"):
        assert {"Bash", "Write", "Edit"} <= set(tools[name])
    assert not workflows.get("review").writes
    assert all(tool.startswith(("Bash(", "Read", "Glob", "Grep", "TodoWrite")) for tool in tools["review"])
    assert "Bash(git commit *)" not in tools["review"]
    for name in ("architect", "pr"):
        assert "Bash" not in tools[name]
        assert "Write" not in tools[name]
    edits = [tool for tool in tools["architect"] if tool.startswith(("Edit", "Write"))]
    assert edits
    assert all("(doc" in tool or "(adr" in tool or "(ARCHITECTURE.md)" in tool for tool in edits)
    assert not any("push" in tool for tool in tools["pr"])


def test_the_builtin_files_are_as_the_wheel_ships_them() -> None:
    for name in EIGHT:
        found = {path.name for path in (BUILTIN_FOLDER / name).iterdir()}
        assert found == {"prompt.md", "workflow.toml", "allowed_tools.json", ".mcp.json", "report.schema.json"}
        assert json.loads((BUILTIN_FOLDER / name / ".mcp.json").read_text()) == {"mcpServers": {}}


async def test_a_folders_workflow_takes_the_place_of_a_builtin_and_is_said_to(
    workflows: Workflows, tmp_path: Path
) -> None:
    write(tmp_path, "own", prompt="Own.")
    write(tmp_path, "fix", prompt="Our way to fix.", **{"README.md": "not part of it", ".DS_Store": "x"})
    await workflows.refresh(max_age_seconds=0)
    assert workflows.get("own").prompt.text == "Own."
    assert workflows.get("fix").prompt.text == "Our way to fix."
    assert (workflows.info("fix").source, workflows.info("fix").overrides) == ("folder", "builtin")
    assert [info.name for info in workflows.infos()].count("fix") == 1


async def test_a_change_in_the_folder_is_seen_without_a_restart(workflows: Workflows, tmp_path: Path) -> None:
    write(tmp_path, "own", prompt="One.")
    await workflows.refresh(max_age_seconds=0)
    write(tmp_path, "own", prompt="Two!")
    await workflows.refresh(max_age_seconds=0)
    assert workflows.get("own").prompt.text == "Two!"
    (tmp_path / "workflows" / "own" / "prompt.md").unlink()
    (tmp_path / "workflows" / "own").rmdir()
    await workflows.refresh(max_age_seconds=0)
    with pytest.raises(NotFound):
        workflows.get("own")


async def test_one_that_was_just_written_to_the_folder_is_found_by_its_name(
    workflows: Workflows, tmp_path: Path
) -> None:
    await workflows.refresh(max_age_seconds=0)
    with pytest.raises(NotFound):
        await workflows.find("own")
    write(tmp_path, "own", prompt="Own.")
    assert (await workflows.find("own")).prompt.text == "Own."


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"prompt": "{{"}, "prompt.md: A '{{' is not closed"),
        ({"toml": "display_name = 'x'"}, "prompt.md: It is missing"),
        ({"prompt": "x", "toml": "[limit]\nx = 1"}, "Did you mean 'limits'?"),
        ({"prompt": "x", "allowed_tool.json": "[]"}, "Did you mean 'allowed_tools.json'?"),
    ],
)
async def test_a_broken_one_is_listed_with_the_reason_and_stops_nothing(
    workflows: Workflows, tmp_path: Path, files: dict[str, str], reason: str
) -> None:
    write(tmp_path, "broken", **files)
    await workflows.refresh(max_age_seconds=0)
    assert workflows.names() == EIGHT
    info = workflows.info("broken")
    assert reason in (info.error or "")
    with pytest.raises(NotFound) as gone:
        workflows.get("broken")
    assert "says why" in (gone.value.hint or "")


async def test_a_broken_override_does_not_fall_back_to_the_builtin(workflows: Workflows, tmp_path: Path) -> None:
    write(tmp_path, "fix", prompt="{{")
    await workflows.refresh(max_age_seconds=0)
    with pytest.raises(NotFound):
        workflows.get("fix")


async def test_files_that_are_none_make_it_broken(workflows: Workflows, tmp_path: Path) -> None:
    write(tmp_path, "own", prompt="x")
    (tmp_path / "workflows" / "own" / "workflow.toml").symlink_to("/dev/zero")
    (tmp_path / "workflows" / "other").mkdir()
    (tmp_path / "workflows" / "other" / "prompt.md").write_bytes(b"\xff\xfe")
    (tmp_path / "workflows" / "Bad Name").mkdir()
    await workflows.refresh(max_age_seconds=0)
    assert "It is no file" in (workflows.info("own").error or "")
    assert "can't be read" in (workflows.info("other").error or "")
    assert "no name of a workflow" in (workflows.info("Bad Name").error or "")


async def test_one_made_through_the_api_lives_in_the_store(workflows: Workflows, store: Store, tmp_path: Path) -> None:
    made = await workflows.create("mine", FILES, caller=SYSTEM)
    assert (made.source, made.revision, made.active) == ("api", 1, True)
    assert workflows.get("mine").allowed_tools == ("Read",)

    changed = await workflows.update("mine", files={**FILES, "prompt.md": "Else."}, caller=SYSTEM, if_revision=1)
    assert (changed.revision, workflows.get("mine").prompt.text) == (2, "Else.")
    with pytest.raises(PreconditionFailed):
        await workflows.update("mine", active=False, caller=SYSTEM, if_revision=1)
    await workflows.update("mine", active=False, caller=SYSTEM)
    with pytest.raises(NotFound) as off:
        workflows.get("mine")
    assert "switched off" in (off.value.hint or "")

    again = await open_workflows(store, tmp_path / "elsewhere")
    assert again.info("mine").files["prompt.md"] == "Else."
    await again.close()

    await workflows.delete("mine", caller=SYSTEM)
    with pytest.raises(NotFound):
        workflows.info("mine")
    actions = [row.action for row in (await store.read(lambda tx: tx.audit.list(limit=10))).data]
    assert actions == ["workflow.delete", "workflow.update", "workflow.update", "workflow.create"]


async def test_another_process_hears_of_a_change(workflows: Workflows, store: Store, tmp_path: Path) -> None:
    if store.dialect == "sqlite":
        return  # one process has the database to itself
    await store.signals.open()
    other = await open_workflows(store, tmp_path / "elsewhere")
    await workflows.create("mine", FILES, caller=SYSTEM)
    for _ in range(200):
        await other.refresh(max_age_seconds=3600)
        if "mine" in other.names():
            break
        await asyncio.sleep(0.02)
    assert "mine" in other.names()
    await other.close()


async def test_the_api_takes_no_name_of_a_folders_or_of_the_platforms(workflows: Workflows, tmp_path: Path) -> None:
    write(tmp_path, "own")
    for name in ("fix", "own"):
        with pytest.raises(Conflict) as taken:
            await workflows.create(name, FILES, caller=SYSTEM)
        assert taken.value.code == "workflow_exists"
        with pytest.raises(Conflict) as kept:
            await workflows.update(name, active=False, caller=SYSTEM)
        assert kept.value.code == "workflow_not_editable"
        with pytest.raises(Conflict):
            await workflows.delete(name, caller=SYSTEM)
    await workflows.create("mine", FILES, caller=SYSTEM)
    with pytest.raises(Conflict):
        await workflows.create("mine", FILES, caller=SYSTEM)

    # A folder that comes later has the name; the row is listed as what can't be used.
    write(tmp_path, "mine", prompt="The folder's.")
    await workflows.refresh(max_age_seconds=0)
    assert workflows.get("mine").prompt.text == "The folder's."
    assert [(info.source, info.error is None) for info in workflows.infos() if info.name == "mine"] == [
        ("folder", True),
        ("api", False),
    ]


async def test_what_is_broken_is_not_stored(workflows: Workflows) -> None:
    for files in ({}, {"prompt.md": "{{"}, {**FILES, "allowed_tools.json": '["Reed"]'}):
        with pytest.raises(InvalidInput):
            await workflows.create("mine", files, caller=SYSTEM)
    with pytest.raises(NotFound):
        workflows.info("mine")


async def test_a_variable_must_be_known_or_a_memory(workflows: Workflows, store: Store) -> None:
    files = {"prompt.md": "The team says {{house_rules}} on {{branch}}."}
    with pytest.raises(InvalidInput) as unknown:
        await workflows.create("mine", files, caller=SYSTEM)
    assert unknown.value.code == "unknown_variable"
    checked = await workflows.validate("mine", files, caller=SYSTEM)
    assert any("house_rules" in warning for warning in checked.warnings)

    user_id = uuid.uuid4()
    await store.write(lambda tx: tx.users.create(user_id=user_id))
    await MemoryStore(store).create(MemoryInput("house_rules", "Be kind.", user_id=user_id), SYSTEM)
    await workflows.create("mine", files, caller=SYSTEM)
    checked = await workflows.validate("mine", files, caller=SYSTEM)
    assert not any("house_rules" in warning for warning in checked.warnings)


async def test_an_unknown_name_suggests_the_nearest(workflows: Workflows) -> None:
    with pytest.raises(NotFound) as gone:
        workflows.get("implment")
    assert gone.value.hint == "Did you mean 'implement'?"
