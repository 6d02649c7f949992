"""Runs with media: large ones stand in the artefact store, and everybody who needs them gets them."""

import base64
import hashlib
import uuid
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic_ai import BinaryContent
from run_house import OpenPlatform
from sqlalchemy import text

from automagik.app import Platform
from automagik.errors import NotFound, RunFailed
from automagik.memory import MessageArchive
from automagik.runs import RunRequest
from automagik.store.artifacts import run_holder, session_holder
from automagik.store.rows import RunRow
from automagik.types import SYSTEM

pytestmark = pytest.mark.anyio

LARGE = b"\x89PNG" + bytes(range(256)) * 400
SMALL = b"GIF89a small"
DIGEST = hashlib.sha256(LARGE).hexdigest()

LOOKER = """
import hashlib

from pydantic_ai import Agent, BinaryContent, ModelMessage, ModelResponse, TextPart
from pydantic_ai.messages import FilePart, ToolCallPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel


def seen(messages):
    for message in messages:
        for part in message.parts:
            content = getattr(part, "content", None)
            for item in content if isinstance(content, list) else [content]:
                if isinstance(item, BinaryContent):
                    yield f"{item.media_type}:{hashlib.sha256(item.data).hexdigest()[:8]}"


async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    last = messages[-1].parts[-1]
    if isinstance(last, UserPromptPart) and last.content == "draw":
        return ModelResponse(parts=[ToolCallPart("draw", {})])
    return ModelResponse(parts=[TextPart(" ".join(seen(messages)))])


async def stream(messages: list[ModelMessage], info: AgentInfo):
    yield " ".join(seen(messages)) or "nothing"


agent = Agent(FunctionModel(answer, stream_function=stream), name="looker")


@agent.tool_plain
async def draw() -> BinaryContent:
    return BinaryContent(b"drawn" * 5000, media_type="image/png")
"""


@pytest.fixture
async def platform(open_platform: OpenPlatform, tmp_path: Path) -> Platform:
    (tmp_path / "agents" / "looker.py").write_text(LOOKER)
    return await open_platform()


def request(words: str = "look", **changes: Any) -> RunRequest:
    values: dict[str, Any] = {
        "media": (BinaryContent(LARGE, media_type="image/png"), BinaryContent(SMALL, media_type="image/gif"))
    }
    return RunRequest(agent_name="looker", text=words, **{**values, **changes})


def short(data: bytes, media_type: str = "image/png") -> str:
    return f"{media_type}:{hashlib.sha256(data).hexdigest()[:8]}"


SEEN = f"{short(LARGE)} {short(SMALL, 'image/gif')}"


async def holders(platform: Platform, digest: str = DIGEST) -> list[str]:
    return await platform.store.read(lambda tx: tx.artifacts.holders(digest))


async def ended(platform: Platform, row: RunRow) -> RunRow:
    stream = await platform.runs.watch(row.run_id, SYSTEM)
    async for _ in stream:
        pass
    return await platform.runs.get(row.run_id, SYSTEM)


def said(row: RunRow) -> str:
    assert row.output is not None
    return cast("str", row.output["message"])


async def test_a_turn_sees_the_media_of_the_turns_before(platform: Platform) -> None:
    session_id = uuid.uuid4()
    first = await platform.runs.run(request(session_id=session_id), SYSTEM)
    assert said(first) == SEEN
    assert first.input is not None
    assert first.input["media_contents"] == [
        {"mime_type": "image/png", "artifact": DIGEST, "size": len(LARGE)},
        {"mime_type": "image/gif", "data": base64.b64encode(SMALL).decode()},
    ]
    again = await platform.runs.run(request("and again", session_id=session_id, media=()), SYSTEM)
    assert said(again) == SEEN
    assert await holders(platform) == [run_holder(first.run_id), session_holder(session_id)]
    rows = await platform.store.read(
        lambda tx: [row[0] for row in tx.connection.execute(text("SELECT raw_payload FROM messages"))]
    )
    assert len(rows) == 4
    assert all(len(str(row)) < 3000 for row in rows)


async def test_a_run_of_the_background_and_its_requeue_have_the_media(platform: Platform) -> None:
    row = await ended(platform, await platform.runs.submit(request(), SYSTEM))
    assert said(row) == SEEN
    again = await ended(platform, await platform.runs.requeue(row.run_id, SYSTEM))
    assert said(again) == f"{SEEN} {SEEN}", "those of the session, and its own"
    assert again.input == row.input
    held = await holders(platform)
    assert {run_holder(row.run_id), run_holder(again.run_id)} <= set(held)


async def test_the_same_key_with_the_same_picture_is_the_same_run(platform: Platform) -> None:
    first = await platform.runs.run(request(), SYSTEM, idempotency_key="k")
    again = await platform.runs.run(request(), SYSTEM, idempotency_key="k")
    assert again.run_id == first.run_id


async def test_what_a_tool_draws_is_seen_in_the_next_turn(platform: Platform) -> None:
    session_id = uuid.uuid4()
    first = await platform.runs.run(request("draw", media=(), session_id=session_id), SYSTEM)
    second = await platform.runs.run(request(media=(), session_id=session_id), SYSTEM)
    assert said(second) == short(b"drawn" * 5000)
    held = await holders(platform, hashlib.sha256(b"drawn" * 5000).hexdigest())
    assert held == [run_holder(first.run_id), session_holder(session_id)]


