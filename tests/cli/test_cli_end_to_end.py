"""The real server and the real command line: every noun, walked through once."""

import json
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from automagik.testing.servers import RunningServer
from automagik.testing.warm import WarmPython


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, warm: WarmPython) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("house"), warm=warm) as running:
        yield running


def lines(server: RunningServer, *arguments: str) -> list[Any]:
    return [json.loads(line) for line in server.command(*arguments, "--json").splitlines()]


def one(server: RunningServer, *arguments: str) -> Any:
    (line,) = lines(server, *arguments)
    return line


def ending(server: RunningServer, *arguments: str) -> tuple[int, str]:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        server.command(*arguments)
    return failed.value.returncode, str(failed.value.stderr)


def test_an_agent_answers_and_remembers_within_a_session(server: RunningServer) -> None:
    name = f"talk-{uuid.uuid4()}"
    assert "hello there" in server.command("run", "simple", "hello there", "--session", name)
    second = one(server, "run", "simple", "and again", "--session", name)
    assert (second["status"], second["name"]) == ("completed", "simple")
    assert "message 2" in second["output"]["message"]

    session = one(server, "sessions", "show", name)
    assert session["session_id"] == second["session_id"]
    said = lines(server, "sessions", "messages", session["session_id"])
    assert [message["role"] for message in said] == ["user", "assistant", "user", "assistant"]
    assert "and again" in server.command("sessions", "messages", name)
    assert session["session_id"] in server.command("sessions", "list", "--agent", "simple")
    server.command("sessions", "delete", name, "--yes")
    assert ending(server, "sessions", "show", name)[0] == 5


def test_chat_keeps_one_session(server: RunningServer, warm: WarmPython) -> None:
    done = warm.run(("chat", "simple", "--json"), env=server.environment, stdin="first\nsecond\n")
    assert done.returncode == 0
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first["session_id"] == second["session_id"]
    assert "message 2" in second["output"]["message"]


