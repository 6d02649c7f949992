"""The in-process model that both sides are measured with: it answers at once, so that nothing hides what is around it."""

from collections.abc import AsyncIterator

from pydantic_ai import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

__all__ = ["instant_model"]

_ANSWER = "Hello from the instant model."


async def _answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    return ModelResponse(parts=[TextPart(_ANSWER)])


async def _stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
    for word in _ANSWER.split(" "):
        yield f"{word} "


def instant_model() -> FunctionModel:
    """A model without a wire, a wait or a thought."""
    return FunctionModel(_answer, stream_function=_stream, model_name="instant")
