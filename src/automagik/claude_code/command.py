"""The Claude CLI's command line, its environment, and what is written to its standard input: one builder for all executors."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

import orjson

from automagik.errors import InvalidInput
from automagik.memory import clean_text
from automagik.types import JsonObject

__all__ = [
    "MAX_RETRIES",
    "CliSpec",
    "command",
    "environment",
    "interrupt_request",
    "user_message",
]

MAX_RETRIES = 11
"""How often the CLI asks again where the gateway is away or overloaded. Its pauses are 0.5 s, 1 s, 2 s and so on up to about
32 s, each up to a quarter longer: 11 of them bridge over 3 minutes; see `tests/claude_code/test_real_cli.py`."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MAX_ARGUMENT_BYTES = 128 * 1024 - 1
"""Linux takes no longer one (MAX_ARG_STRLEN)."""
_OPEN_TO_EXTRA = frozenset({"LANG", "PATH", "SHELL", "TERM", "TMPDIR", "TZ"})
"""What a workflow may set otherwise than we do."""
_OURS = ("ANTHROPIC_", "CLAUDE", "LD_", "DISABLE_", "GIT_CONFIG")
"""What begins so says whom the CLI speaks to and as whom: no workflow sets it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CliSpec:
    """One start of the CLI. The prompt is not here: it goes to standard input (`user_message`)."""

    session_id: UUID
    """Chosen by us, so that it is known before the CLI says anything."""
    resume: bool = False
    """Whether the session exists already and is gone on with."""
    model: str | None = None
    max_turns: int | None = None
    append_system_prompt_file: str | None = None
    """Its path inside the sandbox; added to the CLI's own system prompt."""
    allowed_tools: tuple[str, ...] = ()
    """What needs no permission, as the CLI writes it: `Edit`, `Bash(git *)`, `mcp__notes`. All else is refused."""
    disallowed_tools: tuple[str, ...] = ()
    """What the model is not even offered, or refused whatever is allowed."""
    mcp_config: str | None = None
    """The path inside the sandbox of the file that names the MCP servers; no others are started."""
    json_schema: JsonObject | None = None
    """What the final report must fit."""
    include_partial: bool = False
    """Whether text comes piece by piece too."""


def command(spec: CliSpec, *, cli: str = "claude") -> list[str]:
    """The command line. Settings, hooks and MCP servers of the repository under work have no effect on it.

    The allow list travels in `--settings`, and each option that takes several values as `--option=value`: so no list can
    swallow what follows it.

    Raises: InvalidInput for a list or schema that is too long for a command line.
    """
    # Trust is not asked for in print mode: without `user` a committed .claude/settings.json would run hooks and send the
    # run's token elsewhere; without --strict-mcp-config a committed .mcp.json would be started.
    argv = [cli, "-p", "--output-format", "stream-json", "--verbose", "--input-format", "stream-json"]
    argv += ["--setting-sources=user", "--strict-mcp-config", "--permission-mode", "dontAsk"]
    argv.append(f"--settings={_settings(spec)}")
    argv += ["--resume" if spec.resume else "--session-id", str(spec.session_id)]
    if spec.model is not None:
        argv.append(f"--model={spec.model}")
    if spec.max_turns is not None:
        argv += ["--max-turns", str(spec.max_turns)]
    if spec.append_system_prompt_file is not None:
        argv += ["--append-system-prompt-file", spec.append_system_prompt_file]
    if spec.disallowed_tools:
        argv.append(f"--disallowedTools={','.join(spec.disallowed_tools)}")
    if spec.mcp_config is not None:
        argv.append(f"--mcp-config={spec.mcp_config}")
    if spec.json_schema is not None:
        argv.append(f"--json-schema={orjson.dumps(spec.json_schema).decode()}")
    if spec.include_partial:
        argv.append("--include-partial-messages")
    for argument in argv:
        if len(argument.encode()) > _MAX_ARGUMENT_BYTES:
            option = argument.partition("=")[0]
            raise InvalidInput(
                f"The value of {option} is longer than a command line takes ({_MAX_ARGUMENT_BYTES} bytes).",
                field=("command", option),
                hint="Shorten the workflow's list of tools, or its report's schema.",
            )
    return argv


def _settings(spec: CliSpec) -> str:
    permissions: JsonObject = {"allow": list(spec.allowed_tools)}
    return orjson.dumps({"disableAllHooks": True, "permissions": permissions}).decode()


def environment(
    *,
    socket: str,
    token: str,
    home: str,
    config_dir: str,
    tmp: str,
    extra: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """All that the CLI, and so every tool that it starts, has in its environment. There is no key in it.

    `token` is the run's own, good for nothing but its gateway, whose socket is `socket`. Paths are those inside the sandbox.
    `extra` is a workflow's own.

    Raises: InvalidInput for a variable in `extra` that is not the workflow's to set.
    """
    ours = {
        "PATH": _PATH,
        "HOME": home,
        "LANG": "C.UTF-8",
        "SHELL": "/bin/bash",
        "TERM": "dumb",
        "TMPDIR": tmp,
        # A plain http base URL: over TLS the socket is not used. While the socket is set, no settings file redirects them.
        "ANTHROPIC_UNIX_SOCKET": socket,
        "ANTHROPIC_BASE_URL": "http://localhost",
        "ANTHROPIC_AUTH_TOKEN": token,
        "CLAUDE_CONFIG_DIR": config_dir,
        "CLAUDE_CODE_TMPDIR": tmp,
        "CLAUDE_CODE_MAX_RETRIES": str(MAX_RETRIES),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_ERROR_REPORTING": "1",
        "ENABLE_TOOL_SEARCH": "false",  # else tools of MCP servers are hidden behind a tool that no workflow allows
        "GIT_TERMINAL_PROMPT": "0",
        # An image's own git-lfs would ask a server for what a pointer stands for, and fail the checkout.
        "GIT_LFS_SKIP_SMUDGE": "1",
        # The CLI runs git in the workspace by itself: no program that a repository's config names.
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.fsmonitor",
        "GIT_CONFIG_VALUE_0": "false",
    }
    for name in extra or {}:
        if (name in ours and name not in _OPEN_TO_EXTRA) or name.startswith(_OURS):
            raise InvalidInput(
                f"A workflow can't set the variable {name}.",
                field=("env", name),
                hint="The platform sets it: take it from the workflow's env.",
            )
    return {**ours, **(extra or {})}


def user_message(text: str) -> bytes:
    """The line by which a person says something: the first prompt, or a message to a session at work."""
    message = {"role": "user", "content": clean_text(text)}
    return orjson.dumps({"type": "user", "message": message, "parent_tool_use_id": None}) + b"\n"


def interrupt_request(request_id: str) -> bytes:
    """The line that stops the turn under way; the session goes on, and the CLI answers with `request_id`."""
    request: JsonObject = {"subtype": "interrupt"}
    return orjson.dumps({"type": "control_request", "request_id": request_id, "request": request}) + b"\n"
