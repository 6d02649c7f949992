"""Amounts of money as people and programs read them."""

import re
from decimal import Decimal

from automagik.store.reservations import Limit
from automagik.types import JsonObject

__all__ = ["dollars", "limit_document", "parse_usd", "period_words", "scope_words", "usd_text"]

_NANO_DIGITS = 9
_USD = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")

_PERIODS = {"day": "today", "month": "this month", "total": "in all"}


def usd_text(nano: int) -> str:
    """Nano-dollars as on the wire: US dollars with six digits behind the point, or as many as it takes, up to nine."""
    sign, digits = ("-", str(-nano)) if nano < 0 else ("", str(nano))
    digits = digits.rjust(_NANO_DIGITS + 1, "0")
    whole, part = digits[:-_NANO_DIGITS], digits[-_NANO_DIGITS:].rstrip("0")
    return f"{sign}{whole}.{part.ljust(6, '0')}"


def parse_usd(text: str) -> int | None:
    """The nano-dollars of an amount like `25` or `0.5`; None for what is none, or has more than nine digits on a side."""
    return int(Decimal(text).scaleb(_NANO_DIGITS)) if _USD.fullmatch(text) else None


def dollars(nano: int) -> str:
    """Nano-dollars in a sentence: to the cent, or to the first two digits of less."""
    usd = Decimal(nano).scaleb(-_NANO_DIGITS)
    if nano == 0 or abs(usd) >= Decimal("0.1"):
        return f"${usd:.2f}"
    return f"${usd:.2g}" if abs(usd) >= Decimal("0.0001") else f"${usd:.9f}".rstrip("0")


def scope_words(scope: str, scope_id: str) -> str:
    """Whom a budget limits, in a sentence."""
    return "the organisation" if scope == "organisation" else f"the {scope} '{scope_id}'"


def period_words(period: str) -> str:
    """The period of a budget, in a sentence."""
    return _PERIODS[period]


def limit_document(limit: Limit) -> JsonObject:
    """A budget as it stands, as in the event `budget_warning`."""
    soft = limit.soft_limit_nano
    return {
        "budget_id": limit.budget_id,
        "scope": limit.scope,
        "scope_id": limit.scope_id or None,
        "period": limit.period,
        "period_start": limit.period_start or None,
        "limit_usd": usd_text(limit.limit_nano),
        "soft_limit_usd": usd_text(soft) if soft is not None else None,
        "spent_usd": usd_text(limit.spent_nano),
        "reserved_usd": usd_text(limit.reserved_nano),
    }
