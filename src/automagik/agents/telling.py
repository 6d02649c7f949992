"""TellingModel: a model whose answers are told piece by piece while they come, to whoever asked it as a whole."""

import contextlib
from collections.abc import AsyncIterable, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

from pydantic_ai import Agent, ModelMessage, ModelResponse, RunUsage, UsageLimits
from pydantic_ai.messages import ModelResponseStreamEvent
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

__all__ = ["TellingModel", "may_tell"]

Tell = Callable[[AsyncIterable[ModelResponseStreamEvent]], Awaitable[None]]

T = TypeVar("T")

_asked: "ContextVar[TellingModel | None]" = ContextVar("automagik_telling_model", default=None)
"""The model of the run whose request is under way. Tools may ask the same model for themselves: that is not told."""


def may_tell(agent: Agent[Any, Any], model: Model, limits: UsageLimits) -> bool:
    """Whether nothing but the caller looks at the pieces of an answer, so that they need not travel through the agent's graph.

    There are a task, two locks and seven generators on that way, for each piece: a third of what a short answer costs.
    Capabilities may look at the pieces, and limits of tokens must stop an answer in its midst.
    """
    return (
        {type(one) for one in agent.root_capability.capabilities} <= _of_every_agent()
        and not limits.has_token_limits()
        and type(model).request_stream is not Model.request_stream
    )


@cache
def _of_every_agent() -> frozenset[type]:
    """The capabilities that Pydantic AI itself gives to each agent; they don't look at the pieces of an answer."""
    plain: Agent[Any, Any] = Agent()
    return frozenset(type(one) for one in plain.root_capability.capabilities)


class TellingModel(WrapperModel):
    """A model that streams each answer `during` a run's own request, tells its pieces, and gives the whole."""

    def __init__(self, wrapped: Model, tell: Tell, used: RunUsage) -> None:
        """`tell` takes the pieces of an answer; `used` counts what was used of one that broke off, as Pydantic AI does."""
        super().__init__(wrapped)
        self._tell = tell
        self._used = used

    async def during(self, asking: Awaitable[T]) -> T:
        """What `asking` gives: a step of the run in which this model is asked."""
        token = _asked.set(self)
        try:
            return await asking
        finally:
            _asked.reset(token)

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """The model's answer, whose pieces have been told where it is the run that asked."""
        if _asked.get() is not self:
            return await self.wrapped.request(messages, model_settings, model_request_parameters)
        async with self.wrapped.request_stream(messages, model_settings, model_request_parameters) as stream:
            try:
                await self._tell(stream)
            except BaseException:  # a cancel too: what the answer used until then is counted, whatever broke it off
                self._count(stream.get())
                raise
        response = stream.get()
        return replace(response, state="complete") if response.state == "incomplete" else response

    def _count(self, cut: ModelResponse) -> None:
        """Count an answer that broke off: what it used, and a request where something of it came."""
        usage = cut.usage
        if usage.cost is None and cut.model_name and not usage.unmeasured_requests:
            with contextlib.suppress(LookupError, ValueError):
                usage.cost = cut.cost().total_price
        for attempt in cut.failed_attempts or ():
            if attempt.usage is not None:
                self._used.incr(attempt.usage)
        self._used.incr(usage)
        if cut.parts:
            self._used.requests += 1
