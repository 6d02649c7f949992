"""Control: why a run under way is to stop, said once by whoever is first."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from automagik.claude_code.outcome import EndedBy

__all__ = ["Control"]

T = TypeVar("T")


class Control:
    """One run's brake. `ended_by` is who or what ended a run that had not ended by itself; `leave`: this process goes, the run goes
    on."""

    def __init__(self) -> None:
        self.ended_by: EndedBy | None = None
        self.leaves = False
        self._pulled = asyncio.Event()

    def end(self, why: EndedBy) -> None:
        """End the run, for this reason; a later one does not count."""
        if self.ended_by is None:
            self.ended_by = why
        self._pulled.set()

    def leave(self) -> None:
        """Go away from the run, and leave it at work."""
        self.leaves = True
        self._pulled.set()

    async def unless_pulled(self, work: Coroutine[Any, Any, T], *, seconds: float) -> T | None:
        """What `work` comes to; None where the run is to end or to be left before, or this takes longer than `seconds`: then the
        run's time is over, and the work was stopped."""
        loop = asyncio.get_running_loop()
        working, pulled = loop.create_task(work), loop.create_task(self.pulled())
        try:
            await asyncio.wait({working, pulled}, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if not pulled.done():
                self.end("timeout")
            return None
        finally:
            for task in (working, pulled):
                task.cancel()
            await asyncio.gather(working, pulled, return_exceptions=True)

    async def pulled(self) -> None:
        """Return when the run is to end, or to be left."""
        await self._pulled.wait()
