"""The tables of money: limits, what counts against them, what is reserved, what was called, what each day used.

Amounts are whole billionths of a US dollar (`…_nano`), so that both databases add and compare them exactly.
"""

from sqlalchemy import BigInteger, Boolean, Column, Date, ForeignKey, Index, Integer, Table, UniqueConstraint, text

from automagik.store.columns import Identifier, JsonValue, SafeText, Uid, UtcTime
from automagik.store.schema.base import created_column, metadata, updated_column

__all__ = ["budget_counters", "budgets", "model_calls", "reservations", "usage_days"]

budgets = Table(
    "budgets",
    metadata,
    Column("budget_id", Identifier, primary_key=True),
    # Whom it limits: organisation, key, user, agent, epic or run; `scope_id` names it, empty for the organisation.
    Column("scope", SafeText, nullable=False),
    Column("scope_id", Identifier, nullable=False),
    Column("period", SafeText, nullable=False),  # day, month or total
    Column("limit_nano", BigInteger, nullable=False),
    Column("soft_limit_nano", BigInteger),
    Column("key_id", Identifier),
    Column("revision", Integer, nullable=False),
    created_column(),
    updated_column(),
    UniqueConstraint("scope", "scope_id", "period"),
)

budget_counters = Table(
    "budget_counters",
    metadata,
    Column("budget_id", Identifier, ForeignKey("budgets.budget_id", ondelete="CASCADE"), primary_key=True),
    # `2026-11-28`, `2026-11`, or empty where all time counts; in UTC.
    Column("period_start", Identifier, primary_key=True),
    Column("spent_nano", BigInteger, nullable=False),
    Column("reserved_nano", BigInteger, nullable=False),
    # Whether it was told that the soft limit is passed.
    Column("warned", Boolean, nullable=False),
)

reservations = Table(
    "reservations",
    metadata,
    Column("reservation_id", Identifier, primary_key=True),
    Column("run_id", Identifier),
    Column("owner", Identifier, nullable=False),  # the executor that makes the call
    Column("amount_nano", BigInteger, nullable=False),
    # What it counts in: pairs of a budget's id and the start of its period.
    Column("counters", JsonValue, nullable=False),
    created_column(),
    Column("expires_at", UtcTime, nullable=False),
    # What the call is, for the row of one whose process died.
    Column("key_id", Identifier),
    Column("user_id", Uid),
    Column("wire", SafeText),
    Column("model", SafeText),
    Column("agent", SafeText),
    # Pairs of scope and whom it names: a budget that was set meanwhile counts the call, too.
    Column("scopes", JsonValue),
    Column("priced", Boolean),  # false: what it can cost is not known, and `amount_nano` is 0
    Index(None, "expires_at"),
    Index(None, "owner"),
    Index(None, "run_id"),
)

model_calls = Table(
    "model_calls",
    metadata,
    Column("call_id", Identifier, primary_key=True),
    Column("run_id", Identifier),
    Column("key_id", Identifier),
    Column("user_id", Uid),
    Column("wire", SafeText, nullable=False),  # anthropic or openai
    Column("model", SafeText, nullable=False),
    Column("status", Integer),  # HTTP, as the caller got it; NULL: cut before there was one
    Column("outcome", SafeText, nullable=False),  # completed, failed, refused or cut
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cache_read_tokens", BigInteger, nullable=False),
    Column("cache_write_tokens", BigInteger, nullable=False),
    Column("cost_nano", BigInteger),  # NULL: no price is known
    Column("reserved_nano", BigInteger, nullable=False),
    Column("first_byte_ms", Integer),
    Column("duration_ms", Integer, nullable=False),
    created_column(),
    Column("agent", SafeText),  # the agent's or workflow's name
    Column("over_reservation", Boolean),  # it cost more than was reserved for it
    Index(None, "run_id", "call_id"),
)

usage_days = Table(
    "usage_days",
    metadata,
    # What runs used that are not kept any more, by the day they were accepted; a run that is kept counts by its own row.
    Column("day", Date, primary_key=True),
    Column("key_id", Identifier, primary_key=True, server_default=text("''")),
    Column("user_id", Identifier, primary_key=True, server_default=text("''")),
    Column("kind", SafeText, primary_key=True),
    Column("name", SafeText, primary_key=True),
    Column("runs", Integer, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cache_read_tokens", BigInteger, nullable=False),
    Column("cache_write_tokens", BigInteger, nullable=False),
    Column("cost_nano", BigInteger, nullable=False),
    Column("unpriced_runs", Integer, nullable=False),
    Column("tool_calls", BigInteger, nullable=False, server_default=text("0")),
)
