"""What both streams of this door take out of a run's events: text as it comes, and how it ended."""

from collections.abc import AsyncIterator
from typing import cast

from automagik.events import RunEvent
from automagik.runs import RunStream
from automagik.types import JsonObject

__all__ = ["RunText"]


class RunText:
    """The text of a run as it comes: an async iterator of pieces, each all that came together.

    Whoever iterates closes the stream.

    Texts of several messages (before and after a tool) are divided by an empty line. When it ends, `run` is the run.
    """

    def __init__(self, stream: RunStream) -> None:
        self.run: JsonObject = {}
        self.text: list[str] = []
        self._stream = stream
        self._divide = False

    async def __aiter__(self) -> AsyncIterator[str]:
        async for batch in self._stream:
            piece = "".join([self._piece(event) for event in batch])
            if piece:
                self.text.append(piece)
                yield piece
        output = cast("JsonObject | None", self.run.get("output"))
        if output is not None and not self.text:  # a structured output, or an agent that doesn't stream
            self.text.append(cast("str", output["message"]))
            yield self.text[0]

    def _piece(self, event: RunEvent) -> str:
        if event.type in {"text_delta", "text_snapshot"}:
            text = cast("str", event.data["text"])
            if self._divide:
                self._divide = False
                return f"\n\n{text}"
            return text
        if event.type == "message_completed":
            self._divide = bool(self.text)
        elif event.type == "run_finished":
            self.run = cast("JsonObject", event.data["run"])
        return ""
