"""Agents on the wire."""

from datetime import datetime
from typing import Literal

from automagik.agents import AgentInfo, agent_document
from automagik.api.schemas.common import Body, Flag, ObjectMap, Resource, Word
from automagik.types import JsonObject, utc_text

__all__ = ["AgentChange", "AgentCopy", "AgentCreate", "AgentListed", "AgentResource", "agent_resource"]


class AgentCreate(Body):
    """An agent to make: its config has the keys of a YAML agent file."""

    name: Word
    """Small letters, digits, `_` and `-`."""
    config: ObjectMap | None = None


class AgentChange(Body):
    """A change of an agent."""

    config: ObjectMap | None = None
    """The whole config that takes the place of the old one."""
    active: Flag | None = None
    """Whether the agent can be run."""


class AgentCopy(Body):
    """An agent to make after another."""

    name: Word
    config: ObjectMap | None = None
    """What differs: these keys replace those of the other's config."""


class AgentListed(Resource):
    """An agent as the earlier API lists them."""

    id: str
    name: str
    description: str | None


class AgentResource(Resource):
    """An agent. A key that may only run it sees no `config`; one that is broken has an `error`."""

    name: str
    type: str
    source: Literal["code", "package", "file", "api"]
    active: bool
    description: str | None
    model: str | None
    config: ObjectMap | None
    revision: int
    error: str | None
    created_at: datetime | None
    updated_at: datetime | None


def agent_resource(info: AgentInfo, *, whole: bool) -> JsonObject:
    """The agent as on the wire; `whole` with its config."""
    return {
        "name": info.name,
        "type": info.type,
        "source": info.source,
        "active": info.active,
        "description": info.config.description,
        "model": info.config.model,
        "config": agent_document(info.config) if whole else None,
        "revision": info.revision,
        "error": info.error if whole else None,
        "created_at": utc_text(info.created_at) if info.created_at else None,
        "updated_at": utc_text(info.updated_at) if info.updated_at else None,
    }
