"""The Claude CLI's command line and environment: what every start has, and what no workflow can change."""

import json
import uuid
from collections.abc import Sequence

import pytest

from automagik.claude_code.command import CliSpec, command, environment, interrupt_request, user_message
from automagik.errors import InvalidInput

SESSION = uuid.UUID("11111111-2222-4333-8444-555555555555")


def value_of(argv: Sequence[str], option: str) -> str:
    for index, argument in enumerate(argv):
        if argument == option:
            return argv[index + 1]
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    raise AssertionError(f"{option} is not in {argv}")


def test_every_start_refuses_the_repositorys_settings_hooks_and_servers() -> None:
    argv = command(CliSpec(session_id=SESSION, allowed_tools=("Edit", "Bash(git *)")), cli="/usr/bin/claude")
    assert argv[:2] == ["/usr/bin/claude", "-p"]
    assert {"--setting-sources=user", "--strict-mcp-config", "--verbose"} <= set(argv)
    assert value_of(argv, "--permission-mode") == "dontAsk"
    assert value_of(argv, "--output-format") == value_of(argv, "--input-format") == "stream-json"
    settings = json.loads(value_of(argv, "--settings"))
    assert settings == {"disableAllHooks": True, "permissions": {"allow": ["Edit", "Bash(git *)"]}}
    assert value_of(argv, "--session-id") == str(SESSION)
    assert "--resume" not in argv and "--include-partial-messages" not in argv


def test_what_a_start_asks_for_is_on_the_line_and_nothing_can_swallow_what_follows() -> None:
    spec = CliSpec(
        session_id=SESSION,
        resume=True,
        model="--evil",
        max_turns=7,
        append_system_prompt_file="/credentials/prompt.md",
        disallowed_tools=("WebFetch", "WebSearch"),
        mcp_config="/credentials/mcp.json",
        json_schema={"type": "object"},
        include_partial=True,
    )
    argv = command(spec)
    assert argv[0] == "claude"
    assert value_of(argv, "--resume") == str(SESSION) and "--session-id" not in argv
    assert value_of(argv, "--max-turns") == "7"
    assert value_of(argv, "--append-system-prompt-file") == "/credentials/prompt.md"
    assert {"--model=--evil", "--disallowedTools=WebFetch,WebSearch", "--mcp-config=/credentials/mcp.json"} <= set(argv)
    assert '--json-schema={"type":"object"}' in argv and argv[-1] == "--include-partial-messages"


def test_a_list_that_no_command_line_takes_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="--settings"):
        command(CliSpec(session_id=SESSION, allowed_tools=tuple(f"Bash(tool-{number} *)" for number in range(8000))))


def test_the_environment_is_these_variables_and_no_key() -> None:
    variables = environment(
        socket="/run/agent/api.sock",
        token="run-token",
        home="/home/agent",
        config_dir="/credentials",
        tmp="/tmp",
        extra={"CI": "1"},
    )
    assert variables["ANTHROPIC_UNIX_SOCKET"] == "/run/agent/api.sock"
    assert variables["ANTHROPIC_BASE_URL"] == "http://localhost"
    assert variables["ANTHROPIC_AUTH_TOKEN"] == "run-token"
    assert (variables["HOME"], variables["CLAUDE_CONFIG_DIR"], variables["CLAUDE_CODE_TMPDIR"]) == (
        "/home/agent",
        "/credentials",
        "/tmp",
    )
    assert variables["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] == variables["CLAUDE_CODE_DISABLE_AUTO_MEMORY"] == "1"
    assert variables["CI"] == "1"
    assert "ANTHROPIC_API_KEY" not in variables


@pytest.mark.parametrize(
    "name", ["ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY", "CLAUDE_CONFIG_DIR", "LD_PRELOAD", "HOME", "GIT_CONFIG_COUNT"]
)
def test_a_workflow_sets_no_variable_that_is_ours(name: str) -> None:
    with pytest.raises(InvalidInput, match=name):
        environment(socket="/s", token="t", home="/h", config_dir="/c", tmp="/t", extra={name: "x"})


def test_a_workflow_may_set_its_path_and_language() -> None:
    extra = {"PATH": "/toolchain/bin:/usr/bin", "LANG": "de_DE.UTF-8"}
    assert (
        environment(socket="/s", token="t", home="/h", config_dir="/c", tmp="/t", extra=extra).items() >= extra.items()
    )


def test_what_is_written_to_standard_input_is_one_line_each() -> None:
    line = user_message("two\nlines \ud800 “quoted”")
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert json.loads(line)["message"] == {"role": "user", "content": "two\nlines � “quoted”"}
    assert json.loads(interrupt_request("r1")) == {
        "type": "control_request",
        "request_id": "r1",
        "request": {"subtype": "interrupt"},
    }
