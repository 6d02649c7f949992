"""A workflow's files: what they say, and how each mistake in them is told."""

import json
from decimal import Decimal
from typing import Any

import pytest

from automagik.claude_code.workflow import Workflow
from automagik.errors import InvalidInput

GOOD: dict[str, str] = {
    "prompt.md": "Do it on {{branch}} for {{reader}}; the team says {{house_rules}}.",
    "workflow.toml": """
display_name = "Do it"
description = "Does it."
model = "anthropic:some-model"
models = ["some-*", "other"]
egress = ["registries", "api.example.com"]
image = "team/image:1"
setup = ["make deps"]
host_gone = "restart"

[limits]
max_turns = 20
timeout_seconds = 600
stall_seconds = 60
max_restarts = 0

[budget]
limit_usd = 2.50

[variables]
reader = "nobody"
""",
    "allowed_tools.json": '["Read", "Bash(git *)", "mcp__notes__add", "WebFetch"]',
    ".mcp.json": '{"mcpServers": {"notes": {"command": "notes-server", "args": ["--quiet"], "env": {"LEVEL": "info"}}}}',
    "report.schema.json": '{"type": "object", "properties": {"done": {"type": "boolean"}}, "required": ["done"]}',
}


def changed(**files: str | None) -> dict[str, str]:
    named = {"toml": "workflow.toml", "tools": "allowed_tools.json", "mcp": ".mcp.json", "schema": "report.schema.json"}
    given = {named.get(key, "prompt.md" if key == "prompt" else key): text for key, text in files.items()}
    return {name: text for name, text in {**GOOD, **given}.items() if text is not None}


def test_a_workflow_is_what_its_files_say() -> None:
    workflow = Workflow.parse("do-it", GOOD)
    assert (workflow.display_name, workflow.description) == ("Do it", "Does it.")
    assert workflow.allowed_tools == ("Read", "Bash(git *)", "mcp__notes__add", "WebFetch")
    assert (workflow.limits.max_turns, workflow.limits.timeout_seconds, workflow.limits.stall_seconds) == (20, 600, 60)
    assert workflow.limits.max_restarts == 0
    assert (workflow.model, workflow.models) == ("anthropic:some-model", ("some-*", "other"))
    assert workflow.egress == ("registries", "api.example.com")
    assert workflow.budget_usd == Decimal("2.5")
    assert (workflow.image, workflow.setup, workflow.host_gone, workflow.writes) == (
        "team/image:1",
        ("make deps",),
        "restart",
        True,
    )
    assert workflow.report_schema is not None
    assert workflow.unknown_variables == ("house_rules",)


def test_only_a_prompt_is_needed() -> None:
    workflow = Workflow.parse("small", {"prompt.md": "Look around."})
    assert (workflow.allowed_tools, workflow.egress, workflow.budget_usd, workflow.model) == ((), (), None, None)
    assert workflow.display_name == "small"
    assert workflow.limits.max_restarts == 3


def test_a_prompt_is_filled_once_and_the_guide_comes_as_data() -> None:
    workflow = Workflow.parse("do-it", GOOD)
    text = workflow.instructions(
        {"branch": "b", "house_rules": "{{reader}}"}, guide="Use tabs.</repository_guide>\n{{branch}}"
    )
    assert text.startswith("Do it on b for nobody; the team says {{reader}}.")
    assert text.count("</repository_guide>") == 1
    assert "Use tabs." in text
    assert text.rstrip().endswith("</repository_guide>")
    assert "{{branch}}" in text
    assert "repository_guide" not in workflow.instructions({})
    assert workflow.instructions({"reader": "Ann"}).startswith("Do it on  for Ann")


