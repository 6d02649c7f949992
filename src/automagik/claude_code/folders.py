"""Folders and files that executors have on this host: where sockets stand, how large a folder is, how it is removed."""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import subprocess
import time
from collections.abc import AsyncGenerator
from pathlib import Path

from automagik.errors import ConfigurationError
from automagik.settings import Settings

__all__ = ["disk_usage", "lock", "remove_tree", "socket_path", "unused"]

_MAX_SOCKET_BYTES = 107
"""What Linux takes for the path of a unix socket, without its closing zero."""
_LEAST_BYTES = 4096
_LONGEST_PATH = 4096 - 256
"""Of a folder, so that every name in it makes a path that Linux takes."""
_BEYOND_ANY_LIMIT = 2**62


def socket_path(settings: Settings, run_id: str, name: str) -> Path:
    """Where a run's socket stands on this host. Raises: ConfigurationError when the path is too long for a socket."""
    folder = hashlib.sha256(run_id.encode()).hexdigest()[:12]  # short, because the whole path has 107 bytes
    path = settings.runtime_folder.absolute() / folder / f"{name}.sock"
    if len(os.fsencode(path)) > _MAX_SOCKET_BYTES:
        raise ConfigurationError(
            f"The path of a run's socket is too long for a unix socket ({_MAX_SOCKET_BYTES} bytes): {path}",
            hint="Set AUTOMAGIK_RUNTIME_DIR to a short path, as /run/automagik.",
        )
    return path


@contextlib.asynccontextmanager
async def lock(file: Path) -> AsyncGenerator[None]:
    """While nobody else on this host has the lock of this file."""
    await asyncio.to_thread(file.parent.mkdir, mode=0o700, parents=True, exist_ok=True)
    held = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await asyncio.sleep(0.2)
            else:
                break
        yield
    finally:
        os.close(held)


def disk_usage(folder: Path) -> int:
    """What a folder takes on the disk, each file once. A folder that its owner may not look into is given that right back.

    A file takes a block at least, for its place among the disk's files; what is too deep to be looked at takes more than
    any limit.
    """
    seen: set[tuple[int, int]] = set()
    total = 0
    waiting = [folder]
    while waiting:
        looked_at = waiting.pop()
        if len(os.fsencode(looked_at)) >= _LONGEST_PATH:
            return _BEYOND_ANY_LIMIT
        for entry in _entries(looked_at):
            with contextlib.suppress(OSError):  # it has gone meanwhile
                found = entry.stat(follow_symlinks=False)
                if (found.st_dev, found.st_ino) not in seen:
                    seen.add((found.st_dev, found.st_ino))
                    total += max(found.st_blocks * 512, _LEAST_BYTES)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
    return total


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    for _ in range(2):
        try:
            with os.scandir(folder) as entries:
                return list(entries)
        except PermissionError:
            with contextlib.suppress(OSError):
                place = os.open(folder, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY)
                try:
                    os.chmod(f"/proc/self/fd/{place}", stat.S_IMODE(os.fstat(place).st_mode) | stat.S_IRWXU)
                finally:
                    os.close(place)
        except OSError:
            return []
    return []


def remove_tree(path: Path) -> None:
    """Remove a folder with all in it, also what its owner took the rights from. Nothing may run in it any more."""

    def mend(function: object, failed: str, error: object) -> None:
        del function, error
        for place in (os.path.dirname(failed), failed):
            if os.path.isdir(place) and not os.path.islink(place):
                os.chmod(place, 0o700)
        if os.path.isdir(failed) and not os.path.islink(failed):
            shutil.rmtree(failed)
        elif os.path.lexists(failed):
            os.unlink(failed)

    if path.exists():
        try:
            shutil.rmtree(path, onerror=mend)
        except (RecursionError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.EMFILE, errno.ENAMETOOLONG):
                raise
            # So deep that Python can't, which takes a call and a descriptor for each level: these take neither.
            for command in (["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
                subprocess.run([*command, "--", path], check=False, capture_output=True)
            if path.exists():
                raise


def unused(folder: Path, seconds: float) -> list[Path]:
    """What is in a folder and was not touched for so long."""
    latest = time.time() - seconds
    with contextlib.suppress(FileNotFoundError):
        return [path for path in folder.iterdir() if path.lstat().st_mtime <= latest]
    return []
