"""Folders and files that executors have on this host: where sockets stand, how a folder is locked and removed."""

import asyncio
import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import AsyncGenerator
from pathlib import Path

from automagik.errors import ConfigurationError
from automagik.settings import Settings

__all__ = ["lock", "remove_tree", "socket_path", "unused"]

_MAX_SOCKET_BYTES = 107
"""What Linux takes for the path of a unix socket, without its closing zero."""
_REMOVE = ("rm", "-rf", "--")
_GIVE_BACK = ("chmod", "-R", "u+rwX", "--")


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


async def remove_tree(path: Path) -> None:
    """Remove a folder with all in it, also what its owner took the rights from. Nothing may run in it any more.

    `rm` does it, not this process: it needs few descriptors however deep the folder is, and holds nobody up however much is in it.
    Raises: OSError where something stays.
    """
    with contextlib.suppress(OSError):
        await asyncio.to_thread(os.rmdir, path)  # most often it is empty, or not there
    for command in (_REMOVE, _GIVE_BACK, _REMOVE):
        if not await asyncio.to_thread(os.path.lexists, path):
            return
        await _carry_out(*command, str(path))
    with contextlib.suppress(FileNotFoundError):
        await asyncio.to_thread(os.rmdir, path)  # which says why it can't be


async def _carry_out(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()


def unused(folder: Path, seconds: float) -> list[Path]:
    """What is in a folder and was not touched for so long."""
    latest = time.time() - seconds
    with contextlib.suppress(FileNotFoundError):
        return [path for path in folder.iterdir() if path.lstat().st_mtime <= latest]
    return []
