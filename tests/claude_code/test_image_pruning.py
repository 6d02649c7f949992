"""Images that were made for runs go when nobody uses them, and no others do."""

import asyncio
import io
import json
import os
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from automagik.claude_code.containers import ContainerManager
from automagik.claude_code.docker import DockerExecutor
from automagik.claude_code.image import BuildContext
from automagik.claude_code.image_pruning import last_used, prunable
from automagik.settings import Settings
from automagik.testing.needs import need

pytestmark = pytest.mark.anyio

OF_THE_PLATFORM = "FROM scratch\nLABEL automagik.sandbox=1\nENV NUMBER={}\n"


class OwnImages(ContainerManager):
    """An engine as if it had the test's images only: those of others on this machine are none of its business."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, instance="tests")
        self.ids: set[str] = set()

    async def images(self) -> tuple[list[dict[str, Any]], frozenset[str]]:
        listed, in_use = await super().images()
        return [image for image in listed if image["Id"] in self.ids], in_use

    async def make(self, tag: str, number: object) -> str:
        """The id of an image that has this name now."""
        with io.BytesIO() as archive:
            BuildContext((("Dockerfile", OF_THE_PLATFORM.format(number).encode()),)).write(archive)
            await self.build(archive, tag=tag, arguments={})
        found = await self.find_image(tag)
        assert found is not None
        self.ids.add(str(found["Id"]))
        return str(found["Id"])


@pytest.fixture
async def settings(tmp_path: Path, anyio_backend: str) -> Settings:
    need("docker")
    return Settings.model_validate({"data_dir": tmp_path, "executor": "docker", "docker_config": tmp_path})


@pytest.fixture
async def manager(settings: Settings) -> AsyncIterator[OwnImages]:
    opened = OwnImages(settings)
    yield opened
    listed, _ = await opened.images()
    for image in listed:
        for name in image["RepoTags"] or [image["Id"]]:
            await opened.drop_image(image["Id"] if name == "<none>:<none>" else name)
    await opened.close()


async def test_what_was_made_for_runs_goes_when_it_is_not_used_and_nothing_else_does(
    settings: Settings, manager: OwnImages
) -> None:
    unused, older, used, of_a_run = (f"automagik-{kind}:{secrets.token_hex(16)}" for kind in ("derived", "base") * 2)
    mark = secrets.token_hex(8)
    own, theirs = f"automagik-claude:{mark}", f"team/tools:{mark}"
    former = await manager.make(own, f"{mark}-former")
    tags = (own, theirs, unused, older, used, of_a_run)
    ids = {tag: await manager.make(tag, f"{mark}-{number}") for number, tag in enumerate(tags)}
    executor = DockerExecutor(settings, manager=manager)
    try:
        await manager.make_volume(mark, "workspace", image=ids[of_a_run])
        assert await executor.drop_images(unused_seconds=3600) == 0
        await asyncio.sleep(6)
        await manager.tag_image(ids[used], *used.split(":"))  # a run begins with it
        assert await executor.drop_images(unused_seconds=6) == 3
        there = {tag for tag in tags if await manager.find_image(tag) is not None}
        assert there == {own, theirs, used, of_a_run}
        assert await manager.find_image(former) is None

        told = await asyncio.to_thread(prune, settings, "--unused-days", "0", "--dry-run")
        assert told["dry_run"] is True
        assert {used, of_a_run, own, theirs} & {*told["removed"]} == {used}

        await manager.remove_volumes(mark)
        assert await executor.drop_images(unused_seconds=0) == 2
        assert [tag for tag in tags if await manager.find_image(tag) is not None] == [own, theirs]
        told = await asyncio.to_thread(prune, settings, "--unused-days", "36500")
        assert told == {"removed": [], "dry_run": False}
    finally:
        await manager.remove_volumes(mark)


async def test_an_image_that_a_container_has_stays(settings: Settings, manager: OwnImages) -> None:
    tag = f"automagik-derived:{secrets.token_hex(16)}"
    await manager.make(tag, tag)
    container = await manager.create("run_theirs", "once", {"Image": tag, "Cmd": ["true"]})
    executor = DockerExecutor(settings, manager=manager)
    try:
        assert await executor.drop_images(unused_seconds=0) == 0
    finally:
        await manager.remove(container)
    assert await executor.drop_images(unused_seconds=0) == 1


def test_only_names_of_a_digest_and_what_lost_the_platforms_name_can_go() -> None:
    digest = "0" * 32
    ours = {"automagik.sandbox": "1"}
    listed: list[dict[str, Any]] = [
        {"Id": "1", "RepoTags": [f"automagik-derived:{digest}", "team/tools:1"], "Labels": None},
        {"Id": "2", "RepoTags": ["automagik-base:host", f"evil/automagik-base:{digest}"], "Labels": ours},
        {"Id": "3", "RepoTags": ["<none>:<none>"], "RepoDigests": ["<none>@<none>"], "Labels": ours},
        {"Id": "4", "RepoTags": None, "RepoDigests": ["team/tools@sha256:12"], "Labels": ours},
        {"Id": "5", "RepoTags": None, "Labels": None},
        {"Id": "6", "RepoTags": [f"automagik-base:{digest}"], "Labels": None},
    ]
    assert prunable(listed, frozenset({"6"})) == {f"automagik-derived:{digest}": "1", "3": "3"}


def test_an_image_that_never_had_a_name_was_used_when_it_was_made() -> None:
    made = {"Created": "2026-01-02T03:04:05.123456789Z"}
    named = {"LastTagTime": "2026-01-03T03:04:05.987654321+01:00"}
    assert last_used(made) == datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)
    assert last_used({**made, "Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"}}) == last_used(made)
    assert last_used({**made, "Metadata": named}) == datetime(2026, 1, 3, 2, 4, 5, 987654, tzinfo=UTC)


def prune(settings: Settings, *options: str) -> dict[str, Any]:
    """What the command says."""
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(settings.data_dir),
        "AUTOMAGIK_DATA_DIR": str(settings.data_dir),
    }
    command = [sys.executable, "-m", "automagik", "image", "prune", "--json", *options]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
