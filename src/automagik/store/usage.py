"""UsageRecords: tokens and money over time, from the runs that are kept, from the calls of those under way, and from what was
noted of runs that retention deleted."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal, cast, get_args

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Date,
    Float,
    Integer,
    Numeric,
    Row,
    Select,
    String,
    and_,
    case,
    false,
    func,
    literal,
    or_,
    select,
    text,
    union_all,
)
from sqlalchemy import cast as as_type
from sqlalchemy.dialects import postgresql, sqlite

from automagik.store import schema
from automagik.store.pages import fetch_page
from automagik.store.repository import Repository
from automagik.store.rows import Page

__all__ = [
    "DIMENSIONS",
    "WORKFLOW_AGENT",
    "Dimension",
    "UsageFilter",
    "UsageRecords",
    "UsageRow",
    "note_runs",
    "spent_since",
]

Dimension = Literal["day", "key", "user", "agent", "workflow"]
"""What usage can be told apart by."""
DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)

WORKFLOW_AGENT = "claude_code"
"""The agent that carries out every workflow."""

_runs = schema.runs
_calls = schema.model_calls
_days = schema.usage_days

_OPEN = text(f"runs.{schema.OPEN_RUNS}")
_COUNTS = (
    "runs",
    "requests",
    "tool_calls",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "cost_nano",
    "unpriced_runs",
)
_NANO = 1_000_000_000
_SKEW = timedelta(hours=1)
"""How far apart the time in a run's identifier and the time of its acceptance may be."""
_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"


@dataclass(frozen=True, slots=True)
class UsageFilter:
    """Which runs are meant: accepted from the day `since` to the day `until` (UTC), both included; None: any."""

    since: date
    until: date
    key_id: str | None = None
    user_id: uuid.UUID | None = None
    agent: str | None = None
    workflow: str | None = None


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What was used by one group. `by` has what it is told apart by; None where a run has none of it."""

    by: dict[Dimension, str | None] = field(default_factory=dict[Dimension, str | None])
    runs: int = 0
    requests: int = 0
    tool_calls: int = 0
    """Of runs that have ended."""
    input_tokens: int = 0
    """With those that were read from a cache or written to it."""
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cost_nano: int = 0
    """What is known of the cost."""
    unpriced_runs: int = 0
    """Runs whose cost is not known."""


class UsageRecords(Repository):
    """What was used. A run counts on the day on which it was accepted."""

    __slots__ = ()

    def groups(
        self, which: UsageFilter, by: Sequence[Dimension], *, limit: int = 50, cursor: str | None = None
    ) -> Page[UsageRow]:
        """What was used, for each combination of `by`, in descending order of these."""
        used = self._used(which).subquery()
        columns = [used.c[name] for name in by]
        sums = [func.sum(used.c[name]).label(name) for name in _COUNTS]
        grouped = select(*columns, *sums).group_by(*columns).subquery()
        key = [cast("Any", grouped.c[name]) for name in by]
        return fetch_page(
            self._connection, select(grouped), key, lambda record: _row(record, by), limit=limit, cursor=cursor
        )

    def total(self, which: UsageFilter) -> UsageRow:
        """What was used in all."""
        used = self._used(which).subquery()
        sums = [func.sum(used.c[name]).label(name) for name in _COUNTS]
        return _row(self._connection.execute(select(*sums)).one(), ())

    def _used(self, which: UsageFilter) -> Any:
        sqlite_used = self._connection.dialect.name == "sqlite"
        parts = [_of_runs(which, sqlite_used), _of_calls(which, sqlite_used), _of_days(which, sqlite_used)]
        return union_all(*parts)


def spent_since(connection: Connection, scope: str, scope_id: str, start: str) -> int:
    """What the runs of a budget's scope have cost in the period that begins with `start` (as `period_start` gives it)."""
    begins = date.fromisoformat(f"{start}-01"[:10]) if start else None
    is_sqlite = connection.dialect.name == "sqlite"
    mine = [*_scope_of_runs(scope, scope_id)]
    ended = [*mine] if begins is None else [*mine, *_accepted(begins, None)]
    of_runs = select(func.sum(_cost(is_sqlite)).label("nano")).where(*ended)
    under_way = [*mine, _OPEN] if begins is None else [*mine, _OPEN, _calls.c.created_at >= _midnight(begins)]
    of_calls = select(func.sum(_calls.c.cost_nano)).join(_runs, _runs.c.run_id == _calls.c.run_id).where(*under_way)
    gone = _scope_of_days(scope, scope_id)
    of_days = select(func.sum(_days.c.cost_nano)).where(*(gone if begins is None else [*gone, _days.c.day >= begins]))
    parts = union_all(of_runs, of_calls, of_days).subquery()
    return int(connection.scalar(select(func.sum(parts.c.nano))) or 0)


