"""Transcript: what the Claude CLI's stream-json says, as events of a run, and what it claims of the run's end."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import orjson

from automagik.claude_code.lines import EventLines
from automagik.memory import clean_text
from automagik.types import Json, JsonObject

__all__ = ["Transcript", "TranscriptEvent"]

_MAX_TEXT = 64 * 1024
"""Longer texts in events are cut: the whole output is kept elsewhere."""
_MAX_ARGS_BYTES = 4 * _MAX_TEXT
_MAX_DEPTH = 40
_MAX_WARNINGS = 50
"""How many warnings one run tells at the most: a tool can forge more."""
_MAX_EVENTS = 100_000
"""How many stored events one run tells at the most, and"""
_MAX_EVENT_BYTES = 128 * 1024**2
"""how large they may be together: a run of a day has some ten thousand, but a tool can forge as many as its disk has room for, and
whoever looks at the run reads them all."""
_PASSING = {"text_delta", "thinking_delta"}
"""What is shown and not stored."""
_MAX_NAME = 200
_REPORT_TOOL = "StructuredOutput"
"""The CLI's own tool that takes the report: no call that a person needs to see."""
_NOT_RUN = "non_execution_kind"
"""What the CLI says beside a result that is not the tool's own: its call was refused, or stopped before it ended."""


@dataclass(frozen=True, slots=True)
class TranscriptEvent:
    """One thing that happened in the CLI. `line` and `part` are its identity: a replay from the start gives the same ones.

    `text_delta`, `thinking_delta` and `message_completed` have `text`; `tool_call` has `tool_call_id`, `tool_name` and `args`;
    `tool_result` has `tool_call_id`, `content` and `is_error`, and `ran` (false) where the call was refused or stopped; `warning` has
    `code` and `detail`. A sub-agent's calls and results have `parent_tool_call_id` besides.
    """

    type: str
    data: JsonObject
    line: int
    part: int


