"""How long something took, told without the moments in which the machine did not let this process run."""

import threading
import time
from typing import Self

__all__ = ["Stopwatch"]

_TICK_SECONDS = 0.02
_PAUSE_SECONDS = 0.1


class Stopwatch:
    """Measures a block of code for a promise of the kind "within a second": `with Stopwatch() as took: ...`.

    A thread wakes up fifty times a second. Where it comes more than 0.1 s late, the whole process stood still (it was stopped, its
    machine was, or others had its processor), which says nothing about the code: that time is not counted. What keeps the event loop
    busy or waits is counted, as the thread goes on meanwhile.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        """What the block took without the pauses, when it has ended."""
        self.paused = 0.0
        """How long the process stood still meanwhile."""
        self._began = 0.0
        self._ended = threading.Event()
        self._pauses: list[tuple[float, float]] = []
        self._ticking = threading.Thread(target=self._tick, name="stopwatch", daemon=True)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._ticking.start()
        return self

    def __exit__(self, *_: object) -> None:
        ended = time.monotonic()
        self._ended.set()
        self._ticking.join()
        self.paused = sum(max(0.0, min(until, ended) - since) for since, until in self._pauses)
        self.seconds = ended - self._began - self.paused

    def _tick(self) -> None:
        last = self._began
        while not self._ended.is_set():
            self._ended.wait(_TICK_SECONDS)
            now = time.monotonic()
            if now - last > _TICK_SECONDS + _PAUSE_SECONDS:
                self._pauses.append((last + _TICK_SECONDS, now))
            last = now
