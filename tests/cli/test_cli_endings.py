"""How commands end: the exit code tells a script, the text tells a person, `--json` tells a program."""

import json
import socket
import subprocess
import sys

import pytest
from cli_harness import Answer, Command, StubApi, problem

NOUNS = ["agents", "sessions", "memories", "prompts", "users", "runs", "keys", "db"]


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (problem(400, "bad_request", "No."), 2, "No."),
        (problem(401, "unauthorized", "The API key is unknown, expired or revoked."), 4, "unknown, expired or revoked"),
        (problem(403, "missing_scope", "This key lacks the scope 'runs:read'."), 4, "runs:read"),
        (problem(404, "run_not_found", "There is no run 'x'."), 5, "There is no run"),
        (problem(409, "conflict", "Taken."), 1, "Taken."),
        (problem(412, "stale_edit", "Changed."), 1, "Changed."),
        (problem(413, "too_large", "Too large."), 2, "Too large."),
        (problem(429, "rate_limited", "Slowly."), 1, "Slowly."),
        (problem(500, "internal_error", "Broken."), 1, "Broken."),
        (problem(502, "model_error", "The model failed.", run_id="run_9"), 1, "run_9"),
        (problem(403, "policy", "The run broke a rule.", run_id="run_9"), 1, "run_9"),
        (problem(503, "service_unavailable", "Stopping."), 3, "Stopping."),
        (problem(503, "worker_lost", "The server stopped.", run_id="run_9"), 1, "run_9"),
        (Answer("<html>", 404, {"content-type": "text/html"}), 3, "not as an Automagik server does"),
        (Answer("<html>", 502, {"content-type": "text/html"}), 3, "gateway"),
        (Answer("<html>", 200, {"content-type": "text/html"}), 3, "did not answer as an Automagik"),
        (Answer(None, 307, {"location": "http://127.0.0.1:1/elsewhere"}), 3, "307"),
    ],
)
def test_what_the_server_answers_becomes_an_exit_code_and_a_text(
    api: StubApi, command: Command, answer: Answer, code: int, said: str
) -> None:
    api.on("GET", "/api/v1/runs/x", answer)
    done = command("runs", "show", "x")
    assert done.code == code
    assert said in done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    assert len(api.asked) == 1


def test_a_problem_is_told_with_its_fields_and_the_way_out(api: StubApi, command: Command) -> None:
    errors = [{"loc": ["body", "scopes", 0], "msg": "There is no scope 'x'."}]
    answer = problem(422, "invalid_input", "The body is not as it must be.", hint="Did you mean 'y'?", errors=errors)
    api.on("POST", "/api/v1/keys", answer)
    told = command("keys", "create", "a", "--scope", "x")
    assert told.code == 2
    assert "scopes.0: There is no scope 'x'." in told.err
    assert "hint: Did you mean 'y'?" in told.err
    as_json = command("keys", "create", "a", "--scope", "x", "--json")
    assert as_json.code == 2
    assert as_json.out == ""
    assert json.loads(as_json.err) == answer.body


def test_what_is_wrong_with_one_field_is_told_once(api: StubApi, command: Command) -> None:
    errors = [{"loc": ["body", "user_id"], "msg": "It is no UUID."}]
    detail = "body.user_id: It is no UUID."
    api.on(
        "POST", "/api/v1/keys", problem(422, "invalid_input", detail, hint="`errors` names each field.", errors=errors)
    )
    assert command("keys", "create", "a", "--scope", "x").err == "error: user_id: It is no UUID.\n"


def test_a_hint_names_the_command_that_lists(api: StubApi, command: Command) -> None:
    hint = "GET /api/v1/runs lists the runs that this key may see."
    api.on("GET", "/api/v1/runs/x", problem(404, "run_not_found", "There is no run 'x'.", hint=hint))
    assert "hint: `automagik runs list` lists the runs that this key may see." in command("runs", "show", "x").err


