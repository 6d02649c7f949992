"""The files of a workflow beside its prompt: how each is read, and what is refused in it."""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from automagik.errors import nearest
from automagik.telemetry.redaction import Redactor, is_secret_name
from automagik.types import Json, JsonObject

__all__ = [
    "CLI_TOOLS",
    "FILE_NAMES",
    "Broken",
    "Keys",
    "ToolRules",
    "check_report_schema",
    "parse_servers",
    "parse_settings",
    "parse_tools",
    "told",
]

FILE_NAMES: Final = ("prompt.md", "workflow.toml", "allowed_tools.json", ".mcp.json", "report.schema.json")
"""What a workflow's folder may hold, besides a Dockerfile."""

CLI_TOOLS: Final = frozenset(
    {
        "Bash",
        "BashOutput",
        "Edit",
        "Glob",
        "Grep",
        "KillShell",
        "LSP",
        "ListMcpResources",
        "Monitor",
        "MultiEdit",
        "NotebookEdit",
        "Read",
        "ReadMcpResource",
        "Skill",
        "Agent",
        "Task",
        "TaskOutput",
        "TaskStop",
        "TodoWrite",
        "ToolSearch",
        "WebFetch",
        "WebSearch",
        "Write",
    }
)
"""Tools of the CLI that a workflow may name. Those that schedule, leave the workspace or speak to other sessions are not here."""

_RULE = re.compile(
    r"(?P<name>[A-Za-z][A-Za-z0-9_-]{0,255}(?:__[A-Za-z0-9_.*-]{1,255})?)(?:\((?P<what>[^\x00-\x1f]{1,500})\))?"
)
_MAX_RULE_CHARS = 800
_UNSPEAKABLE = re.compile(r"[\x00\ud800-\udfff]")
_SERVER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_COMMAND = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}|(?:/[A-Za-z0-9._+-]+)+")
_AGENTS_OWN = ("/workspace", "/credentials", "/run", "/tmp", "/home", "/var/tmp", "/proc", "/dev")  # noqa: S108 - refused
_MAX_RULES = 200
_MAX_SERVERS = 20
_MAX_SETTINGS_BYTES = 131_072
_MAX_SCHEMA_BYTES = 65_536
_MAX_JSON_DEPTH = 100
_LONG_KEY = re.compile(
    r"""(?<![A-Za-z0-9_-])(?:(?:[A-Za-z0-9_-]{1,100}|"[^"\n]{0,100}"|'[^'\n]{0,100}')[ \t]{0,9}\.[ \t]{0,9}){20}"""
)
"""The time that `tomllib` takes over one key grows with the square of its parts."""
_MAX_SCHEMA_DEPTH = 20
_TYPES = frozenset({"string", "number", "integer", "boolean", "array", "object", "null"})


class Broken(Exception):
    """What is wrong with one file of a workflow, at which key, and the way out."""

    def __init__(self, file: str, key: str, detail: str, hint: str) -> None:
        super().__init__(detail)
        self.file = file
        self.key = key
        self.detail = detail
        self.hint = hint


