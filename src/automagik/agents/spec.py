"""SpecAgent: an agent that is declared (YAML, JSON, or a row of the store), not written; and what a spec may declare."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, cast

from pydantic import ValidationError
from pydantic_ai import Agent, DeferredToolRequests, StructuredDict, UserError
from pydantic_ai.agent.spec import CapabilitySpec
from pydantic_core import from_json

from automagik.agents.built import BuiltAgent
from automagik.agents.config import AgentConfig
from automagik.errors import InvalidInput, nearest
from automagik.memory import check_text
from automagik.tools import AgentContext
from automagik.types import Json, JsonObject

__all__ = ["AGENT_NAME", "ALLOWED_CAPABILITIES", "SpecAgent", "check_spec", "read_spec_file"]

AGENT_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}", re.ASCII)
"""What an agent may be called."""

ALLOWED_CAPABILITIES: Final = frozenset(
    {
        "Caching",  # a model setting: prompt caching
        "Citations",  # a model setting
        "IncludeToolReturnSchemas",  # shows the model what its tools return
        "PrefixTools",  # renames the tools of the capability inside it, which is checked in its turn
        "RaiseContentFilterError",  # ends a run whose answer was filtered
        "ReinjectSystemPrompt",  # rearranges the conversation
        "Thinking",  # a model setting
        "ToolSearch",  # finds among the tools that the agent has
    }
)
"""The capabilities that a spec stored through the API may use.

