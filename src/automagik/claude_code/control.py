"""Control: why a run under way is to stop, said once by whoever is first."""

import asyncio

from automagik.claude_code.outcome import EndedBy

__all__ = ["Control"]


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

    async def pulled(self) -> None:
        """Return when the run is to end, or to be left."""
        await self._pulled.wait()
