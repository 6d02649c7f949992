"""Workflows in bubblewrap on this host; what runs outlives the platform's process and is found again by its files."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from automagik.claude_code.execution import LocalExecution, RunFolder, read_documents
from automagik.claude_code.executor import Area, ExecutionSpec, ExitStatus, Inside, Once
from automagik.claude_code.folders import lock, remove_tree, socket_path, unused
from automagik.claude_code.image import claude_cli
from automagik.claude_code.launch import Command, Launcher, PlainLauncher, SandboxLauncher
from automagik.claude_code.measuring import NO_LIMIT, Size, disk_used, measure
from automagik.claude_code.one_shot import OneShot
from automagik.claude_code.processes import ProcessId, Watch, identify, mentioning, spawn
from automagik.claude_code.progress import Tell
from automagik.claude_code.size_watch import SizeWatch
from automagik.errors import ConfigurationError, Conflict, InvalidInput, NotFound
from automagik.sandbox.bubblewrap import Bubblewrap
from automagik.sandbox.confinement import Availability, Limits
from automagik.settings import Settings
from automagik.types import new_id

__all__ = ["LocalExecutor"]

_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_START_SECONDS = 10.0
_TAR_SECONDS = 600.0
_UNSAFE_REMEDY = (
    "Commands run as plain processes, because AUTOMAGIK_RUN_WITHOUT_SANDBOX says so: they can read this user's files."
)


class LocalExecutor:
    """Runs commands in bubblewrap; without one that works it refuses, unless `Settings.run_without_sandbox`."""

    name = "local"
    has_images = False

    def __init__(self, settings: Settings, *, bubblewrap: Bubblewrap | None = None) -> None:
        self._settings = settings
        self._bubblewrap = bubblewrap or Bubblewrap()
        self._folder = settings.data_dir / "executions"
        self._toolchains = settings.data_dir / "toolchains"
        self._launcher: Launcher = SandboxLauncher(self._bubblewrap)
        self._living: dict[str, LocalExecution] = {}

    @property
    def sandboxed(self) -> bool:
        return self._launcher.sandboxed

    async def check(self) -> Availability:
        found = await self._launches()
        if not found.works:
            return found
        try:
            claude_cli(self._settings)
        except ConfigurationError as missing:
            return Availability(works=False, reason=missing.detail, remedy=missing.hint)
        return found

    async def _launches(self) -> Availability:
        """Whether commands can be run here, be it without the CLI."""
        tried = await self._bubblewrap.check()
        if tried.works or not self._settings.run_without_sandbox:
            self._launcher = SandboxLauncher(self._bubblewrap)
            return tried
        if shutil.which("perl") is None:
            return Availability(
                False, "The program perl is missing, which measures workspaces.", "apt-get install -y perl"
            )
        self._launcher = PlainLauncher()
        return Availability(works=True, reason=tried.reason, remedy=f"{_UNSAFE_REMEDY} {tried.remedy or ''}".strip())

    async def prepare(
        self,
        run_id: str,
        *,
        image: str | None = None,
        dockerfile: str | None = None,
        trusted: bool = True,
        tell: Tell | None = None,
    ) -> None:
        del image, dockerfile, trusted, tell  # commands find this host's own programs
        await self._need()
        self.socket(run_id, "longest")
        await asyncio.to_thread(self._make_folders, run_id)

    def socket(self, run_id: str, name: str) -> Path:
        return socket_path(self._settings, run_id, name)

    async def share(self, run_id: str, name: str) -> None:
        await asyncio.to_thread(self.socket(run_id, name).chmod, 0o666)

    def inside(self, run_id: str) -> Inside:
        return self._launcher.inside(self._command(run_id, (), None, sockets=("all",)))

    async def put(self, run_id: str, area: Area, tar: AsyncIterable[bytes]) -> None:
        place = self._area(run_id, area)
        # Never by this process: what an agent has made of the folder may lead anywhere.
        command = ("tar", "--extract", "--file=-", f"--directory={place}", "--no-same-owner", "--no-same-permissions")
        done = await self.once(run_id, command, timeout_seconds=_TAR_SECONDS, stdin=tar, writable=True)
        if done.exit.code != 0:
            raise InvalidInput(f"The archive can't be unpacked: {done.exit.stderr.strip()}", field=("archive",))

    async def get(self, run_id: str, area: Area, path: str = ".") -> AsyncIterator[bytes]:
        place = self._area(run_id, area)
        there = ("test", "-e", f"{place}/{path}")
        if (await self.once(run_id, there, timeout_seconds=30)).exit.code != 0:
            raise NotFound("file", path)
        await self._need(run_id)
        parent, _, last = path.rstrip("/").rpartition("/")
        command = (
            "tar",
            "--create",
            "--file=-",
            f"--directory={place}/{parent}",
            "--",
            f"./{last}" if last != "." else ".",
        )
        async for chunk in OneShot(self._launcher, self._command(run_id, command, None)).stream():
            yield chunk

    async def start(self, spec: ExecutionSpec) -> LocalExecution:
        await self._need(spec.run_id)
        earlier = await self.find(spec.run_id)
        if earlier is not None and earlier.alive:
            raise Conflict(
                f"The run '{spec.run_id}' has an execution that lives.", code="execution_alive", hint="Kill it first."
            )
        command = self._command(
            spec.run_id,
            spec.command,
            spec.limits,
            env=spec.env,
            writable=True,
            sockets=spec.sockets,
            toolchain=self._toolchain(spec.toolchain),
            cli=claude_cli(self._settings),
        )
        folder = self._run(spec.run_id)
        if command.toolchain is not None:
            await asyncio.to_thread(os.utime, command.toolchain)
        await asyncio.to_thread(folder.forget_execution)
        await remove_tree(folder.home)
        await asyncio.to_thread(folder.home.mkdir, mode=0o700)
        execution = await self._launch(folder, command, spec.output_bytes)
        self._living[spec.run_id] = execution
        return execution

    async def find(self, run_id: str) -> LocalExecution | None:
        if run_id in self._living:
            return self._living[run_id]
        folder = self._run(run_id)
        if not await asyncio.to_thread(folder.path.is_dir):
            return None
        await self._need()
        known = await asyncio.to_thread(_Known.read, folder)
        await asyncio.to_thread(self._kill_strays, run_id, known)
        if known is None:  # the platform died before it gave the command anything to do
            await asyncio.to_thread(folder.forget_execution)
            return None
        execution = LocalExecution(
            folder,
            monitor=Watch.open(known.monitor),
            init=Watch.open(known.init),
            stdin=None,
            memory_bytes=known.memory_bytes,
            output_bytes=known.output_bytes,
            sandboxed=self.sandboxed,
            marker=_marker(run_id),
        )
        self._living[run_id] = execution
        return execution

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
        await self._need(run_id)
        made = self._command(
            run_id,
            command,
            limits,
            env=env,
            writable=writable,
            sockets=sockets,
            toolchain=self._toolchain(toolchain),
            cli=_cli_if_there(self._settings),
            marker=f"AUTOMAGIK_ONCE={new_id('once')}",
        )
        shot = OneShot(self._launcher, made)
        return await shot.run(timeout_seconds=timeout_seconds, stdin=stdin, output=output, output_bytes=output_bytes)

    async def has_toolchain(self, run_id: str, digest: str) -> bool:
        del run_id
        return await asyncio.to_thread(self._toolchain_folder(digest).is_dir)

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
        await self._need(run_id)
        kept = self._toolchain_folder(digest)
        async with lock(self._toolchains / f".{digest}.lock"):
            if await asyncio.to_thread(kept.is_dir):
                return Once(exit=ExitStatus(code=0))
            making = kept.with_name(f".{new_id('making')}")
            await asyncio.to_thread(making.mkdir, mode=0o755)
            await asyncio.to_thread(self._give, making)
            try:
                made = self._command(
                    run_id,
                    command,
                    limits,
                    env=env,
                    writable=True,
                    sockets=sockets,
                    toolchain=making,
                    toolchain_writable=True,
                    marker=f"AUTOMAGIK_ONCE={new_id('once')}",
                )
                limit = made.limits.workspace_bytes
                watch = SizeWatch(
                    run_id, limit, partial(self._size, run_id, limit, making), partial(self.disk_used, run_id)
                )
                done = await watch.within(OneShot(self._launcher, made).run(timeout_seconds=timeout_seconds))
                if done.exit.code == 0 and not done.timed_out:
                    await asyncio.to_thread(making.rename, kept)
            finally:
                await remove_tree(making)
        return done

    async def drop_toolchains(self, *, unused_seconds: float) -> int:
        known = await asyncio.to_thread(unused, self._toolchains, unused_seconds)
        old = [kept for kept in known if _DIGEST.fullmatch(kept.name)]
        for kept in old:
            await remove_tree(kept)
        return len(old)

    async def drop_images(self, *, unused_seconds: float) -> int:
        del unused_seconds  # there are none
        return 0

    async def size(self, run_id: str, *, limit: int = NO_LIMIT) -> Size:
        return await self._size(run_id, limit)

    async def _size(self, run_id: str, limit: int, *more: Path) -> Size:
        folder = self._run(run_id)
        if not await asyncio.to_thread(folder.path.is_dir):
            raise NotFound("execution", run_id, hint="Its areas are not on this host, or were removed.")
        execution = self._living.get(run_id)
        beside = await asyncio.to_thread(_file_bytes, folder.stderr)  # which has no limit of its own
        beside += execution.unlinked_bytes if execution is not None else 0
        found = await measure((folder.workspace, folder.credentials, *more), limit=limit - beside)
        return replace(found, bytes=found.bytes + beside)

    async def disk_used(self, run_id: str) -> int | None:
        return await asyncio.to_thread(disk_used, self._run(run_id).path)

    async def remove(self, run_id: str) -> None:
        execution = await self.find(run_id)
        if execution is not None:
            await execution.kill()
            await execution.leave()
        self._living.pop(run_id, None)
        await asyncio.to_thread(self._kill_strays, run_id, None)
        await remove_tree(self._run(run_id).path)
        await remove_tree(self.socket(run_id, "any").parent)

    async def places(self) -> list[str]:
        def listed() -> list[str]:
            with contextlib.suppress(FileNotFoundError):
                return sorted(name for name in os.listdir(self._folder) if _RUN_ID.fullmatch(name))
            return []

        return await asyncio.to_thread(listed)

    async def close(self) -> None:
        for execution in self._living.values():
            await execution.leave()
        self._living.clear()

    # -- inner parts

    async def _need(self, run_id: str | None = None) -> None:
        """Raises: ConfigurationError where commands can't run; NotFound where the run has no areas here."""
        found = await self._launches()
        if not found.works:
            raise ConfigurationError(f"Workflows can't run on this host: {found.reason}", hint=found.remedy)
        if run_id is not None and not await asyncio.to_thread(self._run(run_id).workspace.is_dir):
            raise NotFound("execution", run_id, hint="Its areas are not on this host, or were removed.")

    def _run(self, run_id: str) -> RunFolder:
        if not _RUN_ID.fullmatch(run_id):
            raise InvalidInput(f"'{run_id}' is no run's id.", field=("run_id",))
        return RunFolder(self._folder / run_id)

    def _area(self, run_id: str, area: Area) -> str:
        inside = self.inside(run_id)
        return inside.workspace if area == "workspace" else inside.credentials

    def _toolchain_folder(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise InvalidInput(f"'{digest}' is no digest.", field=("toolchain",))
        return self._toolchains / digest

    def _toolchain(self, digest: str | None) -> Path | None:
        return None if digest is None else self._toolchain_folder(digest)

    def _command(
        self,
        run_id: str,
        argv: tuple[str, ...],
        limits: Limits | None,
        *,
        env: Mapping[str, str] | None = None,
        writable: bool = False,
        sockets: tuple[str, ...] = (),
        toolchain: Path | None = None,
        toolchain_writable: bool = False,
        cli: Path | None = None,
        marker: str | None = None,
    ) -> Command:
        folder = self._run(run_id)
        return Command(
            marker=marker or _marker(run_id),
            argv=argv,
            env=env or {},
            limits=limits or Limits.from_settings(self._settings),
            workspace=folder.workspace,
            credentials=folder.credentials,
            home=folder.home,
            writable=writable,
            sockets=self.socket(run_id, "any").parent if sockets else None,
            toolchain=toolchain,
            toolchain_writable=toolchain_writable,
            cli=cli,
        )

    def _make_folders(self, run_id: str) -> None:
        folder = self._run(run_id)
        sockets = self.socket(run_id, "any").parent
        for path in (self._folder, self._toolchains, sockets.parent, folder.path):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (folder.workspace, folder.credentials, folder.home):
            path.mkdir(mode=0o755, exist_ok=True)  # bubblewrap enters them before it becomes the agent
            self._give(path)
        sockets.mkdir(mode=0o755, exist_ok=True)

    def _give(self, path: Path) -> None:
        """Make a folder the agent's own."""
        owner = self._launcher.owner
        if owner is not None:
            os.chown(path, *owner)

    async def _launch(self, folder: RunFolder, command: Command, output_bytes: int) -> LocalExecution:
        argv, env = await asyncio.to_thread(self._launcher.start, command, status_fd=3)
        stdin, ours = os.pipe()
        os.set_blocking(ours, False)
        files = [stdin]
        try:
            # Read-only for its owner: through /proc a tool could open it anew, to write another past.
            for path, mode in ((folder.events, 0o400), (folder.stderr, 0o400), (folder.status, 0o600)):
                files.append(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, mode))
            process = spawn(argv, env, stdin=stdin, stdout=files[1], stderr=files[2], extra=files[3])
        except OSError as error:
            os.close(ours)
            raise ConfigurationError(f"{argv[0]} can't be started: {error.strerror}.") from error
        finally:
            for file in files:
                os.close(file)
        monitor = Watch.open(process, child=True)
        try:
            init = await _init_of(folder, monitor)
        except ConfigurationError:
            os.close(ours)
            raise
        known = _Known(process, init, command.limits.memory_bytes, output_bytes)
        await asyncio.to_thread(known.write, folder)
        return LocalExecution(
            folder,
            monitor=monitor,
            init=Watch.open(init),
            stdin=ours,
            memory_bytes=command.limits.memory_bytes,
            output_bytes=output_bytes,
            sandboxed=self.sandboxed,
            marker=command.marker,
        )

    def _kill_strays(self, run_id: str, known: "_Known | None") -> None:
        """Kill what a process that died has left of this run's sandboxes, besides its execution."""
        ours = set[int]() if known is None else {known.monitor.pid, known.init.pid}
        strays = mentioning(self._run(run_id).path)
        if not self.sandboxed:  # there the execution's own programs bear the path, too
            strays = [] if known is not None else strays
        for pid in strays:
            if pid not in ours and pid != os.getpid():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _marker(run_id: str) -> str:
    return f"AUTOMAGIK_RUN={run_id}"