class Keys:
    """The keys of one table of `workflow.toml`, each taken with its type."""

    def __init__(self, table: Mapping[str, object], *, prefix: str = "") -> None:
        self._table = table
        self._prefix = prefix

    @property
    def names(self) -> tuple[str, ...]:
        """All keys."""
        return tuple(self._table)

    def only(self, *known: str) -> None:
        """Refuse every other key, with the nearest known one. Raises Broken."""
        for name in self._table:
            if name not in known:
                close = nearest(name, known)
                hint = f"Did you mean '{self._prefix}{close}'?" if close else f"Known are: {', '.join(known)}."
                raise self.wrong(name, "There is no such key.", hint)

    def wrong(self, name: str, detail: str, hint: str) -> Broken:
        """The error for a key."""
        return Broken("workflow.toml", f"{self._prefix}{name}"[:100], detail, hint)

    def take(self, name: str) -> object:
        """The key's value, whatever it is; None where it is absent."""
        return self._table.get(name)

    def text(self, name: str, *, most: int) -> str | None:
        """A text of `most` characters."""
        value = self._table.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or len(value) > most or "\x00" in value:
            raise self.wrong(name, f"It must be a text of up to {most} characters.", f'Write {name} = "…".')
        return value

    def matching(self, name: str, pattern: re.Pattern[str], what: str) -> str | None:
        """A text of a given form."""
        value = self.text(name, most=300)
        if value is not None and pattern.fullmatch(value) is None:
            raise self.wrong(name, f"{value[:80]!r} is not {what}.", f"Give {what}, or leave the key out.")
        return value

    def texts(self, name: str, pattern: re.Pattern[str] | None, what: str) -> tuple[str, ...]:
        """A list of texts."""
        value = self._table.get(name)
        if value is None:
            return ()
        items = cast("list[object]", value) if isinstance(value, list) else [value]
        for item in items:
            if (
                not isinstance(item, str)
                or not item.strip()
                or "\x00" in item
                or (pattern and pattern.fullmatch(item) is None)
            ):
                raise self.wrong(name, f"It must be a list of {what}.", f'Write {name} = ["…", "…"].')
        return tuple(cast("list[str]", items))

    def flag(self, name: str, usual: bool) -> bool:
        """true or false."""
        value = self._table.get(name, usual)
        if not isinstance(value, bool):
            raise self.wrong(name, "It must be true or false.", f"Write {name} = {str(usual).lower()}.")
        return value

    def number(self, name: str, *, least: float, most: float, whole: bool = False) -> float | None:
        """A number within bounds."""
        value = self._table.get(name)
        if value is None:
            return None
        fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not fits or not least <= cast("float", value) <= most:
            kind = "whole number" if whole else "number"
            raise self.wrong(name, f"It must be a {kind} between {least:g} and {most:g}.", f"Write {name} = {least:g}.")
        return cast("float", value)

    def one_of(self, name: str, known: Sequence[str]) -> str | None:
        """One of several words."""
        value = self._table.get(name)
        if value is not None and value not in known:
            close = nearest(value[:80], known) if isinstance(value, str) else None
            hint = f"Did you mean '{close}'?" if close else f"Known are: {', '.join(known)}."
            raise self.wrong(name, f"{told(value)} is none of its words.", hint)
        return cast("str | None", value)

    def table(self, name: str) -> "Keys":
        """The keys of a table within; none where it is absent."""
        value = self._table.get(name, {})
        if not isinstance(value, dict):
            raise self.wrong(name, "It must be a table.", f"Write [{name}] on a line of its own, its keys below.")
        return Keys(cast("dict[str, object]", value), prefix=f"{name}.")


@dataclass(frozen=True, slots=True)
class ToolRules:
    """What the CLI may use without asking, and what it may never use."""

    allow: tuple[str, ...]
    deny: tuple[str, ...]


def parse_settings(text: str) -> Keys:
    """The keys of `workflow.toml`. Raises Broken."""
    if len(text.encode()) > _MAX_SETTINGS_BYTES:
        raise Broken(
            "workflow.toml", "", f"It is over {_MAX_SETTINGS_BYTES} bytes.", "Long texts belong into the prompt."
        )
    if _LONG_KEY.search(text) is not None:
        raise Broken("workflow.toml", "", "It has a key of over 20 parts.", "Tables are one deep here.")
    try:
        return Keys(tomllib.loads(text))
    except RecursionError:
        raise Broken("workflow.toml", "", "It is nested too deep.", "Tables are one deep here.") from None
    except ValueError as wrong:  # also for a number with thousands of digits
        raise Broken(
            "workflow.toml", "", f"It is no TOML: {str(wrong)[:200]}.", "See https://toml.io for its form."
        ) from None


def parse_tools(text: str) -> ToolRules:
    """The rules of `allowed_tools.json`: a list, or `{"allow": [...], "deny": [...]}`. Raises Broken."""
    document = _json("allowed_tools.json", text)
    if isinstance(document, list):
        return ToolRules(_rules(document, "allow"), ())
    if not isinstance(document, dict):
        raise Broken("allowed_tools.json", "", "It must be a list of tools.", 'Write ["Read", "Bash(git *)"].')
    for key in document:
        if key not in {"allow", "deny"}:
            raise Broken("allowed_tools.json", key[:80], "There is no such key.", "Known are: allow, deny.")
    return ToolRules(_rules(document.get("allow", []), "allow"), _rules(document.get("deny", []), "deny"))