class Transcript:
    """The CLI's output so far. All of it is a claim: a tool can write into the same stream.

    So cost and tokens are not read here (the gateway meters them), commits are read from git, and the end is judged
    together with the exit status (`outcome.classify`).
    """

    def __init__(self, *, max_events: int = _MAX_EVENTS, max_event_bytes: int = _MAX_EVENT_BYTES) -> None:
        self._lines = EventLines()
        self._events_left = max_events
        self._bytes_left = max_event_bytes
        self._is_full = False
        self._message = ""
        self._messages = 0
        self._pieces: set[str] = set()
        self._hidden: set[str] = set()
        self._servers: set[str] = set()
        self._warnings = 0
        self._session: str | None = None
        self.init: JsonObject | None = None
        """The newest `system/init` event: tools, MCP servers, model, the CLI's version."""
        self.result: JsonObject | None = None
        """The newest `result` event, None where work went on after it: several come where a person said more, or
        sub-agents worked in the background."""
        self.text = ""
        """The newest text of the main agent."""

    @property
    def session_id(self) -> str | None:
        """The CLI's session."""
        return self._session

    @property
    def num_turns(self) -> int:
        """How many answers the model has given to the main agent: counted, since the CLI counts one more at its limit."""
        return self._messages

    @property
    def permission_denials(self) -> list[JsonObject]:
        """What was refused, each with `tool_name`, `tool_use_id` and `tool_input`."""
        return _objects((self.result or {}).get("permission_denials"))

    @property
    def structured_output(self) -> Json:
        """The report that fits the schema that was asked for, else None."""
        return _clean((self.result or {}).get("structured_output"))

    @property
    def final_text(self) -> str:
        """What the result says, else the newest text."""
        said = (self.result or {}).get("result")
        return clean_text(said) if isinstance(said, str) and said else self.text

    @property
    def broken_lines(self) -> int:
        """How many lines held something else than one event: something wrote into the CLI's output."""
        return self._lines.broken

    def feed(self, chunk: bytes) -> list[TranscriptEvent]:
        """The events of the lines that end in `chunk`. Chunks may be cut anywhere; unknown events are passed over."""
        return self._events(self._lines.feed(chunk))

    def finish(self) -> list[TranscriptEvent]:
        """The events of a last line that has no end: the output is over."""
        return self._events(self._lines.finish())

    def _events(self, lines: Iterable[tuple[int, JsonObject]]) -> list[TranscriptEvent]:
        return [
            event
            for number, line in lines
            for part, (kind, data) in enumerate(self._read(line))
            if (event := self._counted(kind, data, number, part)) is not None
        ]

    def _counted(self, kind: str, data: JsonObject, line: int, part: int) -> TranscriptEvent | None:
        """The event; where there were too many, one last one that says so, and then None."""
        if self._is_full:
            return None
        if kind not in _PASSING:
            self._events_left -= 1
            self._bytes_left -= len(orjson.dumps(data))
            if self._events_left < 0 or self._bytes_left < 0:
                self._is_full = True
                detail = "The run told more than is kept of one run; from here on its commits, its cost and its end are told."
                return TranscriptEvent("warning", {"code": "events_left_out", "detail": detail}, line, part)
        return TranscriptEvent(kind, data, line, part)

    def _read(self, line: JsonObject) -> Iterator[tuple[str, JsonObject]]:
        session = line.get("session_id")
        if self._session is None and isinstance(session, str):
            self._session = session[:_MAX_NAME]
        match line.get("type"):
            case "stream_event":
                yield from self._piece(line)
            case "assistant":
                yield from self._assistant(line)
            case "user":
                yield from self._user(line)
            case "system":
                yield from self._system(line)
            case "result":
                self.result = line
            case _:
                return

    # -- the model

    def _piece(self, line: JsonObject) -> Iterator[tuple[str, JsonObject]]:
        event = _object(line.get("event"))
        if line.get("parent_tool_use_id") is not None or event.get("type") != "content_block_delta":
            return
        delta = _object(event.get("delta"))
        kind = delta.get("type")
        text = delta.get("text" if kind == "text_delta" else "thinking")
        if kind in {"text_delta", "thinking_delta"} and isinstance(text, str) and text:
            self._pieces.add(str(kind))
            yield str(kind), {"text": _short(text)}

    def _assistant(self, line: JsonObject) -> Iterator[tuple[str, JsonObject]]:
        if line.get("is_api_error_message") is True or line.get("error") is not None:
            return  # the CLI's own words, which the result repeats
        message = _object(line.get("message"))
        parent = line.get("parent_tool_use_id")
        if parent is None:
            self._count(message)
        for block in _objects(message.get("content")):
            kind, text = block.get("type"), block.get("text")
            if kind == "tool_use":
                yield from self._call(block, parent)
            elif parent is not None:
                continue  # what a sub-agent says reaches the main agent as the tool's result
            elif kind == "text" and isinstance(text, str) and text:
                self.text = clean_text(text)
                self._pieces.discard("text_delta")
                yield "message_completed", {"text": _short(text)}
            elif kind == "thinking":
                yield from self._thought(block)

    def _count(self, message: JsonObject) -> None:
        """One event comes for each block of a message: they share its id."""
        name = str(message.get("id"))[:_MAX_NAME]
        if name != self._message:
            self._message = name
            self._messages += 1
        self.result = None

    def _thought(self, block: JsonObject) -> Iterator[tuple[str, JsonObject]]:
        text = block.get("thinking")
        shown = "thinking_delta" in self._pieces
        self._pieces.discard("thinking_delta")
        if not shown and isinstance(text, str) and text:
            yield "thinking_delta", {"text": _short(text)}

    def _call(self, block: JsonObject, parent: Json) -> Iterator[tuple[str, JsonObject]]:
        name, call = _name(block.get("name")), _name(block.get("id"))
        if name == _REPORT_TOOL:
            if len(self._hidden) < _MAX_WARNINGS:
                self._hidden.add(call)
            return
        args: Json = _clean(_object(block.get("input")))
        size = len(orjson.dumps(args))
        if size > _MAX_ARGS_BYTES:
            args = {"cut": f"{size} bytes in all"}
        data: JsonObject = {"tool_call_id": call, "tool_name": name, "args": args}
        yield "tool_call", _with_parent(data, parent)

    def _user(self, line: JsonObject) -> Iterator[tuple[str, JsonObject]]:
        stopped = {_name(meta.get("id")) for meta in _objects(line.get("tool_result_meta")) if _NOT_RUN in meta}
        for block in _objects(_object(line.get("message")).get("content")):
            call = _name(block.get("tool_use_id"))
            if block.get("type") == "tool_result" and call not in self._hidden:
                content = _short(_text(block.get("content")))
                data: JsonObject = {"tool_call_id": call, "content": content, "is_error": block.get("is_error") is True}
                if call in stopped:
                    data["ran"] = False
                yield "tool_result", _with_parent(data, line.get("parent_tool_use_id"))

    # -- the CLI itself

    def _system(self, line: JsonObject) -> Iterator[tuple[str, JsonObject]]:
        match line.get("subtype"):
            case "init":
                self.init = line
                self.result = None  # a person's next words are being worked on
                yield from self._failed_servers(line)
            case "api_retry":
                yield from self._retry(line)
            case "model_fallback":
                original, other = _name(line.get("original_model")), _name(line.get("fallback_model"))
                yield from self._warn("model_fallback", f"The model {original} is overloaded: {other} goes on.")
            case _:
                return

    def _failed_servers(self, line: JsonObject) -> Iterator[tuple[str, JsonObject]]:
        for server in _objects(line.get("mcp_servers")):
            name, status = _name(server.get("name")), _name(server.get("status"))
            if (
                status not in {"connected", "pending"}
                and name not in self._servers
                and len(self._servers) < _MAX_WARNINGS
            ):
                self._servers.add(name)
                yield from self._warn("mcp_server_failed", f"The MCP server '{name}' is not connected: {status}.")

    def _retry(self, line: JsonObject) -> Iterator[tuple[str, JsonObject]]:
        """The first retry of a request is told, then each that doubles the number."""
        attempt, most, pause = (_number(line.get(key)) for key in ("attempt", "max_retries", "retry_delay_ms"))
        if attempt < 1 or attempt & (attempt - 1):
            return
        status = line.get("error_status")
        why = f"answered {status}" if isinstance(status, int) else "could not be reached"
        yield from self._warn("model_retry", f"The model {why}: retry {attempt} of {most} in {pause / 1000:.0f} s.")

    def _warn(self, code: str, detail: str) -> Iterator[tuple[str, JsonObject]]:
        self._warnings += 1
        if self._warnings <= _MAX_WARNINGS:
            yield "warning", {"code": code, "detail": detail}


