"""Tools and audit rows on the wire: what is only looked at."""

from datetime import datetime

from automagik.api.schemas.common import ObjectMap, Resource
from automagik.store.rows import AuditRow
from automagik.tools import ToolInfo
from automagik.types import JsonObject, utc_text

__all__ = ["AuditResource", "ToolResource", "audit_resource", "tool_resource"]


class ToolResource(Resource):
    """A tool that agents may have."""

    name: str
    description: str
    category: str
    group: str | None
    """The name by which it is attached together with others."""
    source: str
    """`code`, or the package that it came from."""
    parameters: ObjectMap
    """The JSON Schema of its arguments."""
    read_only: bool
    """Whether it changes nothing, so that a run that used it may be repeated."""


class AuditResource(Resource):
    """A change made through the platform."""

    at: datetime
    key_id: str | None
    """Who: null is the platform itself, or its administrator at the machine."""
    action: str
    target: str
    details: ObjectMap
    request_id: str | None


def tool_resource(info: ToolInfo) -> JsonObject:
    """The tool as on the wire."""
    return {
        "name": info.name,
        "description": info.description,
        "category": info.category.value,
        "group": info.group,
        "source": info.source,
        "parameters": info.parameters,
        "read_only": info.read_only,
    }


def audit_resource(row: AuditRow) -> JsonObject:
    """The change as on the wire."""
    return {
        "at": utc_text(row.at),
        "key_id": row.key_id,
        "action": row.action,
        "target": row.target,
        "details": row.details,
        "request_id": row.request_id,
    }
