"""AgentConfig: what an agent is, as it stands in `agents.config`, in a YAML file and in the body that creates an agent."""

import fnmatch
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_ai import AgentSpec, UsageLimits

from automagik.errors import InvalidInput, nearest
from automagik.memory import is_name
from automagik.types import Json, JsonObject

__all__ = ["AgentConfig", "agent_document"]

Override = Literal["model", "system_prompt"]

_SPEC_KEYS = frozenset(
    {"output_schema", "model_settings", "retries", "end_strategy", "tool_timeout", "metadata", "capabilities"}
)
"""The keys of an AgentSpec that stay one; `model`, `name`, `description`, `instructions` and `deps_schema` become ours."""


class AgentConfig(BaseModel):
    """What an agent is. Every field has a default; `{}` is an agent with the default model, no tools and no prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=False)

    description: str | None = Field(default=None, max_length=4000)
    """What the agent is for, in a sentence."""
    model: str | None = Field(default=None, min_length=1, max_length=200)
    """`provider:model`; unset: the platform's default model."""
    fallback_models: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = ()
    """Models tried in order when the model fails."""
    instructions: str = ""
    """The system prompt: a template with `{{name}}` places."""
    tools: tuple[Annotated[str, Field(min_length=1, max_length=128)], ...] = ()
    """Names of tools, or of groups of tools (`memory`, `datetime`)."""
    variables: dict[str, str] = Field(default_factory=dict)
    """Names that the prompt may use and a request may give (`prompt_variables`), each with its default."""
    allow_overrides: frozenset[Override] = frozenset()
    """What a caller without `agents:write` may override in a request."""
    allowed_models: tuple[str, ...] = ()
    """Which models a caller may ask for, as globs (`openai:gpt-5*`); empty: any, where overriding the model is allowed."""
    message_limit: int = Field(default=20, ge=0, le=1000)
    """How many messages of the session the model sees, where the request doesn't say."""
    timeout_seconds: float | None = Field(default=None, gt=0)
    """How long a run may take; unset: the platform's limit."""
    repeatable: bool = False
    """Whether a run may be repeated from its beginning though tools of it that write had been called: after its worker
    died, or when it is tried again. Unset: only what its tools merely read is repeated."""
    max_attempts: int = Field(default=3, ge=1, le=20)
    """How often a background run is tried: after failures that pass, and after its worker died."""
    retry_after_seconds: float = Field(default=2, ge=0, le=3600)
    """How long a background run waits before its second attempt; doubled for each further one, and spread at random."""
    max_concurrent_runs: int | None = Field(default=None, ge=1)
    """How many background runs of the agent may be under way at once, on all workers together; unset: any number."""
    request_limit: int | None = Field(default=50, ge=1)
    """How often a run may call the model."""
    tool_calls_limit: int | None = Field(default=None, ge=0)
    """How many tool calls a run may make."""
    total_tokens_limit: int | None = Field(default=None, ge=1)
    """How many tokens a run may use."""
    cost_limit_usd: Decimal | None = Field(default=None, gt=0, allow_inf_nan=False)
    """How much a run may cost, in US dollars."""
    spec: dict[str, Any] = Field(default_factory=dict)
    """Further keys of a Pydantic AI agent spec, which may also stand beside our own: `output_schema`,
    `model_settings`, `retries`, `end_strategy`, `tool_timeout`, `metadata`, `capabilities`."""

    @field_validator("variables")
    @classmethod
    def _named(cls, variables: dict[str, str]) -> dict[str, str]:
        for name in variables:
            if not is_name(name):
                raise ValueError(f"{name!r} is no name of a variable")
        return variables

    @field_validator("spec")
    @classmethod
    def _known(cls, spec: dict[str, Any]) -> dict[str, Any]:
        for key in spec:
            if key not in _SPEC_KEYS:
                raise ValueError(f"unknown key {key!r}; known are {', '.join(sorted(_SPEC_KEYS))}")
        return spec

    @property
    def usage_limits(self) -> UsageLimits:
        """The limits in Pydantic AI's form."""
        return UsageLimits(
            request_limit=self.request_limit,
            tool_calls_limit=self.tool_calls_limit,
            total_tokens_limit=self.total_tokens_limit,
            cost_limit=self.cost_limit_usd,
        )

    def to_json(self) -> JsonObject:
        """The config as it stands in the store: only what is set."""
        dumped = self.model_dump(mode="json", exclude_defaults=True)
        if "allow_overrides" in dumped:
            dumped["allow_overrides"].sort()
        return cast("JsonObject", dumped)

    def allows_model(self, model: str) -> bool:
        """Whether a caller without `agents:write` may ask for `model`."""
        if "model" not in self.allow_overrides:
            return False
        return not self.allowed_models or any(fnmatch.fnmatchcase(model, glob) for glob in self.allowed_models)

    @classmethod
    def parse(cls, data: Mapping[str, Json], *, field: Sequence[str | int] = ("config",)) -> Self:
        """The config that `data` spells: its own keys, and those of a Pydantic AI agent spec beside them.

        A spec's `instructions` (a text or a list of texts) become the template, its `deps_schema` the declared variables.

        Raises: InvalidInput that names the key, and for an unknown one the nearest known.
        """
        own: dict[str, Any] = {}
        spec: dict[str, Any] = {}
        for key, value in data.items():
            if value is None or key in {"name", "$schema"}:
                continue
            if key in _SPEC_KEYS:
                spec[key] = value
            elif key in cls.model_fields:
                own[key] = value
            elif key == "deps_schema":
                own.setdefault("variables", {})
            else:
                raise _unknown_key(key, (*cls.model_fields, *AgentSpec.model_fields), field)
        declared = data.get("deps_schema")
        if declared is not None and isinstance(own["variables"], dict):  # else what it is is refused below
            own["variables"] = {**_declared(declared, (*field, "deps_schema")), **own["variables"]}
        if isinstance(instructions := own.get("instructions"), list):
            own["instructions"] = _joined(cast("list[Json]", instructions), (*field, "instructions"))
        if spec:
            nested = own.get("spec", {})
            own["spec"] = {**nested, **spec} if isinstance(nested, dict) else nested
        try:
            return cls.model_validate(own)
        except ValidationError as wrong:
            first = wrong.errors(include_url=False, include_context=False, include_input=False)[0]
            raise InvalidInput(
                f"{'.'.join(map(str, first['loc']))}: {first['msg']}.", field=(*field, *first["loc"])
            ) from None


