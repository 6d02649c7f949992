"""CronTimes: the moments that a cron expression names in a time zone, each once, whatever the clocks do there."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import cast
from zoneinfo import ZoneInfo, available_timezones

from croniter import CroniterBadDateError, CroniterError, croniter

from automagik.errors import InvalidInput, nearest

__all__ = ["CronTimes"]

_FIELDS = ("second", "minute", "hour", "day of the month", "month", "day of the week")
_ALIASES = ("@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually")
_HINT = (
    "Five fields, minute hour day month weekday, as '0 9 * * mon-fri'; six with seconds before them; "
    f"or {', '.join(_ALIASES[:-1])} or {_ALIASES[-1]}."
)
_CHARACTERS = re.compile(r"[A-Za-z0-9*/,#? @-]+")
_RANDOM = re.compile(r"[hr]\b|[hr]\(", re.IGNORECASE)
"""croniter's `H` and `R`: a time that depends on a name or on chance, on each host another."""
_EQUAL_RANGE = re.compile(r"(?:^|,)(\w+)-\1(?=$|[,/])", re.IGNORECASE)
"""`5-5`, which croniter takes for the whole field."""
_YEARS = 12
"""How far a time is looked for: 29 February is 8 years away at the most, and days that never come take 0.1 s to be sure of."""
_INSTANT = timedelta(microseconds=1)
_SECOND = timedelta(seconds=1)