def _cli_if_there(settings: Settings) -> Path | None:
    with contextlib.suppress(ConfigurationError):
        return claude_cli(settings)
    return None


async def _init_of(folder: RunFolder, monitor: Watch) -> ProcessId:
    """The first process inside, as soon as the launcher tells it. Raises: ConfigurationError when nothing starts."""
    deadline = asyncio.get_running_loop().time() + _START_SECONDS
    while True:
        over = monitor.ended  # asked before the look
        for document in await asyncio.to_thread(read_documents, folder.status):
            if isinstance(pid := document.get("child-pid"), int):
                return identify(pid) or ProcessId(pid, 0, monitor.process.boot)
        if over or asyncio.get_running_loop().time() > deadline:
            monitor.signal(signal.SIGKILL)
            said = await asyncio.to_thread(lambda: folder.stderr.read_text(errors="replace").strip()[-500:])
            raise ConfigurationError(f"The sandbox can't be started: {said}", hint="Run `automagik doctor`.")
        await asyncio.sleep(0.002)


@dataclass(frozen=True, slots=True)
class _Known:
    """What a run's folder keeps of its execution, so that another process finds it."""

    monitor: ProcessId
    init: ProcessId
    memory_bytes: int
    output_bytes: int

    def write(self, folder: RunFolder) -> None:
        kept = {"monitor": self.monitor.to_json(), "init": self.init.to_json()}
        part = folder.pid.with_suffix(".part")
        part.write_text(json.dumps({**kept, "memory_bytes": self.memory_bytes, "output_bytes": self.output_bytes}))
        part.replace(folder.pid)

    @classmethod
    def read(cls, folder: RunFolder) -> "_Known | None":
        """None where no execution was begun."""
        try:
            kept = json.loads(folder.pid.read_text())
        except FileNotFoundError:
            return None
        monitor, init = ProcessId.of_json(kept["monitor"]), ProcessId.of_json(kept["init"])
        return cls(monitor, init, int(kept["memory_bytes"]), int(kept["output_bytes"]))


def _file_bytes(file: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_blocks * 512
    return 0