def note_runs(connection: Connection, run_ids: Sequence[str]) -> None:
    """Note what these runs used, by day, before they are deleted."""
    is_sqlite = connection.dialect.name == "sqlite"
    day = (
        func.date(_runs.c.created_at, type_=Date)
        if is_sqlite
        else as_type(func.timezone("UTC", _runs.c.created_at), Date)
    )
    user = func.coalesce(as_type(_runs.c.user_id, String), "")
    keys = [day.label("day"), func.coalesce(_runs.c.key_id, "").label("key_id"), user.label("user_id")]
    keys += [_runs.c.kind.label("kind"), _runs.c.name.label("name")]
    sums = [
        as_type(func.sum(value), BigInteger).label(name)
        for name, value in zip(_COUNTS, _counted(is_sqlite), strict=True)
    ]
    found = select(*keys, *sums).where(_runs.c.run_id.in_(run_ids)).group_by(*keys).order_by(*keys)
    dialect = sqlite if is_sqlite else postgresql
    noted = dialect.insert(_days).from_select([*(key.name for key in keys), *_COUNTS], found, include_defaults=False)
    added = {name: _days.c[name] + noted.excluded[name] for name in _COUNTS}
    connection.execute(noted.on_conflict_do_update(index_elements=[*_days.primary_key.columns], set_=added))


# -- the three sources, with the same columns


def _of_runs(which: UsageFilter, is_sqlite: bool) -> Select[Any]:
    wanted = _accepted(which.since, which.until)
    wanted += _named(which, _runs.c.key_id, _runs.c.user_id, _runs.c.kind, _runs.c.name)
    counts = [value.label(name) for name, value in zip(_COUNTS, _counted(is_sqlite), strict=True)]
    return select(*_dimensions_of_runs(is_sqlite), *counts).where(*wanted)


def _of_calls(which: UsageFilter, is_sqlite: bool) -> Select[Any]:
    """Of runs that have not ended: their rows have nothing yet."""
    wanted = [*_accepted(which.since, which.until), _OPEN]
    wanted += _named(which, _runs.c.key_id, _runs.c.user_id, _runs.c.kind, _runs.c.name)
    cached = _calls.c.cache_read_tokens + _calls.c.cache_write_tokens
    counts = (
        literal(0, Integer),
        literal(1, Integer),
        literal(0, Integer),
        _calls.c.input_tokens + cached,
        _calls.c.output_tokens,
        _calls.c.cache_read_tokens,
        _calls.c.cache_write_tokens,
        func.coalesce(_calls.c.cost_nano, 0),
        literal(0, Integer),
    )
    labelled = [value.label(name) for name, value in zip(_COUNTS, counts, strict=True)]
    joined = select(*_dimensions_of_runs(is_sqlite), *labelled).join(_calls, _calls.c.run_id == _runs.c.run_id)
    return joined.where(*wanted, _calls.c.outcome != "refused")


def _of_days(which: UsageFilter, is_sqlite: bool) -> Select[Any]:
    del is_sqlite
    wanted = [_days.c.day >= which.since, _days.c.day <= which.until]
    wanted += _named(which, _days.c.key_id, _days.c.user_id, _days.c.kind, _days.c.name)
    return select(
        as_type(_days.c.day, String).label("day"),
        _days.c.key_id.label("key"),
        _days.c.user_id.label("user"),
        *_agent_and_workflow(_days.c.kind, _days.c.name),
        *(_days.c[name] for name in _COUNTS),
    ).where(*wanted)


def _dimensions_of_runs(is_sqlite: bool) -> list[ColumnElement[Any]]:
    day = func.substr(_runs.c.created_at, 1, 10, type_=String)
    if not is_sqlite:
        day = func.to_char(func.timezone("UTC", _runs.c.created_at), "YYYY-MM-DD", type_=String)
    return [
        day.label("day"),
        func.coalesce(_runs.c.key_id, "").label("key"),
        func.coalesce(as_type(_runs.c.user_id, String), "").label("user"),
        *_agent_and_workflow(_runs.c.kind, _runs.c.name),
    ]


