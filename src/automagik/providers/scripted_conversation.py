"""Conversation: what a Messages API request says of where the conversation stands. Pure reading, for scripted answers."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import orjson

from automagik.types import Json, JsonObject

__all__ = ["Conversation", "ToolResult", "ToolUse"]

_REMINDER, _REMINDER_END = "<system-reminder>", "</system-reminder>"
_ASIDE = re.compile(
    r"\[Request interrupted by user[^\]]{0,100}\]|^\[structured-output-enforce\][^\n]*|^Output token limit hit\.[^\n]*"
    r"|^Your response above was cut off mid-stream[^\n]*|^\[Your previous response had no visible output\.[^\n]*"
    r"|^Your tool call was malformed[^\n]*|^The previous response failed to produce a valid tool call\.[^\n]*",
    re.MULTILINE,
)
"""What the Claude CLI says in a person's place, besides its reminders: it is no prompt."""
_FOLDER = re.compile(r"[Ww]orking directory:\s*(\S+)")
_CHARS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A tool that the model asked for."""

    id: str
    name: str
    input: JsonObject


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What came of a tool that the model asked for."""

    tool_use_id: str
    text: str
    is_error: bool


@dataclass(frozen=True, slots=True)
class Conversation:
    """A request, read."""

    model: str
    system: str
    """The system prompt and all messages of the role `system`, which newer clients send their surroundings by."""
    prompts: tuple[str, ...]
    """What the person said, oldest first, without the client's own remarks."""
    turn: int
    """How many answers the model has given since the last prompt."""
    uses: tuple[ToolUse, ...]
    """Tools asked for since the last prompt."""
    results: tuple[ToolResult, ...]
    """What came of them."""
    tools: dict[str, JsonObject]
    """The tools that the request offers, by name, with their input schemas."""
    max_tokens: int | None
    stream: bool
    digest: str
    """The same for the same question: streamed or not, with whatever limits and metadata."""
    old_tokens: int
    """An estimate of what of the input the previous request had too."""
    new_tokens: int
    """An estimate of the rest of the input."""
    is_cached: bool
    """Whether the request asks for its prompt to be cached."""

    @property
    def prompt(self) -> str:
        """What the person said last."""
        return self.prompts[-1] if self.prompts else ""

    @property
    def first_prompt(self) -> str:
        """What the person said first."""
        return self.prompts[0] if self.prompts else ""

    @property
    def folder(self) -> str:
        """The working directory that the client named, else `.`."""
        found = _FOLDER.search(self.system) or _FOLDER.search("\n".join(self.prompts))
        return found[1] if found else "."

    @property
    def last_result(self) -> str:
        """The text of the newest tool result, else nothing."""
        return self.results[-1].text if self.results else ""

    @classmethod
    def of(cls, request: JsonObject) -> "Conversation":
        """A request, read leniently: what is missing is empty, what is no message is passed over."""
        system = [_text(request.get("system"))]
        reading = _Reading()
        for message in _objects(request.get("messages")):
            if message.get("role") == "system":
                system.append(_text(message.get("content")))
            else:
                reading.take(message)
        packed = orjson.dumps([request.get(key) for key in ("model", "system", "tools", "messages")])
        fixed = len(_pack(request.get("system"))) + len(_pack(request.get("tools")))
        messages = _objects(request.get("messages"))
        new = _newest(messages)
        new_tokens = _tokens(sum(len(_pack(message)) for message in messages[new:]))
        old_tokens = _tokens(fixed + sum(len(_pack(message)) for message in messages[:new]))
        max_tokens = request.get("max_tokens")
        return cls(
            model=str(request.get("model", "")),
            system="\n".join(text for text in system if text),
            prompts=tuple(reading.prompts),
            turn=reading.turn,
            uses=tuple(reading.uses),
            results=tuple(reading.results),
            tools={
                str(tool.get("name", "")): _object(tool.get("input_schema")) for tool in _objects(request.get("tools"))
            },
            max_tokens=max_tokens if isinstance(max_tokens, int) else None,
            stream=request.get("stream") is True,
            digest=hashlib.sha256(packed).hexdigest(),
            old_tokens=old_tokens if new else 0,
            new_tokens=new_tokens if new else old_tokens + new_tokens,
            is_cached=b'"cache_control"' in packed,
        )


class _Reading:
    """What was read so far, message by message."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.turn = 0
        self.uses: list[ToolUse] = []
        self.results: list[ToolResult] = []
        self._answering = False

    def take(self, message: JsonObject) -> None:
        """Read a message of the person or the model. Several in a row of the model are one answer, as for the real API."""
        content = message.get("content")
        if message.get("role") == "assistant":
            self.turn += not self._answering
            self._answering = True
            for block in _objects(content):
                if block.get("type") == "tool_use":
                    use = ToolUse(str(block.get("id")), str(block.get("name")), _object(block.get("input")))
                    self.uses.append(use)
            return
        self._answering = False
        said = _ASIDE.sub("", _without_reminders(_text(content))).strip()
        if said:
            self.prompts.append(said)
            self.turn = 0
            self.uses, self.results = [], []
        for block in _objects(content):
            if block.get("type") == "tool_result":
                text = _text(block.get("content"))
                self.results.append(ToolResult(str(block.get("tool_use_id")), text, block.get("is_error") is True))


def _without_reminders(text: str) -> str:
    parts: list[str] = []
    at = 0
    while (begin := text.find(_REMINDER, at)) >= 0 and (end := text.find(_REMINDER_END, begin)) >= 0:
        parts.append(text[at:begin])
        at = end + len(_REMINDER_END)
    return "".join([*parts, text[at:]])


def _newest(messages: Sequence[JsonObject]) -> int:
    """Where the messages begin that the request before this one had not: after the last of the model."""
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].get("role") == "assistant":
            return index + 1
    return 0


def _text(content: Json) -> str:
    """The texts of a message's content, of a system prompt or of a tool's result."""
    if isinstance(content, str):
        return content
    return "\n".join(_texts(content))


def _texts(content: Json) -> Iterator[str]:
    for block in _objects(content):
        if block.get("type") == "text" and isinstance(block.get("text"), str):
            yield cast("str", block["text"])


def _objects(value: Json) -> list[JsonObject]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _object(value: Json) -> JsonObject:
    return value if isinstance(value, dict) else {}


def _pack(value: Json) -> bytes:
    return orjson.dumps(value) if value is not None else b""


def _tokens(characters: int) -> int:
    return -(-characters // _CHARS_PER_TOKEN)
