"""API keys on the wire."""

import uuid
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field

from automagik.api.schemas.common import Body, Count, Name, Resource
from automagik.store.rows import KeyRow
from automagik.types import JsonObject, utc_text

__all__ = ["KeyCreate", "KeyResource", "NewKeyResource", "key_resource"]


def _text(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("a time is a text like 2027-01-31T12:00:00Z")
    return value


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("the time is out of range") from None


Moment = Annotated[AwareDatetime, BeforeValidator(_text), AfterValidator(_in_utc)]
"""A time in RFC 3339, with its zone."""


class KeyCreate(Body):
    """A key to make, no stronger than the one that makes it."""

    name: Name
    scopes: Annotated[list[str], Field(min_length=1, max_length=200)]
    """`agents:simple:run`, `agents:*:run`, `runs:read`, ..., `admin`."""
    user_id: uuid.UUID | None = None
    """The user that the key is bound to: it then sees only that user's sessions, memories and runs."""
    expires_at: Moment | None = None
    rate_limit: Annotated[str, Field(max_length=32)] | None = None
    """`10/second`, `600/minute`, `1000/hour` or `50000/day`."""
    max_concurrent_runs: Annotated[Count, Field(ge=1, le=1_000_000)] | None = None
    """How many background runs of the key, and of keys that it makes, may be under way at once; unset: any number."""


class KeyResource(Resource):
    """An API key, without the key itself."""

    key_id: str
    name: str
    prefix: str
    scopes: list[str]
    user_id: uuid.UUID | None
    rate_limit: str | None
    max_concurrent_runs: int | None
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    created_at: datetime


class NewKeyResource(KeyResource):
    """A new key: `key` is shown only here."""

    key: str


def key_resource(row: KeyRow) -> JsonObject:
    """The key as on the wire."""
    return {
        "key_id": row.key_id,
        "name": row.name,
        "prefix": row.prefix,
        "scopes": [*row.scopes],
        "user_id": str(row.user_id) if row.user_id else None,
        "rate_limit": row.rate_limit,
        "max_concurrent_runs": row.max_concurrent_runs,
        "expires_at": utc_text(row.expires_at) if row.expires_at else None,
        "last_used_at": utc_text(row.last_used_at) if row.last_used_at else None,
        "revoked_at": utc_text(row.revoked_at) if row.revoked_at else None,
        "created_at": utc_text(row.created_at),
    }