def parse_servers(text: str) -> JsonObject:
    """What `.mcp.json` holds: servers that are started in the sandbox and spoken to by standard input and output.

    Raises: Broken for other kinds, for a program that the agent itself could have written, and for what looks like a secret:
    whatever is in the sandbox, the agent can read.
    """
    document = _json(".mcp.json", text)
    servers = document.get("mcpServers", {}) if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(servers, dict) or set(document) - {"mcpServers"}:
        raise Broken(".mcp.json", "", "It must be an object of `mcpServers`.", 'Write {"mcpServers": {}}.')
    if len(servers) > _MAX_SERVERS:
        raise Broken(
            ".mcp.json", "mcpServers", f"It has over {_MAX_SERVERS} servers.", "Each takes memory; remove some."
        )
    for name, server in servers.items():
        _check_server(name, server)
    return {"mcpServers": servers}


def check_report_schema(text: str) -> JsonObject:
    """The JSON Schema of the final report: an object with named properties, that refers to nothing outside.

    Raises: Broken.
    """
    schema = _json("report.schema.json", text)
    if len(text.encode()) > _MAX_SCHEMA_BYTES:
        raise Broken("report.schema.json", "", f"It is over {_MAX_SCHEMA_BYTES} bytes.", "Ask for less.")
    if not isinstance(schema, dict) or schema.get("type") != "object" or not isinstance(schema.get("properties"), dict):
        raise Broken(
            "report.schema.json",
            "type",
            "A report is an object with properties.",
            'Write {"type": "object", "properties": {…}, "required": […]}.',
        )
    _check_schema(schema, "", 0)
    return schema


def told(value: object) -> str:
    """A value as an error says it: the beginning of a text, and of anything else that it is none."""
    return repr(value[:80]) if isinstance(value, str) else "What is no text"


def _json(file: str, text: str) -> Json:
    try:
        document = cast("Json", json.loads(text, parse_constant=_no_constant))
    except (ValueError, RecursionError) as wrong:
        raise Broken(
            file, "", f"It is no JSON: {str(wrong)[:200]}.", "Check its commas, brackets and quotes."
        ) from None
    _check_json(file, document)
    return document


def _check_json(file: str, document: Json) -> None:
    """Refuse what could be read, and neither be written again nor be given to a program."""
    level, depth = [document], 0
    while level:
        if depth > _MAX_JSON_DEPTH:
            raise Broken(file, "", f"It is nested deeper than {_MAX_JSON_DEPTH} levels.", "Make it flatter.")
        depth += 1
        inner: list[Json] = []
        for value in level:
            if isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str) and _UNSPEAKABLE.search(value) is not None:
                raise Broken(
                    file, "", "A text in it has a NUL or half a surrogate pair.", "Remove what `\\u` stands before."
                )
        level = inner


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is no number of JSON")


def _rules(rules: Json, key: str) -> tuple[str, ...]:
    if not isinstance(rules, list) or len(rules) > _MAX_RULES:
        raise Broken("allowed_tools.json", key, f"It must be a list of up to {_MAX_RULES} tools.", 'Write ["Read"].')
    for rule in rules:
        fits = isinstance(rule, str) and len(rule) <= _MAX_RULE_CHARS
        match = _RULE.fullmatch(rule) if fits and isinstance(rule, str) else None
        if match is None:
            raise Broken(
                "allowed_tools.json",
                str(rule)[:80],
                "It is no rule for a tool.",
                "Write the tool's name, with what it may be used for in brackets: Bash(git log *).",
            )
        name = match["name"]
        if name.startswith("mcp__"):
            continue
        if match["what"] and name in {"Write", "MultiEdit", "NotebookEdit"}:
            raise Broken(  # the CLI takes such a rule, and then never finds that it fits
                "allowed_tools.json",
                str(rule)[:80],
                "Paths are said for all tools that write files at once.",
                f"Write Edit({match['what'][:60]}).",
            )
        if name not in CLI_TOOLS:
            close = nearest(name, {tool.lower(): tool for tool in CLI_TOOLS})
            named = {tool.lower(): tool for tool in CLI_TOOLS}.get(close or "")
            known = ", ".join(sorted(CLI_TOOLS))
            hint = f"Did you mean '{named}'?" if named else f"Known are: {known}, and mcp__SERVER__TOOL."
            raise Broken("allowed_tools.json", str(rule)[:80], f"There is no tool '{name}'.", hint)
    return tuple(dict.fromkeys(cast("list[str]", rules)))


