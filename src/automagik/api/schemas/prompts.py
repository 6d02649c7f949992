"""Prompt templates on the wire."""

import uuid
from datetime import datetime
from typing import Annotated

from pydantic import Field

from automagik.api.schemas.common import Body, Flag, Resource, Word
from automagik.store.rows import PromptRow
from automagik.types import JsonObject, utc_text

__all__ = ["PromptChange", "PromptCreate", "PromptResource", "prompt_resource"]

StatusKey = Annotated[str, Field(min_length=1, max_length=128)]


class PromptCreate(Body):
    """A version to make; the platform gives it the next number."""

    agent_name: Word
    prompt_text: str
    """The template, with `{{name}}` places."""
    status_key: StatusKey | None = None
    """Which state of the agent it is for; unset: `default`."""
    name: StatusKey | None = None
    is_active: Flag | None = None
    """Whether it takes the place of the active one at once."""


class PromptChange(Body):
    """A change of a version that was not defined in code."""

    prompt_text: str | None = None
    name: StatusKey | None = None


class PromptResource(Resource):
    """One version of an agent's prompt template."""

    prompt_id: uuid.UUID
    agent_name: str
    status_key: str
    version: int
    name: str | None
    prompt_text: str
    is_active: bool
    is_default_from_code: bool
    created_at: datetime
    updated_at: datetime


def prompt_resource(row: PromptRow) -> JsonObject:
    """The version as on the wire."""
    return {
        "prompt_id": str(row.prompt_id),
        "agent_name": row.agent_name,
        "status_key": row.status_key,
        "version": row.version,
        "name": row.name,
        "prompt_text": row.template,
        "is_active": row.is_active,
        "is_default_from_code": row.is_default_from_code,
        "created_at": utc_text(row.created_at),
        "updated_at": utc_text(row.updated_at),
    }
