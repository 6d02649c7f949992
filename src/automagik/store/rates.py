"""RateCounters: how often each key asked in the time window under way, counted over all processes."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, func, text
from sqlalchemy.dialects import sqlite

from automagik.store import schema
from automagik.store.repository import Repository

__all__ = ["RateCounters", "RateWindow"]

_counters = schema.rate_counters

_KEPT = timedelta(minutes=1)
"""How long a counter outlives its window."""


@dataclass(frozen=True, slots=True)
class RateWindow:
    """The window under way: its hits, with those that were just counted, and how many seconds it has left."""

    hits: int
    seconds_left: float


class RateCounters(Repository):
    """The rate_counters table. Windows begin at multiples of their length since 1970, by the database's clock."""

    __slots__ = ()

    def hit(self, name: str, period_seconds: int, hits: int = 1) -> RateWindow:
        """Count `hits` of `name` in the window of `period_seconds` under way.

        A counter is worth no wait for the disk: on PostgreSQL its transaction does not wait for the log to be written.
        """
        parameters = {"name": name, "period": period_seconds, "hits": hits, "kept": _KEPT}
        if self._connection.dialect.name == "postgresql":
            record = self._connection.execute(_HIT, parameters).one()
            return RateWindow(record.hits, float(record.seconds_left))
        now = self._now.timestamp()
        start = int(now // period_seconds) * period_seconds
        counted = sqlite.insert(_counters).values(
            name=name,
            window_start=start,
            hits=hits,
            expires_at=datetime.fromtimestamp(start + period_seconds, UTC) + _KEPT,
        )
        counted = counted.on_conflict_do_update(
            index_elements=("name", "window_start"), set_={"hits": _counters.c.hits + hits}
        )
        total = self._connection.execute(counted.returning(_counters.c.hits)).scalar_one()
        return RateWindow(total, start + period_seconds - now)

    def forget_expired(self) -> int:
        """Delete the counters of windows that are over; how many there were."""
        now = func.clock_timestamp() if self._connection.dialect.name == "postgresql" else self._now
        return self._connection.execute(delete(_counters).where(_counters.c.expires_at < now)).rowcount


_HIT = text(
    """
    INSERT INTO rate_counters AS counter (name, window_start, hits, expires_at)
    SELECT :name, w.start, CAST(:hits AS integer), to_timestamp(w.start + :period) + CAST(:kept AS interval)
    FROM (
      SELECT CAST(floor(extract(epoch FROM clock_timestamp()) / CAST(:period AS integer)) AS bigint) * :period AS start
    ) w
    ON CONFLICT (name, window_start) DO UPDATE SET hits = counter.hits + excluded.hits
    RETURNING hits, window_start + :period - extract(epoch FROM clock_timestamp()) AS seconds_left,
      set_config('synchronous_commit', 'off', true)
    """
)