def test_runs_are_listed_shown_followed_and_cancelled(server: RunningServer) -> None:
    run = one(server, "run", "simple", "look at me")
    assert run["run_id"] in [listed["run_id"] for listed in lines(server, "runs", "list", "--name", "simple")]
    assert one(server, "runs", "show", run["run_id"])["input"]["message_content"] == "look at me"
    events = lines(server, "runs", "events", run["run_id"])
    assert [events[0]["type"], events[-1]["type"]] == ["run_started", "run_finished"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert len(lines(server, "runs", "events", run["run_id"], "--after", "1")) == len(events) - 1
    assert one(server, "runs", "cancel", run["run_id"])["status"] == "completed"
    assert "run_finished" in server.command("runs", "events", run["run_id"])
    code, told = ending(server, "runs", "show", "run_none")
    assert (code, "There is no run" in told) == (5, True)


def test_agents_are_made_changed_run_and_deleted(server: RunningServer) -> None:
    config = '{"instructions": "You teach {{language}}.", "variables": {"language": "Welsh"}}'
    made = one(server, "agents", "create", "tutor", "--config", config, "--tool", "datetime")
    assert (made["name"], made["source"], made["config"]["tools"]) == ("tutor", "api", ["datetime"])
    assert "hello" in server.command("run", "tutor", "hello")
    changed = one(server, "agents", "update", "tutor", "--description", "Teaches.")
    assert changed["config"] == {**made["config"], "description": "Teaches."}
    assert {agent["name"] for agent in lines(server, "agents", "list")} >= {"simple", "tutor"}
    assert "Teaches." in server.command("agents", "show", "tutor")
    code, told = ending(server, "run", "tuto", "hello")
    assert (code, "tutor" in told) == (5, True)
    assert ending(server, "agents", "create", "bad", "--config", '{"tools": ["nonsense"]}')[0] == 2

    prompt = one(server, "prompts", "create", "tutor", "You teach {{language}} well.")
    assert (prompt["version"] > 1, prompt["is_active"]) == (True, False)
    assert one(server, "prompts", "activate", prompt["prompt_id"])["is_active"] is True
    assert prompt["prompt_id"] in server.command("prompts", "list", "--agent", "tutor")
    assert "well" in server.command("prompts", "show", prompt["prompt_id"])
    assert ending(server, "prompts", "create", "tutor", "{{unclosed")[0] == 2

    server.command("agents", "delete", "tutor", "--yes")
    assert ending(server, "agents", "show", "tutor")[0] == 5


def test_users_and_memories_come_and_go(server: RunningServer) -> None:
    user = one(server, "users", "create", "--email", "ada@example.com", "--data", '{"team": "core"}')
    assert ending(server, "users", "create", "--email", "ada@example.com")[0] == 1
    assert user["user_id"] in server.command("users", "list")
    assert "ada@example.com" in server.command("users", "show", user["user_id"])

    stored = one(server, "memories", "set", "color", "blue", "--user", user["user_id"])
    again = one(server, "memories", "set", "color", "green", "--user", user["user_id"])
    assert (again["memory_id"], again["content"]) == (stored["memory_id"], "green")
    assert "green" in server.command("memories", "list", "--user", user["user_id"], "--name", "color")
    assert "green" in server.command("memories", "show", stored["memory_id"])
    server.command("memories", "delete", stored["memory_id"], "--yes")
    assert ending(server, "memories", "show", stored["memory_id"])[0] == 5

    server.command("users", "delete", user["user_id"], "--yes")
    assert ending(server, "users", "show", user["user_id"])[0] == 5


def test_keys_are_made_used_and_revoked(server: RunningServer, warm: WarmPython) -> None:
    limits = ("--expires", "1h", "--rate-limit", "100/minute", "--max-concurrent-runs", "3")
    made = one(server, "keys", "create", "reader", "--scope", "runs:read", *limits)
    assert one(server, "keys", "show", made["key_id"])["max_concurrent_runs"] == 3
    reader = {**server.environment, "AUTOMAGIK_KEY": made["key"]}

    def as_reader(*arguments: str) -> int:
        return warm.run(arguments, env=reader).returncode

    assert as_reader("runs", "list") == 0
    assert as_reader("run", "simple", "hi") == 4
    assert as_reader("keys", "create", "x", "--scope", "admin") == 4
    assert "reader" in server.command("keys", "list")
    shown = server.command("keys", "show", made["key_id"])
    assert made["prefix"] in shown
    assert made["key"] not in shown
    server.command("keys", "revoke", made["key_id"], "--yes")
    assert as_reader("runs", "list") == 4


def test_the_doctor_is_content_with_a_server_that_runs(server: RunningServer) -> None:
    found = {finding["name"]: finding for finding in lines(server, "doctor")}
    assert (found["server"]["status"], found["access"]["status"], found["database"]["status"]) == ("ok", "ok", "ok")
    assert "admin" in found["access"]["detail"]


def test_a_backup_is_taken_while_the_server_runs(server: RunningServer, tmp_path: Path) -> None:
    one(server, "run", "simple", "to be kept")
    copied = one(server, "db", "backup", str(tmp_path / "archive.db"))
    assert copied["rows"]["runs"] >= 1
    assert ending(server, "db", "restore", str(tmp_path / "archive.db"), "--yes")[0] == 1


def test_no_key_is_in_the_servers_log(server: RunningServer) -> None:
    ending(server, "runs", "show", server.key)
    log = (Path(server.environment["AUTOMAGIK_DATA_DIR"]) / "server-output.log").read_text()
    assert "request" in log
    assert server.key not in log
    assert "amk_" not in log.replace(server.key[:8], "")


def test_a_port_that_is_taken_is_told_with_the_way_out(server: RunningServer, tmp_path: Path, warm: WarmPython) -> None:
    taken = {"AUTOMAGIK_PORT": server.url.rsplit(":", 1)[1], "AUTOMAGIK_DATA_DIR": str(tmp_path)}
    done = warm.run(("serve",), env={**server.environment, **taken})
    assert done.returncode == 1
    assert "AUTOMAGIK_PORT" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_is_asked_to_stop_ends_well(tmp_path: Path, number: signal.Signals) -> None:
    running = RunningServer(tmp_path / "data")
    running.start()
    os.kill(running.pid, number)
    assert running.stop() == 0
