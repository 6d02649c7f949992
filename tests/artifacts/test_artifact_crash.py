"""Processes that are killed, or that store the same bytes at once: no row without its bytes, nothing twice."""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from artifact_house import ArtifactHouse, FolderPlace

from automagik.artifacts import ArtifactStore
from automagik.artifacts.objects import Objects
from automagik.errors import ConfigurationError, ServiceUnavailable
from automagik.settings import Settings
from automagik.store.postgres import connect_postgres
from automagik.testing.s3 import S3Server

pytestmark = pytest.mark.anyio

EACH_ONCE = pytest.mark.parametrize(
    ("dialect", "kind"), [("sqlite", "folder"), ("postgresql", "bucket")], indirect=True
)
"""Each database and each place once: processes cost seconds, and a row knows nothing of where its bytes are."""

PUTTER = """
import asyncio, hashlib, sys
from automagik.artifacts import ArtifactStore
from automagik.artifacts.objects import Objects
from automagik.errors import ConfigurationError, ServiceUnavailable
from automagik.settings import Settings
from automagik.store.postgres import connect_postgres
from automagik.store import Store
from automagik.types import SystemClock
async def main():
    settings = Settings.model_validate_json(sys.stdin.readline())
    first, last = int(sys.argv[1]), int(sys.argv[2])
    store = Store.from_settings(settings, SystemClock())
    await store.open()
    artifacts = ArtifactStore(settings, store, SystemClock())
    await artifacts.open()
    print("ready", flush=True)
    sys.stdin.readline()
    for index in range(first, last):
        artifact = await artifacts.put(b"%d " % index * 2000, media_type="text/plain", used_by=f"test:{index}")
        print(artifact.digest, flush=True)
    await artifacts.close()
    await store.close()
asyncio.run(main())
"""


