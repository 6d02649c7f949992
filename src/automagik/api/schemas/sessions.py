"""Sessions and messages on the wire."""

import uuid
from datetime import datetime
from typing import Annotated, Any, cast

import orjson
from pydantic import Field, JsonValue

from automagik.api.schemas.common import Body, Metadata, ObjectMap, Resource, Word
from automagik.api.schemas.runs import ToolCall, ToolOutput
from automagik.store.rows import MessageRow, SessionRow
from automagik.types import Json, JsonObject, utc_text

__all__ = [
    "MessageResource",
    "MessageSummary",
    "SessionChange",
    "SessionCreate",
    "SessionResource",
    "message_resource",
    "session_resource",
]

SessionName = Annotated[str, Field(min_length=1, max_length=255)]


class SessionCreate(Body):
    """A session to make. A run makes one by itself."""

    session_id: uuid.UUID | None = None
    session_name: SessionName | None = None
    agent_name: Word | None = None
    user_id: uuid.UUID | None = None
    session_origin: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    metadata: Metadata | None = None


class SessionChange(Body):
    """A change of a session."""

    session_name: SessionName | None = None
    metadata: Metadata | None = None


class SessionResource(Resource):
    """A conversation."""

    session_id: uuid.UUID
    session_name: str | None
    agent_name: str | None
    user_id: uuid.UUID | None
    session_origin: str
    status: str
    metadata: ObjectMap
    message_count: int
    created_at: datetime
    updated_at: datetime


class MessageSummary(Resource):
    """A message in a list."""

    message_id: uuid.UUID
    run_id: str | None
    role: str
    """`user`, `assistant`, `tool` or `system`."""
    content: str
    tool_calls: list[ToolCall]
    tool_outputs: list[ToolOutput]
    created_at: datetime


class MessageResource(MessageSummary):
    """A message, whole."""

    raw_payload: JsonValue
    """The message as Pydantic AI knows it; a large medium has `artifact` (GET /artifacts/{artifact}) and `size` instead of `data`."""


def session_resource(row: SessionRow) -> JsonObject:
    """The session as on the wire."""
    return {
        "session_id": str(row.session_id),
        "session_name": row.session_name,
        "agent_name": row.agent_name,
        "user_id": str(row.user_id) if row.user_id else None,
        "session_origin": row.session_origin,
        "status": row.status,
        "metadata": row.metadata,
        "message_count": row.message_count,
        "created_at": utc_text(row.created_at),
        "updated_at": utc_text(row.updated_at),
    }


def message_resource(row: MessageRow, *, whole: bool) -> JsonObject:
    """The message as on the wire; `whole` with its payload, which may hold media."""
    payload = cast("JsonObject", orjson.loads(row.raw_payload))
    _show_references(payload)
    parts = cast("list[JsonObject]", payload.get("parts", []))
    calls: list[Json] = [_picked(part, "args") for part in parts if part.get("part_kind") == "tool-call"]
    outputs: list[Json] = [_picked(part, "content") for part in parts if part.get("part_kind") == "tool-return"]
    document: JsonObject = {
        "message_id": str(row.message_id),
        "run_id": row.run_id,
        "role": row.role,
        "content": row.content,
        "tool_calls": calls,
        "tool_outputs": outputs,
        "created_at": utc_text(row.created_at),
    }
    if whole:
        document["raw_payload"] = payload
    return document


def _show_references(payload: JsonObject) -> None:
    """Put each reference to an artefact where its bytes would stand."""
    for reference in cast("list[dict[str, Any]]", payload.pop("artifacts", None) or ()):
        medium: Any = payload
        for step in reference["path"]:
            medium = medium[step]
        del medium["data"]
        medium.update(artifact=reference["artifact"], size=reference["size"])


def _picked(part: JsonObject, key: str) -> JsonObject:
    return {name: part.get(name) for name in ("tool_name", key, "tool_call_id")}
