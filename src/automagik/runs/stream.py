"""RunStream: the events of one run as a reader gets them."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from automagik.events import RunEvent, Subscription
from automagik.store.rows import RunRow

__all__ = ["RunStream"]


@dataclass(slots=True)
class RunStream:
    """The events of one run as they come: an async iterator of batches that ends after `run_finished`."""

    row: RunRow
    batches: AsyncIterator[Sequence[RunEvent]]

    def __aiter__(self) -> AsyncIterator[Sequence[RunEvent]]:
        return self.batches

    async def aclose(self) -> None:
        """Stop reading; the run goes on."""
        if isinstance(self.batches, Subscription):
            await self.batches.aclose()
