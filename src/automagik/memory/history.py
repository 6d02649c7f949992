"""MessageHistory: the messages of a session, one row for each message of Pydantic AI, kept without loss."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from pydantic import ConfigDict, TypeAdapter
from pydantic_ai import ModelMessage, ModelMessagesTypeAdapter
from pydantic_ai.messages import (
    BinaryContent,
    ModelRequest,
    ModelResponse,
    RetryFeedbackPart,
    SystemPromptPart,
    TextPart,
    ToolReturnPart,
    UserContent,
    UserPromptPart,
)
from pydantic_core import PydanticSerializationError, to_json

from automagik.errors import Internal
from automagik.memory.text import clean_json, clean_text
from automagik.store import NewMessage, Store
from automagik.types import new_uuid

__all__ = ["MessageHistory", "dump_messages", "load_messages", "readable_text"]

_one: TypeAdapter[ModelMessage] = TypeAdapter(
    ModelMessage, config=ConfigDict(defer_build=True, ser_json_bytes="base64", val_json_bytes="base64")
)
"""As Pydantic AI's own adapter for lists, for one message."""


class MessageHistory:
    """The messages of one session. Appending costs what is added, loading what is asked for, not what the session holds."""

    def __init__(self, store: Store, session_id: int) -> None:
        self._store = store
        self._session_id = session_id

    async def load(self, message_limit: int | None = None) -> list[ModelMessage]:
        """The newest messages, oldest first: at most `message_limit` (None: all), cut only where a user's turn begins."""
        payloads = await self._store.read(lambda tx: tx.messages.history(self._session_id, message_limit))
        return load_messages(payloads)

    async def append(self, messages: Sequence[ModelMessage], *, run_id: str | None = None) -> list[NewMessage]:
        """Store `messages` behind those that are there; returns them as stored."""
        dumped = dump_messages(messages)
        await self._store.write(lambda tx: tx.messages.append(self._session_id, dumped, run_id=run_id))
        return dumped


def dump_messages(messages: Iterable[ModelMessage]) -> list[NewMessage]:
    """What is stored of `messages`: one row each.

    Instructions are taken off (a run stores them once, they would stand in every row otherwise); everything else is in
    `raw_payload`, so that `load_messages` gives back equal messages.
    """
    return [_dumped(message) for message in messages]


def load_messages(payloads: Iterable[str]) -> list[ModelMessage]:
    """The messages whose stored payloads are given, in their order.

    Raises: Internal when a payload is no message of Pydantic AI, which only a damaged database can bring about.
    """
    joined = ",".join(payloads)
    if not joined:
        return []
    try:
        return ModelMessagesTypeAdapter.validate_json(f"[{joined}]")
    except ValueError as wrong:
        raise Internal("A stored message can't be read.", hint="Restore the database from a backup.") from wrong


def readable_text(message: ModelMessage) -> str:
    """What a person would read of `message`: the text of its parts, a media part as its type in brackets."""
    parts = message.parts
    if len(parts) == 1:
        return _part_text(parts[0])
    return "\n".join(text for part in parts if (text := _part_text(part)))


def _dumped(message: ModelMessage) -> NewMessage:
    if isinstance(message, ModelRequest) and message.instructions is not None:
        message = replace(message, instructions=None)
    try:
        raw = _one.dump_json(message).decode()
    except PydanticSerializationError:
        raw = to_json(clean_json(_one.dump_python(message, mode="json"))).decode()  # a lone surrogate
    return NewMessage(
        message_id=new_uuid(), role=_role(message), content=clean_text(readable_text(message)), raw_payload=raw
    )


def _role(message: ModelMessage) -> str:
    if isinstance(message, ModelResponse):
        return "assistant"
    parts = message.parts
    if any(isinstance(part, ToolReturnPart) for part in parts):
        return "tool"  # also where text follows the results: a history must not begin between a call and its result
    return "user" if any(isinstance(part, UserPromptPart) for part in parts) else "system"


def _part_text(part: object) -> str:
    if isinstance(part, TextPart | SystemPromptPart):
        return part.content
    if isinstance(part, UserPromptPart):
        content = part.content
        return content if isinstance(content, str) else "\n".join(_content_text(item) for item in content)
    if isinstance(part, ToolReturnPart):
        return part.model_response_str()
    if isinstance(part, RetryFeedbackPart):
        return part.content if isinstance(part.content, str) else "\n".join(error["msg"] for error in part.content)
    return ""


def _content_text(item: UserContent) -> str:
    if isinstance(item, str):
        return item
    text = getattr(item, "content", None)
    if isinstance(text, str):
        return text
    if isinstance(item, BinaryContent):
        return f"[{item.media_type}, {len(item.data)} bytes]"
    return f"[{getattr(item, 'media_type', item.kind)}]"
