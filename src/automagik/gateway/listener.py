"""Listener: a unix socket at a path, in the place of whatever an earlier process left there."""

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from automagik.errors import ConfigurationError

__all__ = ["Listener"]

_BACKLOG = 256
_MAX_PATH_BYTES = 104
"""What the smallest `sockaddr_un` in use takes (Linux: 107)."""
_MODE = 0o666
"""The sandbox's user is another one than ours, so the folder's mode guards the socket."""


class Listener:
    """Listens at `path` until it is closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._server: asyncio.Server | None = None
        self._inode = 0

    async def start(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Begin to listen. The path changes from the old socket to the new one at once: who comes meanwhile waits or tries again.

        Raises: ConfigurationError where the path is too long, or something else than a socket is there.
        """
        beside = self._path.with_name(f".{os.getpid() % 1000:03d}")
        if len(os.fsencode(str(beside))) > _MAX_PATH_BYTES or len(os.fsencode(str(self._path))) > _MAX_PATH_BYTES:
            raise ConfigurationError(
                f"The path of a run's socket is too long for a unix socket: {self._path}.",
                hint="Set AUTOMAGIK_RUNTIME_DIR to a folder with a short path.",
            )
        if self._path.exists() and not stat.S_ISSOCK(self._path.lstat().st_mode):
            raise ConfigurationError(f"Something else than a socket is at {self._path}.", hint="Remove it.")
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            beside.unlink(missing_ok=True)
            listening.bind(str(beside))
            beside.chmod(_MODE)
            listening.listen(_BACKLOG)
            listening.setblocking(False)
            self._inode = beside.lstat().st_ino
            beside.rename(self._path)
            self._server = await asyncio.get_running_loop().create_unix_server(protocol, sock=listening)
        except OSError as error:
            listening.close()
            beside.unlink(missing_ok=True)
            raise ConfigurationError(
                f"A run's socket can't be made at {self._path}: {error.strerror}.",
                hint="Set AUTOMAGIK_RUNTIME_DIR to a folder that the platform may write to.",
            ) from error

    async def close(self) -> None:
        """Stop listening, and remove the socket where it is still this one."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        try:
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()
        except FileNotFoundError:
            pass
