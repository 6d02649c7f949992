"""Conversations as OpenAI's clients send them, as history and question of a run."""

import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic_ai import BinaryContent
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserContent,
    UserPromptPart,
)

from automagik.api.media import MediaReader
from automagik.errors import InvalidInput
from automagik.memory import check_text
from automagik.types import Json, JsonObject

__all__ = ["Conversation", "ConversationReader"]

Field = tuple[str | int, ...]

_AUDIO = {"wav": "audio/wav", "mp3": "audio/mpeg"}
_SYSTEM = frozenset({"system", "developer"})
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_TEXTS = frozenset({"text", "input_text", "output_text"})


@dataclass(slots=True)
class Conversation:
    """What was said before, and the question. `system` joins all system and developer messages."""

    text: str = ""
    media: tuple[BinaryContent, ...] = ()
    history: list[ModelMessage] = field(default_factory=list[ModelMessage])
    system: str | None = None


class ConversationReader:
    """Reads messages of the chat API and input items of the responses API; the two differ in the names of parts only."""

    def __init__(self, media: MediaReader, *, max_text_chars: int) -> None:
        self._media = media
        self._max_text_chars = max_text_chars
        self._tools: dict[str, str] = {}
        self._size = 0

    async def read(self, messages: Sequence[JsonObject], *, at: Field) -> Conversation:
        """The conversation, which must end in a user's message.

        Raises: InvalidInput that names the message and part; TooLarge.
        """
        found = Conversation()
        systems: list[str] = []
        last = len(messages) - 1
        for index, message in enumerate(messages):
            place = (*at, index)
            role = _role(message, place)
            if role in _SYSTEM:
                systems.append(_joined(await self._content(message.get("content"), (*place, "content"))))
            elif role == "user":
                content = await self._content(message.get("content"), (*place, "content"))
                if index == last:
                    found.text = _joined(content)
                    found.media = tuple(item for item in content if isinstance(item, BinaryContent))
                else:
                    found.history.append(ModelRequest(parts=[UserPromptPart(content=content)]))
            else:
                found.history.append(await self._other(role, message, place))
        if not messages or _role(messages[last], (*at, last)) != "user":
            raise InvalidInput(
                "The conversation must end in a message of the user.", field=at, hint="Send the question as the last."
            )
        if not found.text and not found.media:
            raise InvalidInput("The message is empty.", field=(*at, last, "content"))
        found.system = "\n\n".join(systems) if systems else None
        return found

    async def _other(self, role: str, message: JsonObject, at: Field) -> ModelMessage:
        if role == "tool":
            return self._tool_result(message.get("tool_call_id"), message.get("content"), at)
        if role == "function_call":
            return ModelResponse(parts=[self._call(message.get("call_id"), message, at)])
        if role == "function_call_output":
            return self._tool_result(message.get("call_id"), message.get("output"), at)
        return await self._assistant(message, at)

    async def _assistant(self, message: JsonObject, at: Field) -> ModelResponse:
        parts: list[TextPart | ToolCallPart] = []
        if message.get("content") is not None:
            content = await self._content(message["content"], (*at, "content"))
            parts.append(TextPart(_joined(content)))
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list):
            raise InvalidInput("Tool calls are a list.", field=(*at, "tool_calls"))
        for index, call in enumerate(calls):
            place = (*at, "tool_calls", index)
            function = _member(call, "function", place)
            parts.append(self._call(_object(call, place).get("id"), function, place))
        return ModelResponse(parts=parts)

    def _call(self, call_id: Json, function: JsonObject, at: Field) -> ToolCallPart:
        name, arguments = function.get("name"), function.get("arguments")
        if not isinstance(call_id, str) or not isinstance(name, str) or not isinstance(arguments, str):
            raise InvalidInput("A tool call has an id, a name and arguments, all texts.", field=at)
        self._tools[call_id] = name
        return ToolCallPart(tool_name=name, args=arguments, tool_call_id=call_id)

    def _tool_result(self, call_id: Json, content: Json, at: Field) -> ModelRequest:
        if not isinstance(call_id, str) or call_id not in self._tools:
            raise InvalidInput("This answers no tool call that stands before it.", field=(*at, "tool_call_id"))
        part = ToolReturnPart(tool_name=self._tools[call_id], content=content, tool_call_id=call_id)
        return ModelRequest(parts=[part])

    async def _content(self, content: Json, at: Field) -> list[UserContent]:
        if isinstance(content, str):
            return [check_text(content, field=at, max_chars=self._max_text_chars)] if content else []
        if not isinstance(content, list):
            raise InvalidInput("The content is a text, or a list of parts.", field=at)
        return [await self._part(_object(part, (*at, index)), (*at, index)) for index, part in enumerate(content)]

    async def _part(self, part: JsonObject, at: Field) -> UserContent:
        kind = part.get("type")
        if not isinstance(kind, str):
            raise InvalidInput("The part has no type.", field=(*at, "type"), hint="For example 'text' or 'image_url'.")
        if kind in _TEXTS:
            return check_text(_text(part, "text", at), field=(*at, "text"), max_chars=self._max_text_chars)
        if kind == "refusal":
            return _text(part, "refusal", at)
        content = await self._medium(kind, part, at)
        self._size += len(content.data)
        self._media.check_sum(self._size, field=at)
        return content

    async def _medium(self, kind: str, part: JsonObject, at: Field) -> BinaryContent:
        if kind == "image_url":
            image, place = _member(part, "image_url", at), (*at, "image_url")
            return await self._fetch(_text(image, "url", place), (*place, "url"))
        if kind == "input_image":
            return await self._fetch(_text(part, "image_url", at), (*at, "image_url"))
        if kind == "input_audio":
            audio, place = _member(part, "input_audio", at), (*at, "input_audio")
            media_type = _AUDIO.get(_text(audio, "format", place), "")
            data_at, type_at = (*place, "data"), (*place, "format")
            return self._media.decode(_text(audio, "data", place), media_type, field=data_at, type_field=type_at)
        if kind == "file":
            return await self._file(_member(part, "file", at), (*at, "file"))
        if kind == "input_file":
            return await self._file(part, at)
        raise InvalidInput(
            f"Parts of the type '{kind}' are not known.",
            field=(*at, "type"),
            hint="Known are text, image_url, input_audio and file; input_text, input_image and input_file.",
        )

    async def _file(self, file: JsonObject, at: Field) -> BinaryContent:
        if isinstance(file.get("file_url"), str):
            return await self._fetch(_text(file, "file_url", at), (*at, "file_url"))
        if file.get("file_data") is None:
            raise InvalidInput("Files are not kept here.", field=(*at, "file_data"), hint="Send the file's data.")
        data, place = _text(file, "file_data", at), (*at, "file_data")
        if data.startswith("data:"):
            return await self._fetch(data, place)
        media_type = mimetypes.guess_type(str(file.get("filename") or "file.pdf"))[0] or "application/octet-stream"
        return self._media.decode(data, media_type, field=place, type_field=(*at, "filename"))

    async def _fetch(self, url: str, at: Field) -> BinaryContent:
        return await self._media.fetch(url, None, field=at, type_field=at)


def _role(message: JsonObject, at: Field) -> str:
    role = message.get("role")
    if role is None and message.get("type") in ("function_call", "function_call_output"):
        return str(message["type"])
    if isinstance(role, str) and role in _ROLES:
        return role
    raise InvalidInput(
        f"The role '{role}' is not known.",
        field=(*at, "role"),
        hint="Known are system, developer, user, assistant and tool.",
    )


def _joined(content: Sequence[UserContent]) -> str:
    return "\n".join(item for item in content if isinstance(item, str))


def _object(value: Json, at: Field) -> JsonObject:
    if not isinstance(value, dict):
        raise InvalidInput("This must be an object.", field=at)
    return value


def _member(value: Json, name: str, at: Field) -> JsonObject:
    return _object(_object(value, at).get(name), (*at, name))


def _text(value: JsonObject, name: str, at: Field) -> str:
    text = value.get(name)
    if not isinstance(text, str):
        raise InvalidInput("This must be a text.", field=(*at, name))
    return text
