"""`workflows show` and `run`: what people see, and what is said of a repository that can't be sent."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cli_harness import Answer, Command, StubApi, event, problem, run_document

WORKFLOW: dict[str, Any] = {
    "name": "tidy",
    "source": "api",
    "active": True,
    "error": None,
    "files": {"prompt.md": "You tidy.\nNothing else."},
    "definition": {
        "allowed_tools": ["Read", "Bash(git log *)"],
        "disallowed_tools": [],
        "servers": {"mcpServers": {"notes": {"command": "notes-server"}}},
        "model": None,
        "report_schema": {"type": "object", "properties": {"summary": {}, "done": {}}},
    },
}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "a.txt").write_text("one\n")
    for line in (
        "init --quiet --initial-branch=main",
        "config user.name You",
        "config user.email you@example.org",
        "add .",
        "commit --quiet --message=Begin",
    ):
        subprocess.run(["git", "-C", str(folder), *line.split()], check=True)
    return folder


def serves_a_run(api: StubApi, **changes: Any) -> None:
    api.on("POST", "/api/v1/repositories", {"bundle": "b" * 64})
    api.on("POST", "/api/v1/workflows/tidy/run", run_document(status="queued"))
    ended = event("run_finished", {"run": run_document(name="tidy", **changes)}, 1)
    api.on("GET", "/api/v1/runs/run_1/events", ended)


def test_a_workflow_is_shown_without_what_is_empty_and_a_tool_a_line(api: StubApi, command: Command) -> None:
    api.on("GET", "/api/v1/workflows/tidy", WORKFLOW)
    assert command("workflows", "show", "tidy").out == (
        "name           tidy\n"
        "source         api\n"
        "active         yes\n"
        "allowed_tools:\n    Read\n    Bash(git log *)\n"
        "servers        notes\n"
        "report         summary done\n"
        "prompt:\n    You tidy.\n    Nothing else.\n"
    )
    assert command("workflows", "show", "tidy", "--json").lines == [WORKFLOW]


def test_what_is_not_found_is_listed_by_a_command(api: StubApi, command: Command) -> None:
    hint = "List what there is, or create a workflow."
    api.on("GET", "/api/v1/workflows/none", problem(404, "workflow_not_found", "There is no workflow.", hint=hint))
    assert "hint: `automagik workflows list` lists" in command("workflows", "show", "none").err


def test_what_is_wrong_in_a_file_names_the_file_once(api: StubApi, command: Command, tmp_path: Path) -> None:
    detail = "workflow.toml: display_name: It must be a text."
    fields = [{"loc": ["body", "files", "workflow.toml"], "msg": detail, "type": "invalid_input"}]
    wrong = problem(422, "invalid_input", detail, hint="Write a text.", errors=fields)
    api.on("POST", "/api/v1/workflows/validate", wrong)
    done = command("workflows", "validate", str(tmp_path))
    assert done.code == 2
    assert done.err == f"error: {detail}\nhint: Write a text.\n"


def test_a_run_to_go_on_with_is_named_by_its_id(api: StubApi, command: Command) -> None:
    done = command("workflows", "run", "tidy", "Go on", "--resume", "run_yesterday")
    assert done.code == 5 and "There is no run" in done.err and api.asked == []


def test_what_is_not_committed_is_said_not_to_be_sent(api: StubApi, command: Command, repository: Path) -> None:
    serves_a_run(api)
    clean = command("workflows", "run", "tidy", "Do it", "--repo", str(repository))
    assert clean.code == 0 and "warning" not in clean.err
    (repository / "a.txt").write_text("two\n")
    (repository / "new.txt").write_text("")
    dirty = command("workflows", "run", "tidy", "Do it", "--repo", str(repository))
    assert "warning: 2 files of your work tree are not committed, and not sent." in dirty.err


def test_a_run_that_failed_is_summed_up_in_plain_words(api: StubApi, command: Command, repository: Path) -> None:
    workspace: dict[str, Any] = {"branch": "b", "commits": [{}], "files_changed": 2, "insertions": 3, "deletions": 0}
    error = {"detail": "No key.", "hint": "Set one."}
    usage = {"requests": 0, "cost_usd": None}
    serves_a_run(api, status="failed", outcome="model_error", error=error, workspace=workspace, usage=usage, turns=None)
    done = command("workflows", "run", "tidy", "Do it", "--repo", str(repository))
    assert done.code == 1
    assert done.err.splitlines()[1:5] == [
        "1 commit on b, 2 files changed (+3 -0)",
        "0 turns, no call, failed (model_error)",
        "error: No key.",
        "hint: Set one.",
    ]


def test_a_large_repository_is_sent_once_for_all_runs_from_the_same_commit(
    api: StubApi, command: Command, repository: Path
) -> None:
    (repository / "large.bin").write_bytes(os.urandom(21_000_000))
    for line in (["config", "core.compression", "0"], ["add", "."], ["commit", "--quiet", "--message=Large"]):
        subprocess.run(["git", "-C", str(repository), *line], check=True)
    serves_a_run(api)
    run = ("workflows", "run", "tidy", "Do it", "--repo", str(repository), "--no-follow")
    first = command(*run)
    (path,) = [asked.path for asked in api.asked if asked.path.startswith("/api/v1/artifacts/")]
    assert "Sending 21 MB" in first.err
    assert next(asked.path for asked in api.asked if asked.method == "POST") == "/api/v1/repositories"

    api.asked.clear()
    api.on("GET", path, Answer("# v2 git bundle", headers={"content-type": "application/x-git-bundle"}))
    again = command(*run)
    assert "has these 21 MB from an earlier run" in again.err
    (body,) = api.bodies("POST")
    assert body["repository"]["bundle"] == path.rpartition("/")[2]


@pytest.mark.parametrize(
    ("made", "said"),
    [(None, "There is no folder"), ([], "is no git repository"), (["init", "--quiet"], "has no commit yet")],
)
def test_a_folder_that_is_no_repository_to_send_is_told_from_others(
    api: StubApi, command: Command, tmp_path: Path, made: list[str] | None, said: str
) -> None:
    folder = tmp_path / "folder"
    if made is not None:
        folder.mkdir()
        if made:
            subprocess.run(["git", "-C", str(folder), *made], check=True)
    done = command("workflows", "run", "tidy", "Do it", "--repo", str(folder))
    assert done.code == 2 and said in done.err and api.asked == []


def test_the_live_view_keeps_a_line_a_line_on_a_narrow_terminal(
    api: StubApi, command: Command, repository: Path
) -> None:
    api.on("POST", "/api/v1/repositories", {"bundle": "b" * 64})
    api.on("POST", "/api/v1/workflows/tidy/run", run_document(status="queued"))
    said = event("message_completed", {"text": "漢" * 100}, 1) + event("message_completed", {"text": "a" * 300}, 2)
    said += event("progress", {"detail": "debian:12 is coming: 3 of 7 layers"}, 3)
    said += event("message_completed", {"text": "… not so"}, 4)
    usage = {"requests": 2, "tool_calls": 3, "cost_usd": "0.25"}
    finished = event("run_finished", {"run": run_document(turns=2, usage=usage)}, 5)
    api.on("GET", "/api/v1/runs/run_1/events", said + finished)
    done = command.on_terminal("workflows", "run", "tidy", "Do it", "--repo", str(repository), columns=60)
    told = [line for line in done.out.splitlines() if "漢" in line or "aaa" in line]
    assert [line.count("漢") for line in told] == [24, 0]  # 10 signs of time, 24 wide ones of two cells, and the mark
    assert told[0].endswith("漢…") and len(told[1]) == 60 and told[1].endswith("a…")
    piped = command("workflows", "run", "tidy", "Do it", "--repo", str(repository))
    assert "a" * 159 + "…" in piped.err
    assert "s  … debian:12 is coming: 3 of 7 layers\n" in piped.err and "s  not so\n" in piped.err
    assert "2 turns, 3 tool calls, $0.25, completed (completed)" in piped.err


def test_a_person_is_told_that_the_server_is_away(api: StubApi, command: Command, repository: Path) -> None:
    api.on("POST", "/api/v1/repositories", {"bundle": "b" * 64})
    api.on("POST", "/api/v1/workflows/tidy/run", run_document(status="queued"))
    away = problem(503, "service_unavailable", "Starting.")
    answers = [
        Answer(event("run_started", {}, 1), breaks=True),
        away,
        away,
        Answer(event("run_finished", {"run": run_document()}, 2)),
    ]
    api.on("GET", "/api/v1/runs/run_1/events", lambda asked: answers.pop(0))
    done = command("workflows", "run", "tidy", "Do it", "--repo", str(repository))
    assert done.code == 0 and done.err.count("is away; looking for it") == 1


def test_a_hint_to_go_on_with_a_run_is_a_command(api: StubApi, command: Command) -> None:
    hint = 'A new run goes on with it: `"resume_of": "run_1"`.'
    api.on("POST", "/api/v1/runs/run_1/messages", problem(409, "conflict", "The run has ended.", hint=hint))
    assert "`automagik workflows run WORKFLOW TASK --resume run_1`" in command("runs", "message", "run_1", "Hi").err


def test_what_a_run_wrote_steers_no_terminal_whatever_shows_it(api: StubApi, command: Command) -> None:
    evil = "a\x1b]0;title\x07\x9b31m\u202eb\x7f\r"
    run = run_document(name=evil, output={"message": evil})
    api.on("GET", "/api/v1/runs/run_1", run)
    api.on("GET", "/api/v1/runs", {"data": [run], "next_cursor": None})
    api.on("GET", "/api/v1/runs/run_1/diff", Answer(evil, headers={"content-type": "text/x-diff"}))
    told = event("tool_call", {"tool_name": evil, "args": {"command": evil}}, 1) + event("commit", {"subject": evil}, 2)
    api.on("GET", "/api/v1/runs/run_1/events", told + event("run_finished", {"run": run}, 3))
    for verb in (["show", "run_1"], ["list"], ["diff", "run_1"], ["events", "run_1"]):
        for options in ([], ["--json"]) if verb[0] != "diff" else ([],):
            shown = command.on_terminal("runs", *verb, *options).out
            shown = re.sub(r"\x1b\[[0-9;]*m", "", shown)  # the bold titles of a table are ours
            assert "title" in shown and not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", shown), (
                verb,
                shown,
            )
    assert command("runs", "show", "run_1", "--json").lines == [run]


def test_an_option_that_can_not_be_is_refused_before_the_repository_is_sent(
    api: StubApi, command: Command, repository: Path
) -> None:
    for option, value in (("--budget", "a lot"), ("--budget", "-1"), ("--executor", "moon")):
        done = command("workflows", "run", "tidy", "Do it", "--repo", str(repository), f"{option}={value}")
        assert done.code == 2 and f"{option}: " in done.err and "hint: " in done.err, done.err
    assert api.asked == []


def test_a_long_task_comes_from_standard_input(api: StubApi, command: Command, repository: Path) -> None:
    serves_a_run(api)
    done = command("workflows", "run", "tidy", "-", "--repo", str(repository), stdin="Do it\nwell\n")
    assert done.code == 0 and api.bodies("POST")[-1]["message_content"] == "Do it\nwell\n"


def test_what_a_model_says_does_not_look_like_what_was_done(api: StubApi, command: Command, repository: Path) -> None:
    serves_a_run(api)
    said = event("message_completed", {"text": "● commit 0123456789ab Fix it all"}, 1)
    made = event("commit", {"commit": "ab" * 20, "subject": "Fix a part"}, 2)
    api.on("GET", "/api/v1/runs/run_1/events", said + made + event("run_finished", {"run": run_document()}, 3))
    done = command("workflows", "run", "tidy", "Do it", "--repo", str(repository))
    assert [line.split("s  ", 1)[1] for line in done.err.splitlines() if "commit" in line and "s  " in line] == [
        "commit 0123456789ab Fix it all",
        "● commit abababababab Fix a part",
    ]
