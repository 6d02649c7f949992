"""When a cron expression comes, in zones whose clocks jump, stand still and go back."""

import random
from bisect import bisect_right
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import pytest

from automagik.errors import InvalidInput
from automagik.runs.cron import CronTimes

MINUTE = timedelta(minutes=1)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def times(cron: str, zone: str, since: str, count: int) -> list[str]:
    """The local times, with their offsets, of the next `count` firings after a moment in UTC."""
    cron_times = CronTimes(cron, zone)
    moment: datetime | None = utc(since)
    found: list[str] = []
    for _ in range(count):
        assert moment is not None
        moment = cron_times.after(moment)
        assert moment is not None
        found.append(cron_times.local(moment).isoformat(timespec="seconds"))
    return found


@pytest.mark.parametrize(
    ("cron", "since", "expected"),
    [
        ("0 9 * * mon-fri", "2026-11-27T09:00", ["2026-11-30T09:00:00+00:00", "2026-12-01T09:00:00+00:00"]),
        ("*/20 * * * *", "2026-11-27T09:00", ["2026-11-27T09:20:00+00:00", "2026-11-27T09:40:00+00:00"]),
        ("*/20 10 5 6 * *", "2026-01-01T00:00", ["2026-01-06T05:10:00+00:00", "2026-01-06T05:10:20+00:00"]),
        ("@hourly", "2026-11-27T09:30", ["2026-11-27T10:00:00+00:00", "2026-11-27T11:00:00+00:00"]),
        ("@weekly", "2026-11-27T09:30", ["2026-11-29T00:00:00+00:00", "2026-12-06T00:00:00+00:00"]),
        ("0 0 1 * mon", "2026-11-27T00:00", ["2026-11-30T00:00:00+00:00", "2026-12-01T00:00:00+00:00"]),
        ("0 0 l * *", "2027-01-31T00:00", ["2027-02-28T00:00:00+00:00", "2027-03-31T00:00:00+00:00"]),
        ("0 0 * * fri#2", "2026-11-27T00:00", ["2026-12-11T00:00:00+00:00", "2027-01-08T00:00:00+00:00"]),
        ("0 0 29 2 *", "2026-11-27T00:00", ["2028-02-29T00:00:00+00:00", "2032-02-29T00:00:00+00:00"]),
    ],
)
def test_an_expression_names_its_times(cron: str, since: str, expected: list[str]) -> None:
    assert times(cron, "UTC", since, len(expected)) == expected


@pytest.mark.parametrize(
    ("cron", "zone", "since", "expected"),
    [
        # 29 March 2026: 02:00 becomes 03:00.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T02:00", ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]),
        ("0,30 2 * * *", "Europe/Berlin", "2026-03-28T02:00", ["2026-03-29T03:00:00+02:00", "2026-03-30T02:00:00+02:00"]),
        ("0 2,3 * * *", "Europe/Berlin", "2026-03-28T12:00", ["2026-03-29T03:00:00+02:00", "2026-03-30T02:00:00+02:00"]),
        ("30 * * * *", "Europe/Berlin", "2026-03-29T00:00", ["2026-03-29T01:30:00+01:00", "2026-03-29T03:30:00+02:00"]),
        # 25 October 2026: 03:00 becomes 02:00.
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]),
        ("30 * * * *", "Europe/Berlin", "2026-10-25T00:00",
         ["2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00", "2026-10-25T03:30:00+01:00"]),
        # Lord Howe, half an hour: 4 October 2026, 02:00 becomes 02:30; 5 April 2026, 02:00 becomes 01:30.
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00",
         ["2026-10-04T02:30:00+11:00", "2026-10-05T02:15:00+11:00"]),
        ("*/15 * * * *", "Australia/Lord_Howe", "2026-10-03T15:16",
         ["2026-10-04T02:30:00+11:00", "2026-10-04T02:45:00+11:00"]),
        ("45 1 * * *", "Australia/Lord_Howe", "2026-04-04T12:00",
         ["2026-04-05T01:45:00+11:00", "2026-04-06T01:45:00+10:30"]),
        ("*/15 * * * *", "Australia/Lord_Howe", "2026-04-04T14:30",
         ["2026-04-05T01:45:00+11:00", "2026-04-05T01:30:00+10:30", "2026-04-05T01:45:00+10:30"]),
    ],
)  # fmt: skip
def test_a_named_hour_comes_once_whatever_the_clocks_do(cron: str, zone: str, since: str, expected: list[str]) -> None:
    assert times(cron, zone, since, len(expected)) == expected


