"""Workflows in containers of a Docker engine on this host."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from automagik.claude_code.archives import pieces, reowned
from automagik.claude_code.container_execution import DockerExecution
from automagik.claude_code.containers import Attached, ContainerManager, Role
from automagik.claude_code.containment import Containment, container_config
from automagik.claude_code.courier import COURIER
from automagik.claude_code.executor import Area, ExecutionSpec, ExitStatus, Inside, Once
from automagik.claude_code.folders import lock, remove_tree, socket_path, unused
from automagik.claude_code.images import Images
from automagik.claude_code.measuring import (
    MEASURE_SECONDS,
    NO_LIMIT,
    Size,
    disk_used,
    measure,
    measure_command,
    size_said,
)
from automagik.claude_code.one_shot import Captured, StderrTail, exit_status
from automagik.claude_code.progress import Tell
from automagik.claude_code.size_watch import SizeWatch
from automagik.errors import ConfigurationError, Conflict, InvalidInput
from automagik.sandbox.confinement import Availability, Limits
from automagik.sandbox.watch import descendants, footprint
from automagik.settings import Settings

__all__ = ["DockerExecutor"]

_INSIDE = Inside()
_FEED_SECONDS = 600.0
_START_SECONDS = 30.0
"""What the engine may need around a command that has a time of its own."""
_READY = ".ready"
_AREAS: tuple[Area, ...] = ("workspace", "credentials")


class DockerExecutor:
    """Runs commands in hardened containers, one for each run, with volumes for what the run keeps."""

    name = "docker"
    has_images = True
    sandboxed = True

    def __init__(self, settings: Settings, *, manager: ContainerManager | None = None) -> None:
        self._settings = settings
        self._manager = manager or ContainerManager(settings, instance=_instance(settings.data_dir))
        self._images = Images(settings, self._manager)
        self._toolchains = settings.data_dir / "toolchains"
        self._inputs: set[Attached] = set()
        self._shares_files = False

    async def check(self) -> Availability:
        found = await self._manager.check()
        if not found.works:
            return found
        image = self._settings.sandbox_image
        if await self._manager.find_image(image) is None:
            return Availability(False, f"There is no image {image}.", "automagik image build")
        return found

    async def prepare(
        self,
        run_id: str,
        *,
        image: str | None = None,
        dockerfile: str | None = None,
        trusted: bool = True,
        tell: Tell | None = None,
    ) -> None:
        found = await self._manager.check()
        if not found.works:
            raise ConfigurationError(f"Docker can't be used: {found.reason}", hint=found.remedy)
        sockets = self.socket(run_id, "longest").parent
        await asyncio.to_thread(_make_sockets, sockets)
        used = await self._images.ready(image=image, dockerfile=dockerfile, trusted=trusted, tell=tell)
        if not self._shares_files:
            await self._check_shares_files(run_id, sockets, image=used)
        for area in _AREAS:
            await self._manager.make_volume(run_id, area, image=used)

    def socket(self, run_id: str, name: str) -> Path:
        return socket_path(self._settings, run_id, name)

    async def share(self, run_id: str, name: str) -> None:
        await asyncio.to_thread(self.socket(run_id, name).chmod, 0o666)

    def inside(self, run_id: str) -> Inside:
        del run_id
        return _INSIDE

    async def put(self, run_id: str, area: Area, tar: AsyncIterable[bytes]) -> None:
        async with reowned(tar) as archive, self._vessel(run_id) as container:
            try:
                await self._manager.put(container, _place(area), pieces(archive))
            except ConfigurationError as error:
                raise InvalidInput(f"The archive can't be unpacked: {error.detail}", field=("archive",)) from error

    async def get(self, run_id: str, area: Area, path: str = ".") -> AsyncIterator[bytes]:
        async with self._vessel(run_id) as container:
            async for chunk in self._manager.get(container, f"{_place(area)}/{path}"):
                yield chunk

    async def start(self, spec: ExecutionSpec) -> DockerExecution:
        for earlier in await self._manager.listed(spec.run_id):
            if earlier.role == "run":
                if earlier.state in {"running", "paused", "restarting"}:
                    raise Conflict(
                        f"The run '{spec.run_id}' has an execution that lives.",
                        code="execution_alive",
                        hint="Kill it first.",
                    )
                await self._manager.remove(earlier.id)
        command = ("perl", "-e", COURIER, "--", *spec.command)
        container = await self._create(
            spec.run_id,
            "run",
            command,
            spec.env,
            spec.limits,
            writable=True,
            sockets=spec.sockets,
            toolchain=spec.toolchain,
            open_input=True,
            output_bytes=spec.output_bytes,
        )
        try:
            attached = await self._manager.attach(container, stdin=True)
            self._inputs = {known for known in self._inputs if known.is_open} | {attached}
            await self._manager.start(container)
        except ConfigurationError:
            await self._manager.remove(container)
            raise
        return DockerExecution(self._manager, container, output_bytes=spec.output_bytes, attached=attached)

    async def find(self, run_id: str) -> DockerExecution | None:
        found: DockerExecution | None = None
        for container in await self._manager.listed(run_id):
            if (
                container.role == "once" or container.state == "created"
            ):  # of a process that died, or died before the start
                await self._manager.remove(container.id)
            else:
                found = DockerExecution(self._manager, container.id, output_bytes=container.output_bytes, attached=None)
        return found

    async def once(
        self,
        run_id: str,
        command: tuple[str, ...],
        *,
        timeout_seconds: float,
        stdin: AsyncIterable[bytes] | None = None,
        env: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        writable: bool = False,
        sockets: tuple[str, ...] = (),
        toolchain: str | None = None,
        output: Path | None = None,
        output_bytes: int = 16 * 1024**2,
    ) -> Once:
        container = await self._create(
            run_id,
            "once",
            command,
            env or {},
            limits,
            writable=writable,
            sockets=sockets,
            toolchain=toolchain,
            open_input=stdin is not None,
        )
        captured = Captured(output, output_bytes)
        try:
            return await self._carry_out(container, captured, stdin, timeout_seconds)
        finally:
            await asyncio.shield(self._manager.remove(container))

    async def has_toolchain(self, run_id: str, digest: str) -> bool:
        name = self._manager.toolchain(digest, image=await self._manager.image_of(run_id))
        return await asyncio.to_thread(self._finished(name).exists) and await self._manager.has_volume(name)

    async def prepare_toolchain(
        self,
        run_id: str,
        digest: str,
        command: tuple[str, ...],
        *,
        timeout_seconds: float,
        env: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        sockets: tuple[str, ...] = (),
    ) -> Once:
        name = self._manager.toolchain(digest, image=await self._manager.image_of(run_id))
        async with lock(self._toolchains / f".{name}.lock"):
            if await self.has_toolchain(run_id, digest):
                return Once(exit=ExitStatus(code=0))
            await asyncio.to_thread(self._finished(name).unlink, missing_ok=True)
            await self._manager.make_toolchain(name)
            container = await self._create(
                run_id,
                "once",
                command,
                env or {},
                limits,
                writable=True,
                sockets=sockets,
                toolchain=digest,
                toolchain_writable=True,
            )
            ready = False
            try:
                limit = (limits or Limits.from_settings(self._settings)).workspace_bytes
                watch = SizeWatch(
                    run_id, limit, partial(self._size, run_id, limit, digest), partial(self.disk_used, run_id)
                )
                done = await watch.within(self._carry_out(container, Captured(None, 1024**2), None, timeout_seconds))
                ready = done.exit.code == 0 and not done.timed_out
            finally:
                await asyncio.shield(self._manager.remove(container))
                if not ready:  # also where the run is ended meanwhile: nobody would look for half a toolchain
                    await asyncio.shield(self._manager.remove_volume(name))
            if ready:
                await asyncio.to_thread(self._finished(name).touch)
        return done

    async def drop_toolchains(self, *, unused_seconds: float) -> int:
        dropped = 0
        for mark in await asyncio.to_thread(unused, self._toolchains, unused_seconds):
            if mark.suffix == _READY:
                with contextlib.suppress(Conflict):  # a container has it
                    await self._manager.remove_volume(mark.stem)
                    await asyncio.to_thread(mark.unlink, missing_ok=True)
                    dropped += 1
        return dropped

    async def drop_images(self, *, unused_seconds: float) -> int:
        return len(await self._images.drop_unused(seconds=unused_seconds))

    async def size(self, run_id: str, *, limit: int = NO_LIMIT) -> Size:
        return await self._size(run_id, limit)

    async def _size(self, run_id: str, limit: int, toolchain: str | None = None) -> Size:
        places = await self._volumes_here(run_id, toolchain)
        if places:
            beside = await self._unlinked_bytes(run_id)
            found = await measure(places, limit=limit - beside)
            if found.unknown != "unreadable":
                return replace(found, bytes=found.bytes + beside)
        # As the agent, who may look into all that is its own, or can be given that right back.
        folders = (_INSIDE.workspace, _INSIDE.credentials, *(() if toolchain is None else (_INSIDE.toolchain,)))
        done = await self.once(
            run_id,
            measure_command(folders, limit=limit, seconds=MEASURE_SECONDS),
            timeout_seconds=MEASURE_SECONDS + _START_SECONDS,
            writable=True,
            toolchain=toolchain,
        )
        return Size(0, "time") if done.timed_out else size_said(done.stdout)

    async def disk_used(self, run_id: str) -> int | None:
        places = await self._volumes_here(run_id)
        return await asyncio.to_thread(disk_used, places[0]) if places else None

    async def remove(self, run_id: str) -> None:
        for container in await self._manager.listed(run_id):
            await self._manager.remove(container.id)
        await self._manager.remove_volumes(run_id)
        await remove_tree(self.socket(run_id, "any").parent)

    async def places(self) -> list[str]:
        return sorted(
            {container.run_id for container in await self._manager.listed()} | set(await self._manager.volumes())
        )

    async def close(self) -> None:
        for attached in self._inputs:
            await attached.close()
        self._inputs.clear()
        await self._manager.close()

    # -- inner parts

    async def _volumes_here(self, run_id: str, toolchain: str | None = None) -> list[Path]:
        """Where this process can look into the run's volumes; nothing where it can't. Raises: NotFound where there are none."""
        names = [self._manager.volume(run_id, area) for area in _AREAS]
        if toolchain is not None:
            names.append(self._manager.toolchain(toolchain, image=await self._manager.image_of(run_id)))
        places = [Path(await self._manager.mountpoint(name)) for name in names]
        seen = [await asyncio.to_thread(os.access, place, os.R_OK | os.X_OK) for place in places]
        return places if all(seen) else []

    async def _unlinked_bytes(self, run_id: str) -> int:
        """What files take that the run's container holds open and that have no name, where this process can see them."""
        volume = self._manager.volume(run_id, "workspace")
        for container in await self._manager.listed(run_id):
            if container.role == "run" and container.state == "running":
                state = await self._manager.state(container.id)
                if state is not None and state["Pid"]:
                    return await asyncio.to_thread(_held_without_name, int(state["Pid"]), volume)
        return 0

    async def _check_shares_files(self, run_id: str, folder: Path, *, image: str) -> None:
        """Refuse an engine behind a socket of this host that is on another one, or in a virtual machine."""
        mount = {"Type": "bind", "Source": str(folder), "Target": _INSIDE.sockets, "ReadOnly": True}
        config = {"Image": image, "Cmd": ["true"], "HostConfig": {"NetworkMode": "none", "Mounts": [mount]}}
        try:
            container = await self._manager.create(run_id, "once", config)
        except ConfigurationError as error:
            if "bind source path does not exist" in error.detail or "not shared" in error.detail:
                raise ConfigurationError(
                    f"The engine at {self._manager.address.url} does not see this host's folder {folder}: it is on another host, in "
                    "a virtual machine, or this process is in a container of it.",
                    hint="Sandboxes reach the platform by sockets in that folder. Run the server or worker where the engine is, name an "
                    "engine of this host (AUTOMAGIK_DOCKER_URL), or have AUTOMAGIK_RUNTIME_DIR be a folder that both have at the same "
                    "path. AUTOMAGIK_EXECUTOR=local needs no engine.",
                ) from error
            raise
        await self._manager.remove(container)
        self._shares_files = True

    async def _create(
        self,
        run_id: str,
        role: Role,
        command: tuple[str, ...],
        env: Mapping[str, str],
        limits: Limits | None,
        *,
        writable: bool,
        sockets: tuple[str, ...] = (),
        toolchain: str | None = None,
        toolchain_writable: bool = False,
        open_input: bool = False,
        output_bytes: int = 0,
    ) -> str:
        image = await self._manager.image_of(run_id)
        kept = None if toolchain is None else self._manager.toolchain(toolchain, image=image)
        if kept is not None and role == "run":
            with contextlib.suppress(FileNotFoundError):
                await asyncio.to_thread(os.utime, self._finished(kept))
        closed = Containment(
            image=image,
            command=command,
            env=env,
            limits=limits or Limits.from_settings(self._settings),
            workspace=self._manager.volume(run_id, "workspace"),
            credentials=self._manager.volume(run_id, "credentials"),
            writable=writable,
            sockets=self.socket(run_id, "any").parent if sockets else None,
            toolchain=kept,
            toolchain_writable=toolchain_writable,
            open_input=open_input,
            kept_log=role == "run",
            facts=await self._images.facts_of(image),
        )
        return await self._manager.create(run_id, role, container_config(closed, _INSIDE), output_bytes=output_bytes)

    async def _carry_out(
        self, container: str, captured: Captured, stdin: AsyncIterable[bytes] | None, timeout_seconds: float
    ) -> Once:
        """Start a container and see it to its end."""
        tail = StderrTail()
        streams = [await self._manager.attach(container, output=True)]
        try:
            if stdin is not None:
                streams.append(await self._manager.attach(container, stdin=True))
            await self._manager.start(container)
            feeding = asyncio.create_task(_feed(streams[-1], stdin))
            reading = asyncio.create_task(_read(streams[0], captured, tail))
            timed_out = False
            try:
                async with asyncio.timeout(timeout_seconds):
                    await _first_end(reading, feeding, captured)
            except TimeoutError:
                timed_out = True
            finally:
                await self._manager.signal(container, "SIGKILL")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(reading), 5)
                for task in (feeding, reading):
                    task.cancel()
                results = await asyncio.gather(feeding, reading, return_exceptions=True)
            for result in results:
                if isinstance(result, Exception):
                    raise result
            await self._manager.wait(container)
            state = await self._manager.state(container) or {"ExitCode": None, "OOMKilled": False}
        finally:
            for stream in streams:
                await stream.close()
            stdout = await asyncio.to_thread(captured.close)
        status = exit_status(
            state["ExitCode"],
            stderr=tail.text(),
            oom_killed=state["OOMKilled"],
            output_full=captured.full.is_set(),
        )
        return Once(status, stdout=stdout, timed_out=timed_out)

    @contextlib.asynccontextmanager
    async def _vessel(self, run_id: str) -> AsyncGenerator[str]:
        """A container over the run's volumes that is never started: the engine reads and writes in it."""
        container = await self._create(run_id, "once", ("true",), {}, None, writable=True)
        try:
            yield container
        finally:
            await asyncio.shield(self._manager.remove(container))

    def _finished(self, toolchain: str) -> Path:
        """The mark that setup went well: a volume can't be made under another name and renamed."""
        return self._toolchains / f"{toolchain}{_READY}"


