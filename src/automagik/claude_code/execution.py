"""A process of this host as an execution: its output is a file, its end is in a file, its tree is killed as a whole."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from automagik.claude_code.executor import ExitStatus, Resources
from automagik.claude_code.one_shot import exit_status
from automagik.claude_code.processes import (
    Watch,
    first_command,
    relatives,
    write_all,
)
from automagik.errors import ServiceUnavailable
from automagik.sandbox.watch import Footprint, descendants, footprint
from automagik.types import JsonObject

__all__ = ["LocalExecution", "RunFolder", "read_documents", "status_of"]

_LOOK_SECONDS = 0.02
"""How often a quiet output is looked at: an event must reach its readers within 100 ms."""

_LIMIT_SECONDS = 0.25
_KILL_SECONDS = 2.0
_CHUNK_BYTES = 256 * 1024
_STDERR_BYTES = 4096


@dataclass(frozen=True, slots=True)
class RunFolder:
    """What a run has on this host: `data_dir/executions/RUN_ID`."""

    path: Path

    @property
    def workspace(self) -> Path:
        return self.path / "workspace"

    @property
    def credentials(self) -> Path:
        return self.path / "credentials"

    @property
    def home(self) -> Path:
        """Without a sandbox: the command's home and place for temporary files."""
        return self.path / "home"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def stderr(self) -> Path:
        return self.path / "stderr"

    @property
    def status(self) -> Path:
        """What the launcher says: the pid inside, then the exit code, each a JSON object."""
        return self.path / "status.json"

    @property
    def pid(self) -> Path:
        """Which processes these are, with their start times."""
        return self.path / "pid"

    @property
    def remarks(self) -> Path:
        """What became of it besides its exit code: for `ExitStatus.oom_killed` and `output_full`."""
        return self.path / "remarks.json"

    def forget_execution(self) -> None:
        """Remove the files of an execution; the areas stay."""
        for file in (self.events, self.stderr, self.status, self.pid, self.remarks):
            file.unlink(missing_ok=True)


