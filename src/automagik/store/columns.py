"""Column types that mean the same on SQLite and PostgreSQL: UTC time, UUID, JSON, text that both can carry, money."""

import json
import re
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import CHAR, Dialect, LargeBinary, Numeric, Text
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType

from automagik.errors import InvalidInput
from automagik.types import Json, utc_text

__all__ = [
    "Bytes",
    "CleanText",
    "Identifier",
    "JsonText",
    "JsonValue",
    "Money",
    "SafeText",
    "Uid",
    "UtcTime",
    "clean",
    "storable",
]

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def clean(text: str) -> str:
    """`text` with U+FFFD for each NUL and lone surrogate, which no database can carry."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text) if not text.isascii() or "\x00" in text else text


def storable(text: str, *, field: Sequence[str | int] = ("body",)) -> str:
    """`text` itself, where every database can carry it.

    Raises: InvalidInput naming `field` for a NUL or a lone surrogate.
    """
    found = None if text.isascii() and "\x00" not in text else _UNSTORABLE.search(text)
    if found is not None:
        raise InvalidInput(
            f"The text has a character that can't be stored (U+{ord(found.group()):04X}, position {found.start()}).",
            field=field,
            hint="Remove it; surrogates stand only in pairs.",
        )
    return text


class SafeText(TypeDecorator[str]):
    """Text that a caller gave: a NUL or lone surrogate is refused, also in a filter.

    Raises: InvalidInput when such a text is bound.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else storable(value)


class Identifier(SafeText):
    """A public identifier; compared byte by byte, so that it sorts by time under every locale."""

    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Text(collation="C") if dialect.name == "postgresql" else Text())


class CleanText(TypeDecorator[str]):
    """Text that a model or tool wrote: it is kept, with U+FFFD for what no database can carry."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else clean(value)


class UtcTime(TypeDecorator[datetime]):
    """A moment: `TIMESTAMPTZ` on PostgreSQL, RFC 3339 text of fixed width (so it sorts) on SQLite."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.TIMESTAMP(timezone=True))
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        return value if value is None or dialect.name == "postgresql" else utc_text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment: datetime = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        return moment.astimezone(UTC)


class Uid(TypeDecorator[uuid.UUID]):
    """A UUID: native on PostgreSQL, its 36 characters on SQLite."""

    impl = CHAR(36)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(postgresql.UUID() if dialect.name == "postgresql" else CHAR(36))

    def process_bind_param(self, value: uuid.UUID | None, dialect: Dialect) -> Any:
        return value if value is None or dialect.name == "postgresql" else str(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> uuid.UUID | None:
        return value if value is None or isinstance(value, uuid.UUID) else uuid.UUID(value)


class JsonText(UserDefinedType[str]):
    """A `JSON` column that is read and written as the text it is. JSON and not JSONB: `\\u0000` must survive."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "JSON"


class JsonValue(TypeDecorator[Json]):
    """A `JSON` column that is read and written as a value. None is SQL's NULL."""

    impl = JsonText
    cache_ok = True

    def process_bind_param(self, value: Json, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, allow_nan=False, separators=(",", ":"))

    def process_result_value(self, value: Any, dialect: Dialect) -> Json:
        return None if value is None else json.loads(value)


class Money(TypeDecorator[Decimal]):
    """US dollars, exact: `NUMERIC` on PostgreSQL, decimal text on SQLite."""

    impl = Numeric(20, 10)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(Numeric(20, 10) if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Any:
        return value if value is None or dialect.name == "postgresql" else f"{value:f}"

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        return None if value is None else Decimal(value)


class Bytes(TypeDecorator[bytes]):
    """Bytes as they are."""

    impl = LargeBinary
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> bytes | None:
        return None if value is None else bytes(value)
