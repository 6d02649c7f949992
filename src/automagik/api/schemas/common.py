"""What several resources share: the base of request bodies, pages, and types with their limits."""

from typing import Annotated, Any, Generic, TypeVar

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, Strict

__all__ = ["Body", "Count", "Flag", "Metadata", "Name", "ObjectMap", "PageOf", "Resource", "Word"]

T = TypeVar("T")

Count = Annotated[int, Strict()]
"""A whole number; a text that looks like one is refused."""
Flag = Annotated[bool, Strict()]
"""true or false."""
Word = Annotated[str, Field(max_length=128)]
"""A short text."""
Name = Annotated[str, Field(min_length=1, max_length=200)]
"""A name that a person gives."""
ObjectMap = dict[str, JsonValue]
"""Any JSON object."""

_MAX_METADATA_BYTES = 65_536


def _small(metadata: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if len(orjson.dumps(metadata)) > _MAX_METADATA_BYTES:
        raise ValueError(f"at most {_MAX_METADATA_BYTES} bytes as JSON")
    return metadata


Metadata = Annotated[ObjectMap, AfterValidator(_small)]
"""A JSON object that stands in every list of its resources, so it is small: 64 KiB at the most."""


class Body(BaseModel):
    """A request's body. An unknown field is refused by name; `null` and absent mean the same."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def given(self) -> dict[str, Any]:
        """The fields that were given and are not null."""
        return {name: value for name, value in self if name in self.model_fields_set and value is not None}


class Resource(BaseModel):
    """What an answer holds. Every field is always there."""

    model_config = ConfigDict(use_attribute_docstrings=True, json_schema_serialization_defaults_required=True)


class PageOf(BaseModel, Generic[T]):
    """Part of a list, newest first."""

    # No docstring of the attribute: for each T, Pydantic would look for its text in every frame above, 60 ms each at the start.
    data: list[T]
    next_cursor: str | None = Field(description="Asks for what follows; null: that was all.")
