"""Memory variables on the wire."""

import uuid
from datetime import datetime

from automagik.api.schemas.common import Body, Flag, Metadata, ObjectMap, Resource, Word
from automagik.memory import MemoryInput
from automagik.store.rows import MemoryRow
from automagik.types import JsonObject, utc_text

__all__ = ["MemoryChange", "MemoryCreate", "MemoryResource", "memory_resource"]


class MemoryChange(Body):
    """A change of a memory; its scope stays."""

    name: Word | None = None
    content: str | None = None
    description: str | None = None
    memory_type: str | None = None
    read_mode: str | None = None
    access: str | None = None
    metadata: Metadata | None = None
    active: Flag | None = None


class MemoryCreate(Body):
    """A memory to store: of an agent, a user, a session, or several of them. One of the same name there is replaced."""

    name: Word
    content: str
    agent_name: Word | None = None
    user_id: uuid.UUID | None = None
    session_id: uuid.UUID | None = None
    description: str | None = None
    memory_type: str | None = None
    read_mode: str | None = None
    access: str | None = None
    metadata: Metadata | None = None
    active: Flag | None = None

    def to_input(self) -> MemoryInput:
        """The memory as the store of memories takes it."""
        return MemoryInput(
            name=self.name,
            content=self.content,
            agent=self.agent_name,
            user_id=self.user_id,
            session_id=self.session_id,
            description=self.description,
            memory_type=self.memory_type if self.memory_type is not None else "variable",
            read_mode=self.read_mode,
            access=self.access,
            metadata=self.metadata or {},
            active=self.active is not False,
        )


class MemoryResource(Resource):
    """A memory variable."""

    memory_id: uuid.UUID
    name: str
    content: str
    description: str | None
    memory_type: str
    agent_name: str | None
    user_id: uuid.UUID | None
    session_id: uuid.UUID | None
    read_mode: str | None
    access: str | None
    metadata: ObjectMap
    active: bool
    created_at: datetime
    updated_at: datetime


def memory_resource(row: MemoryRow) -> JsonObject:
    """The memory as on the wire."""
    return {
        "memory_id": str(row.memory_id),
        "name": row.name,
        "content": row.content,
        "description": row.description,
        "memory_type": row.memory_type,
        "agent_name": row.agent_name,
        "user_id": str(row.user_id) if row.user_id else None,
        "session_id": str(row.session_uuid) if row.session_uuid else None,
        "read_mode": row.read_mode,
        "access": row.access,
        "metadata": row.metadata,
        "active": row.active,
        "created_at": utc_text(row.created_at),
        "updated_at": utc_text(row.updated_at),
    }
