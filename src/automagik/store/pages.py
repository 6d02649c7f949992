"""Pages of a list: newest first, by keyset, so that rows added meanwhile neither repeat nor hide any."""

import base64
import binascii
import json
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar, cast

from sqlalchemy import Column, ColumnElement, Connection, Row, Select, and_, or_

from automagik.errors import InvalidInput
from automagik.store.columns import Uid, UtcTime
from automagik.store.rows import Page
from automagik.types import utc_text

__all__ = ["fetch_page"]

T = TypeVar("T")

_LARGEST_KEY = 2**63 - 1


def fetch_page(
    connection: Connection,
    statement: Select[Any],
    key: Sequence[Column[Any]],
    make: Callable[[Row[Any]], T],
    *,
    limit: int,
    cursor: str | None,
) -> Page[T]:
    """At most `limit` rows of `statement` that come after `cursor`, in descending order of `key`, which it selects.

    Raises: InvalidInput naming the query's `cursor` when it is none that a page of this list gave.
    """
    if cursor is not None:
        statement = statement.where(_before(key, _decode(cursor, key)))
    statement = statement.order_by(*(column.desc() for column in key)).limit(limit + 1)
    records = connection.execute(statement).all()
    more = len(records) > limit
    records = records[:limit]
    return Page([make(record) for record in records], _encode(records[-1], key) if more else None)


def _before(key: Sequence[Column[Any]], values: Sequence[object]) -> ColumnElement[bool]:
    column, value = key[0], values[0]
    if len(key) == 1:
        return column < value
    return and_(column <= value, or_(column < value, _before(key[1:], values[1:])))


def _encode(record: Row[Any], key: Sequence[Column[Any]]) -> str:
    values = [_to_text(getattr(record, column.name)) for column in key]
    text = json.dumps(values, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _to_text(value: object) -> object:
    if isinstance(value, datetime):
        return utc_text(value)
    return str(value) if isinstance(value, uuid.UUID) else value


def _decode(cursor: str, key: Sequence[Column[Any]]) -> list[object]:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        values = json.loads(base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True))
        if not isinstance(values, list) or len(cast("list[object]", values)) != len(key):
            raise ValueError("not the key of this list")
        return [_from_text(value, column) for value, column in zip(cast("list[object]", values), key, strict=True)]
    except (ValueError, binascii.Error, UnicodeError, RecursionError) as wrong:
        raise InvalidInput(
            "The cursor is none that a page of this list gave.",
            field=("query", "cursor"),
            hint="Take `next_cursor` of the page before as it is; leave `cursor` out to begin with the newest.",
        ) from wrong


def _from_text(value: object, column: Column[Any]) -> object:
    if isinstance(column.type, UtcTime):
        moment = datetime.fromisoformat(str(value))
        if moment.tzinfo is None:
            raise ValueError("a moment without its zone")
        return moment
    if isinstance(column.type, Uid):
        return uuid.UUID(str(value))
    if issubclass(column.type.python_type, int):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _LARGEST_KEY:
            raise ValueError("not an id")
        return value
    if not isinstance(value, str) or "\x00" in value or not value.isprintable():
        raise ValueError("not an identifier")
    return value
