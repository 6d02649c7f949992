"""What a sandbox uses where no limit of the kernel holds it: memory, and files that no folder shows.

All of it blocks for as long as it reads `/proc`: call it in a thread.
"""

import os
import re
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Footprint", "descendants", "footprint"]

_PROC = Path("/proc")
_BLOCK = 512  # of st_blocks, whatever the file system's own size
_INODE = 1024  # what a file without content takes of the kernel's memory: 1.01 kB, measured on tmpfs with Linux 6
_SOCKET = 212_992  # what Linux lets each unix socket hold, unless `net.core.wmem_default` says more
_FEW_SOCKETS = 1024
"""What honest programs stay below: only sockets beyond are taken for as full as they can be."""
_IN_MEMORY = ("tmp", "dev/shm", "home/agent")
"""Places of a sandbox whose files are in memory. Their content is limited by the kernel, the number of files isn't."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What some processes use together."""

    memory_bytes: int
    """What no file on a disk backs: anonymous and shared memory, page tables, files in memory that only they hold.

    Of the files in a sandbox's own `/tmp` and the like what they take besides their content, which has a limit of its own.
    What many sockets may hold counts as if they did: nobody can see it.
    """
    unlinked_bytes: int
    """Files on a disk that have no name any more, but are held open. Those in the sandbox's own `/tmp` and the like are on none."""
    processes: int
    largest: int | None
    """The pid of the one that has most memory."""


def descendants(pid: int) -> list[int]:
    """The pids of all that a process started and that has not gone, itself first: of a sandbox's init, all inside."""
    found = [pid]
    for parent in found:
        with suppress(OSError):
            for task in os.listdir(_PROC / str(parent) / "task"):
                found.extend(map(int, _read(parent, f"task/{task}/children").split()))
    return found


def footprint(pids: Sequence[int]) -> Footprint:
    """What these processes use; those that have ended meanwhile use nothing."""
    held = _Held()
    sizes: dict[int, int] = {}
    for pid in pids:
        size = _private_bytes(pid)
        if size is not None:
            sizes[pid] = size
            held.look_at_places(pid)
            held.look(pid)
    return Footprint(
        memory_bytes=sum(sizes.values()) + held.memory_bytes,
        unlinked_bytes=held.disk_bytes,
        processes=len(sizes),
        largest=max(sizes, key=lambda pid: sizes[pid], default=None),
    )


class _Held:
    """Counts the files without a name that processes hold open, each once."""

    def __init__(self) -> None:
        self.memory_bytes = 0
        self.disk_bytes = 0
        self._seen: set[tuple[int, int]] = set()
        self._roots: set[tuple[int, int]] = set()
        self._limited: set[int] = set()
        """The devices of files in memory whose content has a limit of its own."""
        with suppress(OSError):
            own = os.stat("/")
            self._roots.add((own.st_dev, own.st_ino))

    def look_at_places(self, pid: int) -> None:
        """Count the files and sockets of the process's sandbox, if it is in one that hasn't been looked at."""
        root = _PROC / str(pid) / "root"
        with suppress(OSError):
            found = root.stat()
            if (found.st_dev, found.st_ino) in self._roots:
                return
            self._roots.add((found.st_dev, found.st_ino))
            for name in _IN_MEMORY:
                place = os.statvfs(root / name)
                self._limited.add(os.stat(root / name).st_dev)
                self.memory_bytes += (place.f_files - place.f_ffree) * _INODE
            sockets = re.match(r"sockets: used (\d+)", _read(pid, "net/sockstat"))
            if sockets is not None:
                self.memory_bytes += max(0, int(sockets[1]) - _FEW_SOCKETS) * _SOCKET

    def look(self, pid: int) -> None:
        folder = _PROC / str(pid) / "fd"
        with suppress(OSError):
            for name in os.listdir(folder):
                with suppress(OSError):
                    place = os.readlink(folder / name)
                    if place.endswith(" (deleted)"):
                        self._count(os.stat(folder / name), in_memory=place.startswith("/memfd:"))

    def _count(self, found: os.stat_result, *, in_memory: bool) -> None:
        if found.st_nlink > 0 or not stat.S_ISREG(found.st_mode) or (found.st_dev, found.st_ino) in self._seen:
            return
        self._seen.add((found.st_dev, found.st_ino))
        if found.st_dev in self._limited:
            return
        if in_memory:
            self.memory_bytes += found.st_blocks * _BLOCK
        else:
            self.disk_bytes += found.st_blocks * _BLOCK


def _private_bytes(pid: int) -> int | None:
    """What a process has in memory that no file backs. Pages that processes share count for each: it is never too little."""
    sizes = [
        int(line.split()[1])
        for line in _read(pid, "status").splitlines()
        if line.startswith(("RssAnon:", "RssShmem:", "VmPTE:"))
    ]
    return sum(sizes) * 1024 if sizes else None


def _read(pid: int, name: str) -> str:
    """A file of /proc; nothing where the process has gone."""
    try:
        return (_PROC / str(pid) / name).read_text(errors="replace")
    except OSError:
        return ""