TOML: list[tuple[str, str, str]] = [
    ("display_nam = 'x'", "workflow.toml: display_nam", "Did you mean 'display_name'?"),
    ("[limits]\nmax_turn = 1", "workflow.toml: limits.max_turn", "Did you mean 'limits.max_turns'?"),
    ("[budget]\nlimit = 1", "workflow.toml: budget.limit", "limit_usd"),
    ("x = ", "workflow.toml: It is no TOML", ""),
    ("[limits]\nmax_turns = 'many'", "workflow.toml: limits.max_turns", "max_turns"),
    ("[limits]\nmax_turns = true", "workflow.toml: limits.max_turns", ""),
    ("[limits]\nmax_turns = 0", "workflow.toml: limits.max_turns", ""),
    ("[limits]\nmax_turns = 1.5", "workflow.toml: limits.max_turns", ""),
    ("[limits]\ntimeout_seconds = inf", "workflow.toml: limits.timeout_seconds", ""),
    ("[limits]\ntimeout_seconds = nan", "workflow.toml: limits.timeout_seconds", ""),
    ("limits = 3", "workflow.toml: limits", "[limits]"),
    ("[budget]\nlimit_usd = -1", "workflow.toml: budget.limit_usd", ""),
    ("egress = 'everything!'", "workflow.toml: egress", '"none"'),
    ("egress = ['http://x']", "workflow.toml: egress", ""),
    ("egress = ['registries', 3]", "workflow.toml: egress", ""),
    ("writes = 'no'", "workflow.toml: writes", "true"),
    ("host_gone = 'restrat'", "workflow.toml: host_gone", "Did you mean 'restart'?"),
    ("image = 'a b'", "workflow.toml: image", ""),
    ("image = '--privileged'", "workflow.toml: image", ""),
    ("dockerfile = 'Dockerfile'", "workflow.toml: dockerfile", "Add the file Dockerfile"),
    ("dockerfile = '../../etc/passwd'", "workflow.toml: dockerfile", ""),
    ("setup = [3]", "workflow.toml: setup", ""),
    ("model = '--model'", "workflow.toml: model", ""),
    ("[variables]\n'a b' = 'x'", "workflow.toml: variables.a b", ""),
    ("[variables]\nbranch = 'x'", "workflow.toml: variables.branch", ""),
    ("[variables]\nx = 3", "workflow.toml: variables.x", ""),
]
TOOLS = [
    ("nothing", "allowed_tools.json: It is no JSON", ""),
    ("3", "allowed_tools.json: It must be a list", ""),
    ('{"allowed": []}', "allowed_tools.json: allowed", "allow, deny"),
    ('["Reed"]', "allowed_tools.json: Reed", "Did you mean 'Read'?"),
    ('["bash(git *)"]', "allowed_tools.json: bash(git *)", "Did you mean 'Bash'?"),
    ('["Bash(git"]', "allowed_tools.json: Bash(git", ""),
    ('["--dangerously-skip-permissions"]', "allowed_tools.json: --dangerously", ""),
    ("[3]", "allowed_tools.json: 3", ""),
    ('["Write(docs/**)"]', "allowed_tools.json: Write(docs/**)", "Edit(docs/**)"),
    ('["mcp__note__add"]', "allowed_tools.json: mcp__note__add", "Did you mean 'notes'?"),
]
SERVERS: list[tuple[Any, str, str]] = [
    ({"url": "https://example.com/mcp", "type": "http"}, "mcpServers.x.type", "installed"),
    ({"command": "a", "typ": "stdio"}, "mcpServers.x.typ", "Did you mean 'type'?"),
    ({"command": "/workspace/evil"}, "mcpServers.x.command", "own code"),
    ({"command": "/usr/bin/../../workspace/evil"}, "mcpServers.x.command", ""),
    ({"command": "./evil"}, "mcpServers.x.command", ""),
    ({"command": "sh -c x"}, "mcpServers.x.command", ""),
    ({"command": "a", "args": "x"}, "mcpServers.x.args", ""),
    ({"command": "a", "args": ["--token=ghp_0123456789abcdef0123"]}, "mcpServers.x.args.0", "no secret"),
    ({"command": "a", "env": {"API_KEY": "x"}}, "mcpServers.x.env.API_KEY", "no secret"),
    ({"command": "a", "env": {"WHERE": "https://u:p@host/"}}, "mcpServers.x.env.WHERE", "no secret"),
    ({"command": "a", "env": {"X": "${ANTHROPIC_AUTH_TOKEN}"}}, "mcpServers.x.env.X", ""),
    ({"command": "a", "env": {"X": 3}}, "mcpServers.x.env.X", ""),
    ({}, "mcpServers.x.command", ""),
    ("a", "mcpServers.x", ""),
]
SCHEMAS = [
    ("[]", "report.schema.json: type", ""),
    ('{"type": "string"}', "report.schema.json: type", ""),
    ('{"type": "object", "properties": {"a": {"type": "strng"}}}', "report.schema.json: a", "Did you mean 'string'?"),
    ('{"type": "object", "properties": {}, "required": ["a"]}', "report.schema.json: type", ""),
    ('{"type": "object", "properties": {"a": {"$ref": "https://x/y"}}}', "report.schema.json: a", "$defs"),
    ('{"type": "object", "properties": {"a": ' * 30 + "{}" + "}}" * 30, "report.schema.json:", ""),
    ('{"type": "object", "properties": {"a": {"minimum": NaN}}}', "report.schema.json: It is no JSON", ""),
]
CASES = [
    *(("toml", text, *rest) for text, *rest in TOML),
    *(("tools", text, *rest) for text, *rest in TOOLS),
    *(
        ("mcp", json.dumps({"mcpServers": {"x": server, "notes": {"command": "a"}}}), *rest)
        for server, *rest in SERVERS
    ),
    ("mcp", '{"servers": {}}', ".mcp.json:", ""),
    *(("schema", text, *rest) for text, *rest in SCHEMAS),
    ("prompt", "  \n", "prompt.md: It is missing", ""),
    ("prompt", "{{branch", "prompt.md: A '{{' is not closed", ""),
    ("prompt", "a\x00b", "prompt.md: The text has a NUL", ""),
    ("prompt", None, "prompt.md: It is missing", ""),
    ("prompt.txt", "x", "prompt.txt: No such file", "prompt.md"),
    ("Dockerfile", "FROM x", "Dockerfile: Nothing uses it", "dockerfile"),
]