def _agent_and_workflow(kind: ColumnElement[Any], name: ColumnElement[Any]) -> list[ColumnElement[Any]]:
    return [
        case((kind == "workflow", WORKFLOW_AGENT), else_=name).label("agent"),
        case((kind == "workflow", name), else_="").label("workflow"),
    ]


def _counted(is_sqlite: bool) -> tuple[ColumnElement[Any], ...]:
    """What one run's row counts, in the order of `_COUNTS`."""
    unpriced = and_(_runs.c.cost_usd.is_(None), _runs.c.requests > 0)
    return (
        literal(1, Integer),
        _runs.c.requests,
        _runs.c.tool_calls,
        _runs.c.input_tokens,
        _runs.c.output_tokens,
        _runs.c.cache_read_tokens,
        _runs.c.cache_write_tokens,
        func.coalesce(_cost(is_sqlite), 0),
        case((unpriced, 1), else_=0),
    )


def _cost(is_sqlite: bool) -> ColumnElement[Any]:
    """A run's cost in nano-dollars. SQLite keeps it as text: a double is exact to a nano-dollar up to nine million dollars."""
    number = as_type(_runs.c.cost_usd, Float) if is_sqlite else as_type(_runs.c.cost_usd, Numeric)
    return as_type(func.round(number * _NANO), BigInteger)


# -- which


def _accepted(since: date, until: date | None) -> list[ColumnElement[bool]]:
    """Runs accepted from a day on, to another; the key, which sorts by time, narrows what is looked at."""
    begins = _midnight(since)
    conditions = [_runs.c.created_at >= begins, _runs.c.run_id >= _first_run(begins - _SKEW)]
    if until is not None:
        ends = _midnight(until) + timedelta(days=1)
        conditions += [_runs.c.created_at < ends, _runs.c.run_id < _first_run(ends + _SKEW)]
    return conditions


def _named(
    which: UsageFilter,
    key_id: ColumnElement[Any],
    user_id: ColumnElement[Any],
    kind: ColumnElement[Any],
    name: ColumnElement[Any],
) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if which.key_id is not None:
        conditions.append(key_id == which.key_id)
    if which.user_id is not None:
        conditions.append(user_id == (str(which.user_id) if user_id is _days.c.user_id else which.user_id))
    if which.agent is not None:
        conditions.append(_is_agent(which.agent, kind, name))
    if which.workflow is not None:
        conditions.append(and_(kind == "workflow", name == which.workflow))
    return conditions


def _is_agent(agent: str, kind: ColumnElement[Any], name: ColumnElement[Any]) -> ColumnElement[bool]:
    return kind == "workflow" if agent == WORKFLOW_AGENT else and_(kind != "workflow", name == agent)


def _scope_of_runs(scope: str, scope_id: str) -> list[ColumnElement[bool]]:
    match scope:
        case "organisation":
            return []
        case "key":
            return [_runs.c.key_id == scope_id]
        case "user":
            return [_runs.c.user_id == uuid.UUID(scope_id)]
        case "agent":  # a workflow's name is one, too
            both = or_(_runs.c.name == scope_id, _is_agent(scope_id, _runs.c.kind, _runs.c.name))
            return [both]
        case "epic":
            return [_runs.c.parent_id == scope_id]
        case _:
            return [_runs.c.run_id == scope_id]


def _scope_of_days(scope: str, scope_id: str) -> list[ColumnElement[bool]]:
    match scope:
        case "organisation":
            return []
        case "key":
            return [_days.c.key_id == scope_id]
        case "user":
            return [_days.c.user_id == scope_id]
        case "agent":
            return [or_(_days.c.name == scope_id, _is_agent(scope_id, _days.c.kind, _days.c.name))]
        case _:  # what a day used is not kept by epic or run
            return [false()]


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _first_run(moment: datetime) -> str:
    """The least identifier that a run has from `moment` on."""
    value = int(moment.timestamp() * 1000) << 80
    return f"run_{''.join(_DIGITS[(value >> shift) & 31] for shift in range(125, -1, -5))}"


def _row(record: Row[Any], by: Sequence[Dimension]) -> UsageRow:
    counts = {name: int(getattr(record, name) or 0) for name in _COUNTS}
    return UsageRow(by={name: getattr(record, name) or None for name in by}, **counts)