@contextmanager
def putter(settings: Settings, first: int, last: int) -> Generator["subprocess.Popen[str]"]:
    """A process that stores artefacts as soon as it is told to."""
    shown = settings.model_dump(mode="json", exclude_defaults=True)
    for name in ("database_url", "artifacts_access_key", "artifacts_secret_key"):
        if (secret := getattr(settings, name)) is not None:
            shown[name] = secret.get_secret_value()
    with subprocess.Popen(
        [sys.executable, "-c", PUTTER, str(first), str(last)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(shown) + "\n")
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")


async def digests_of(process: "subprocess.Popen[str]") -> list[str]:
    assert process.stdout is not None
    return [line.strip() for line in await asyncio.to_thread(process.stdout.readlines) if line.endswith("\n")]


async def check_rows(house: ArtifactHouse, indexes: range) -> set[str]:
    """The digests that have a row; each has its bytes."""
    fresh = house.fresh()
    await fresh.open()
    found: set[str] = set()
    for index in indexes:
        data = b"%d " % index * 2000
        digest = hashlib.sha256(data).hexdigest()
        if await fresh.exists(digest):
            assert await fresh.get(digest) == data
            found.add(digest)
    await fresh.close()
    return found


@asynccontextmanager
async def held_table(house: ArtifactHouse) -> AsyncGenerator[None]:
    """While it lasts, nobody can write a row of an artefact; everybody can read."""
    if house.store.dialect == "sqlite":
        with contextlib.closing(sqlite3.connect(house.settings.data_dir / "automagik.db")) as holder:
            holder.execute("BEGIN IMMEDIATE")
            yield
            holder.rollback()
        return
    assert house.settings.database_url is not None
    other = await connect_postgres(house.settings.database_url.get_secret_value())
    await other.execute("BEGIN")
    await other.execute("LOCK TABLE artifacts IN SHARE MODE")
    yield
    await other.close()


@EACH_ONCE
async def test_a_kill_between_the_bytes_and_the_row_leaves_bytes_that_are_swept(house: ArtifactHouse) -> None:
    with putter(house.settings, 0, 1) as process:
        async with held_table(house):
            go(process)
            deadline = time.monotonic() + 8
            while not house.place.names() and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            assert await digests_of(process) == []
    assert len(house.place.names()) == 1
    assert await check_rows(house, range(1)) == set()
    assert (await house.artifacts.prune(timedelta(days=7))).orphans == 0, "its row may be about to come"
    house.clock.turn(days=2)
    assert (await house.artifacts.prune(timedelta(days=7))).orphans == 1
    assert house.place.names() == []


@EACH_ONCE
async def test_after_kill_9_every_row_has_its_bytes_and_what_was_told_is_there(house: ArtifactHouse) -> None:
    with putter(house.settings, 0, 2000) as process:
        go(process)
        async with asyncio.timeout(40):
            while len(house.place.names()) < 5:
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        told = await digests_of(process)
    assert told
    found = await check_rows(house, range(len(told) + 2))
    assert set(told) <= found
    assert len(found) <= len(told) + 1
    if isinstance(house.place, FolderPlace):
        left = house.place.folder / "ab" / "half.written#1"
        left.parent.mkdir(exist_ok=True)
        left.write_bytes(b"half")
        assert (await house.artifacts.prune(timedelta(days=7))).orphans == 0
        os.utime(left, (0, 0))
        assert (await house.artifacts.prune(timedelta(days=7))).orphans == 1


@EACH_ONCE
async def test_two_processes_that_store_the_same_bytes_store_them_once(house: ArtifactHouse) -> None:
    with putter(house.settings, 0, 60) as one, putter(house.settings, 0, 60) as other:
        go(one)
        go(other)
        first, second = await asyncio.gather(digests_of(one), digests_of(other))
    assert first == second
    assert len(set(first)) == 60
    assert await check_rows(house, range(60)) == set(first)
    assert len(house.place.names()) == 60


async def test_what_the_store_refuses_or_does_not_answer_is_told(house: ArtifactHouse) -> None:
    if isinstance(house.place, FolderPlace):
        assert (house.place.folder.stat().st_mode & 0o777) == 0o700
        return
    with S3Server() as server:
        settings = server.settings(house.settings, server.create_bucket())
        missing = ArtifactStore(server.settings(settings, "no-such-bucket"), house.store, house.clock)
        await missing.open()
        with pytest.raises(ServiceUnavailable, match="no such bucket"):
            await missing.put(b"data", media_type="text/plain")
        await missing.close()
    away = ArtifactStore(settings, house.store, house.clock)
    await away.open()
    with pytest.raises(ServiceUnavailable, match="does not answer"):
        await away.put(b"data", media_type="text/plain")
    await away.close()


@pytest.mark.parametrize(
    "url",
    [
        "s3//bucket",
        "ftp://host/folder",
        "s3://key:secret@bucket/prefix",
        "file:///",
        "file://elsewhere/folder",
        "s3://bucket?x=1",
        "https://example.org/x",
        "memory:///",
        "/folder",
    ],
)
async def test_a_url_that_names_no_store_is_refused_without_its_text(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        await Objects(Settings(data_dir=tmp_path, artifacts_url=url)).open()
    assert "AUTOMAGIK_ARTIFACTS_URL" in refused.value.detail
    assert "secret" not in refused.value.detail


async def test_a_file_url_names_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    shared = Objects(Settings(data_dir=tmp_path / "data", artifacts_url=folder.as_uri()))
    await shared.open()
    await shared.put("ab/object", b"data")
    await shared.check()
    assert (folder / "ab" / "object").read_bytes() == b"data"
    assert shared.place == folder.as_uri()


@pytest.mark.parametrize(
    ("url", "setting"),
    [("gs://bucket", "artifacts_access_key"), ("gs://bucket", "artifacts_region"), ("az://a/c", "artifacts_region")],
)
async def test_a_setting_that_a_store_does_not_know_is_refused(tmp_path: Path, url: str, setting: str) -> None:
    settings = Settings.model_validate({"data_dir": tmp_path, "artifacts_url": url, setting: "value"})
    with pytest.raises(ConfigurationError, match=setting.upper()):
        await Objects(settings).open()
