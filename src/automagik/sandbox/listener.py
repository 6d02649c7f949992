"""A unix socket that a sandbox connects to: what connects is taken at a pace."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

from automagik.sandbox.accepting import Accepting

__all__ = ["Listener"]

_BACKLOG = 64


class Listener:
    """Listens once it is open, and hands each connection, which does not block, to `take`: whoever takes it closes it."""

    def __init__(self, take: Callable[[socket.socket], None]) -> None:
        self._take = take
        self._listening: socket.socket | None = None
        self._accepting: Accepting | None = None
        self._path: Path | None = None

    async def open(self, path: Path) -> None:
        """Listen at the path, also where a process that died has left a socket. Raises: OSError."""
        self._listening = await asyncio.to_thread(_listening, path)
        self._path = path
        self._accepting = Accepting(self._listening, self._take)

    async def close(self) -> None:
        """Take no more, and remove the socket."""
        if self._accepting is not None:
            self._accepting.stop()
            self._accepting = None
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        if self._path is not None:
            await asyncio.to_thread(self._path.unlink, missing_ok=True)
            self._path = None


def _listening(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
