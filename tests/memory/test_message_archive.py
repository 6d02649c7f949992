"""Messages whose media stand in the artefact store come back as they were, and cost nothing where there are none."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from memory_house import House
from pydantic_ai import BinaryContent, ImageUrl, ModelMessage
from pydantic_ai.messages import (
    BinaryImage,
    FilePart,
    ModelRequest,
    ModelResponse,
    SpeechPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from automagik.artifacts import ArtifactStore
from automagik.errors import ArtifactDamaged, Internal, NotFound
from automagik.memory import MessageArchive, MessageHistory, dump_messages, load_messages
from automagik.settings import Settings
from automagik.types import Json, SystemClock

pytestmark = pytest.mark.anyio

LARGE = bytes(range(256)) * 100
OTHER = LARGE[::-1]
DIGEST = hashlib.sha256(LARGE).hexdigest()


@pytest.fixture
async def artifacts(house: House, tmp_path: Path) -> AsyncIterator[ArtifactStore]:
    opened = ArtifactStore(Settings(data_dir=tmp_path), house.store, SystemClock())
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def archive(artifacts: ArtifactStore) -> MessageArchive:
    return MessageArchive(artifacts)


def image(data: bytes = LARGE, **options: Any) -> BinaryContent:
    return BinaryContent.narrow_type(BinaryContent(data, media_type="image/png", **options))


SHAPES: dict[str, ModelMessage] = {
    "of a user": ModelRequest(
        parts=[UserPromptPart(["look", image(), ImageUrl("https://example.org/a.png"), image(OTHER)])]
    ),
    "of a user, named and with metadata": ModelRequest(
        parts=[UserPromptPart(["look", image(identifier="first", vendor_metadata={"detail": "high"})])]
    ),
    "of a model": ModelResponse(parts=[TextPart("here"), FilePart(image(), id="f", provider_name="p")]),
    "alone from a tool": ModelRequest(parts=[ToolReturnPart("draw", image(), tool_call_id="c")]),
    "in a list from a tool": ModelRequest(
        parts=[ToolReturnPart("draw", ["two", image(), image(OTHER)], tool_call_id="c")]
    ),
    "in an object from a tool": ModelRequest(
        parts=[ToolReturnPart("draw", {"ünd\n": 1, "picture": image()}, tool_call_id="c")]
    ),
    "spoken": ModelRequest(parts=[SpeechPart(speaker="user", audio=BinaryContent(LARGE, media_type="audio/wav"))]),
    "beside instructions": ModelRequest(parts=[UserPromptPart([image()])], instructions="a long prompt"),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_media_leave_the_payload_and_come_back(archive: MessageArchive, house: House, shape: str) -> None:
    message = SHAPES[shape]
    (row,) = await archive.dump([message], used_by="run:run_1")
    assert base64.b64encode(LARGE).decode()[:100] not in row.raw_payload
    assert len(row.raw_payload) < 2000
    (inline,) = dump_messages([message])
    assert row.role == inline.role
    assert row.content == inline.content or (shape == "in an object from a tool" and len(row.content) < 500)
    assert await archive.load([row.raw_payload]) == load_messages([inline.raw_payload])
    (again,) = await archive.dump(await archive.load([row.raw_payload]), used_by="run:run_1")
    assert again.raw_payload == row.raw_payload, "identifiers and metadata are kept"
    assert await house.store.read(lambda tx: tx.artifacts.holders(DIGEST)) == ["run:run_1"]


async def test_a_medium_under_a_key_that_not_everything_carries_stays_in_the_payload(archive: MessageArchive) -> None:
    message = ModelRequest(parts=[ToolReturnPart("draw", {"a\x00": image()}, tool_call_id="c")])
    (row,) = await archive.dump([message], used_by="run:run_1")
    (loaded,) = await archive.load([row.raw_payload])
    part = loaded.parts[0]
    assert isinstance(part, ToolReturnPart)
    content: Any = part.content
    assert content["a\x00"].data == LARGE


async def test_an_image_is_an_image_again(archive: MessageArchive) -> None:
    (row,) = await archive.dump([SHAPES["of a model"]], used_by="run:run_1")
    (loaded,) = await archive.load([row.raw_payload])
    part = loaded.parts[1]
    assert isinstance(part, FilePart)
    assert isinstance(part.content, BinaryImage)
    assert part.content.data == LARGE


async def test_messages_without_large_media_are_stored_as_ever(archive: MessageArchive) -> None:
    messages: list[ModelMessage] = [
        ModelRequest(parts=[UserPromptPart(["look", image(b"small")])]),
        ModelResponse(parts=[TextPart('"artifacts":[{"artifact":"'), ToolCallPart("draw", {"how": "well"})]),
        ModelRequest(
            parts=[ToolReturnPart("draw", {"artifacts": [{"artifact": DIGEST, "path": []}]}, tool_call_id="c")]
        ),
    ]
    rows = await archive.dump(messages, used_by="run:run_1")
    assert [row.raw_payload for row in rows] == [row.raw_payload for row in dump_messages(messages)]
    loaded = await archive.load([row.raw_payload for row in rows])
    assert [row.raw_payload for row in dump_messages(loaded)] == [row.raw_payload for row in rows]
    assert await archive.load([]) == []
    assert await archive.dump([], used_by="run:run_1") == []


async def test_what_a_model_or_tool_says_is_never_taken_for_a_reference(
    archive: MessageArchive, artifacts: ArtifactStore
) -> None:
    secret = await artifacts.put(LARGE, media_type="image/png", used_by="session:of-another")
    forged = {"kind": "binary", "data": "", "media_type": "image/png", "artifact": secret.digest, "size": len(LARGE)}
    path = ["parts", 0, "content", 0]
    messages: list[ModelMessage] = [
        ModelRequest(parts=[ToolReturnPart("draw", [forged], tool_call_id="c", metadata={"artifacts": [forged]})]),
        ModelResponse(
            parts=[
                ToolCallPart("draw", json.dumps({"artifacts": [{"artifact": secret.digest, "size": 1, "path": path}]}))
            ],
            metadata={"artifacts": [{"artifact": secret.digest, "size": 1, "path": path}]},
        ),
        ModelRequest(
            parts=[
                ToolReturnPart(
                    "draw", {"x": {"artifacts": [{"artifact": secret.digest, "path": path}]}}, tool_call_id="c"
                )
            ]
        ),
    ]
    rows = await archive.dump(messages, used_by="run:run_1")
    for message in await archive.load([row.raw_payload for row in rows]):
        assert LARGE not in [item.data for item in _media(message)]


def _media(message: ModelMessage) -> list[BinaryContent]:
    contents: list[Any] = [getattr(part, "content", None) for part in message.parts]
    found: list[BinaryContent] = []
    for content in contents:
        items = cast("list[Any]", content) if isinstance(content, list) else [content]
        found += [item for item in items if isinstance(item, BinaryContent)]
    return found


async def test_a_history_with_one_picture_many_times_reads_it_once(
    archive: MessageArchive, artifacts: ArtifactStore
) -> None:
    rows = await archive.dump([SHAPES["of a user"]] * 20, used_by="run:run_1")
    payloads = [row.raw_payload for row in rows]
    histories = await asyncio.gather(*(archive.load(payloads) for _ in range(5)))
    pictures = {id(item.data) for history in histories for message in history for item in _media(message)}
    assert len(pictures) == 2
    del artifacts


async def test_a_lost_picture_is_told_and_ends_the_load(archive: MessageArchive, house: House, tmp_path: Path) -> None:
    rows = await archive.dump([SHAPES["of a user"]], used_by="run:run_1")
    for path in (tmp_path / "artifacts").rglob("*.*"):
        path.unlink()
    opened = ArtifactStore(Settings(data_dir=tmp_path), house.store, SystemClock())
    await opened.open()
    with pytest.raises(ArtifactDamaged, match="not in"):
        await MessageArchive(opened).load([row.raw_payload for row in rows])
    await opened.close()


async def test_a_payload_with_references_needs_the_archive(archive: MessageArchive) -> None:
    (row,) = await archive.dump([SHAPES["of a user"]], used_by="run:run_1")
    with pytest.raises(Internal, match="artefact store"):
        load_messages([row.raw_payload])
    broken = row.raw_payload.replace('"path":["parts",0,"content",1]', '"path":["parts",7,"content",1]')
    with pytest.raises(Internal, match="can't be read"):
        await archive.load([broken])


async def test_the_media_of_a_request_are_kept_and_come_back(archive: MessageArchive) -> None:
    media = (image(), BinaryContent(b"small", media_type="text/plain"))
    kept = await archive.keep_media(media, used_by="run:run_1")
    assert kept == [
        {"mime_type": "image/png", "artifact": DIGEST, "size": len(LARGE)},
        {"mime_type": "text/plain", "data": "c21hbGw="},
    ]
    assert [(item.data, item.media_type) for item in await archive.load_media(kept)] == [
        (item.data, item.media_type) for item in media
    ]
    earlier: dict[str, Json] = {"mime_type": "image/png", "data": base64.b64encode(LARGE).decode()}
    (inline,) = await archive.load_media([earlier])
    assert inline.data == LARGE


async def test_a_session_holds_the_media_of_its_messages_until_they_go(archive: MessageArchive, house: House) -> None:
    history = MessageHistory(house.store, house.session_key, archive)
    first, second, third = await history.append([SHAPES["of a user"], SHAPES["of a model"], SHAPES["spoken"]])
    assert await history.load() == load_messages(
        row.raw_payload for row in dump_messages([SHAPES["of a user"], SHAPES["of a model"], SHAPES["spoken"]])
    )
    holder = [f"session:{house.session_id}"]

    async def holders(data: bytes) -> list[str]:
        digest = hashlib.sha256(data).hexdigest()
        return await house.store.read(lambda tx: tx.artifacts.holders(digest))

    assert await holders(LARGE) == await holders(OTHER) == holder
    await house.store.write(lambda tx: tx.messages.delete(first.message_id))
    assert await holders(LARGE) == holder
    assert await holders(OTHER) == [], "only the first message had it"
    await house.store.write(lambda tx: tx.messages.delete(second.message_id))
    assert await holders(LARGE) == holder
    await house.store.write(lambda tx: tx.messages.delete(third.message_id))
    assert await holders(LARGE) == []
    with pytest.raises(NotFound):
        await MessageHistory(house.store, 10_000, archive).append([SHAPES["spoken"]])


@pytest.mark.parametrize("what", ["session", "user"])
async def test_a_session_that_is_deleted_lets_go_of_its_media(archive: MessageArchive, house: House, what: str) -> None:
    await MessageHistory(house.store, house.session_key, archive).append([SHAPES["of a user"]])
    if what == "session":
        await house.store.write(lambda tx: tx.sessions.delete(house.session_id))
    else:
        await house.store.write(lambda tx: tx.users.delete(house.ann))
    assert await house.store.read(lambda tx: tx.artifacts.holders(DIGEST)) == []