async def _feed(into: Attached, source: AsyncIterable[bytes] | None) -> None:
    if source is None:
        return
    async with asyncio.timeout(_FEED_SECONDS):
        async for piece in source:
            if not await into.send(piece):
                break  # it has read enough
    await into.close()


async def _read(from_: Attached, captured: Captured, tail: StderrTail) -> None:
    while (message := await from_.read()) is not None:
        stream, data = message
        await (captured if stream == 1 else tail).feed(data)


async def _first_end(reading: "asyncio.Task[None]", feeding: "asyncio.Task[None]", captured: Captured) -> None:
    """Return at the end of the output, when there is no room for more of it, or when the input fails."""
    filling = asyncio.create_task(captured.full.wait())
    work: set[asyncio.Task[object]] = {reading, filling, feeding}
    try:
        while not (reading.done() or filling.done() or (feeding.done() and feeding.exception() is not None)):
            _, work = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
    finally:
        filling.cancel()


def _place(area: Area) -> str:
    return _INSIDE.workspace if area == "workspace" else _INSIDE.credentials


def _held_without_name(pid: int, volume: str) -> int:
    """Of a container's first process and all that it started; nothing where that pid is somebody else's in the eyes of this process."""
    with contextlib.suppress(OSError):
        if volume in Path(f"/proc/{pid}/mountinfo").read_text(errors="replace"):
            return footprint(descendants(pid)).unlinked_bytes
    return 0


def _make_sockets(folder: Path) -> None:
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o755, exist_ok=True)


def _instance(data_dir: Path) -> str:
    """The data folder's own name for what it has in an engine, made at the first use."""
    file = data_dir / "docker-instance"
    data_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        part = file.with_suffix(f".{os.getpid()}")
        part.write_text(secrets.token_hex(16))
        try:
            os.link(part, file)
        finally:
            part.unlink()
    return file.read_text()
