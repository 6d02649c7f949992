"""Artefacts over HTTP: who may get them, and how they come."""

import base64
import hashlib
import uuid

import httpx2
import pytest
from api_house import ApiHouse
from pydantic_ai import BinaryContent
from pydantic_ai.messages import ModelRequest, UserPromptPart

from automagik.errors import ArtifactDamaged
from automagik.memory import dump_messages
from automagik.store import BeginRun
from automagik.store.artifacts import run_holder, session_holder
from automagik.types import new_id

pytestmark = pytest.mark.anyio

PICTURE = b"\x89PNG" + bytes(range(256)) * 8000
DIGEST = hashlib.sha256(PICTURE).hexdigest()
PATH = f"/api/v1/artifacts/{DIGEST}"


async def keep(house: ApiHouse, *, used_by: str | None = None, media_type: str = "image/png") -> str:
    artifact = await house.platform.artifacts.put(PICTURE, media_type=media_type, used_by=used_by)
    return artifact.digest


async def make_session(house: ApiHouse, user_id: uuid.UUID | None = None) -> str:
    row = await house.platform.store.write(lambda tx: tx.sessions.create(user_id=user_id))
    return session_holder(row.session_id)


async def make_run(house: ApiHouse, user_id: uuid.UUID | None = None) -> str:
    run_id = new_id("run")
    now = house.platform.clock.now()
    await house.platform.store.begin_run(
        BeginRun(run_id=run_id, kind="agent", name="echo", created_at=now, owner="me", user_id=user_id)
    )
    return run_holder(run_id)


async def test_bytes_come_as_a_file_that_no_browser_shows(house: ApiHouse) -> None:
    await keep(house)
    answer = await house.admin.get(PATH)
    assert answer.status_code == 200
    assert answer.content == PICTURE
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-length"] == str(len(PICTURE))
    assert answer.headers["content-disposition"] == f'attachment; filename="{DIGEST[:16]}.png"'
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["etag"] == f'"{DIGEST}"'
    assert answer.headers["cache-control"] == "private, no-cache"
    again = await house.admin.get(PATH, headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("media_type", ["text/html\r\nset-cookie: a=b", "é/ü", "", "x" * 300])
async def test_a_strange_media_type_is_not_sent(house: ApiHouse, media_type: str) -> None:
    await keep(house, media_type=media_type)
    answer = await house.admin.get(PATH)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ("bytes=0-3", slice(0, 4)),
        ("bytes=4-", slice(4, None)),
        ("bytes=-5", slice(-5, None)),
        ("bytes=100-99999999999", slice(100, None)),
        ("bytes=-99999999999", slice(0, None)),
    ],
)
async def test_a_part_is_given_where_a_part_is_asked_for(house: ApiHouse, asked: str, part: slice) -> None:
    await keep(house)
    answer = await house.admin.get(PATH, headers={"range": asked})
    assert answer.status_code == 206
    assert answer.content == PICTURE[part]
    start, end, _ = part.indices(len(PICTURE))
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(PICTURE)}"


@pytest.mark.parametrize("asked", ["bytes=0-1,4-5", "lines=0-1", "bytes=-", "bytes=9-1", "bytes", "bytes=a-b"])
async def test_a_range_that_is_none_is_left_unread(house: ApiHouse, asked: str) -> None:
    await keep(house)
    answer = await house.admin.get(PATH, headers={"range": asked})
    assert (answer.status_code, answer.content) == (200, PICTURE)


async def test_a_part_that_is_not_there_is_a_416(house: ApiHouse) -> None:
    await keep(house)
    answer = await house.admin.get(PATH, headers={"range": "bytes=99999999-"})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(PICTURE)}"
    assert answer.json()["status"] == 416


async def test_a_key_sees_what_its_scopes_and_its_user_may_see(each_house: ApiHouse) -> None:
    house = each_house
    ann, bob = await house.user(), await house.user()
    clients: dict[str, httpx2.AsyncClient] = {
        "runs": await house.client("runs:read"),
        "sessions": await house.client("sessions:read"),
        "sessions by write": await house.client("sessions:write"),
        "ann": await house.client("runs:read", "sessions:read", user_id=ann),
        "ann, admin": await house.client("admin", user_id=ann),
        "bob": await house.client("runs:read", "sessions:read", user_id=bob),
        "admin": house.admin,
    }

    async def who() -> set[str]:
        answers = {name: (await client.get(PATH)).status_code for name, client in clients.items()}
        assert set(answers.values()) <= {200, 404}
        return {name for name, status in answers.items() if status == 200}

    assert await who() == set()
    await keep(house)
    assert await who() == {"admin"}
    for_ann = await make_session(house, ann)
    await keep(house, used_by=for_ann)
    assert await who() == {"admin", "sessions", "sessions by write", "ann", "ann, admin"}
    of_nobody = await make_run(house)
    await keep(house, used_by=of_nobody)
    assert await who() == {"admin", "sessions", "sessions by write", "ann", "ann, admin", "runs"}
    of_bob = await make_run(house, bob)
    await keep(house, used_by=of_bob)
    assert await who() == set(clients)
    for holder in (for_ann, of_bob):
        await house.platform.artifacts.release(holder)
    assert await who() == {"admin", "runs"}
    await house.platform.artifacts.release(of_nobody)
    assert await who() == {"admin"}
    await keep(house, used_by="bundle:of-a-later-room")
    assert await who() == {"admin"}


