"""DockerExecutor: what is its own beside the contract: hardening, whose containers they are, an engine that goes away, images."""

import asyncio
import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import aiodocker
import pytest
from executor_house import (
    LIMITS,
    RUN,
    built_of,
    collect,
    executor_settings,
    files_of,
    made,
    run_once,
    short_folder,
    spec,
)

from automagik.claude_code import docker
from automagik.claude_code.archives import pack
from automagik.claude_code.containers import INSTANCE_LABEL, ROLE_LABEL, RUN_LABEL, ContainerManager
from automagik.claude_code.docker import DockerExecutor
from automagik.claude_code.executor import Executor
from automagik.claude_code.factory import ExecutorFactory
from automagik.errors import ConfigurationError, InvalidInput, NotFound, ServiceUnavailable
from automagik.settings import Settings
from automagik.testing.stopwatch import Stopwatch

pytestmark = pytest.mark.anyio

ENGINE = "/var/run/docker.sock"


@pytest.fixture
async def settings(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Settings]:
    with short_folder() as run:
        yield await executor_settings("docker", tmp_path, run)


@pytest.fixture
async def executor(settings: Settings) -> AsyncIterator[Executor]:
    async with made(settings) as opened:
        await opened.prepare(RUN)
        yield opened


@pytest.fixture
async def engine(settings: Settings) -> AsyncIterator[Any]:
    """The engine itself. Any, because aiodocker says the types of only a part of it."""
    async with aiodocker.Docker(f"unix://{ENGINE}") as docker:
        yield docker


