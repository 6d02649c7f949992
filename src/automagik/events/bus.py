"""EventBus: finds the stream of a run that is alive in this process."""

from automagik.events.stream import EventStream

__all__ = ["EventBus"]


class EventBus:
    """The live streams of this process, by run id. What is not here is read from the store."""

    def __init__(self) -> None:
        self._streams: dict[str, EventStream] = {}

    def add(self, stream: EventStream) -> None:
        self._streams[stream.run_id] = stream

    def find(self, run_id: str) -> EventStream | None:
        """The live stream of a run, or None."""
        return self._streams.get(run_id)

    def remove(self, run_id: str) -> None:
        self._streams.pop(run_id, None)

    def __len__(self) -> int:
        return len(self._streams)