class CronTimes:
    """The times of `cron` (5 fields, 6 with seconds before them, or an alias) in `time_zone`, an IANA name.

    An expression that names its hours fires once for each local time: one that the clocks skip fires when they jump, one
    that they repeat fires the first time. One for every hour follows the local clock as it runs: a skipped time is left
    out, a repeated one comes twice. A month's day and a weekday that are both given mean either.
    """

    def __init__(self, cron: str, time_zone: str) -> None:
        """Raises: InvalidInput naming the body's `cron` or `time_zone`."""
        self._zone = _zone(time_zone)
        self._cron = _parsed(cron)
        hours = cast("list[object]", self._cron.expanded[1])
        self._is_every_hour = hours == ["*"]

    def after(self, moment: datetime) -> datetime | None:
        """The first time after `moment`, in UTC; None where none comes within 12 years."""
        return self._next_passing(moment) if self._is_every_hour else self._next_once(moment)

    def until(self, moment: datetime) -> datetime | None:
        """The last time up to `moment`, itself included, in UTC; None where none was within 12 years."""
        return self._last_passing(moment) if self._is_every_hour else self._last_once(moment)

    def local(self, moment: datetime) -> datetime:
        """The moment as the zone's clocks show it."""
        return moment.astimezone(self._zone)

    # -- an expression that names its hours: each local time once

    def _next_once(self, moment: datetime) -> datetime | None:
        named = self._named_after(self._reached(moment))
        return None if named is None else self._first_moment(named)

    def _last_once(self, moment: datetime) -> datetime | None:
        named = self._named_before(self._reached(moment) + _INSTANT)
        return None if named is None else self._first_moment(named)

    def _reached(self, moment: datetime) -> datetime:
        """The latest local time that the clocks have shown up to `moment`."""
        local = self.local(moment)
        if local.fold == 0:
            return local.replace(tzinfo=None)
        change, before, _ = self._repeat_of(local)
        return _naive(change + before) - _INSTANT

    def _first_moment(self, named: datetime) -> datetime:
        """When the clocks first show the local time, or first one that is later."""
        moments = self._moments(named)
        return moments[0] if moments else self._gap_at(named)[0]

    # -- an expression for every hour: the local clock as it runs

    def _next_passing(self, moment: datetime) -> datetime | None:
        local = self.local(moment)
        named = self._named_after(local.replace(tzinfo=None))
        if local.fold == 0 and _is_repeated(local):
            change, before, after = self._repeat_of(local)
            if named is None or _utc(named - before) >= change:  # nothing more before the clocks go back
                named = self._named_after(_naive(change + after) - _INSTANT)
        while named is not None:
            for candidate in self._moments(named):
                if candidate > moment:
                    return candidate
            change, _, after = self._gap_at(named)
            named = self._named_after(_naive(change + after) - _INSTANT)
        return None

    def _last_passing(self, moment: datetime) -> datetime | None:
        local = self.local(moment)
        named = self._named_before(local.replace(tzinfo=None, fold=0) + _INSTANT)
        if local.fold == 1:
            change, before, after = self._repeat_of(local)
            if named is None or named < _naive(change + after):  # nothing since the clocks went back
                named = self._named_before(_naive(change + before))
        while named is not None:
            for candidate in reversed(self._moments(named)):
                if candidate <= moment:
                    return candidate
            change, before, _ = self._gap_at(named)
            named = self._named_before(_naive(change + before))
        return None

    # -- local times

    def _named_after(self, local: datetime) -> datetime | None:
        """The first local time after `local` that the expression names, whether the clocks show it or not."""
        try:
            return self._cron.get_next(datetime, start_time=local)
        except CroniterBadDateError:
            return None

    def _named_before(self, local: datetime) -> datetime | None:
        try:
            return self._cron.get_prev(datetime, start_time=local)
        except CroniterBadDateError:
            return None

    def _moments(self, named: datetime) -> list[datetime]:
        """When the clocks show the local time: once, twice, or never."""
        shown: list[datetime] = []
        for fold in (0, 1):
            moment = named.replace(tzinfo=self._zone, fold=fold).astimezone(UTC)
            if moment not in shown and moment.astimezone(self._zone).replace(tzinfo=None, fold=0) == named:
                shown.append(moment)
        return shown

    def _gap_at(self, named: datetime) -> tuple[datetime, timedelta, timedelta]:
        """When the clocks jump over the local time, and their offsets before and after."""
        before, after = (_offset(named.replace(tzinfo=self._zone, fold=fold)) for fold in (0, 1))
        return self._change(_utc(named - after), _utc(named - before)), before, after

    def _repeat_of(self, local: datetime) -> tuple[datetime, timedelta, timedelta]:
        """When the clocks go back to show `local` twice, and their offsets before and after."""
        before, after = (_offset(local.replace(fold=fold)) for fold in (0, 1))
        shown = local.astimezone(UTC).replace(microsecond=0)
        passes = before - after
        earliest = shown - passes if local.fold else shown
        return self._change(earliest, earliest + passes), before, after

    def _change(self, low: datetime, high: datetime) -> datetime:
        """The second in (low, high] at which the clocks change."""
        changed = _offset(self.local(high))
        while high - low > _SECOND:
            middle = low + timedelta(seconds=(high - low) // _SECOND // 2)
            if _offset(self.local(middle)) == changed:
                high = middle
            else:
                low = middle
        return high


def _utc(naive: datetime) -> datetime:
    return naive.replace(tzinfo=UTC)


def _naive(moment: datetime) -> datetime:
    return moment.replace(tzinfo=None)


def _offset(local: datetime) -> timedelta:
    return cast("timedelta", local.utcoffset())


def _is_repeated(local: datetime) -> bool:
    """Whether the clocks show the local time twice; `local` was made from a moment, so they show it once at least."""
    return _offset(local.replace(fold=0)) != _offset(local.replace(fold=1))


@cache
def _zones() -> dict[str, str]:
    """The names of all zones, by their lower case."""
    return {name.lower(): name for name in available_timezones() if name not in {"localtime", "Factory"}}


def _zone(name: str) -> ZoneInfo:
    if _zones().get(name.lower()) == name:
        return ZoneInfo(name)
    close = nearest(name, _zones())
    hint = f"Did you mean '{_zones()[close]}'?" if close else "Use an IANA name, as 'Europe/Berlin' or 'UTC'."
    raise InvalidInput(f"There is no time zone '{name}'.", field=("body", "time_zone"), hint=hint)


def _parsed(cron: str) -> croniter:
    text = cron.strip().lower()
    fields = text.split()
    if text.startswith("@"):
        if text not in _ALIASES:
            raise _refused(f"There is no '{cron.strip()}'.")
        fields = []
    elif len(fields) not in {5, 6} or _CHARACTERS.fullmatch(text) is None:
        raise _refused(f"'{cron}' is no cron expression.")
    for field in fields:
        equal = _EQUAL_RANGE.search(field)
        if equal is not None:
            raise _refused(f"The range '{equal[1]}-{equal[1]}' is one value; write '{equal[1]}'.")
    try:
        if any(_RANDOM.search(field) for field in fields):
            raise CroniterError("not the same on every host")
        return croniter(text, 0.0, second_at_beginning=True, max_years_between_matches=_YEARS)
    except CroniterError as wrong:
        raise _refused(_culprit(fields) or f"'{cron}' is no cron expression: {wrong}.") from wrong


def _culprit(fields: Sequence[str]) -> str | None:
    """Which field names nothing, taken by itself."""
    for place, (name, field) in enumerate(
        zip(_FIELDS[-len(fields) :], fields, strict=False), len(_FIELDS) - len(fields)
    ):
        alone = " ".join(field if index == place else "*" for index in range(len(_FIELDS)))
        if _RANDOM.search(field) or not croniter.is_valid(alone, second_at_beginning=True):
            return f"'{field}' names no {name}."
    return None


def _refused(detail: str) -> InvalidInput:
    return InvalidInput(detail, field=("body", "cron"), hint=_HINT)
