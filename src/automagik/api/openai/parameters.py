"""OpenAI's parameters: which mean something here, which are kept, and which must be refused to be honest."""

from pydantic import BaseModel, ConfigDict, JsonValue

from automagik.errors import InvalidInput
from automagik.types import Json, JsonObject

__all__ = ["OpenAiBody", "kept_parameters", "refuse_unsupported"]

_PLAIN_FORMATS: tuple[JsonObject, ...] = ({}, {"type": "text"}, {"format": {"type": "text"}})


class OpenAiBody(BaseModel):
    """A body that accepts every parameter that OpenAI knows or will know."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    def parameter(self, name: str) -> JsonValue:
        """A parameter that has no field of its own, None where it was not sent."""
        return (self.model_extra or {}).get(name)


def refuse_unsupported(body: OpenAiBody) -> None:
    """Refuse what would change the answer and can't be done: an answer that ignores it would be wrong.

    Raises: InvalidInput that names the parameter.
    """
    for name in ("tools", "functions"):
        if body.parameter(name):
            raise _refusal(name, "An agent has its own tools; it calls none of the client's.", "Leave it out.")
    if body.parameter("n") not in (None, 1):
        raise _refusal("n", "An agent gives one answer.", "Leave it out, or ask several times.")
    for name in ("response_format", "text"):
        wanted = body.parameter(name)
        formats = (
            {key: value for key, value in wanted.items() if key != "verbosity"} if isinstance(wanted, dict) else {}
        )
        if formats not in _PLAIN_FORMATS:
            hint = "Give the agent an `output_schema` in its config."
            raise _refusal(name, "The form of an answer is the agent's to say.", hint)
    if body.parameter("modalities") not in (None, ["text"]):
        raise _refusal("modalities", "An agent answers in text.", "Leave it out.")
    if body.parameter("background"):
        raise _refusal("background", "This door waits.", "Use POST /api/v1/agent/{name}/run/async.")


def kept_parameters(body: OpenAiBody) -> JsonObject:
    """What was sent and has no effect: kept with the run."""
    kept: dict[str, Json] = {name: value for name, value in (body.model_extra or {}).items() if value is not None}
    return kept


def _refusal(name: str, detail: str, hint: str) -> InvalidInput:
    return InvalidInput(detail, field=("body", name), hint=hint, code="unsupported_parameter")
