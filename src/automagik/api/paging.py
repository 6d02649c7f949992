"""Parameters of lists, and pages of what is in memory."""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from fastapi import Query

from automagik.errors import InvalidInput
from automagik.store import Page

__all__ = ["Cursor", "Limit", "slice_page"]

T = TypeVar("T")

Limit = Annotated[int, Query(ge=1, le=100, description="How many at the most")]
Cursor = Annotated[str | None, Query(max_length=2000, description="`next_cursor` of the page before")]


def slice_page(items: Sequence[T], key: Callable[[T], str], *, limit: int, cursor: str | None) -> Page[T]:
    """At most `limit` of `items` (sorted by `key`) that come after `cursor`.

    Raises: InvalidInput naming the query's `cursor`.
    """
    left = list(items)
    if cursor is not None:
        after = _decode(cursor)
        left = [item for item in left if key(item) > after]
    page = left[:limit]
    more = len(left) > limit
    return Page(page, base64.urlsafe_b64encode(key(page[-1]).encode()).decode() if more else None)


def _decode(cursor: str) -> str:
    try:
        return base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError):
        raise InvalidInput(
            "The cursor is none that a page of this list gave.",
            field=("query", "cursor"),
            hint="Take `next_cursor` of the page before as it is.",
        ) from None
