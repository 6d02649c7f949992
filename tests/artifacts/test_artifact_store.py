"""The artefact store does the same in a folder and in a bucket of each kind, with its rows in SQLite and in PostgreSQL."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Literal, cast

import pytest
from artifact_house import ArtifactHouse

from automagik.errors import ArtifactDamaged, NotFound, TooLarge

pytestmark = pytest.mark.anyio

PICTURE = b"\x89PNG" + bytes(range(256)) * 400
WEEK = timedelta(days=7)


@pytest.fixture(
    params=[
        *(("sqlite", kind) for kind in ("folder", "bucket", "google", "azure")),
        *(("postgresql", kind) for kind in ("folder", "bucket")),
    ],
    ids="-".join,
)
def where(request: pytest.FixtureRequest) -> tuple[Literal["sqlite", "postgresql"], str]:
    return cast("tuple[Literal['sqlite', 'postgresql'], str]", request.param)


@pytest.fixture
def dialect(where: tuple[Literal["sqlite", "postgresql"], str]) -> Literal["sqlite", "postgresql"]:
    return where[0]


@pytest.fixture
def kind(where: tuple[Literal["sqlite", "postgresql"], str]) -> str:
    return where[1]


async def pieces(data: bytes, size: int = 30_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def read(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def test_what_was_put_is_found_under_its_sha_256(house: ArtifactHouse) -> None:
    artifact = await house.artifacts.put(PICTURE, media_type="image/png")
    assert artifact.digest == hashlib.sha256(PICTURE).hexdigest()
    assert (artifact.size, artifact.media_type) == (len(PICTURE), "image/png")
    other = house.fresh()
    await other.open()
    assert await other.find(artifact.digest) == artifact
    assert await read(other.stream(artifact.digest)) == PICTURE
    assert await other.get(artifact.digest) == PICTURE
    assert await read(other.stream(artifact.digest)) == PICTURE, "from memory"
    assert await read(other.stream_range(artifact.digest, 4, 10)) == PICTURE[4:10]
    await other.close()


async def test_equal_bytes_are_stored_once_however_they_come(house: ArtifactHouse) -> None:
    first = await house.artifacts.put(PICTURE, media_type="image/png")
    again = await house.artifacts.put(pieces(PICTURE), media_type="application/octet-stream")
    assert again == first
    assert len(house.place.names()) == 1


async def test_a_large_stream_is_stored_whole(house: ArtifactHouse) -> None:
    data = PICTURE * 120
    artifact = await house.artifacts.put(pieces(data, 1_000_000), media_type="application/zip")
    assert artifact.size == len(data) > 12_000_000
    assert await read(house.artifacts.stream(artifact.digest)) == data


async def test_empty_bytes_are_an_artifact_too(house: ArtifactHouse) -> None:
    artifact = await house.artifacts.put(b"", media_type="text/plain")
    assert artifact.size == 0
    assert await house.artifacts.get(artifact.digest) == b""
    assert await read(house.artifacts.stream(artifact.digest)) == b""


async def test_puts_of_the_same_bytes_at_once_agree(house: ArtifactHouse) -> None:
    other = house.fresh()
    await other.open()
    stores = [house.artifacts, other] * 5
    made = await asyncio.gather(*(store.put(PICTURE, media_type="image/png") for store in stores))
    assert len(set(made)) == 1
    assert len(house.place.names()) == 1
    await other.close()


async def test_what_is_no_digest_is_not_found(house: ArtifactHouse) -> None:
    store = house.artifacts
    for digest in (
        *("", "../../etc/passwd", "0" * 63, "A" * 64, "0" * 64 + "\n", "ab/" + "0" * 61, "\x00" * 64, "٠" * 64),
    ):
        assert not await store.exists(digest)
        for asked in (
            store.get(digest),
            store.find(digest),
            store.use(digest, "run:run_1"),
            read(store.stream(digest)),
        ):
            with pytest.raises(NotFound):
                await asked


@pytest.mark.parametrize(
    ("damage", "told"),
    [(PICTURE[:-1], "bytes in"), (b"", "bytes in"), (PICTURE[:-1] + b"?", "not those that were stored")],
)
async def test_damaged_bytes_are_told_and_never_given(house: ArtifactHouse, damage: bytes, told: str) -> None:
    artifact = await house.artifacts.put(PICTURE, media_type="image/png")
    (name,) = house.place.names()
    house.place.write(name, damage)
    other = house.fresh()
    await other.open()
    with pytest.raises(ArtifactDamaged, match=told):
        await other.get(artifact.digest)
    with pytest.raises(ArtifactDamaged, match=told):
        await read(other.stream(artifact.digest))
    await other.close()


async def test_lost_bytes_are_told_and_come_back_with_the_next_put(house: ArtifactHouse) -> None:
    artifact = await house.artifacts.put(PICTURE, media_type="image/png")
    (name,) = house.place.names()
    house.place.write(name, b"short")
    assert await house.artifacts.put(PICTURE, media_type="image/png") == artifact
    other = house.fresh()
    await other.open()
    assert await other.get(artifact.digest) == PICTURE
    await other.close()


async def test_more_bytes_than_allowed_are_refused_as_they_come(house: ArtifactHouse) -> None:
    settings = house.settings.model_copy(update={"max_artifact_bytes": 50_000})
    small = type(house.artifacts)(settings, house.store, house.clock)
    await small.open()
    with pytest.raises(TooLarge, match="50000"):
        await small.put(PICTURE, media_type="image/png")
    with pytest.raises(TooLarge, match="50000"):
        await small.put(pieces(PICTURE), media_type="image/png")
    assert house.place.names() == []
    await small.close()


async def test_unused_artifacts_go_after_their_time_and_used_ones_stay(house: ArtifactHouse) -> None:
    used = await house.artifacts.put(b"used", media_type="text/plain", used_by="run:run_1")
    unused = await house.artifacts.put(b"unused", media_type="text/plain")
    house.clock.turn(days=6)
    assert (await house.artifacts.prune(WEEK)).artifacts == 0
    house.clock.turn(days=2)
    counted = await house.artifacts.prune(WEEK, dry_run=True)
    assert (counted.artifacts, counted.size) == (1, 6)
    pruned = await house.artifacts.prune(WEEK)
    assert (pruned.artifacts, pruned.size) == (1, 6)
    assert not await house.artifacts.exists(unused.digest)
    assert await house.artifacts.exists(used.digest)
    assert len(house.place.names()) == 1


async def test_retention_begins_when_the_last_use_ends(house: ArtifactHouse) -> None:
    artifact = await house.artifacts.put(PICTURE, media_type="image/png", used_by="run:run_1")
    await house.artifacts.use(artifact.digest, "run:run_2")
    house.clock.turn(days=0.5)
    assert await house.artifacts.release("run:run_1") == 1
    assert await house.artifacts.release("run:run_1") == 0
    assert await house.store.read(lambda tx: tx.artifacts.holders(artifact.digest)) == ["run:run_2"]
    assert await house.artifacts.release("run:run_2") == 1
    house.clock.turn(days=6.5)
    assert (await house.artifacts.prune(WEEK)).artifacts == 0
    house.clock.turn(days=1)
    assert (await house.artifacts.prune(WEEK)).artifacts == 1
    with pytest.raises(NotFound):
        await house.artifacts.use(artifact.digest, "run:run_3")


async def test_uses_of_runs_and_sessions_that_are_gone_end(house: ArtifactHouse) -> None:
    session = await house.store.write(lambda tx: tx.sessions.create())
    artifact = await house.artifacts.put(PICTURE, media_type="image/png", used_by="run:run_gone")
    await house.artifacts.use(artifact.digest, f"session:{session.session_id}")
    await house.artifacts.use(artifact.digest, "session:00000000-0000-4000-8000-000000000000")
    house.clock.turn(hours=20)
    assert (await house.artifacts.prune(WEEK)).lost_uses == 0, "they may be about to come"
    house.clock.turn(hours=10)
    assert (await house.artifacts.prune(WEEK)).lost_uses == 2
    left = await house.store.read(lambda tx: tx.artifacts.holders(artifact.digest))
    assert left == [f"session:{session.session_id}"]


async def test_bytes_without_a_row_are_swept_a_day_later_and_nothing_else(house: ArtifactHouse) -> None:
    kept = await house.artifacts.put(PICTURE, media_type="image/png", used_by="test:keeps")
    stamp = house.clock.now().strftime("%Y%m%dT%H%M%S%fZ")
    orphan = f"ab/{'ab' * 32}.{stamp}"
    earlier = f"{kept.digest[:2]}/{kept.digest}.20261101T000000000000Z"
    for name in (orphan, earlier, "ab/notes.txt"):
        house.place.write(name, b"bytes")
    assert (await house.artifacts.prune(WEEK)).orphans == 1, "the earlier one is a day old"
    house.clock.turn(days=2)
    assert (await house.artifacts.prune(WEEK)).orphans == 1
    assert len(house.place.names()) == 2, "what has no name of ours is somebody else's"
    assert await house.artifacts.get(kept.digest) == PICTURE


async def test_puts_uses_and_prunings_at_once_never_lose_bytes_that_have_a_row(house: ArtifactHouse) -> None:
    other = house.fresh()
    await other.open()
    datas = [b"data %d" % index for index in range(4)]

    async def prunes() -> None:
        for _ in range(6):
            house.clock.turn(seconds=1)
            await other.prune(timedelta(0))

    async def puts(data: bytes) -> None:
        for round_ in range(6):
            artifact = await house.artifacts.put(data, media_type="text/plain")
            try:
                await house.artifacts.use(artifact.digest, f"test:{data!r}:{round_}")
            except NotFound:
                continue
            assert await read(other.stream(artifact.digest)) == data
            await house.artifacts.release(f"test:{data!r}:{round_}")

    await asyncio.gather(prunes(), *(puts(data) for data in datas))
    for data in datas:
        digest = hashlib.sha256(data).hexdigest()
        if await house.artifacts.exists(digest):
            assert await read(house.artifacts.stream(digest)) == data
    await other.close()
