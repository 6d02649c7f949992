"""demo_turn: what the workflow demo does next. It is a script, no language model, and says so in every answer."""

import hashlib
import shlex
from typing import Any, cast

from automagik.providers.filling import Filler
from automagik.providers.scripted_answer import ScriptedToolUse, ScriptedTurn
from automagik.providers.scripted_conversation import Conversation, ToolUse

__all__ = ["WORKFLOW_DEMO_NOTICE", "demo_turn"]

WORKFLOW_DEMO_NOTICE = (
    "This is Automagik's scripted demo, no language model: set ANTHROPIC_API_KEY and leave out --demo for real work."
)
"""What the first answer and the report say."""

_REPORT_TOOL = "StructuredOutput"
"""The tool by which the Claude CLI takes a report that must fit a JSON Schema."""
_PAUSE = 0.3
"""Seconds before each answer, so that a person can follow."""
_CHUNK_PAUSE = 0.02
_MAX_QUOTED = 300
_IDENTITY = "git -c user.name='Automagik demo' -c user.email=demo@localhost"
_TITLE = "A demo of a workflow"
_TEXTS = frozenset({"summary", "title", "body", "message", "report"})
_FILES = frozenset({"files", "files_changed", "changed_files"})
_MAX_DEPTH = 10
_MAX_VALUES = 200
"""How many values a report has at the most; a schema may refer to itself."""


def demo_turn(conversation: Conversation) -> tuple[str, ScriptedTurn]:
    """The turn that is due, and what it is for: `look`, `write`, `commit`, `report` or `text`."""
    done = _Done(conversation)
    if not conversation.tools:
        return "text", _turn(_report_text(conversation, done))
    if len(conversation.prompts) == 1 and not done.failed:
        if not done.looked and "Bash" in conversation.tools:
            return "look", _look()
        if done.file is None and {"Write", "Bash"} <= conversation.tools.keys():
            return "write", _write(conversation)
        if done.file is not None and not done.tried_to_commit:
            return "commit", _commit(done.file, conversation.prompt, "git")
    if done.lacks_identity:
        return "commit", _commit(done.file or ".", conversation.prompt, _IDENTITY)
    if _REPORT_TOOL in conversation.tools and not done.reported:
        report = _report(conversation, done)
        return "report", _turn("My report:", ScriptedToolUse(name=_REPORT_TOOL, input=report))
    return "text", _turn(_report_text(conversation, done))


class _Done:
    """What the conversation shows of the demo's steps so far, so that it goes on rightly after any interruption.

    A step is done whose tools have answered: an answer of which the client got a half only is no step, and comes again.
    """

    def __init__(self, conversation: Conversation) -> None:
        results = {result.tool_use_id: result for result in conversation.results}
        uses = [use for use in conversation.uses if use.id in results]
        written = [use for use in uses if use.name == "Write"]
        commits = [use for use in uses if use.name == "Bash" and " commit " in _command(use)]
        self.looked = any(use.name == "Bash" for use in uses)
        self.file = str(written[-1].input.get("file_path", "")) if written else None
        self.tried_to_commit = bool(commits)
        last = results[commits[-1].id] if commits else None
        self.committed = last is not None and not last.is_error
        self.lacks_identity = (
            len(commits) == 1 and last is not None and last.is_error and "tell me who you are" in last.text
        )
        self.failed = any(results[use.id].is_error for use in (*written, *commits))
        """Whether a step failed that the next one builds on: then only the report is left."""
        self.reported = any(use.name == _REPORT_TOOL for use in uses)
        self.refusals = [_short(result.text) for result in conversation.results if result.is_error]


def _look() -> ScriptedTurn:
    uses = [("ls", "List the files"), ("git log --oneline -5", "See the newest commits")]
    return _turn(
        f"{WORKFLOW_DEMO_NOTICE} I look around, add one small file, commit it and report.",
        *(ScriptedToolUse(name="Bash", input={"command": run, "description": why}) for run, why in uses),
    )


def _write(conversation: Conversation) -> ScriptedTurn:
    mark = hashlib.sha256(f"{conversation.system}\0{conversation.prompt}".encode()).hexdigest()[:8]
    path = f"{conversation.folder}/automagik-demo-{mark}.md"
    content = (
        f"# A demo of a workflow\n\n{WORKFLOW_DEMO_NOTICE}\n\n"
        f"The task was:\n\n> {_short(conversation.prompt)}\n\nNothing of it was done: this file is all that the demo adds.\n"
    )
    return _turn("I add a file.", ScriptedToolUse(name="Write", input={"file_path": path, "content": content}))