async def test_a_key_without_a_scope_for_it_is_told_so(house: ApiHouse) -> None:
    await keep(house)
    client = await house.client("memory:read", "agents:*:run")
    answer = await client.get(PATH)
    assert answer.status_code == 403
    assert "sessions:read" in answer.json()["detail"]
    assert (await (await house.keyless()).get(PATH)).status_code == 401


@pytest.mark.parametrize(
    "digest", ["..%2f..%2fetc%2fpasswd", "A" * 64, "0" * 64, DIGEST[:-1], f"{DIGEST}0", "..", f"{DIGEST}.png", "%F0%9F"]
)
async def test_what_is_no_digest_is_a_404(house: ApiHouse, digest: str) -> None:
    await keep(house)
    answer = await house.admin.get(f"/api/v1/artifacts/{digest}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


async def test_damaged_bytes_are_a_problem_or_a_connection_that_breaks(house: ApiHouse) -> None:
    await keep(house)
    (path,) = (house.platform.settings.data_dir / "artifacts").rglob("*.*")
    await house.platform.artifacts.close()  # what it has in memory is forgotten
    path.write_bytes(PICTURE[:-1])
    answer = await house.admin.get(PATH)
    assert answer.status_code == 500
    assert answer.json()["code"] == "artifact_damaged"
    path.write_bytes(PICTURE[:-1] + b"?")
    with pytest.raises(RuntimeError, match="already started") as broken:
        await house.admin.get(PATH)
    assert isinstance(broken.value.__cause__, ArtifactDamaged), "the last piece is never sent"
    path.unlink()
    answer = await house.admin.get(PATH)
    assert answer.json()["code"] == "artifact_damaged"
    assert "AUTOMAGIK_ARTIFACTS_URL" in answer.json()["hint"]


async def test_the_media_of_a_run_are_found_by_what_the_api_shows(each_house: ApiHouse) -> None:
    house = each_house
    user = await house.user()
    client = await house.client("agents:*:run", "runs:read", "sessions:write", user_id=user)
    session_id = str(uuid.uuid4())
    body = {
        "message_content": "look",
        "session_id": session_id,
        "media_contents": [{"mime_type": "image/png", "data": base64.b64encode(PICTURE).decode()}],
    }
    answer = (await client.post("/api/v1/agent/echo/run", json=body)).json()
    assert "[image/png]" in answer["message"]
    shown = (await client.get(f"/api/v1/runs/{answer['run_id']}")).json()
    reference = {"mime_type": "image/png", "artifact": DIGEST, "size": len(PICTURE)}
    assert shown["input"]["media_contents"] == [reference]
    listed = (await client.get(f"/api/v1/sessions/{session_id}/messages")).json()["data"]
    assert listed[-1]["content"] == f"look\n[image/png, {len(PICTURE)} bytes]"
    message = (await client.get(f"/api/v1/messages/{listed[-1]['message_id']}")).json()
    medium = message["raw_payload"]["parts"][0]["content"][1]
    assert (medium["artifact"], medium["size"], medium["media_type"]) == (DIGEST, len(PICTURE), "image/png")
    assert "data" not in medium
    assert "artifacts" not in message["raw_payload"]
    assert (await client.get(PATH)).content == PICTURE
    assert (await client.delete(f"/api/v1/sessions/{session_id}")).status_code == 204
    assert (await client.get(PATH)).status_code == 200, "the run still has it"
    await house.platform.artifacts.release(run_holder(answer["run_id"]))
    assert (await client.get(PATH)).status_code == 404


async def test_messages_of_before_are_shown_with_their_media_inside(house: ApiHouse) -> None:
    content = BinaryContent(PICTURE, media_type="image/png")
    (row,) = dump_messages([ModelRequest(parts=[UserPromptPart(["look", content])])])
    session = await house.platform.store.write(lambda tx: tx.sessions.create())
    await house.platform.store.write(lambda tx: tx.messages.append(session.id, [row]))
    message = (await house.admin.get(f"/api/v1/messages/{row.message_id}")).json()
    assert message["raw_payload"]["parts"][0]["content"][1]["data"] == base64.urlsafe_b64encode(PICTURE).decode()
    answer = await house.admin.post(
        "/api/v1/agent/echo/run", json={"message_content": "again", "session_id": str(session.session_id)}
    )
    assert answer.status_code == 200
