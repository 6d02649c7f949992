"""A command on this host that ends with this process: its input is fed, its output read, and nothing of it is left."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import IO, Any

import orjson

from automagik.claude_code.executor import ExitStatus, Once
from automagik.claude_code.launch import Command, Launcher
from automagik.claude_code.processes import ProcessId, identify, relatives
from automagik.errors import ConfigurationError

__all__ = ["Captured", "OneShot", "StderrTail", "exit_status"]

_STDERR_BYTES = 4096
_CHUNK_BYTES = 256 * 1024
_KILL_SECONDS = 2.0


class Captured:
    """A command's output: in memory, or in a file; no more than so many bytes."""

    def __init__(self, file: Path | None, max_bytes: int) -> None:
        self._file: IO[bytes] | None = None if file is None else file.open("wb")
        self._memory = bytearray()
        self._room = max_bytes
        self.full = asyncio.Event()
        """Set when there was more."""

    async def feed(self, chunk: bytes) -> None:
        kept = chunk[: self._room]
        self._room -= len(kept)
        if self._file is None:
            self._memory += kept
        else:
            await asyncio.to_thread(self._file.write, kept)
        if len(kept) < len(chunk):
            self.full.set()

    def close(self) -> bytes:
        """What is in memory."""
        if self._file is not None:
            self._file.close()
        return bytes(self._memory)


class StderrTail:
    """The end of a command's standard error."""

    def __init__(self) -> None:
        self._kept = b""

    async def feed(self, chunk: bytes) -> None:
        self._kept = (self._kept + chunk)[-_STDERR_BYTES:]

    def text(self) -> str:
        return self._kept.decode(errors="replace")


class _Streams(asyncio.subprocess.SubprocessStreamProtocol):
    """The streams of a child, and word of its exit."""

    def __init__(self, exited: asyncio.Event) -> None:
        super().__init__(limit=_CHUNK_BYTES, loop=asyncio.get_running_loop())
        self._exited = exited

    def process_exited(self) -> None:
        super().process_exited()
        self._exited.set()


