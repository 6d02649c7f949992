"""Overrun: what is done with an answer that goes beyond what was reserved for it, as its provider keeps to no limit."""

from collections.abc import AsyncIterator, Awaitable, Callable

from pydantic_ai.messages import (
    BaseToolCallPart,
    ModelResponse,
    ModelResponseStreamEvent,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPartDelta,
)
from pydantic_ai.models import StreamedResponse

from automagik.budget import OutputCount
from automagik.errors import RunFailed

__all__ = ["OutputGuard", "overrun"]


def overrun(most: int, *, is_cut: bool) -> RunFailed:
    """What ends the run: the answer could have had `most` tokens, and has more."""
    return RunFailed(
        f"The model's API did not keep to the limit of its answer, {most} tokens: "
        + ("it was cut where it cost more than was reserved for it." if is_cut else "it cost more than was reserved."),
        outcome="budget_exceeded",
        hint="The call counts in the budget with what it used. Choose a model whose API keeps to `max_tokens`.",
    )


class OutputGuard:
    """Looks at the pieces of an answer as they pass, and ends it as soon as `is_over` says that it has cost too much.

    `most` are the tokens of output that were reserved for. `is_over` is asked, with the answer so far and the tokens of output
    that it certainly has, only where those are more. `settle` counts a cut answer, before the run is told.
    """

    def __init__(
        self,
        most: int,
        is_over: Callable[[ModelResponse, int], bool],
        settle: Callable[[ModelResponse], Awaitable[None]],
    ) -> None:
        self._most = most
        self._is_over = is_over
        self._settle = settle
        self._output = OutputCount()
        self.has_cut = False
        """Whether the answer was cut, and so settled."""

    def watch(self, stream: StreamedResponse) -> None:
        """Have who reads the stream read it past the guard. Raises then RunFailed (`budget_exceeded`) where it goes too far."""
        # As Pydantic AI's own wrappers do it: a stream hands out the iterator that is kept here.
        stream._event_iterator = self._passed(stream, aiter(stream))  # pyright: ignore[reportPrivateUsage]

    async def _passed(
        self, stream: StreamedResponse, events: AsyncIterator[ModelResponseStreamEvent]
    ) -> AsyncIterator[ModelResponseStreamEvent]:
        async for event in events:
            self._count(event)
            told = stream.usage.output_tokens
            is_more = told > self._most or self._output.exceeds(self._most)
            if is_more and not isinstance(event, PartEndEvent):  # what has come to its end counts as it is
                so_far = stream.get()
                if self._is_over(so_far, max(told, self._output.fewest())):
                    # Where the provider has not said yet what the answer used, this is what the run used.
                    stream.usage.output_tokens = so_far.usage.output_tokens = max(told, self._output.usual())
                    await self._settle(so_far)
                    self.has_cut = True
                    raise overrun(self._most, is_cut=True)
            yield event

    def _count(self, event: ModelResponseStreamEvent) -> None:
        if isinstance(event, PartDeltaEvent):
            delta = event.delta
            if isinstance(delta, TextPartDelta | ThinkingPartDelta):
                self._output.add(delta.content_delta or "")
            elif isinstance(delta, ToolCallPartDelta) and isinstance(delta.args_delta, str):
                self._output.add(delta.args_delta)
        elif isinstance(event, PartStartEvent):
            part = event.part
            if isinstance(part, TextPart | ThinkingPart):
                self._output.add(part.content)
            elif isinstance(part, BaseToolCallPart):
                self._output.add(part.tool_name)
                self._output.add(part.args if isinstance(part.args, str) else part.args_as_json_str())