# -- the same by another way: a walk over the minutes

CRONS = {
    "30 2 * * *": ({30}, {2}),
    "*/15 2 * * *": ({0, 15, 30, 45}, {2}),
    "0 2,3 * * *": ({0}, {2, 3}),
    "*/20 * * * *": ({0, 20, 40}, None),
    "0 * * * *": ({0}, None),
    "45 1 * * *": ({45}, {1}),
    "15,45 1-2 * * *": ({15, 45}, {1, 2}),
    "10 */2 * * *": ({10}, set(range(0, 24, 2))),
    "0 0 * * *": ({0}, {0}),
    "59 23 * * *": ({59}, {23}),
}
CHANGES = [
    ("Europe/Berlin", "2026-03-29"),
    ("Europe/Berlin", "2026-10-25"),
    ("Europe/Dublin", "2026-10-25"),
    ("America/New_York", "2026-11-01"),
    ("America/Santiago", "2026-09-06"),
    ("Australia/Lord_Howe", "2026-04-05"),
    ("Australia/Lord_Howe", "2026-10-04"),
    ("Antarctica/Troll", "2026-03-29"),
    ("Antarctica/Troll", "2026-10-25"),
    ("Africa/Casablanca", "2026-02-15"),
    ("Pacific/Apia", "2011-12-30"),
    ("UTC", "2026-11-01"),
]


