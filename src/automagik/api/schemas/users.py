"""Users on the wire."""

import uuid
from datetime import datetime
from typing import Annotated

from pydantic import Field

from automagik.api.schemas.common import Body, Metadata, ObjectMap, Resource
from automagik.store.rows import UserRow
from automagik.types import JsonObject, utc_text

__all__ = ["UserChange", "UserCreate", "UserResource", "user_resource"]

Email = Annotated[str, Field(min_length=3, max_length=320)]
Phone = Annotated[str, Field(min_length=1, max_length=64)]


class UserChange(Body):
    """A change of a user."""

    email: Email | None = None
    phone_number: Phone | None = None
    user_data: Metadata | None = None


class UserCreate(UserChange):
    """A user to make; `{}` makes one without a name."""

    user_id: uuid.UUID | None = None


class UserResource(Resource):
    """A person or client whom sessions, memories and runs belong to."""

    user_id: uuid.UUID
    email: str | None
    phone_number: str | None
    user_data: ObjectMap
    created_at: datetime
    updated_at: datetime


def user_resource(row: UserRow) -> JsonObject:
    """The user as on the wire."""
    return {
        "user_id": str(row.user_id),
        "email": row.email,
        "phone_number": row.phone_number,
        "user_data": row.user_data,
        "created_at": utc_text(row.created_at),
        "updated_at": utc_text(row.updated_at),
    }
