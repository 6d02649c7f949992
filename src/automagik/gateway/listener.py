"""Listener: a unix socket at a path, in the place of whatever an earlier process left there."""

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from automagik.errors import ConfigurationError
from automagik.sandbox.accepting import Accepting

__all__ = ["Listener"]

_BACKLOG = 256
_MAX_PATH_BYTES = 104
"""What the smallest `sockaddr_un` in use takes (Linux: 107)."""
_MODE = 0o666
"""The sandbox's user is another one than ours, so the folder's mode guards the socket."""


class Listener:
    """Listens at `path` until it is closed. Connections are taken at a pace; beyond it they wait."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._protocol: Callable[[], asyncio.Protocol] = asyncio.Protocol
        self._listening: socket.socket | None = None
        self._accepting: Accepting | None = None
        self._begins: set[asyncio.Task[None]] = set()
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
        except OSError as error:
            listening.close()
            beside.unlink(missing_ok=True)
            raise ConfigurationError(
                f"A run's socket can't be made at {self._path}: {error.strerror}.",
                hint="Set AUTOMAGIK_RUNTIME_DIR to a folder that the platform may write to.",
            ) from error
        self._protocol, self._listening = protocol, listening
        self._accepting = Accepting(listening, self._take)

    async def close(self) -> None:
        """Stop listening, and remove the socket where it is still this one."""
        if self._accepting is None or self._listening is None:
            return
        self._accepting.stop()
        self._listening.close()
        self._accepting = self._listening = None
        for begin in self._begins:
            begin.cancel()
        try:
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()
        except FileNotFoundError:
            pass

    def _take(self, connection: socket.socket) -> None:
        begin = asyncio.get_running_loop().create_task(self._begin(connection))
        self._begins.add(begin)

        def begun(task: asyncio.Task[None]) -> None:
            self._begins.discard(task)
            if task.cancelled():  # else its transport closes it
                connection.close()

        begin.add_done_callback(begun)

    async def _begin(self, connection: socket.socket) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
