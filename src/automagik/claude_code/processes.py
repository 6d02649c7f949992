"""Processes of this host that outlive the one that started them: known by pid and start time, watched by a pidfd."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from automagik.sandbox.watch import descendants
from automagik.types import JsonObject

__all__ = [
    "ProcessId",
    "Watch",
    "first_command",
    "identify",
    "mentioning",
    "relatives",
    "spawn",
    "write_all",
]

_PROC = Path("/proc")
_BOOT = _PROC / "sys/kernel/random/boot_id"
_DEFAULTED = (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGXFSZ)
"""Signals that Python ignores, or that a shell may have had this process ignore: a child would inherit that."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that can't be taken for a later one of the same pid."""

    pid: int
    started: int
    """Clock ticks from the boot to its start, as `/proc/PID/stat` has it."""
    boot: str

    def to_json(self) -> JsonObject:
        """As it is kept in a file."""
        return {"pid": self.pid, "started": self.started, "boot": self.boot}

    @classmethod
    def of_json(cls, kept: JsonObject) -> "ProcessId":
        """What `to_json` gave. Raises: KeyError, TypeError, ValueError for anything else."""
        return cls(pid=int(str(kept["pid"])), started=int(str(kept["started"])), boot=str(kept["boot"]))

    def alive(self) -> bool:
        """Whether it has not ended. One that is only waited for by its parent has."""
        found = _stat(self.pid)
        return found is not None and found[0] not in "ZX" and found[1] == self.started and self.boot == _boot()


class Watch:
    """The end of a process, for any number of waiters. Signals sent through it reach that process or none."""

    def __init__(self, process: ProcessId, pidfd: int | None, *, child: bool) -> None:
        self.process = process
        self._pidfd = pidfd
        self._child = child
        self._ended = asyncio.Event()
        if pidfd is None:
            self._ended.set()
        else:
            asyncio.get_running_loop().add_reader(pidfd, self._end)

    @classmethod
    def open(cls, process: ProcessId, *, child: bool = False) -> "Watch":
        """A watch over the process, which may have ended already. A `child` of this process is reaped."""
        try:
            pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return cls(process, None, child=child)
        # The pidfd is the process of the start time only if that is still there after it was opened.
        if not child and not process.alive():
            os.close(pidfd)
            return cls(process, None, child=child)
        return cls(process, pidfd, child=child)

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    async def wait(self) -> None:
        """Return when it has ended."""
        await self._ended.wait()

    def signal(self, number: int) -> None:
        """Send a signal; one that has ended is left alone."""
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        """Watch no longer. The process goes on."""
        if self._pidfd is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def _end(self) -> None:
        self._ended.set()
        if self._child:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.process.pid, os.WNOHANG)
        self.close()


def identify(pid: int) -> ProcessId | None:
    """The process that has this pid now, None where there is none."""
    found = _stat(pid)
    return None if found is None else ProcessId(pid=pid, started=found[1], boot=_boot())


def spawn(
    argv: list[str], env: Mapping[str, str], *, stdin: int, stdout: int, stderr: int, extra: int | None = None
) -> ProcessId:
    """Start a program in a session of its own, apart from this process's end; `extra` becomes its descriptor 3.

    Not asyncio's subprocess: that kills what it started when its event loop closes. Raises: OSError.
    """
    actions = [(os.POSIX_SPAWN_DUP2, source, target) for target, source in enumerate((stdin, stdout, stderr))]
    if extra is not None:
        actions.append((os.POSIX_SPAWN_DUP2, extra, 3))
    pid = os.posix_spawn(argv[0], argv, env, file_actions=actions, setsid=True, setsigdef=_DEFAULTED)
    started = identify(pid)
    assert started is not None, "a child is there until it is waited for"
    return started


def first_command(init: int) -> int | None:
    """The process that the init of a pid namespace was made for: the second one of that namespace."""
    return next((pid for pid in _children(init) if _status(pid).get("NSpid", "").split()[-1:] == ["2"]), None)


def relatives(process: ProcessId, marker: str) -> list[int]:
    """The living processes that a process without a namespace has left: its descendants, its session, those with the marker.

    One that made itself a session of its own and emptied its environment is not found: only a sandbox holds it.
    """
    kin = set(descendants(process.pid)) if process.alive() else set[int]()
    needle = marker.encode()
    for pid in _all_pids():
        if pid not in kin and (_session(pid) == process.pid or needle in _read(pid, "environ").split(b"\0")):
            kin.add(pid)
    return [pid for pid in kin if (found := _stat(pid)) is not None and found[0] not in "ZX"]


def mentioning(path: Path) -> list[int]:
    """The pids of the processes in whose command line a path stands as a word of its own, or a path below it."""
    whole, below = os.fsencode(path), os.fsencode(f"{path}/")
    return [
        pid
        for pid in _all_pids()
        if any(word == whole or word.startswith(below) for word in _read(pid, "cmdline").split(b"\0"))
    ]


async def write_all(fd: int, data: bytes) -> bool:
    """Whether all of it went into a pipe that does not block. False: nobody reads it any more."""
    loop = asyncio.get_running_loop()
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            room: asyncio.Future[None] = loop.create_future()
            loop.add_writer(fd, _settle(room))
            try:
                await room
            finally:
                loop.remove_writer(fd)
        except BrokenPipeError:
            return False
    return True


def _settle(room: "asyncio.Future[None]") -> Callable[[], None]:
    def there_is() -> None:
        if not room.done():
            room.set_result(None)

    return there_is


def _boot() -> str:
    return _BOOT.read_text().strip()


def _stat(pid: int) -> tuple[str, int] | None:
    """A process's state and start time."""
    text = _read(pid, "stat")
    if not text:
        return None
    fields = text[text.rindex(b")") + 2 :].split()  # the name before it may hold anything
    return fields[0].decode(), int(fields[19])


def _session(pid: int) -> int | None:
    text = _read(pid, "stat")
    return int(text[text.rindex(b")") + 2 :].split()[3]) if text else None


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir(_PROC) if name.isdigit()]


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(_PROC / str(pid) / "task"):
            found.extend(map(int, _read(pid, f"task/{task}/children").split()))
    return found


def _status(pid: int) -> dict[str, str]:
    lines = _read(pid, "status").decode(errors="replace").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _read(pid: int, name: str) -> bytes:
    """A file of /proc; nothing where the process has gone, or is another user's."""
    try:
        return (_PROC / str(pid) / name).read_bytes()
    except OSError:
        return b""
