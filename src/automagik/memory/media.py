"""Media in a message: where they stand, the message without them, and how they come back to their places."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from pydantic_ai import BinaryContent, ModelMessage
from pydantic_ai.messages import SpeechPart

from automagik.errors import Internal
from automagik.memory.text import clean_text
from automagik.types import Json

__all__ = [
    "MediaPlace",
    "has_media",
    "media_at",
    "media_in",
    "media_of",
    "with_documents",
    "without_data",
    "without_media",
]

_DEPTH = 8
"""How deep media are looked for in what a tool gave."""


@dataclass(frozen=True, slots=True)
class MediaPlace:
    """A medium and its path from the message: `("parts", 0, "content", 1)`."""

    path: tuple[str | int, ...]
    content: BinaryContent


def has_media(messages: Sequence[ModelMessage], least_bytes: int) -> bool:
    """Whether any message has a medium of more than `least_bytes`."""
    return any(media_of(message, least_bytes) for message in messages)


def media_of(message: ModelMessage, least_bytes: int) -> list[MediaPlace]:
    """The media of more than `least_bytes`: of the user, of the model, and those that a tool gave by itself or in a list or object."""
    found: list[MediaPlace] = []
    for index, part in enumerate(message.parts):
        name = "audio" if isinstance(part, SpeechPart) else "content"
        content: Any = getattr(part, name, None)
        if content is None or content.__class__ is str:
            continue
        at = ("parts", index, name)
        items: list[tuple[tuple[str | int, ...], Any]] = [(at, content)]
        if isinstance(content, Mapping):
            mapping = cast("Mapping[Any, Any]", content)
            items = [((*at, key), item) for key, item in mapping.items() if _is_plain(key)]
        elif isinstance(content, list | tuple):
            sequence = cast("Sequence[Any]", content)
            items = [((*at, place), item) for place, item in enumerate(sequence)]
        found += [
            MediaPlace(path, item)
            for path, item in items
            if isinstance(item, BinaryContent) and len(item.data) > least_bytes
        ]
    return found


def media_in(content: object, least_bytes: int, *, depth: int = _DEPTH) -> list[BinaryContent | bytes]:
    """The media of more than `least_bytes` in what a tool gave, and bytes of no stated kind: it itself, and those in lists and
    objects."""
    if isinstance(content, BinaryContent):
        return [content] if len(content.data) > least_bytes else []
    if isinstance(content, bytes):
        return [content] if len(content) > least_bytes else []
    if not depth or isinstance(content, str):
        return []
    found: list[BinaryContent | bytes] = []
    for item in _items(content):
        if isinstance(item, BinaryContent | bytes | Mapping | list | tuple):
            found += media_in(cast("object", item), least_bytes, depth=depth - 1)
    return found


def with_documents(content: object, documents: Mapping[int, Json]) -> object:
    """The content with a document in the place of each medium; `documents` are by the `id()` of the medium."""
    if isinstance(content, BinaryContent | bytes):
        return documents.get(id(content), content)
    if isinstance(content, Mapping):
        mapping = cast("Mapping[object, object]", content)
        return {key: with_documents(item, documents) for key, item in mapping.items()}
    if isinstance(content, list | tuple):
        return [with_documents(item, documents) for item in cast("Sequence[object]", content)]
    return content


def without_media(message: ModelMessage, places: Sequence[MediaPlace]) -> ModelMessage:
    """A copy of the message in which these media are empty, each with the identifier that the model knows it by."""
    parts: list[Any] = list(message.parts)
    for place in places:
        _, index, name, *rest = place.path
        part = parts[cast("int", index)]
        empty = without_data(place.content)
        content = getattr(part, cast("str", name))
        if not rest:
            content = empty
        elif isinstance(content, Mapping):
            content = {**cast("Mapping[str, Any]", content), cast("str", rest[0]): empty}
        else:
            content = list(cast("Sequence[Any]", content))
            content[cast("int", rest[0])] = empty
        parts[cast("int", index)] = replace(part, **{cast("str", name): content})
    return replace(message, parts=parts)


def media_at(message: ModelMessage, path: Sequence[str | int]) -> BinaryContent:
    """The medium at a path of a loaded message. Raises Internal where there is none, which only a damaged database can bring about."""
    try:
        _, index, name, *rest = path
        found: Any = getattr(message.parts[cast("int", index)], cast("str", name))
        for step in rest:
            found = found[step]
    except (AttributeError, LookupError, TypeError, ValueError):
        found = None
    if not isinstance(found, BinaryContent):
        raise Internal("A stored message can't be read.", hint="Restore the database from a backup.")
    return found


def _items(content: object) -> Iterable[object]:
    if isinstance(content, Mapping):
        return cast("Mapping[object, object]", content).values()
    return cast("Sequence[object]", content) if isinstance(content, list | tuple) else ()


def _is_plain(key: object) -> bool:
    """Whether the key of an object is the same when it is loaded again."""
    return isinstance(key, str) and clean_text(key) == key


def without_data(content: BinaryContent) -> BinaryContent:
    """The medium, empty, with the identifier that the model knows it by."""
    return BinaryContent(
        b"",
        media_type=content.media_type,
        identifier=content.identifier,
        vendor_metadata=content.vendor_metadata,
    )
