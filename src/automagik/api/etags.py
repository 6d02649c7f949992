"""ETags: what was read, so that a stale edit is refused instead of undoing somebody else's."""

from datetime import datetime
from typing import Annotated

from fastapi import Header

from automagik.errors import PreconditionFailed
from automagik.types import utc_text

__all__ = ["IfMatch", "etag", "moment_of", "revision_of"]

IfMatch = Annotated[str | None, Header(max_length=200, description="The `ETag` that you read")]


def etag(version: int | datetime) -> str:
    """The tag of a version: of a revision, or of the time of the last change."""
    return f'"{version if isinstance(version, int) else utc_text(version)}"'


def revision_of(if_match: str | None) -> int | None:
    """The revision that the caller read; None where any will do. Raises PreconditionFailed for no tag of ours."""
    tag = _tag(if_match)
    if tag is None:
        return None
    if tag.isascii() and tag.isdecimal() and len(tag) < 10:
        return int(tag)
    raise _unknown()


def moment_of(if_match: str | None) -> datetime | None:
    """The time of the last change that the caller knew; None where any will do. Raises PreconditionFailed."""
    tag = _tag(if_match)
    if tag is None:
        return None
    try:
        moment = datetime.fromisoformat(tag)
    except ValueError:
        raise _unknown() from None
    if moment.tzinfo is None:
        raise _unknown()
    return moment


def _tag(if_match: str | None) -> str | None:
    if if_match is None or if_match.strip() == "*":
        return None
    return if_match.strip().removeprefix("W/").strip('"')


def _unknown() -> PreconditionFailed:
    return PreconditionFailed(
        "The `If-Match` header holds no tag of this resource.", hint="Send the `ETag` of your last read as it is."
    )