def _commit(path: str, prompt: str, git: str) -> ScriptedTurn:
    subject = shlex.quote(f"Add a demo file: {_short(prompt, 40)}")
    run = f"git add -- {shlex.quote(path)} && {git} commit -m {subject}"
    return _turn("I commit it.", ScriptedToolUse(name="Bash", input={"command": run, "description": "Commit the file"}))


def _report(conversation: Conversation, done: _Done) -> dict[str, Any]:
    """A document that fits the schema's required fields. It claims nothing: it says what the demo did where a text is asked for
    that says it, and is empty, zero or no elsewhere."""
    schema = conversation.tools[_REPORT_TOOL]
    try:
        least = _Least(schema.get("$defs", {})).of(schema)
        limits = {key: _limit(schema, key) for key in _TEXTS}
    except (TypeError, ValueError, AttributeError, LookupError):
        return {}  # it is no schema: whoever sent it gets nothing that fits
    report = cast("dict[str, Any]", least) if isinstance(least, dict) else {}
    names = [done.file.rsplit("/", 1)[-1]] if done.file is not None and done.committed else []
    for key, value in report.items():
        if key in _TEXTS and isinstance(value, str):
            text = _TITLE if key == "title" else _report_text(conversation, done)
            report[key] = text[: limits[key]]
        elif key in _FILES and value == []:
            report[key] = names
    return report


def _limit(schema: Any, key: str) -> int:
    return int(schema.get("properties", {}).get(key, {}).get("maxLength", 100_000))


class _Least:
    """Makes the least value that fits a schema; of one that has no end, as much as there is room for."""

    def __init__(self, defs: Any) -> None:
        self._defs = defs
        self._room = _MAX_VALUES

    def of(self, schema: Any, depth: int = 0) -> Any:
        """The value; None where there is no more room."""
        self._room -= 1
        if self._room < 0 or depth > _MAX_DEPTH:
            return None
        if "$ref" in schema:
            return self.of(self._defs.get(str(schema["$ref"]).rsplit("/", 1)[-1], {}), depth + 1)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return schema["enum"][-1]  # of verdicts the last is the mildest, where it is a list of them
        for key in ("anyOf", "oneOf", "allOf"):
            if schema.get(key):
                empty = [option for option in schema[key] if option.get("type") == "null"]
                return self.of((empty or schema[key])[0], depth + 1)
        return self._typed(schema, depth)

    def _typed(self, schema: Any, depth: int) -> Any:
        match _kind(schema.get("type")):
            case "boolean":
                return False
            case "integer" | "number":
                low = max(0, schema.get("minimum", 0), schema.get("exclusiveMinimum", -1) + 1)
                return min(low, schema.get("maximum", low))
            case "array":
                return [
                    self.of(schema.get("items", {}), depth + 1)
                    for _ in range(min(schema.get("minItems", 0), self._room))
                ]
            case "object":
                properties = schema.get("properties", {})
                return {key: self.of(properties.get(key, {}), depth + 1) for key in schema.get("required", [])}
            case "null":
                return None
            case _:
                text = {**schema, "type": "string"}
                return Filler("", "").arguments({"properties": {"it": text}, "required": ["it"]})["it"]


def _kind(kinds: Any) -> str:
    """The type that is least, where several are named."""
    names = cast("list[Any]", kinds) if isinstance(kinds, list) else [kinds]
    return "null" if "null" in names else str(names[0])


def _report_text(conversation: Conversation, done: _Done) -> str:
    sentences = [f"You asked: “{_short(conversation.prompt)}”."]
    if done.committed:
        sentences.append(f"I added and committed {(done.file or '').rsplit('/', 1)[-1]}.")
    elif done.file is not None or conversation.uses:
        sentences.append("I looked around and committed nothing.")
    if done.refusals and not done.committed:
        sentences.append(f"The last thing that did not work: {done.refusals[-1]}")
    return " ".join([*sentences, WORKFLOW_DEMO_NOTICE])


def _turn(text: str, *uses: ScriptedToolUse) -> ScriptedTurn:
    return ScriptedTurn(text=text, tool_use=uses, delay=_PAUSE, chunk_delay=_CHUNK_PAUSE)


def _command(use: ToolUse) -> str:
    return str(use.input.get("command", ""))


def _short(text: str, length: int = _MAX_QUOTED) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= length else one_line[: length - 1] + "…"