class OneShot:
    """One start of a command in a sandbox of its own."""

    def __init__(self, launcher: Launcher, command: Command) -> None:
        self._launcher = launcher
        self._command = command
        self._status = b""
        self._init: int | None = None
        """A pidfd of the first process in the sandbox."""
        self._started: ProcessId | None = None
        self._exited = asyncio.Event()
        self._over = asyncio.Event()
        """Set when nobody is left who could tell the sandbox's status: then there is none."""

    async def run(
        self,
        *,
        timeout_seconds: float,
        stdin: AsyncIterable[bytes] | None = None,
        output: Path | None = None,
        output_bytes: int = 16 * 1024**2,
    ) -> Once:
        """See `Executor.once`."""
        captured, tail = Captured(output, output_bytes), StderrTail()
        try:
            async with self._process(fed=stdin is not None) as process:
                feeding = asyncio.create_task(_feed(process.stdin, stdin))
                reading = [
                    asyncio.create_task(_drain(process.stdout, captured.feed)),
                    asyncio.create_task(_drain(process.stderr, tail.feed)),
                ]
                try:
                    timed_out = not await self._ended(feeding, captured, timeout_seconds)
                finally:
                    # The reading goes on until then: a pipe that nobody reads would keep the process from its end.
                    await self._kill(process)
                    # Without a sandbox somebody may have got away with the pipes in their hands.
                    await asyncio.wait(reading, timeout=_KILL_SECONDS)
                    for task in (feeding, *reading):
                        task.cancel()
                    results = await asyncio.gather(feeding, *reading, return_exceptions=True)
                if isinstance(results[0], Exception):  # what the caller feeds: the caller's own error
                    raise results[0]
        finally:
            stdout = await asyncio.to_thread(captured.close)
        status = exit_status(process.returncode, stderr=tail.text(), output_full=captured.full.is_set())
        return Once(status, stdout=stdout, timed_out=timed_out)

    async def stream(self) -> AsyncIterator[bytes]:
        """Its standard output as it comes. Raises: ConfigurationError at the end where it fails."""
        tail = StderrTail()
        async with self._process(fed=False) as process:
            listening = asyncio.create_task(_drain(process.stderr, tail.feed))
            try:
                assert process.stdout is not None
                while chunk := await process.stdout.read(_CHUNK_BYTES):
                    yield chunk
                code = await self._exit_code(process)
            finally:
                await self._kill(process)
                await asyncio.wait([listening], timeout=_KILL_SECONDS)
                listening.cancel()
        if code != 0:
            raise ConfigurationError(f"{self._command.argv[0]} failed in the sandbox ({code}): {tail.text().strip()}")

    @contextlib.asynccontextmanager
    async def _process(self, *, fed: bool) -> AsyncGenerator[asyncio.subprocess.Process]:
        loop = asyncio.get_running_loop()
        read, write = os.pipe()
        os.set_blocking(read, False)
        loop.add_reader(read, self._take_status, read)
        try:
            try:
                transport, process = await self._start(write, fed=fed)
            finally:
                os.close(write)
            try:
                yield process
            finally:
                await self._kill(process)
                transport.close()  # somebody may hold its pipes still
        finally:
            loop.remove_reader(read)
            os.close(read)
            if self._init is not None:
                os.close(self._init)

    async def _start(self, status: int, *, fed: bool) -> tuple[asyncio.SubprocessTransport, asyncio.subprocess.Process]:
        argv, env = await asyncio.to_thread(self._launcher.start, self._command, status_fd=status)
        loop = asyncio.get_running_loop()
        try:
            # As `create_subprocess_exec`, which keeps the transport to itself.
            transport, protocol = await loop.subprocess_exec(
                lambda: _Streams(self._exited),
                *argv,
                stdin=asyncio.subprocess.PIPE if fed else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=env,
                pass_fds=(status,),
                start_new_session=True,
            )
        except OSError as error:
            raise ConfigurationError(f"{argv[0]} can't be started: {error.strerror}.") from error
        process = asyncio.subprocess.Process(transport, protocol, loop)
        self._started = identify(process.pid)
        return transport, process

    async def _exit_code(self, process: asyncio.subprocess.Process) -> int:
        """The exit code, once it has ended: not, as `wait()` has it, once nobody holds its pipes any more."""
        await self._exited.wait()
        assert process.returncode is not None
        return process.returncode

    def _take_status(self, read: int) -> None:
        with contextlib.suppress(BlockingIOError):
            said = os.read(read, 4096)
            self._status += said
            if not said:
                asyncio.get_running_loop().remove_reader(read)
                self._over.set()
        for line in self._status.splitlines():
            if self._init is None:
                with contextlib.suppress(ValueError, KeyError, ProcessLookupError):
                    self._init = os.pidfd_open(int(orjson.loads(line)["child-pid"]))

    async def _kill(self, process: asyncio.subprocess.Process) -> None:
        """End the command, and what it has left behind in the background."""
        if not self._launcher.sandboxed and self._started is not None:
            for pid in await asyncio.to_thread(relatives, self._started, self._command.marker):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        elif self._init is None and process.returncode is None:
            process.kill()
        # The launcher may die before bubblewrap has tied its life to it: then bubblewrap still tells the first process inside.
        deadline = asyncio.get_running_loop().time() + _KILL_SECONDS
        while not self._over.is_set() and asyncio.get_running_loop().time() < deadline:
            if self._init is not None and self._launcher.sandboxed:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._init, signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), 0.05)
        with contextlib.suppress(TimeoutError):  # it ends by itself then, with the exit code
            await asyncio.wait_for(self._exit_code(process), _KILL_SECONDS)
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await self._exit_code(process)

    async def _ended(self, feeding: "asyncio.Task[None]", captured: Captured, timeout_seconds: float) -> bool:
        """Whether there was an end before the time was over: of the command, of the room for its output, of its input."""
        waiting = asyncio.create_task(self._exited.wait())
        filling = asyncio.create_task(captured.full.wait())
        work: set[asyncio.Task[Any]] = {waiting, filling, feeding}
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        try:
            while True:
                left = deadline - asyncio.get_running_loop().time()
                done, work = await asyncio.wait(work, timeout=max(0, left), return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    return False
                if waiting.done() or filling.done() or feeding.exception() is not None:
                    return True
        finally:
            waiting.cancel()
            filling.cancel()


def exit_status(code: int | None, *, stderr: str, output_full: bool = False, oom_killed: bool = False) -> ExitStatus:
    """How a command ended, by the exit code that its shell, bubblewrap or engine tells, or Python's negative one."""
    if code is not None and code < 0:
        code = 128 - code
    number = code - 128 if code is not None and 128 < code < 128 + signal.NSIG else None
    return ExitStatus(code, number, oom_killed=oom_killed, output_full=output_full, stderr=stderr)


async def _feed(into: asyncio.StreamWriter | None, source: AsyncIterable[bytes] | None) -> None:
    if into is None or source is None:
        return
    try:
        async for piece in source:
            into.write(piece)
            await into.drain()
    except (BrokenPipeError, ConnectionResetError):
        return  # the command has read enough
    finally:
        into.close()


async def _drain(stream: asyncio.StreamReader | None, feed: Callable[[bytes], Awaitable[None]]) -> None:
    assert stream is not None
    while chunk := await stream.read(_CHUNK_BYTES):
        await feed(chunk)
