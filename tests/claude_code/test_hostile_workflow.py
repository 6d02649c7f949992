"""Workflows that somebody wrote to break the server: each is refused by file, quickly, and what is taken can be told and run."""

import json

import pytest

from automagik.claude_code.workflow import Workflow
from automagik.errors import InvalidInput

GOOD = {"prompt.md": "Do it.", "workflow.toml": ""}
SCHEMA = '{"type": "object", "properties": {"a": %s}}'
LONG = "f" * 20_000

BROKEN = {
    "arrays within arrays": ("workflow.toml", "a = " + "[" * 5000),
    "tables within tables": ("workflow.toml", "a = " + "{a=" * 5000),
    "a number of thousands of digits": ("workflow.toml", "model = " + "9" * 5000),
    "a huge number for a word": ("workflow.toml", f"host_gone = 0x{LONG}"),
    "a huge number for a host": ("workflow.toml", f"egress = [0x{LONG}]"),
    "a key of thousands of parts": ("workflow.toml", "a." * 50_000 + "a = 1"),
    "a key of quoted parts": ("workflow.toml", '"a".' * 30_000 + "a = 1"),
    "a key within a value": ("workflow.toml", "variables = {" + "a . " * 30_000 + "a = 1}"),
    "settings that are too long": ("workflow.toml", "\n".join(f"k{number} = 1" for number in range(20_000))),
    "a port that is none": ("workflow.toml", 'egress = ["example.com:99999"]'),
    "a host with an empty part": ("workflow.toml", 'egress = ["a..example.com"]'),
    "a command with a NUL": ("workflow.toml", 'setup = ["make\\u0000"]'),
    "commands longer than a sandbox takes": ("workflow.toml", f'setup = ["{LONG * 4}"]'),
    "a tool that a pattern can't end with": ("allowed_tools.json", json.dumps(["A" + "_" * 60 + "!"])),
    "a tool of a megabyte": ("allowed_tools.json", json.dumps(["mcp" + "__a" * 100_000 + "!"])),
    "half a surrogate pair in a tool": ("allowed_tools.json", '["Bash(\\ud800)"]'),
    "an argument with a NUL": (".mcp.json", '{"mcpServers": {"a": {"command": "sh", "args": ["\\u0000"]}}}'),
    "an argument that is no text": (".mcp.json", '{"mcpServers": {"a": {"command": "sh", "args": ["\\udc80"]}}}'),
    "a type that is an object": ("report.schema.json", SCHEMA % '{"type": {"a": 1}}'),
    "a type that is a list of lists": ("report.schema.json", SCHEMA % '{"type": [["string"]]}'),
    "a required list": ("report.schema.json", '{"type": "object", "properties": {}, "required": [["a"]]}'),
    "a schema nested in what nobody reads": ("report.schema.json", SCHEMA % ('{"x": ' + "[" * 900 + "]" * 900 + "}")),
    "a property that is no text": ("report.schema.json", '{"type": "object", "properties": {"\\ud800": {}}}'),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_made_to_break_the_reader_is_refused_by_file_and_holds_nobody_up(name: str) -> None:
    file, text = BROKEN[name]
    with pytest.raises(InvalidInput) as refused:
        Workflow.parse("evil", {**GOOD, file: text}, trusted=False)
    assert refused.value.code == "invalid_workflow"
    assert refused.value.detail.startswith(file)
    assert len(refused.value.detail) < 500


def test_long_prose_and_servers_tools_stay_allowed() -> None:
    prose = "See a.b.c and 1.2.3.4 ... " * 3000
    files = {
        **GOOD,
        "workflow.toml": f'egress = ["*.example.com:8443", "registries"]\n[variables]\nprose = "{prose}"',
        "allowed_tools.json": '["mcp__notes__add_one__two", "mcp__notes__*"]',
        ".mcp.json": '{"mcpServers": {"notes": {"command": "notes"}}}',
    }
    workflow = Workflow.parse("kind", files, trusted=False)
    assert workflow.variables["prose"] == prose
    assert workflow.allowed_tools == ("mcp__notes__add_one__two", "mcp__notes__*")
