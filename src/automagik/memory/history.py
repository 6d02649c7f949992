"""MessageHistory: the messages of a session, one row for each message of Pydantic AI, kept without loss."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

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

from automagik.errors import Internal, NotFound
from automagik.memory.text import clean_json, clean_text
from automagik.store import NewMessage, Store
from automagik.store.artifacts import REFERENCES, session_holder
from automagik.types import new_uuid

if TYPE_CHECKING:
    from automagik.memory.archive import MessageArchive

__all__ = [
    "MessageHistory",
    "dump_message",
    "dump_messages",
    "dump_payload",
    "load_messages",
    "parse_messages",
    "readable_text",
]

_one: TypeAdapter[ModelMessage] = TypeAdapter(
    ModelMessage, config=ConfigDict(defer_build=True, ser_json_bytes="base64", val_json_bytes="base64")
)
"""As Pydantic AI's own adapter for lists, for one message."""


class MessageHistory:
    """The messages of one session. Appending costs what is added, loading what is asked for, not what the session holds.

    With an `archive`, large media stand in the artefact store.
    """

    def __init__(self, store: Store, session_id: int, archive: "MessageArchive | None" = None) -> None:
        self._store = store
        self._session_id = session_id
        self._archive = archive

    async def load(self, message_limit: int | None = None) -> list[ModelMessage]:
        """The newest messages, oldest first: at most `message_limit` (None: all), cut only where a user's turn begins."""
        payloads = await self._store.read(lambda tx: tx.messages.history(self._session_id, message_limit))
        return load_messages(payloads) if self._archive is None else await self._archive.load(payloads)

    async def append(self, messages: Sequence[ModelMessage], *, run_id: str | None = None) -> list[NewMessage]:
        """Store `messages` behind those that are there; returns them as stored. Raises NotFound where the session is gone."""
        if self._archive is None:
            dumped = dump_messages(messages)
        else:
            dumped = await self._archive.dump(messages, used_by=await self._holder())
        await self._store.write(lambda tx: tx.messages.append(self._session_id, dumped, run_id=run_id))
        return dumped

    async def _holder(self) -> str:
        row = await self._store.read(lambda tx: tx.sessions.find_by_key(self._session_id))
        if row is None:
            raise NotFound("session", str(self._session_id))
        return session_holder(row.session_id)


def dump_messages(messages: Iterable[ModelMessage]) -> list[NewMessage]:
    """What is stored of `messages`: one row each.

    Instructions are taken off (a run stores them once, they would stand in every row otherwise); everything else is in
    `raw_payload`, so that `load_messages` gives back equal messages.
    """
    return [dump_message(message, dump_payload(message)) for message in messages]


def dump_message(message: ModelMessage, payload: str) -> NewMessage:
    """What is stored of `message`, of which `payload` is the JSON text."""
    return NewMessage(
        message_id=new_uuid(), role=_role(message), content=clean_text(readable_text(message)), raw_payload=payload
    )


def dump_payload(message: ModelMessage) -> str:
    """The message without its instructions as JSON text."""
    if isinstance(message, ModelRequest) and message.instructions is not None:
        message = replace(message, instructions=None)
    try:
        return _one.dump_json(message).decode()
    except PydanticSerializationError:
        return to_json(clean_json(_one.dump_python(message, mode="json"))).decode()  # a lone surrogate


def load_messages(payloads: Iterable[str]) -> list[ModelMessage]:
    """The messages whose stored payloads are given, in their order; those with media in the artefact store need the archive.

    Raises: Internal when a payload is no message of Pydantic AI, which only a damaged database can bring about.
    """
    joined = ",".join(payloads)
    if REFERENCES in joined:
        raise Internal("A stored message has media in the artefact store.", hint="Load it with a MessageArchive.")
    return parse_messages(joined)


def parse_messages(joined: str) -> list[ModelMessage]:
    """The messages of payloads that are joined by commas; media in the artefact store are empty. Raises as `load_messages`."""
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
