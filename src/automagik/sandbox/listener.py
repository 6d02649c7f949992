"""A unix socket that a sandbox connects to: what connects is taken at a pace, and a shortage of descriptors is waited out.

Whoever is in a sandbox can connect as fast as a processor lets it. Beyond the pace it waits in the kernel's queue, where it
costs the platform nothing.
"""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

__all__ = ["Listener"]

_BACKLOG = 64
_BURST: Final = 128
_EACH_SECOND: Final = 100
"""Connections taken on average, and how many more at once after a silence: several times what package managers open."""
_FIRST_WAIT_SECONDS = 0.05
_LONGEST_WAIT_SECONDS = 1.0
_TOLD_SECONDS = 60.0

_log = structlog.stdlib.get_logger(__name__)


class Listener:
    """Listens once it is open, and hands each connection, which does not block, to `take`: whoever takes it closes it."""

    def __init__(self, take: Callable[[socket.socket], None]) -> None:
        self._take = take
        self._listening: socket.socket | None = None
        self._path: Path | None = None
        self._paused: asyncio.TimerHandle | None = None
        self._credit = float(_BURST)
        self._counted_at = 0.0
        self._wait_seconds = _FIRST_WAIT_SECONDS
        self._told_at: float | None = None

    async def open(self, path: Path) -> None:
        """Listen at the path, also where a process that died has left a socket. Raises: OSError."""
        # Not asyncio's server: when it closes, it leaves a connection open that it has just accepted (Python 3.11), and
        # where descriptors are short it waits a second for each of the connections it could have taken.
        self._listening = await asyncio.to_thread(_listening, path)
        self._path = path
        self._counted_at = asyncio.get_running_loop().time()
        self._attend_to(self._listening)

    async def close(self) -> None:
        """Take no more, and remove the socket."""
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
            self._listening = None
        if self._paused is not None:
            self._paused.cancel()
        if self._path is not None:
            await asyncio.to_thread(self._path.unlink, missing_ok=True)
            self._path = None

    def _accept(self, listening: socket.socket) -> None:
        now = asyncio.get_running_loop().time()
        self._credit = min(_BURST, self._credit + (now - self._counted_at) * _EACH_SECOND)
        self._counted_at = now
        if self._credit < 1:
            self._pause(listening, _FIRST_WAIT_SECONDS)
            return
        try:
            connection, _ = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):  # the client has gone
            return
        except OSError as error:  # no descriptor or no memory is left
            if self._told_at is None or now - self._told_at > _TOLD_SECONDS:
                self._told_at = now
                _log.warning("sandbox_connection_waits", reason=error.strerror)
            self._pause(listening, self._wait_seconds)
            self._wait_seconds = min(_LONGEST_WAIT_SECONDS, 2 * self._wait_seconds)
            return
        self._wait_seconds = _FIRST_WAIT_SECONDS
        self._credit -= 1
        connection.setblocking(False)
        self._take(connection)

    def _pause(self, listening: socket.socket, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening)
        self._paused = loop.call_later(seconds, self._attend_to, listening)

    def _attend_to(self, listening: socket.socket) -> None:
        asyncio.get_running_loop().add_reader(listening, self._accept, listening)


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