async def test_what_a_tool_draws_stands_in_no_event_and_no_output(platform: Platform) -> None:
    digest = hashlib.sha256(b"drawn" * 5000).hexdigest()
    row = await platform.runs.run(request("draw", media=()), SYSTEM)
    told = await platform.runs.events(row.run_id, SYSTEM)
    (result,) = [event.data["content"] for event in told if event.type == "tool_result"]
    assert isinstance(result, dict)
    assert (result["media_type"], result["artifact"], result["size"]) == ("image/png", digest, 25_000)
    assert "data" not in result
    assert row.output is not None
    assert [output["content"] for output in cast("Any", row.output["tool_outputs"])] == [result]
    assert run_holder(row.run_id) in await holders(platform, digest)


async def test_media_deep_in_what_a_tool_gives_are_kept_too_and_small_ones_stand_there(platform: Platform) -> None:
    archive = MessageArchive(platform.artifacts)
    large, small = BinaryContent(LARGE, media_type="image/png"), BinaryContent(SMALL, media_type="image/gif")
    given = {"pages": [(1, large), {"again": large}], "icon": small, "note": "x\x00", "of": {"a": [1, None]}}
    kept = cast("Any", await archive.keep_content(given, used_by="run:run_x"))
    assert kept["pages"][0][0] == 1
    assert kept["pages"][0][1] == kept["pages"][1]["again"]
    assert (kept["pages"][0][1]["artifact"], kept["pages"][0][1]["size"]) == (DIGEST, len(LARGE))
    assert base64.b64decode(kept["icon"]["data"]) == SMALL
    assert (kept["note"], kept["of"]) == ("x\N{REPLACEMENT CHARACTER}", {"a": [1, None]})
    assert given["icon"] is small


async def test_bytes_that_a_tool_gives_are_artifacts_in_what_is_told_and_small_ones_their_base64(
    platform: Platform,
) -> None:
    archive = MessageArchive(platform.artifacts)
    kept = cast("Any", await archive.keep_content({"dump": LARGE, "few": SMALL}, used_by="run:run_x"))
    told = {"media_type": "application/octet-stream", "kind": "binary", "artifact": DIGEST, "size": len(LARGE)}
    assert kept["dump"] == told
    assert base64.b64decode(kept["few"], altchars=b"-_") == SMALL
    assert await archive.keep_content(LARGE, used_by="run:run_x") == told
    assert await holders(platform) == ["run:run_x"]


async def test_a_session_that_is_deleted_lets_go_and_its_runs_hold_on(platform: Platform) -> None:
    session_id = uuid.uuid4()
    row = await platform.runs.run(request(session_id=session_id), SYSTEM)
    await platform.store.write(lambda tx: tx.sessions.delete(session_id))
    assert await holders(platform) == [run_holder(row.run_id)]


async def test_a_turn_whose_earlier_picture_is_lost_fails_and_says_why(platform: Platform) -> None:
    session_id = uuid.uuid4()
    await platform.runs.run(request(session_id=session_id), SYSTEM)
    for path in (platform.settings.data_dir / "artifacts").rglob("*.*"):
        path.unlink()
    await platform.artifacts.close()  # what it has in memory is forgotten
    with pytest.raises(RunFailed, match="not in the artefact store") as failed:
        await platform.runs.run(request(session_id=session_id, media=()), SYSTEM)
    assert "AUTOMAGIK_ARTIFACTS_URL" in str(failed.value.hint)


async def test_while_the_artifact_store_is_away_answers_are_kept_whole(platform: Platform) -> None:
    session_id = uuid.uuid4()
    folder = platform.settings.data_dir / "artifacts"
    folder.rename(folder.with_name("away"))
    folder.write_text("in the way")
    row = await platform.runs.run(request("draw", media=(), session_id=session_id), SYSTEM)
    assert row.status == "completed"
    shown = cast("Any", row.output)["tool_outputs"][0]["content"]
    assert (shown["artifact"], shown["size"], "data" in shown) == (None, 25_000, False)
    folder.unlink()
    folder.with_name("away").rename(folder)
    second = await platform.runs.run(request(media=(), session_id=session_id), SYSTEM)
    assert said(second) == short(b"drawn" * 5000)


async def test_nothing_is_kept_of_the_media_of_a_refused_run_but_what_others_use(platform: Platform) -> None:
    nobody: dict[str, Any] = {"user_id": uuid.uuid4()}
    objects = platform.settings.data_dir / "artifacts"
    for background in (False, True):
        with pytest.raises(NotFound):
            await (platform.runs.submit if background else platform.runs.run)(request(**nobody), SYSTEM)
        assert not await platform.artifacts.exists(DIGEST)
        assert [path for path in objects.rglob("*") if path.is_file()] == []

    await platform.artifacts.put(LARGE, media_type="image/png")  # somebody means to use it
    with pytest.raises(NotFound):
        await platform.runs.run(request(**nobody), SYSTEM)
    assert await platform.artifacts.exists(DIGEST)

    # The same key a second time is no second run, and takes nothing from the first one.
    first = await platform.runs.run(request(), SYSTEM, idempotency_key="once")
    again = await platform.runs.run(request(), SYSTEM, idempotency_key="once")
    assert again.run_id == first.run_id
    assert await platform.store.read(lambda tx: tx.artifacts.holders(DIGEST)) == sorted(
        [run_holder(first.run_id), session_holder(cast("uuid.UUID", first.session_id))]
    )
    assert await platform.artifacts.get(DIGEST) == LARGE
