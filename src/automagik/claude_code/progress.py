"""Progress: how the making of a run's place goes on, told as events of the run, and seldom."""

import asyncio
import re
from collections.abc import Callable
from typing import Final, Self

from automagik.types import JsonObject

__all__ = ["EVERY_SECONDS", "Progress", "Tell", "step_of"]

EVERY_SECONDS: Final = 2.0
"""How far apart a run's events `progress` are at least."""
_STEP = re.compile(r"Step (\d+/\d+) :")

Tell = Callable[[str], None]
"""Hears how the making of something goes on, in words for people; it may be called as often as there is news."""


class Progress:
    """A `Tell` that emits events `progress` with their `detail`: the first words at once, later ones `EVERY_SECONDS` after the last,
    then the newest. Within `with`: at its end nothing more is told."""

    def __init__(self, emit: Callable[[str, JsonObject], None]) -> None:
        self._emit = emit
        self._told = ""
        self._told_at = float("-inf")
        self._newest = ""
        self._later: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._later is not None:
            self._later.cancel()

    def __call__(self, detail: str) -> None:
        """Tell it, now or when it is time and nothing newer has come."""
        self._newest = detail
        loop = asyncio.get_running_loop()
        wait = self._told_at + EVERY_SECONDS - loop.time()
        if wait <= 0:
            self._tell()
        elif self._later is None:
            self._later = loop.call_later(wait, self._tell)

    def _tell(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        detail = self._newest
        if detail != self._told:
            self._told = detail
            self._told_at = asyncio.get_running_loop().time()
            self._emit("progress", {"detail": detail})


def step_of(line: str) -> str | None:
    """Which step of how many an image's builder begins by this line (`3/7`), None where it says something else.

    Nothing else of its lines is fit for others' eyes: they hold what the steps print.
    """
    found = _STEP.match(line)
    return found[1] if found is not None else None