@cache
def shown_by_clocks(zone: str, begin: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    """Every minute, with what the local clock shows then."""
    local = ZoneInfo(zone)
    moments = [begin + MINUTE * n for n in range(int((end - begin) / MINUTE))]
    return [(moment, moment.astimezone(local).replace(tzinfo=None)) for moment in moments]


def walked(minutes: set[int], hours: set[int] | None, zone: str, begin: datetime, end: datetime) -> Iterator[datetime]:
    """Minute by minute: where the local clock shows the time, or (for named hours) first gets to it or past it."""
    reached = (begin - MINUTE).astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    for moment, shown in shown_by_clocks(zone, begin, end):
        if hours is None:
            if shown.minute in minutes:
                yield moment
        else:
            passed = [reached + MINUTE * n for n in range(1, int((shown - reached) / MINUTE) + 1)]
            if any(local.minute in minutes and local.hour in hours for local in passed):
                yield moment
            reached = max(reached, shown)


@pytest.mark.parametrize(("zone", "day"), CHANGES)
@pytest.mark.parametrize("cron", CRONS)
def test_times_are_those_of_a_walk_over_the_minutes(cron: str, zone: str, day: str) -> None:
    begin, end = utc(f"{day}T00:00") - timedelta(days=2), utc(f"{day}T00:00") + timedelta(days=2)
    expected = list(walked(*CRONS[cron], zone, begin, end))
    cron_times = CronTimes(cron, zone)
    found: list[datetime] = []
    moment = cron_times.after(begin - timedelta(microseconds=1))
    while moment is not None and moment < end:
        found.append(moment)
        moment = cron_times.after(moment)
    assert found == expected
    moment = expected[0]
    while moment < end:
        later = bisect_right(expected, moment)
        assert cron_times.until(moment) == expected[later - 1]
        if later < len(expected):
            assert cron_times.after(moment) == expected[later]
        moment += timedelta(minutes=17, seconds=13)


def test_seconds_go_on_through_a_change() -> None:
    cron_times = CronTimes("* * * * * *", "Europe/Berlin")
    moment = utc("2026-10-25T00:59:57")
    for second in range(1, 8):
        assert cron_times.after(moment + timedelta(seconds=second - 1)) == moment + timedelta(seconds=second)
        assert cron_times.until(moment + timedelta(seconds=second, microseconds=3)) == moment + timedelta(
            seconds=second
        )


WRONG = [
    ("", "no cron expression"),
    ("* * * *", "no cron expression"),
    ("* * * * * * *", "no cron expression"),
    ("61 * * * *", "'61' names no minute"),
    ("* 24 * * *", "'24' names no hour"),
    ("* * 0 * *", "'0' names no day of the month"),
    ("* * * foo *", "'foo' names no month"),
    ("* * * * mon-foo", "'mon-foo' names no day of the week"),
    ("60 * * * * *", "'60' names no second"),
    ("*/0 * * * *", r"'\*/0' names no minute"),
    ("R * * * *", "'r' names no minute"),
    ("H(0-5) * * * *", "no cron expression"),
    ("h/15 * * * *", "'h/15' names no minute"),
    ("5-5 * * * *", "write '5'"),
    ("@reboot", "There is no '@reboot'"),
    ("0 0 * * mon#2,tue", "names no day of the week"),
    ("\u0661 * * * *", "no cron expression"),
]


@pytest.mark.parametrize(("cron", "detail"), WRONG)
def test_what_is_no_expression_is_refused_by_its_field(cron: str, detail: str) -> None:
    with pytest.raises(InvalidInput, match=detail) as refused:
        CronTimes(cron, "UTC")
    assert refused.value.field == ("body", "cron")
    assert "@daily" in (refused.value.hint or "")


@pytest.mark.parametrize(
    ("zone", "hint"),
    [
        ("Europe/Berlim", "Did you mean 'Europe/Berlin'?"),
        ("europe/berlin", "Did you mean 'Europe/Berlin'?"),
        ("utc", "Did you mean 'UTC'?"),
        ("../../etc/passwd", "Use an IANA name, as 'Europe/Berlin' or 'UTC'."),
        ("localtime", None),
        ("", "Use an IANA name, as 'Europe/Berlin' or 'UTC'."),
    ],
)
def test_a_wrong_time_zone_names_the_nearest(zone: str, hint: str | None) -> None:
    with pytest.raises(InvalidInput) as refused:
        CronTimes("* * * * *", zone)
    assert refused.value.field == ("body", "time_zone")
    if hint is not None:
        assert refused.value.hint == hint


@pytest.mark.parametrize("cron", ["0 0 30 2 *", "0 0 31 4,6 *"])
def test_a_day_that_is_in_no_month_never_comes(cron: str) -> None:
    assert CronTimes(cron, "Europe/Berlin").after(utc("2026-01-01T00:00")) is None
    assert CronTimes(cron, "Europe/Berlin").until(utc("2026-01-01T00:00")) is None


def test_whatever_is_written_is_understood_or_refused() -> None:
    chance = random.Random(4)
    parts = (
        *(
            "*",
            "*",
            "*/5",
            "1",
            "2",
            "5",
            "7",
            "0",
            "1-5",
            "1,3",
            "22-2",
            "l",
            "mon",
            "fri",
            "jan",
            "15w",
            "mon#2",
            "l5",
        ),
        *("?", "5/7", "12", "dec/3", "sat-sun", "59", "6-3/2", "l3", "31", "29", "@", "r", "h/2", "-1"),
    )
    understood = 0
    for _ in range(6000):
        cron = " ".join(chance.choice(parts) for _ in range(chance.choice((5, 5, 6))))
        try:
            cron_times = CronTimes(cron, "Europe/Berlin")
        except InvalidInput:
            continue
        moment = utc("2026-03-28T23:59:59")
        following = cron_times.after(moment)
        if following is not None:
            assert following > moment
            assert cron_times.until(following) == following, cron
            understood += 1
    assert understood > 100