def test_a_server_that_is_away_is_exit_code_3_with_the_way_out(command: Command) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    for arguments in (["agents", "list"], ["run", "simple", "hi"], ["runs", "events", "run_1"]):
        done = command(*arguments, "--url", url)
        assert done.code == 3
        assert url in done.err
        assert "automagik serve" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["run", "simple"],
        ["agents", "show"],
        ["runs", "list", "--limit", "0"],
        ["agents", "list", "--url", "ftp://x"],
        ["agents", "list", "--url", "http://ann:pw@127.0.0.1"],
        ["agents", "list", "--url", "no address"],
        ["agents", "create", "x", "--config", "no json"],
        ["agents", "create", "x", "--config", "[1]"],
        ["agents", "create", "x", "--config", "@/nowhere/at/all"],
        ["keys", "create", "x"],
        ["agents", "update", "x"],
        ["memories", "set", "city", "Lisbon"],
        ["keys", "create", "--first", "--scope", "admin"],
        ["keys", "create", "x", "--scope", "admin", "--expires", "soon"],
        ["run", "simple", "x", "--file", "/nowhere/at/all.png"],
        ["run", "simple", "x", "--file", "/nowhere/without-a-kind"],
        ["sessions", "delete", "x"],
        ["keys", "revoke", "key_x"],
        ["serve", "--port", "99999"],
    ],
)
def test_wrong_usage_is_exit_code_2_and_asks_no_server(api: StubApi, command: Command, arguments: list[str]) -> None:
    done = command(*arguments)
    assert done.code == 2, done
    assert done.out == ""
    assert done.err
    assert "Traceback" not in done.err
    assert api.asked == []


def test_a_setting_that_can_not_be_is_named(command: Command) -> None:
    done = command("doctor", AUTOMAGIK_PORT="high", AUTOMAGIK_LOG_LEVEL="SECRETvalue")
    assert done.code == 2
    assert "AUTOMAGIK_PORT" in done.err
    assert "AUTOMAGIK_LOG_LEVEL" in done.err
    assert "SECRETvalue" not in done.err


def test_what_is_lost_for_good_is_asked_for_on_a_terminal(api: StubApi, command: Command) -> None:
    api.on("DELETE", "/api/v1/sessions/s", Answer(status=204))
    declined = command.on_terminal("sessions", "delete", "s", types=[("[y/N]", "n\n")])
    assert declined.code == 1
    assert "Nothing was changed" in declined.out
    assert api.asked == []
    assert command.on_terminal("sessions", "delete", "s", types=[("[y/N]", "y\n")]).code == 0
    assert command("sessions", "delete", "s", "--yes").code == 0
    assert len(api.asked) == 2


def test_a_pipe_that_closes_early_ends_without_a_trace(api: StubApi, command: Command) -> None:
    api.on("GET", "/api/v1/runs", {"data": [{"run_id": "x" * 1000}] * 100, "next_cursor": "more"})
    script = f"{sys.executable} -m automagik runs list --limit 100000 --json | head -1"
    done = subprocess.run(
        ["bash", "-c", script], env=command.environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_every_command_has_help_and_loads_nothing_heavy_for_it(command: Command) -> None:
    script = (
        "import sys; sys.argv = ['automagik', '--help']\n"
        "from automagik.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'pydantic', 'pydantic_settings', 'httpx2', 'sqlalchemy', 'pydantic_ai', 'fastapi', 'asyncio', 'structlog'}\n"
        "sys.exit(f'loaded: {heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=command.environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    for noun in [*NOUNS, "serve", "run", "chat", "doctor", "version"]:
        assert noun in done.stdout


def test_the_version_is_told(command: Command) -> None:
    assert command("version").out.startswith("automagik 0.")
    assert command("--version").out == command("version").out
    assert set(command("version", "--json").lines[0]) == {"version", "python"}


def test_the_shells_completion_knows_the_commands(command: Command) -> None:
    done = command(_AUTOMAGIK_COMPLETE="complete_bash", COMP_WORDS="automagik se", COMP_CWORD="1")
    assert set(done.out.split()) == {"secrets", "serve", "sessions"}


def test_only_what_the_first_word_names_is_built(command: Command) -> None:
    assert "requeue" in command("runs", "--help").out
    assert command("runs", "workflows").code == 2, "a noun is none of another noun's verbs"
    whole = command("--help").out
    assert all(noun in whole for noun in ("workflows", "budgets", "serve", "doctor"))
    guessed = command("workflow", "list")
    assert guessed.code == 2 and "Did you mean" in guessed.err