class Line:
    """A unix socket before the engine's, which can be cut."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def up(self) -> None:
        self._server = await asyncio.start_unix_server(self._carry, self.path)

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._open:
            writer.transport.abort()
        self.path.unlink()
        self._server = None

    async def down(self) -> None:
        if self._server is not None:
            await self.cut()
        await asyncio.sleep(0.05)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, ahead = await asyncio.open_unix_connection(ENGINE)
        self._open |= {writer, ahead}
        try:
            await asyncio.gather(_pump(reader, ahead), _pump(behind, writer))
        finally:
            for one in (writer, ahead):
                self._open.discard(one)
                one.close()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
        if target.can_write_eof():
            target.write_eof()


@asynccontextmanager
async def line_to_engine(folder: Path) -> AsyncGenerator[Line]:
    line = Line(folder / "engine.sock")
    await line.up()
    try:
        yield line
    finally:
        await line.down()


# -- hardening


async def test_a_container_is_closed_as_it_is_promised(executor: Executor, engine: Any) -> None:
    execution = await executor.start(spec("sleep", "60"))
    shown = await engine.containers.container(str(execution.place["container"])).show()
    host: dict[str, Any] = shown["HostConfig"]
    assert host["NetworkMode"] == "none"
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert not host["Privileged"]
    assert host["ReadonlyRootfs"]
    assert host["Init"]
    assert host["PidsLimit"] == LIMITS.pids
    assert host["Memory"] == host["MemorySwap"] == LIMITS.memory_bytes
    assert host["NanoCpus"] == int(LIMITS.cpus * 1e9)
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["LogConfig"] == {"Type": "json-file", "Config": {}}
    assert "no-new-privileges" in host["SecurityOpt"]
    assert any(option.startswith("seccomp={") for option in host["SecurityOpt"])
    assert not host["Binds"]
    assert shown["Config"]["User"] == "10001:10001"
    binds = [(mount["Destination"], mount["RW"]) for mount in shown["Mounts"] if mount["Type"] == "bind"]
    assert binds == [("/run/agent", False)]
    volumes = {mount["Destination"]: mount["RW"] for mount in shown["Mounts"] if mount["Type"] == "volume"}
    assert volumes == {"/workspace": True, "/credentials": True}
    await execution.kill()


async def test_containers_and_volumes_of_others_are_left_alone(
    executor: DockerExecutor, settings: Settings, engine: Any
) -> None:
    theirs = {RUN_LABEL: RUN, INSTANCE_LABEL: "another data folder", ROLE_LABEL: "run", "automagik.output_bytes": "1"}
    name = f"automagik-theirs-{uuid.uuid4()}"
    other = await engine.containers.create(
        {"Image": settings.sandbox_image, "Cmd": ["true"], "Labels": theirs}, name=name
    )
    volume = await engine.volumes.create({"Name": name, "Labels": theirs})
    try:
        assert await executor.places() == [RUN]
        await executor.find(RUN)
        await executor.remove(RUN)
        assert await executor.places() == []
        assert (await other.show())["State"]["Status"] == "created"
        assert (await engine.volumes.get(name)).name == name
    finally:
        await other.delete(force=True)
        await volume.delete()


async def test_nothing_of_a_run_is_left_in_the_engine(executor: Executor, engine: Any, settings: Settings) -> None:
    execution = await executor.start(spec("sh", "-c", "echo x; exit 1"))
    await execution.wait()
    await run_once(executor, "true")
    await collect(executor.get(RUN, "workspace"))
    await executor.remove(RUN)
    ours = {"label": [f"{INSTANCE_LABEL}={(settings.data_dir / 'docker-instance').read_text()}"]}
    assert await engine.containers.list(all=True, filters=json.dumps(ours)) == []
    assert not (await engine.volumes.list(filters=ours))["Volumes"]


async def test_a_container_that_was_never_started_is_cleared_away(executor: DockerExecutor, settings: Settings) -> None:
    instance = (settings.data_dir / "docker-instance").read_text()
    manager = ContainerManager(settings, instance=instance)
    try:
        left = await manager.create(RUN, "run", {"Image": settings.sandbox_image, "Cmd": ["true"]})
        assert await executor.find(RUN) is None
        assert await manager.state(left) is None
    finally:
        await manager.close()


async def test_the_end_of_an_execution_that_somebody_removed_is_not_known(executor: Executor, engine: Any) -> None:
    execution = await executor.start(spec("sleep", "60"))
    waiting = asyncio.create_task(execution.wait())
    await asyncio.sleep(0.3)
    await engine.containers.container(str(execution.place["container"])).delete(force=True)
    async with asyncio.timeout(10):
        status = await waiting
        assert await collect(execution.output()) == b""
    assert status.code in {None, 137}
    assert not await execution.send(b"x")


# -- the engine goes away


async def test_a_run_goes_on_while_the_engine_is_away_and_its_output_is_whole(
    settings: Settings, tmp_path: Path
) -> None:
    with short_folder() as folder:
        async with line_to_engine(folder) as line:
            away = settings.model_copy(update={"docker_url": f"unix://{line.path}"})
            async with made(away) as executor:
                await executor.prepare(RUN)
                execution = await executor.start(
                    spec("bash", "-c", "for i in $(seq 30); do echo $i; sleep 0.1; done; exit 4")
                )
                waiting = asyncio.create_task(execution.wait())
                said, cuts = b"", 0
                async with asyncio.timeout(40):
                    async for chunk in execution.output():
                        said += chunk
                        if cuts < 2 and said.count(b"\n") >= (5, 12)[cuts]:
                            cuts += 1
                            await line.cut()
                            await asyncio.sleep(0.3)
                            await line.up()
                    status = await waiting
                assert cuts == 2
                assert said.decode().split() == list(map(str, range(1, 31)))
                assert status.code == 4
                assert not await execution.send(b"x")  # its input ended with the connection


async def test_an_engine_that_is_away_is_told_with_what_mends_it(settings: Settings, tmp_path: Path) -> None:
    gone = settings.model_copy(update={"docker_url": f"unix://{tmp_path}/none.sock"})
    executor = DockerExecutor(gone)
    try:
        found = await executor.check()
        assert not found.works
        assert "The container engine is away" in (found.reason or "")
        assert "docker.io" in (found.remedy or "")
        with pytest.raises(ConfigurationError, match="Docker can't be used"):
            await executor.prepare(RUN)
        with pytest.raises(ServiceUnavailable):
            await executor.find(RUN)
    finally:
        await executor.close()
    remote = DockerExecutor(settings.model_copy(update={"docker_url": "tcp://127.0.0.1:2375"}))
    assert "unix socket" in ((await remote.check()).remedy or "")


# -- images


async def test_without_the_image_the_command_that_builds_it_is_named(settings: Settings) -> None:
    async with made(settings.model_copy(update={"sandbox_image": "automagik-no-such-image"})) as executor:
        found = await executor.check()
        assert not found.works
        assert found.remedy == "automagik image build"
        with pytest.raises(ConfigurationError, match="There is no image automagik-no-such-image"):
            await executor.prepare(RUN)


async def test_auto_takes_docker_where_it_works_and_has_the_image(settings: Settings) -> None:
    factory = ExecutorFactory(settings.model_copy(update={"executor": "auto"}))
    try:
        assert (await factory.executor()).name == "docker"
    finally:
        await factory.close()


async def test_a_workflows_dockerfile_is_built_once_and_gets_the_cli(executor: Executor, engine: Any) -> None:
    dockerfile = (
        "FROM automagik-base:host\n"
        f"# {uuid.uuid4()}\n"
        "RUN mkdir -p /opt/ours && printf '#!/bin/sh\\necho ours\\n' > /opt/ours/tool && chmod +x /opt/ours/tool\n"
        "ENV PATH=/opt/ours:/usr/local/bin:/usr/bin:/bin GREETING=hello\n"
    )
    told: list[str] = []
    await executor.prepare("run_theirs", dockerfile=dockerfile, tell=told.append)
    assert {words.partition(":")[0] for words in told} == {
        "The image of the Dockerfile is built",
        "The image of the sandbox is built upon that of the Dockerfile",
    }
    assert "The image of the Dockerfile is built: step 2/3" in told
    told.clear()
    done = await executor.once(
        "run_theirs",
        ("sh", "-c", "tool; claude --version; id -u; echo $GREETING"),
        timeout_seconds=20,
        env={"PATH": "/usr/bin:/bin"},
    )
    said = done.stdout.decode().split("\n")
    assert said[0] == "ours", done
    assert "Claude Code" in said[1]
    assert said[2:4] == ["10001", "hello"]
    with Stopwatch() as took:
        await executor.prepare("run_again", dockerfile=dockerfile, tell=told.append)
    assert took.seconds < 5
    assert told == [], "there is nothing to be done"
    built = {await _image_of(engine, "run_theirs"), await _image_of(engine, "run_again")}
    assert len(built) == 1
    (tag,) = (await engine.images.inspect(built.pop()))["RepoTags"]
    for run_id in ("run_theirs", "run_again"):
        await executor.remove(run_id)
    await engine.images.delete(tag)
    await engine.images.delete(built_of(dockerfile))


async def _image_of(engine: Any, run_id: str) -> str:
    listed = await engine.volumes.list(filters={"label": [f"{RUN_LABEL}={run_id}"]})
    return str(listed["Volumes"][0]["Labels"]["automagik.image"])


async def test_a_dockerfile_that_fails_is_told_with_the_builders_words(executor: Executor) -> None:
    dockerfile = "FROM automagik-base:host\nRUN echo the reason; exit 9\n"
    told: list[str] = []
    asked = [executor.prepare(run_id, dockerfile=dockerfile, tell=told.append) for run_id in ("run_theirs", "run_also")]
    for refused in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(refused, ConfigurationError)
        assert "the reason" in refused.detail and "returned a non-zero code: 9" in refused.detail
    assert told.count("Another run has the image of the Dockerfile made; this one waits for it.") == 1


async def test_a_toolchain_fits_the_image_that_it_was_made_on(
    executor: Executor, settings: Settings, engine: Any
) -> None:
    digest = hashlib.sha256(os.urandom(8)).hexdigest()
    made_it = await executor.prepare_toolchain(RUN, digest, ("sh", "-c", "echo x > $TOOLCHAIN/x"), timeout_seconds=20)
    assert made_it.exit.code == 0
    assert await executor.has_toolchain(RUN, digest)
    dockerfile = f"FROM {settings.sandbox_image}\nENV OTHER={digest}\n"
    await executor.prepare("run_theirs", dockerfile=dockerfile)
    assert not await executor.has_toolchain("run_theirs", digest)
    await executor.remove("run_theirs")
    await engine.images.delete(built_of(dockerfile))


async def test_of_a_toolchain_whose_making_is_ended_nothing_is_left(
    executor: Executor, settings: Settings, engine: Any
) -> None:
    prefix = f"automagik-{(settings.data_dir / 'docker-instance').read_text()[:8]}-toolchain-"

    async def volumes() -> list[str]:
        return [volume["Name"] for volume in (await engine.volumes.list())["Volumes"] if prefix in volume["Name"]]

    before, digest = set(await volumes()), hashlib.sha256(os.urandom(8)).hexdigest()
    making = asyncio.create_task(
        executor.prepare_toolchain(RUN, digest, ("sh", "-c", "echo x > $TOOLCHAIN/x; sleep 60"), timeout_seconds=50)
    )
    async with asyncio.timeout(20):
        while set(await volumes()) == before:
            await asyncio.sleep(0.1)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert set(await volumes()) == before
    assert not await executor.has_toolchain(RUN, digest)


# -- files


async def test_who_fills_the_engines_log_past_its_output_is_ended(executor: Executor) -> None:
    """By its standard error, in the shortest lines, which take most of the disk."""
    execution = await executor.start(spec("sh", "-c", "yes '' >&2", output_bytes=3_000_000))
    async with asyncio.timeout(60):
        assert await collect(execution.output()) == b""
        status = await execution.wait()
    assert (status.output_full, status.code) == (True, 137)


async def test_a_volume_that_is_not_measured_in_time_is_over_every_limit(
    executor: DockerExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", Mock(return_value=False))  # as for a user who sees nothing of the engine's files
    assert await executor.disk_used(RUN) is None
    monkeypatch.setattr(docker, "MEASURE_SECONDS", 0)
    monkeypatch.setattr(docker, "_START_SECONDS", 0)
    late = await executor.size(RUN)
    assert (late.unknown, late.is_over(2**62)) == ("time", True)


async def test_an_archive_of_something_else_than_files_gives_files_only(executor: Executor) -> None:
    await executor.put(RUN, "workspace", pack({"a": b"1"}))
    assert await files_of(executor.get(RUN, "workspace", "a")) == {"a": b"1"}
    with pytest.raises(NotFound):
        await executor.put("run_unknown", "workspace", pack({"a": b"1"}))

    async def torn() -> AsyncIterator[bytes]:
        async for piece in pack({"a": b"2" * 100_000}):
            yield piece[:2000]

    with pytest.raises(InvalidInput):
        await executor.put(RUN, "workspace", torn())
    assert await files_of(executor.get(RUN, "workspace", "a")) == {"a": b"1"}