def agent_document(config: AgentConfig, *, name: str | None = None) -> JsonObject:
    """The config in the flat form of a YAML file, which `AgentConfig.parse` reads."""
    document = config.to_json()
    spec = cast("JsonObject", document.pop("spec", {}))
    named: JsonObject = {"name": name} if name is not None else {}
    return {**named, **document, **spec}


def _declared(schema: Json, field: Sequence[str | int]) -> dict[str, str]:
    properties = schema.get("properties", {}) if isinstance(schema, dict) else None
    if not isinstance(properties, dict):
        raise InvalidInput("deps_schema is no JSON Schema of an object.", field=field)
    declared: dict[str, str] = {}
    for name, shape in properties.items():
        default = shape.get("default") if isinstance(shape, dict) else None
        declared[name] = "" if default is None else str(default)
    return declared


def _joined(parts: list[Json], field: Sequence[str | int]) -> str:
    texts: list[str] = []
    for index, part in enumerate(parts):
        if not isinstance(part, str):
            raise InvalidInput("An instruction must be a text.", field=(*field, index))
        texts.append(part)
    return "\n\n".join(texts)


def _unknown_key(key: str, known: Sequence[str], field: Sequence[str | int]) -> InvalidInput:
    close = nearest(key, known)
    return InvalidInput(
        f"There is no key '{key}' in an agent.",
        field=(*field, key),
        hint=f"Did you mean '{close}'?" if close else f"Known are: {', '.join(sorted(set(known)))}.",
    )
