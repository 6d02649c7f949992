"""Accepting: connections to a listening socket, taken at a pace, with a shortage of descriptors waited out.

Whoever is in a sandbox can connect as fast as a processor lets it. Beyond the pace it waits in the kernel's queue, where it
costs the platform nothing.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

import structlog

__all__ = ["Accepting"]

_BURST: Final = 128
_EACH_SECOND: Final = 100
"""Connections taken on average, and how many more at once after a silence: several times what package managers open."""
_FIRST_WAIT_SECONDS = 0.05
_LONGEST_WAIT_SECONDS = 1.0
_TOLD_SECONDS = 60.0

_log = structlog.stdlib.get_logger(__name__)


class Accepting:
    """Hands each connection to the socket, which does not block, to `take`, from its making on: whoever takes it closes it.

    The listening socket does not block, and is the caller's to close, after `stop()`.
    """

    # Not asyncio's server: when it closes, it leaves a connection open that it has just accepted (Python 3.11), and
    # where descriptors are short it waits a second for each of the connections it could have taken.

    def __init__(self, listening: socket.socket, take: Callable[[socket.socket], None]) -> None:
        self._listening = listening
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._paused: asyncio.TimerHandle | None = None
        self._credit = float(_BURST)
        self._counted_at = self._loop.time()
        self._wait_seconds = _FIRST_WAIT_SECONDS
        self._told_at: float | None = None
        self._attend()

    def stop(self) -> None:
        """Take no more."""
        self._loop.remove_reader(self._listening)
        if self._paused is not None:
            self._paused.cancel()

    def _accept(self) -> None:
        now = self._loop.time()
        self._credit = min(_BURST, self._credit + (now - self._counted_at) * _EACH_SECOND)
        self._counted_at = now
        if self._credit < 1:
            self._pause(_FIRST_WAIT_SECONDS)
            return
        try:
            connection, _ = self._listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):  # the client has gone
            return
        except OSError as error:  # no descriptor or no memory is left
            if self._told_at is None or now - self._told_at > _TOLD_SECONDS:
                self._told_at = now
                _log.warning("sandbox_connection_waits", reason=error.strerror)
            self._pause(self._wait_seconds)
            self._wait_seconds = min(_LONGEST_WAIT_SECONDS, 2 * self._wait_seconds)
            return
        self._wait_seconds = _FIRST_WAIT_SECONDS
        self._credit -= 1
        connection.setblocking(False)
        self._take(connection)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listening)
        self._paused = self._loop.call_later(seconds, self._attend)

    def _attend(self) -> None:
        self._loop.add_reader(self._listening, self._accept)