class LocalExecution:
    """A command in a pid namespace of its own (or, without a sandbox, a process with its relatives)."""

    def __init__(
        self,
        folder: RunFolder,
        *,
        monitor: Watch,
        init: Watch,
        stdin: int | None,
        memory_bytes: int,
        output_bytes: int,
        sandboxed: bool,
        marker: str,
    ) -> None:
        self._folder = folder
        self._monitor = monitor
        self._init = init
        self._stdin = stdin
        self._memory_bytes = memory_bytes
        self._output_bytes = output_bytes
        self._sandboxed = sandboxed
        self._marker = marker
        self._exit: ExitStatus | None = None
        self._unlinked_bytes = 0
        self._killing = asyncio.Lock()
        self._sending = asyncio.Lock()
        self._attending = asyncio.create_task(self._attend())

    @property
    def place(self) -> JsonObject:
        return {"pid": self._init.process.pid, "folder": str(self._folder.path), "sandboxed": self._sandboxed}

    @property
    def alive(self) -> bool:
        """Whether anything of it still runs."""
        return self._exit is None

    @property
    def unlinked_bytes(self) -> int:
        """What its files take that have no name any more, but are held open, when that was looked at last."""
        return self._unlinked_bytes if self._exit is None else 0

    async def output(self) -> AsyncIterator[bytes]:
        try:
            file = await asyncio.to_thread(os.open, self._folder.events, os.O_RDONLY)
        except FileNotFoundError:  # it was removed
            return
        try:
            offset = 0
            while True:
                over = self._exit is not None  # asked before the look, so that nothing written until then is missed
                if os.fstat(file).st_size > offset:
                    chunk = await asyncio.to_thread(os.pread, file, _CHUNK_BYTES, offset)
                    offset += len(chunk)
                    yield chunk
                elif over:
                    return
                else:
                    await asyncio.sleep(_LOOK_SECONDS)
        finally:
            os.close(file)

    async def send(self, data: bytes) -> bool:
        async with self._sending:
            if self._stdin is None or self._monitor.ended:
                return False
            return await write_all(self._stdin, data)

    async def close_input(self) -> None:
        async with self._sending:
            self._close_stdin()

    async def interrupt(self) -> None:
        if self._exit is None:
            await asyncio.to_thread(self._signal_command, signal.SIGINT)

    async def kill(self) -> None:
        if self._exit is None:
            await asyncio.to_thread(self._remark, killed=True)
        await self._kill_tree()
        await self.wait()

    async def wait(self) -> ExitStatus:
        await asyncio.shield(self._attending)
        assert self._exit is not None
        return self._exit

    async def usage(self) -> Resources:
        if self._exit is not None:
            return Resources(memory_bytes=0, pids=0)
        used = await asyncio.to_thread(self._footprint)
        return Resources(memory_bytes=used.memory_bytes, pids=used.processes)

    async def leave(self) -> None:
        """Watch it no longer, as a platform does that stops: it goes on, and reads the end of its input."""
        self._attending.cancel()
        await asyncio.gather(self._attending, return_exceptions=True)
        self._close_stdin()
        self._monitor.close()
        self._init.close()

    # -- inner parts

    async def _attend(self) -> None:
        """Hold the limits that the kernel does not, and clear up after the end."""
        while not self._monitor.ended:
            try:
                await asyncio.wait_for(self._monitor.wait(), _LIMIT_SECONDS)
            except TimeoutError:
                if await asyncio.to_thread(self._over_limits):
                    await self._kill_tree()
        await self._kill_tree()  # what the command left behind in its namespace
        self._close_stdin()
        self._exit = await asyncio.to_thread(status_of, self._folder)

    def _over_limits(self) -> bool:
        """Whether it must end now. A process that has too much memory is killed alone, as the kernel would do it."""
        if self._folder.events.stat().st_size > self._output_bytes:
            self._remark(output_full=True)
            return True
        used = self._footprint()
        self._unlinked_bytes = used.unlinked_bytes
        if used.memory_bytes > self._memory_bytes and used.largest is not None:
            self._remark(oom_killed=True)
            with contextlib.suppress(ProcessLookupError):
                os.kill(used.largest, signal.SIGKILL)
        return False

    def _footprint(self) -> Footprint:
        return footprint(descendants(self._init.process.pid))

    def _signal_command(self, number: int) -> None:
        init = self._init.process.pid
        found = [first_command(init)] if self._sandboxed else descendants(init)[1:2]
        for pid in found:
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def _remark(self, **said: bool) -> None:
        known = _read_object(self._folder.remarks)
        self._folder.remarks.write_text(json.dumps({**known, **said}))

    async def _kill_tree(self) -> None:
        async with self._killing:
            deadline = asyncio.get_running_loop().time() + _KILL_SECONDS
            while True:
                self._init.signal(signal.SIGKILL)  # the kernel kills all of its namespace, and then lets it end
                strays = await asyncio.to_thread(self._kill_strays)
                if self._init.ended and not strays:
                    break
                if asyncio.get_running_loop().time() > deadline:
                    raise ServiceUnavailable(
                        f"The processes of {self._folder.path.name} can't be killed.",
                        hint=f"See what holds the process {self._init.process.pid} on this host.",
                    )
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._init.wait(), 0.02)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._monitor.wait(), _KILL_SECONDS)
            self._monitor.signal(signal.SIGKILL)

    def _kill_strays(self) -> list[int]:
        """Without a sandbox: kill what is left of the command's relatives, and say whom."""
        if self._sandboxed:
            return []
        strays = relatives(self._init.process, self._marker)
        for pid in strays:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return strays

    def _close_stdin(self) -> None:
        if self._stdin is not None:
            os.close(self._stdin)
            self._stdin = None


def status_of(folder: RunFolder) -> ExitStatus:
    """How an execution ended, from its files."""
    documents = read_documents(folder.status)
    found = [document["exit-code"] for document in documents if "exit-code" in document]
    code = cast("int", found[-1]) if found else None
    remarks = _read_object(folder.remarks)
    if code is None and remarks.get("killed"):
        code = 128 + signal.SIGKILL
    return exit_status(
        code,
        stderr=_tail(folder.stderr),
        oom_killed=bool(remarks.get("oom_killed")),
        output_full=bool(remarks.get("output_full")),
    )


def read_documents(file: Path) -> list[JsonObject]:
    """The JSON objects in a file, one after another; one that is not whole yet is left out."""
    try:
        lines = file.read_text().splitlines()
    except FileNotFoundError:
        return []
    documents: list[JsonObject] = []
    for line in lines:
        with contextlib.suppress(ValueError):
            documents.append(json.loads(line))
    return documents


def _read_object(file: Path) -> JsonObject:
    documents = read_documents(file)
    return documents[0] if documents else {}


def _tail(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, os.fstat(opened.fileno()).st_size - _STDERR_BYTES))
            return opened.read(_STDERR_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""