def _with_parent(data: JsonObject, parent: Json) -> JsonObject:
    return data if parent is None else {**data, "parent_tool_call_id": _name(parent)}


def _text(content: Json) -> str:
    """A tool's result as text; what is no text is named."""
    if isinstance(content, str):
        return content
    parts: list[str] = []
    for block in _objects(content):
        text = block.get("text")
        parts.append(text if isinstance(text, str) else f"[{_name(block.get('type'))}]")
    return "\n".join(parts)


def _short(text: str) -> str:
    clean = clean_text(text[:_MAX_TEXT])
    return clean if len(text) <= _MAX_TEXT else f"{clean}… (cut: {len(text)} characters in all)"


def _clean(value: Json, depth: int = 0) -> Json:
    """What can be stored: no halves of characters, no numbers of over 64 bits, nothing nested or long beyond measure."""
    if isinstance(value, str):
        return _short(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return str(value)[:_MAX_NAME]
    if isinstance(value, list | dict) and depth >= _MAX_DEPTH:
        return "…"
    if isinstance(value, list):
        return [_clean(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {clean_text(key): _clean(item, depth + 1) for key, item in value.items()}
    return value


def _name(value: Json) -> str:
    return clean_text(str(value)[:_MAX_NAME])


def _number(value: Json) -> int:
    return int(value) if isinstance(value, int | float) and -(2**31) < value < 2**31 else 0


def _objects(value: Json) -> list[JsonObject]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _object(value: Json) -> JsonObject:
    return value if isinstance(value, dict) else {}
