"""Executors on folders and an engine of this machine, for the tests of this folder."""

import asyncio
import contextlib
import io
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import AsyncGenerator, AsyncIterable, Generator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from automagik.claude_code.containers import ContainerManager
from automagik.claude_code.docker import DockerExecutor
from automagik.claude_code.executor import ExecutionSpec, Executor, Once
from automagik.claude_code.folders import lock
from automagik.claude_code.image import derived_context, own_context
from automagik.claude_code.image_pruning import last_used
from automagik.claude_code.images import build_image
from automagik.claude_code.local import LocalExecutor
from automagik.sandbox.confinement import Limits
from automagik.settings import Settings
from automagik.testing.needs import need

__all__ = [
    "LIMITS",
    "RUN",
    "built_of",
    "collect",
    "executor_settings",
    "files_of",
    "made",
    "processes_with",
    "run_once",
    "short_folder",
    "spec",
    "test_image",
]

_DAY = timedelta(days=1)
RUN = "run_01kb9v7q3n5h2k9q8z7x0a1b2c"
LIMITS = Limits(memory_bytes=512 * 1024**2, cpus=1, pids=96, tmp_bytes=64 * 1024**2)


@contextlib.contextmanager
def short_folder() -> Generator[Path]:
    """A folder whose path is short enough for sockets, which pytest's is not."""
    folder = Path(tempfile.mkdtemp(prefix="am-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def executor_settings(name: str, data: Path, run: Path) -> Settings:
    """Settings for an executor of this kind. Skips the test where the machine lacks what it needs."""
    need("claude")
    if name == "local":
        need("bubblewrap")
        return Settings.model_validate({"data_dir": data, "runtime_dir": run, "executor": "local"})
    need("docker")
    image = await test_image()
    return Settings.model_validate({"data_dir": data, "runtime_dir": run, "executor": "docker", "sandbox_image": image})


@asynccontextmanager
async def made(settings: Settings) -> AsyncGenerator[Executor]:
    """An executor as the settings say; what it has is removed at the end."""
    executor = LocalExecutor(settings) if settings.executor == "local" else DockerExecutor(settings)
    try:
        yield executor
    finally:
        try:
            for run_id in await executor.places():
                await executor.remove(run_id)
            await executor.drop_toolchains(unused_seconds=0)
        finally:
            await executor.close()


@cache
def _image_name() -> str:
    settings = Settings.model_validate({})
    return f"automagik-test:{own_context(settings, base='automagik-base:host').digest()[:24]}"


async def test_image() -> str:
    """The name of an image of this code and this CLI upon a base of this host, built by whoever needs it first."""
    name = await asyncio.to_thread(_image_name)
    settings = Settings.model_validate({})
    manager = ContainerManager(settings, instance="tests")
    try:
        async with lock(Path(tempfile.gettempdir(), "automagik-test-image.lock")):
            if await manager.find_image(name) is None:
                base = "automagik-base:host"
                if await manager.find_image(base) is None:
                    base = "host"
                await build_image(settings, base=base, tag=name)
                await _drop_former(manager)
            else:
                await manager.tag_image(name, *name.split(":"))  # it is used
    finally:
        await manager.close()
    return name


async def _drop_former(manager: ContainerManager) -> None:
    """Remove what former code was tested in, a day after its last test."""
    listed, in_use = await manager.images()
    for image in listed:
        for tag in image["RepoTags"] or ():
            shown = await manager.find_image(tag) if re.fullmatch(r"automagik-test:[0-9a-f]{24}", tag) else None
            if shown is not None and image["Id"] not in in_use and datetime.now(UTC) - last_used(shown) > _DAY:
                await manager.drop_image(tag)


def built_of(dockerfile: str) -> str:
    """The name of the image that is built of a workflow's Dockerfile, for the test that had it built to remove it."""
    return f"automagik-base:{derived_context(dockerfile).digest()[:32]}"


test_image.__test__ = False  # pyright: ignore[reportFunctionMemberAccess] - pytest looks at names


def spec(*command: str, run_id: str = RUN, limits: Limits = LIMITS, **more: object) -> ExecutionSpec:
    """What to start."""
    return replace(ExecutionSpec(run_id, command, {}, limits), **more)


async def run_once(executor: Executor, *command: str, run_id: str = RUN, writable: bool = False) -> Once:
    """A command to its end."""
    return await executor.once(run_id, command, timeout_seconds=20, limits=LIMITS, writable=writable)


async def collect(stream: AsyncIterable[bytes]) -> bytes:
    """All of it."""
    return b"".join([chunk async for chunk in stream])


async def files_of(archive: AsyncIterable[bytes]) -> dict[str, bytes]:
    """The files in an archive, by their names."""
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(await collect(archive))) as opened:
        for member in opened:
            content = opened.extractfile(member)
            if content is not None:
                found[member.name.removeprefix("./")] = content.read()
    return found


def processes_with(mark: str) -> list[int]:
    """The pids of this host's processes in whose command line the mark stands; containers' are among them."""
    found: list[int] = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                words = Path("/proc", name, "cmdline").read_bytes()
                state = Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()[0]
                if mark.encode() in words and state not in b"ZX":
                    found.append(int(name))
    return found