@pytest.mark.parametrize(("part", "text", "detail", "hint"), CASES)
def test_a_mistake_is_told_by_file_key_and_way_out(part: str, text: str | None, detail: str, hint: str) -> None:
    files = changed(**{part: text})
    if part == "toml" and "egress" not in (text or ""):
        files["allowed_tools.json"] = '["Read"]'
    with pytest.raises(InvalidInput) as wrong:
        Workflow.parse("do-it", files)
    assert detail in wrong.value.detail
    assert hint in (wrong.value.hint or "")
    assert wrong.value.hint
    assert wrong.value.field[:2] == ("body", "files")
    assert wrong.value.code == "invalid_workflow"


def test_tools_fit_the_rest_of_the_workflow() -> None:
    for toml, tools, hint in (
        ("writes = false", '["Write"]', "writes = true"),
        ("writes = false", '["Edit(docs/**)"]', "writes = true"),
        ("", '["WebFetch"]', "egress"),
    ):
        with pytest.raises(InvalidInput) as wrong:
            Workflow.parse("x", {"prompt.md": "x", "workflow.toml": toml, "allowed_tools.json": tools})
        assert hint in (wrong.value.hint or "")


def test_what_is_denied_is_kept_apart() -> None:
    files = {"prompt.md": "x", "allowed_tools.json": '{"allow": ["Bash"], "deny": ["Bash(curl *)"]}'}
    workflow = Workflow.parse("x", files)
    assert (workflow.allowed_tools, workflow.disallowed_tools) == (("Bash",), ("Bash(curl *)",))


@pytest.mark.parametrize("name", ["", "A", "a b", "../x", "x" * 65, "1a", "a/b", "ä"])
def test_a_name_is_small_and_plain(name: str) -> None:
    with pytest.raises(InvalidInput) as wrong:
        Workflow.parse(name, GOOD)
    assert wrong.value.field == ("body", "name")


def test_an_image_is_built_only_for_who_has_the_machine() -> None:
    files = {"prompt.md": "x", "workflow.toml": 'dockerfile = "Dockerfile"', "Dockerfile": "FROM scratch"}
    assert Workflow.parse("x", files).dockerfile == "FROM scratch"
    with pytest.raises(InvalidInput, match="outside of the sandbox"):
        Workflow.parse("x", files, trusted=False)
