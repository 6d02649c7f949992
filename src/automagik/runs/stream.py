"""RunStream: the events of one run as a reader gets them."""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from automagik.events import RunEvent, Subscription
from automagik.runs.document import run_document
from automagik.store.rows import EventRow, RunRow
from automagik.types import JsonObject

__all__ = ["RunStream", "stored_event"]


def stored_event(event: EventRow, row: RunRow) -> RunEvent:
    """A stored event of the run `row`, as readers get it: that of its end has the whole run."""
    data: JsonObject = {"run": run_document(row)} if event.type == "run_finished" else event.data
    return RunEvent(event.run_id, event.seq, event.type, event.at, data)


@dataclass(slots=True)
class RunStream:
    """The events of one run as they come: an async iterator of batches that ends after `run_finished`."""

    row: RunRow
    batches: Subscription | AsyncGenerator[Sequence[RunEvent]]
    go_on: Callable[[int], AsyncGenerator[Sequence[RunEvent]]] | None = None
    """What comes after a `seq`, where `batches` ends before the run does: it is another process's then."""

    async def __aiter__(self) -> AsyncGenerator[Sequence[RunEvent]]:
        seen = 0
        async for batch in self.batches:
            seen = max([event.seq or 0 for event in batch], default=seen) or seen
            yield batch
            if batch[-1].type == "run_finished":
                return
        if self.go_on is not None:
            self.batches = self.go_on(seen)
            async for batch in self.batches:
                yield batch

    async def aclose(self) -> None:
        """Stop reading; the run goes on."""
        await self.batches.aclose()