def _check_server(name: str, server: Json) -> None:
    def wrong(key: str, detail: str, hint: str) -> Broken:
        return Broken(".mcp.json", f"mcpServers.{name}{'.' if key else ''}{key}"[:150], detail, hint)

    if _SERVER_NAME.fullmatch(name) is None:
        raise wrong("", "It is no name of a server.", "Use letters, digits and '-'.")
    if not isinstance(server, dict):
        raise wrong("", "It must be an object.", 'Write {"command": "PROGRAM", "args": []}.')
    if server.get("type", "stdio") != "stdio" or "url" in server:
        raise wrong(
            "type",
            "Only servers that are started in the sandbox (stdio) can be used: it has no network.",
            "Give a `command` that is installed in the sandbox's image.",
        )
    for key in server:
        if key not in {"type", "command", "args", "env"}:
            close = nearest(key, ("type", "command", "args", "env"))
            raise wrong(
                key, "There is no such key.", f"Did you mean '{close}'?" if close else "Known are: command, args, env."
            )
    command = server.get("command")
    if not isinstance(command, str) or _COMMAND.fullmatch(command) is None or ".." in command.split("/"):
        raise wrong("command", "It must be a program's name or absolute path.", "Give what is installed in the image.")
    if command.startswith(tuple(f"{folder}/" for folder in _AGENTS_OWN)):
        raise wrong(
            "command",
            "The program lies where the agent can write.",
            "Install it in the image; a repository's own code must not become a tool of the run.",
        )
    args, env = server.get("args", []), server.get("env", {})
    if not isinstance(args, list) or not all(isinstance(argument, str) for argument in args):
        raise wrong("args", "It must be a list of texts.", 'Write ["--option"].')
    if not isinstance(env, dict):
        raise wrong("env", "It must be an object.", 'Write {"NAME": "value"}.')
    redactor = Redactor()
    for index, argument in enumerate(cast("list[str]", args)):
        if redactor.text(argument) != argument:
            raise wrong(f"args.{index}", "It looks like a secret.", _NO_SECRET)
    for variable, value in env.items():
        if _VARIABLE.fullmatch(variable) is None or not isinstance(value, str) or "\x00" in value:
            raise wrong(f"env.{variable}", "It must be a variable's name with a text.", 'Write {"NAME": "value"}.')
        if "${" in value:
            raise wrong(f"env.{variable}", "No variable is filled in.", "Write the value itself.")
        if value and (is_secret_name(variable) or redactor.text(value) != value):
            raise wrong(f"env.{variable}", "It looks like a secret.", _NO_SECRET)


_NO_SECRET = "Whatever is in the sandbox the agent can read, so no secret may be there; give the server none."  # noqa: S105


def _check_schema(schema: Json, place: str, depth: int) -> None:
    def wrong(detail: str, hint: str) -> Broken:
        return Broken("report.schema.json", place[:150] or "type", detail, hint)

    if depth > _MAX_SCHEMA_DEPTH:
        raise wrong(f"It is nested deeper than {_MAX_SCHEMA_DEPTH} levels.", "Make the report flatter.")
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise wrong("A schema is an object.", 'Write {"type": "string"}.')
    reference = schema.get("$ref")
    if reference is not None and not (isinstance(reference, str) and reference.startswith("#/")):
        raise wrong("It refers to another document.", "Define it here, under `$defs`, and refer to `#/$defs/NAME`.")
    kinds = schema.get("type", [])
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if not isinstance(kind, str) or kind not in _TYPES:
            close = nearest(str(kind)[:80], _TYPES)
            hint = f"Did you mean '{close}'?" if close else f"Known are: {', '.join(sorted(_TYPES))}."
            raise wrong(f"There is no type {str(kind)[:40]!r}.", hint)
    properties = schema.get("properties", {})
    required = schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise wrong("`properties` is an object and `required` a list.", "See https://json-schema.org.")
    for name in required:
        if not isinstance(name, str) or name not in properties:
            raise wrong(
                f"It requires {str(name)[:80]!r}, which is none of its properties.", "Add it, or don't require it."
            )
    children = {f"{place}.{key}".lstrip("."): value for key, value in properties.items()}
    definitions = schema.get("$defs", {})
    if isinstance(definitions, dict):
        children |= {f"{place}.$defs.{key}".lstrip("."): value for key, value in definitions.items()}
    for key in ("items", "additionalProperties", "not"):
        if key in schema:
            children[f"{place}.{key}".lstrip(".")] = schema[key]
    for key in ("anyOf", "oneOf", "allOf"):
        options = schema.get(key, [])
        if isinstance(options, list):
            children |= {f"{place}.{key}.{index}".lstrip("."): option for index, option in enumerate(options)}
    for name, child in children.items():
        _check_schema(child, name, depth + 1)
