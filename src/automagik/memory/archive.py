"""MessageArchive: messages whose media stand in the artefact store, and only a reference to each in the database."""

import asyncio
import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, cast

import orjson
import structlog
from pydantic_ai import BinaryContent, ModelMessage
from pydantic_ai.messages import BaseToolReturnPart

from automagik.artifacts import ArtifactStore
from automagik.errors import ServiceUnavailable, TooLarge
from automagik.memory.history import dump_message, dump_messages, dump_payload, parse_messages
from automagik.memory.media import has_media, media_at, media_in, media_of, with_documents, without_data, without_media
from automagik.memory.text import to_clean_json
from automagik.store import NewMessage
from automagik.store.artifacts import REFERENCES
from automagik.types import Json, JsonObject

__all__ = ["LEAST_BYTES", "MessageArchive"]

_log = structlog.stdlib.get_logger(__name__)

LEAST_BYTES = 8 * 1024
"""Media up to this size stand in the database: an object of their own would cost more than their base64."""

_UNKNOWN = "application/octet-stream"


class MessageArchive:
    """Dumps and loads messages, and the media of a request. Messages without large media cost what they cost without it.

    Raises, where media are large: ServiceUnavailable when the artefact store is away; ArtifactDamaged on loading.
    """

    def __init__(self, artifacts: ArtifactStore, *, least_bytes: int = LEAST_BYTES) -> None:
        self._artifacts = artifacts
        self._least_bytes = least_bytes

    async def dump(self, messages: Sequence[ModelMessage], *, used_by: str) -> list[NewMessage]:
        """What is stored of `messages`, as `dump_messages` gives it; their large media are artefacts that `used_by` holds.

        While the artefact store is away they stand in the messages themselves: what was answered must not wait for it.
        """
        if not has_media(messages, self._least_bytes):
            return dump_messages(messages)
        try:
            return [await self._dump(message, used_by) for message in messages]
        except ServiceUnavailable as away:
            _log.warning("media_kept_in_database", used_by=used_by, reason=away.detail)
            return dump_messages(messages)

    async def load(self, payloads: Iterable[str]) -> list[ModelMessage]:
        """The messages whose stored payloads are given, in their order, with all their media.

        Raises: Internal when a payload is no message of Pydantic AI.
        """
        stored = payloads if isinstance(payloads, list) else list(payloads)
        if not any(REFERENCES in payload for payload in stored):
            return parse_messages(",".join(stored))
        messages = parse_messages(",".join(stored))
        places: list[tuple[BinaryContent, str]] = []
        for message, payload in zip(messages, stored, strict=True):
            if REFERENCES in payload:
                references = cast("list[dict[str, Any]]", orjson.loads(payload).get("artifacts", ()))
                places += [(media_at(message, reference["path"]), reference["artifact"]) for reference in references]
        found = await self._get_all({digest for _, digest in places})
        for content, digest in places:
            content.data = found[digest]
        return messages

    async def keep_media(
        self, media: Sequence[BinaryContent], *, stored: Sequence[Json] = (), used_by: str
    ) -> list[Json]:
        """The media of a request as they are stored with its run: large ones as artefacts that `used_by` holds.

        `stored` comes instead of `media` where the request was stored before, and is already in that form, or whole.

        Raises: NotFound where an artefact of `stored` is gone.
        """
        kept: list[Json] = []
        for document in cast("Sequence[dict[str, str]]", () if media else stored):
            if "artifact" in document:
                await self._artifacts.use(document["artifact"], used_by)
                kept.append(cast("JsonObject", document))
            else:
                kept.append(await self._keep(_inline(document), used_by))
        kept += [await self._keep(content, used_by) for content in media]
        return kept

    async def discard(self, run_id: str, *, since: datetime) -> None:
        """Keep nothing of the media that were kept since `since` for this run, which was refused; what else is used stays."""
        await self._artifacts.discard(run_id, since=since)

    async def keep_content(self, content: object, *, used_by: str) -> Json:
        """What a tool gave or a model made, as JSON. Large media in it are artefacts that `used_by` holds: in the place of their
        `data` stand `artifact` and `size`, as in messages. While the artefact store is away `artifact` is null. Large `bytes` of no
        stated kind are told likewise, though not in messages: there the model is given their base64, as a text.
        """
        found = media_in(content, self._least_bytes)
        if not found:
            return to_clean_json(content)
        documents = {id(medium): await self._document(medium, used_by) for medium in found}
        return to_clean_json(with_documents(content, documents))

    async def _document(self, content: BinaryContent | bytes, used_by: str) -> JsonObject:
        digest: str | None = None
        data, kind = (content, _UNKNOWN) if isinstance(content, bytes) else (content.data, content.media_type)
        try:
            digest = (await self._artifacts.put(data, media_type=kind, used_by=used_by)).digest
        except (ServiceUnavailable, TooLarge) as refused:
            _log.warning("media_not_kept", used_by=used_by, reason=refused.detail)
        if isinstance(content, bytes):
            return {"media_type": kind, "kind": "binary", "artifact": digest, "size": len(data)}
        # In a thread: the identifier of a medium is a hash of its bytes.
        document = cast("JsonObject", to_clean_json(await asyncio.to_thread(without_data, content)))
        del document["data"]
        return {**document, "artifact": digest, "size": len(data)}

    async def load_media(self, documents: Sequence[Json]) -> tuple[BinaryContent, ...]:
        """The media that a run's input has, whole."""
        stored = cast("Sequence[dict[str, str]]", documents)
        found = await self._get_all({item["artifact"] for item in stored if "artifact" in item})
        return tuple(
            BinaryContent(found[item["artifact"]], media_type=item["mime_type"])
            if "artifact" in item
            else _inline(item)
            for item in stored
        )

    async def _keep(self, content: BinaryContent, used_by: str) -> JsonObject:
        if len(content.data) <= self._least_bytes:
            return {"mime_type": content.media_type, "data": base64.b64encode(content.data).decode()}
        artifact = await self._artifacts.put(content.data, media_type=content.media_type, used_by=used_by)
        return {"mime_type": content.media_type, "artifact": artifact.digest, "size": artifact.size}

    async def _dump(self, message: ModelMessage, used_by: str) -> NewMessage:
        places = media_of(message, self._least_bytes)
        if not places:
            return dump_message(message, dump_payload(message))
        references: list[JsonObject] = []
        for place in places:
            content = place.content
            artifact = await self._artifacts.put(content.data, media_type=content.media_type, used_by=used_by)
            references.append({"artifact": artifact.digest, "size": artifact.size, "path": list(place.path)})
        # In a thread: the identifier of each medium is a hash of its bytes.
        light = await asyncio.to_thread(without_media, message, places)
        payload = f'{dump_payload(light)[:-1]},"artifacts":{orjson.dumps(references).decode()}}}'
        return dump_message(_readable(message, light), payload)

    async def _get_all(self, digests: Iterable[str]) -> dict[str, bytes]:
        """The bytes of all of these; the artefact store reads only a few at once."""
        reads = {digest: asyncio.ensure_future(self._artifacts.get(digest)) for digest in digests}
        try:
            await asyncio.gather(*reads.values())
        except BaseException:
            for read in reads.values():
                read.cancel()
            await asyncio.gather(*reads.values(), return_exceptions=True)
            raise
        return {digest: read.result() for digest, read in reads.items()}


def _inline(document: Mapping[str, str]) -> BinaryContent:
    return BinaryContent(base64.b64decode(document["data"]), media_type=document["mime_type"])


def _readable(message: ModelMessage, light: ModelMessage) -> ModelMessage:
    """The message as its text for people is made: the sizes of media, but no base64 among what a tool returned."""
    parts = [
        bare if isinstance(part, BaseToolReturnPart) else part
        for part, bare in zip(message.parts, light.parts, strict=True)
    ]
    return replace(message, parts=cast("Any", parts))