Each was read (pydantic-ai 2.62): none of these can reach a host, a file, a command, code or another model. Refused are
`MCP`, `WebFetch`, `WebSearch`, `XSearch` and `NativeTool` (they reach hosts, or run code at the provider), `LocalWorkspace`
(commands and files of this machine), `FileUnderstanding` and `ImageGeneration` (other models, at other cost),
`BatchModelRequests` (an answer may take a day), `Instrumentation` (would send content to a tracer), `SetToolMetadata`
(could pose as what a tool's author said). A new one is refused until somebody has read it.
"""

_ALLOWED_SETTINGS: Final = frozenset(
    {
        "cache",
        "citations",
        "frequency_penalty",
        "logit_bias",
        "max_tokens",
        "parallel_tool_calls",
        "presence_penalty",
        "seed",
        "stop_sequences",
        "temperature",
        "thinking",
        "top_k",
        "top_p",
    }
)
"""Model settings that a spec stored through the API may use: none that adds to the request itself (`extra_body`,
`extra_headers`, a provider's own), and so could bring in a provider's tools, and none that raises its price or its time."""

_MAX_SPEC_FILE = 1_000_000
_MAX_RETRIES = 10
_MAX_DEPTH = 40


class SpecAgent(BuiltAgent):
    """An agent that is its config: what a Pydantic AI agent spec says, our tools by name, and a template for a prompt."""

    agent_type: ClassVar[str] = "spec"

    def __init__(self, name: str, config: AgentConfig, *, trusted: bool) -> None:
        """`trusted`: whoever wrote it has access to the machine, so any capability may be used."""
        super().__init__(name=name, config=config)
        self._trusted = trusted

    def make(self) -> Agent[Any, Any]:
        """The Pydantic AI agent that the spec declares. Its instructions are not among it: they are the template."""
        spec = self.config.spec
        check_spec(spec, trusted=self._trusted, field=("spec",))
        schema = spec.get("output_schema")
        try:
            return Agent.from_spec(
                spec,
                deps_type=AgentContext,
                output_type=[StructuredDict(schema) if schema is not None else str, DeferredToolRequests],
                name=self.name,
                tools=self.dependencies.tools.attach(self.config.tools),
                capabilities=self.tracing(),
            )
        except (
            UserError,
            ValueError,
            TypeError,
            AttributeError,
            LookupError,
        ) as wrong:  # of a value of the wrong shape
            raise InvalidInput(f"Pydantic AI refuses the spec: {_first_line(wrong)}", field=("spec",)) from wrong


def check_spec(spec: Mapping[str, Json], *, trusted: bool, field: Sequence[str | int] = ("spec",)) -> None:
    """Refuse a spec that holds a template where Pydantic AI would expand it, or, not being trusted, reaches too far.

    Raises: InvalidInput that names the place.
    """
    _no_templates(cast("Json", spec), tuple(field), 0)
    for index, item in enumerate(_list(spec.get("capabilities"), (*field, "capabilities"))):
        _check_capability(item, trusted, (*field, "capabilities", index), 0)
    schema = spec.get("output_schema")
    if schema is not None and not isinstance(schema, dict):
        raise InvalidInput("output_schema must be a JSON Schema.", field=(*field, "output_schema"))
    if trusted:
        return
    settings = spec.get("model_settings") or {}
    if not isinstance(settings, dict):
        raise InvalidInput("model_settings must be an object.", field=(*field, "model_settings"))
    for key in settings:
        if key not in _ALLOWED_SETTINGS:
            raise InvalidInput(
                f"The model setting '{key}' can't be set through the API.",
                field=(*field, "model_settings", key),
                hint=f"Allowed are: {', '.join(sorted(_ALLOWED_SETTINGS))}. A file in the agents folder may set any.",
            )
    retries = spec.get("retries")
    for value in retries.values() if isinstance(retries, dict) else (retries,):
        if value is not None and not (isinstance(value, int) and 0 <= value <= _MAX_RETRIES):
            raise InvalidInput(
                f"retries must be a whole number between 0 and {_MAX_RETRIES}.", field=(*field, "retries")
            )


def read_spec_file(path: Path) -> tuple[str, AgentConfig]:
    """The name (the file's, where the spec has none) and config that a YAML or JSON file declares.

    Raises: InvalidInput that names the key, or the line that can't be read.
    """
    if path.stat().st_size > _MAX_SPEC_FILE:
        raise InvalidInput(f"The file is over {_MAX_SPEC_FILE} bytes.", field=())
    import yaml  # noqa: PLC0415 - 15 ms, which a start without such files need not pay

    read: Callable[[str], Any] = from_json if path.suffix == ".json" else yaml.safe_load
    try:
        document = read(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as wrong:
        raise InvalidInput(f"The file can't be read: {' '.join(str(wrong).split())}", field=()) from wrong
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in cast("dict[Any, Any]", document)):
        raise InvalidInput("An agent spec is an object with named keys.", field=())
    spec = cast("JsonObject", document)
    name = spec.get("name", path.stem)
    if not isinstance(name, str):
        raise InvalidInput("name must be a text.", field=("name",))
    return name, AgentConfig.parse(spec, field=())


def _check_capability(item: Json, trusted: bool, field: tuple[str | int, ...], depth: int) -> None:
    try:
        capability = CapabilitySpec.model_validate(item)
    except ValidationError:
        raise InvalidInput("A capability is a name, or an object with the name as its one key.", field=field) from None
    if not trusted and capability.name not in ALLOWED_CAPABILITIES:
        close = nearest(capability.name, ALLOWED_CAPABILITIES)
        raise InvalidInput(
            f"The capability '{capability.name}' can't be used in an agent made through the API.",
            field=field,
            code="capability_not_allowed",
            hint=f"Did you mean '{close}'?"
            if close
            else f"Allowed are: {', '.join(sorted(ALLOWED_CAPABILITIES))}. A file in the agents folder may use any.",
        )
    nested = capability.kwargs.get("capability")
    if nested is not None and depth < _MAX_DEPTH:
        _check_capability(nested, trusted, (*field, capability.name, "capability"), depth + 1)


def _no_templates(value: Json, field: tuple[str | int, ...], depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise InvalidInput(f"The spec is nested deeper than {_MAX_DEPTH} levels.", field=field[:3])
    if isinstance(value, str):
        check_text(value, field=field)
        if "{{" in value:
            raise InvalidInput(
                "A '{{...}}' place stands in the agent's instructions only.",
                field=field,
                code="template_not_allowed",
                hint="Move the text to `instructions`.",
            )
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _no_templates(item, (*field, index), depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            _no_templates(key, (*field, key), depth + 1)
            _no_templates(item, (*field, key), depth + 1)


def _list(value: Json, field: Sequence[str | int]) -> list[Json]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidInput("capabilities must be a list.", field=field)
    return value


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:299] + "…"
