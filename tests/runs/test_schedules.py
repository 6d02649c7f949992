"""Schedules fire each time once, in the name of their keys; what was missed is handled as configured."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, cast

import pytest
from run_house import AGENTS

from automagik.app import Platform
from automagik.errors import (
    InvalidInput,
    MissingScope,
    NotFound,
    OverrideNotAllowed,
    PreconditionFailed,
    RateLimited,
    TooLarge,
)
from automagik.runs import RunRequest, Scheduler
from automagik.runs.schedules import MISSED, Missed
from automagik.store.rows import RunRow, ScheduleRow
from automagik.testing.postgres import PostgresServer
from automagik.testing.stores import fresh_settings
from automagik.types import SYSTEM, Caller, SystemClock

pytestmark = pytest.mark.anyio

HOUR = timedelta(hours=1)
ASK = RunRequest("echo", "report!")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@dataclass
class TurnedClock:
    """A clock that goes only when it is turned; the monotonic side never goes back."""

    at: datetime = field(default_factory=lambda: datetime.now(UTC).replace(minute=30, second=0, microsecond=0))
    seconds: float = 1000.0

    def now(self) -> datetime:
        return self.at

    def monotonic(self) -> float:
        return self.seconds

    def turn(self, by: timedelta) -> None:
        self.at += by
        self.seconds += max(0.0, by.total_seconds())

    def turn_to(self, at: datetime) -> None:
        self.turn(at - self.at)

    def turn_to_hour(self) -> None:
        self.turn_to(self.at.replace(minute=0) + HOUR)


@dataclass
class Office:
    """A platform that answers and carries nothing out, and a scheduler that fires when it is told to."""

    platform: Platform
    clock: TurnedClock
    scheduler: Scheduler

    def another_scheduler(self) -> Scheduler:
        platform = self.platform
        return Scheduler(
            store=platform.store, runs=platform.runs, keys=platform.keys, limits=platform.limits, clock=self.clock
        )

    async def caller(
        self,
        *scopes: str,
        user_id: uuid.UUID | None = None,
        expires_at: datetime | None = None,
        rate_limit: str | None = None,
    ) -> Caller:
        row, _ = await self.platform.keys.create(
            "a test",
            scopes or ("agents:echo:run",),
            caller=SYSTEM,
            user_id=user_id,
            expires_at=expires_at,
            rate_limit=rate_limit,
        )
        return await self.platform.keys.caller_of(row.key_id)

    async def make(
        self, cron: str = "0 * * * *", *, name: str = "report", caller: Caller | None = None, **more: Any
    ) -> ScheduleRow:
        request = more.pop("request", ASK)
        return await self.platform.schedules.create(name, request, caller or await self.caller(), cron=cron, **more)

    async def fire(self) -> None:
        """Fire until nothing is due any more."""
        while await self.scheduler.fire_due():
            pass

    async def row(self, name: str = "report") -> ScheduleRow:
        return await self.platform.schedules.get(name, SYSTEM)

    async def runs(self, name: str = "report") -> list[RunRow]:
        """The schedule's runs, the earliest time first."""
        cursor: str | None = None
        found: list[RunRow] = []
        while True:
            page = await self.platform.runs.list(SYSTEM, limit=100, cursor=cursor)
            found += [row for row in page.data if row.labels.get("schedule") == name]
            cursor = page.next_cursor
            if cursor is None:
                return sorted(found, key=lambda row: str(row.labels["scheduled_at"]))

    async def fired(self, name: str = "report") -> list[datetime]:
        """The times that gave runs."""
        return [datetime.fromisoformat(str(row.labels["scheduled_at"])) for row in await self.runs(name)]


@pytest.fixture
async def office(
    tmp_path: Path, dialect: Literal["sqlite", "postgresql"], request: pytest.FixtureRequest, anyio_backend: str
) -> AsyncIterator[Office]:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "echo.py").write_text(AGENTS)
    server = cast("PostgresServer", request.getfixturevalue("postgres_server")) if dialect == "postgresql" else None
    clock = TurnedClock()
    changes = getattr(request, "param", {})
    async with fresh_settings(dialect, tmp_path, server=server) as settings:
        settings = settings.model_copy(update={"model": "demo", **changes})
        async with Platform.open(settings, clock=clock, role="api") as platform:
            scheduler = Scheduler(
                store=platform.store, runs=platform.runs, keys=platform.keys, limits=platform.limits, clock=clock
            )
            yield Office(platform, clock, scheduler)


async def test_a_due_time_becomes_a_run_in_the_name_of_the_key(office: Office) -> None:
    caller = await office.caller()
    labels = {"team": "a", "schedule": "mine"}
    made = await office.make(caller=caller, request=RunRequest("echo", "report!", labels=labels, session_name="daily"))
    first = office.clock.at.replace(minute=0) + HOUR
    assert (made.next_at, made.key_id, made.missed, made.time_zone) == (first, caller.key_id, "skip", "UTC")
    await office.fire()
    assert await office.runs() == []
    office.clock.turn_to(first + timedelta(seconds=2))
    await office.fire()
    (run,) = await office.runs()
    assert (run.name, run.key_id, run.status, run.background) == ("echo", caller.key_id, "queued", True)
    assert run.labels == {"team": "a", "schedule": "report", "scheduled_at": first.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
    whole = await office.platform.runs.get(run.run_id, SYSTEM)
    assert (whole.input or {})["message_content"] == "report!"
    row = await office.row()
    assert (row.next_at, row.last_at, row.last_run_id, row.last_error) == (first + HOUR, first, run.run_id, None)
    assert (row.revision, row.updated_at) == (made.revision, made.updated_at)


async def test_firings_count_for_the_rate_limit_of_their_key(office: Office) -> None:
    limited = await office.caller(rate_limit="2/day")
    await office.make("* * * * *", caller=limited)
    await office.make("* * * * *", name="free")
    begin = office.clock.at
    for _ in range(4):
        office.clock.turn(timedelta(minutes=1))
        await office.fire()
    times = [begin + timedelta(minutes=minute) for minute in range(1, 5)]
    assert await office.fired("free") == times
    assert await office.fired() == times[:2]
    assert "This key may make 2 requests a day, and has." in str((await office.row()).last_error)
    with pytest.raises(RateLimited):  # as a request of the key would be
        await office.platform.limits.count(limited)


async def test_a_time_that_two_hosts_fire_at_once_counts_once_for_the_rate_limit(office: Office) -> None:
    limited = await office.caller(rate_limit="4/day")
    await office.make("* * * * *", caller=limited)
    begin, other = office.clock.at, office.another_scheduler()
    for _ in range(3):
        office.clock.turn(timedelta(minutes=1))
        await asyncio.gather(office.scheduler.fire_due(), other.fire_due())
    assert await office.fired() == [begin + timedelta(minutes=minute) for minute in range(1, 4)]
    await office.platform.limits.count(limited)
    with pytest.raises(RateLimited):
        await office.platform.limits.count(limited)

    # Where the first one that comes is gone before the run is stored, another one fires the time some seconds later.
    await office.make("* * * * *", name="orphan")
    office.clock.turn(timedelta(minutes=1))
    due = office.clock.at
    row = await office.row("orphan")
    name = f"firing:{row.schedule_id}:{due:%Y-%m-%dT%H:%M:%S.%fZ}:0"
    await office.platform.store.write(lambda tx: tx.rates.hit(name, 599))
    await office.scheduler.fire_due()
    assert await office.fired("orphan") == []
    office.clock.turn(timedelta(seconds=3))
    await office.scheduler.fire_due()
    assert await office.fired("orphan") == [due]


async def test_a_clock_that_goes_back_fires_nothing_again(office: Office) -> None:
    made = await office.make()
    assert made.next_at is not None
    office.clock.turn_to(made.next_at)
    await office.fire()
    office.clock.turn(-2 * HOUR)
    await office.fire()
    office.clock.turn_to(made.next_at)
    await office.fire()
    assert await office.fired() == [made.next_at]
    office.clock.turn(-2 * HOUR)
    changed = await office.platform.schedules.update("report", await office.caller(), cron="0 */1 * * *")
    assert changed.next_at == made.next_at + HOUR, "what has fired is not named again by a change"


async def test_missed_times_are_handled_as_configured(office: Office) -> None:
    made = {missed: await office.make(name=missed, missed=missed) for missed in MISSED}
    first = made["skip"].next_at
    assert first is not None
    office.clock.turn_to(first + 72 * HOUR + timedelta(minutes=20))
    every = [first + n * HOUR for n in range(73)]
    await office.fire()
    wanted: dict[Missed, list[datetime]] = {"skip": [], "once": every[-1:], "all": every}
    for missed in MISSED:
        assert await office.fired(missed) == wanted[missed]
        assert (await office.row(missed)).next_at == every[-1] + HOUR
    office.clock.turn_to(every[-1] + HOUR)
    await office.fire()
    for missed in MISSED:
        assert (await office.fired(missed))[-1] == every[-1] + HOUR, "it goes on"


async def test_a_time_that_is_late_by_less_than_a_minute_was_not_missed(office: Office) -> None:
    made = {missed: await office.make("0,30 * * * * *", name=missed, missed=missed) for missed in MISSED}
    first = made["skip"].next_at
    assert first is not None
    office.clock.turn_to(first + timedelta(seconds=31))
    await office.fire()
    for missed in MISSED:
        assert await office.fired(missed) == [first, first + timedelta(seconds=30)]


async def test_of_too_many_missed_times_the_latest_hundred_are_made_up_for(office: Office) -> None:
    made = await office.make("*/10 * * * *", missed="all")
    assert made.next_at is not None
    office.clock.turn_to(made.next_at + timedelta(days=3, minutes=5))
    await office.fire()
    last = made.next_at + timedelta(days=3)
    assert await office.fired() == [last - n * timedelta(minutes=10) for n in range(99, -1, -1)]


async def test_hosts_that_come_at_once_give_one_run_for_each_time(office: Office) -> None:
    made = [await office.make("*/5 * * * * *", name=f"s{n}") for n in range(6)]
    hosts = [office.another_scheduler() for _ in range(5)]
    for _ in range(4):
        office.clock.turn(timedelta(seconds=5))
        while sum(await asyncio.gather(*(host.fire_due() for host in hosts))):
            pass
    for schedule in made:
        assert schedule.next_at is not None
        expected = [schedule.next_at + n * timedelta(seconds=5) for n in range(4)]
        assert await office.fired(schedule.name) == expected


async def test_a_local_time_that_comes_twice_fires_once(office: Office) -> None:
    office.clock.turn_to(utc("2027-04-03T12:00"))
    await office.make("45 1 * * *", time_zone="Australia/Lord_Howe")
    for _ in range(36 * 4):
        office.clock.turn(timedelta(minutes=15))
        await office.fire()
    assert await office.fired() == [utc("2027-04-03T14:45"), utc("2027-04-04T15:15")]


# -- what stands in the way


async def test_a_key_that_is_revoked_expired_or_gone_fires_nothing_and_says_so(office: Office) -> None:
    revoked, expiring = await office.caller(), await office.caller(expires_at=office.clock.at + 2 * HOUR)
    assert revoked.key_id is not None
    await office.make(caller=revoked, name="revoked")
    await office.make(caller=expiring, name="expired")
    gone = await office.make(name="gone")
    await office.platform.store.write(
        lambda tx: tx.schedules.update(gone.schedule_id, if_revision=1, key_id="key_unknown")
    )
    await office.platform.keys.revoke(revoked.key_id, SYSTEM)
    for hours in (1, 2, 3):
        office.clock.turn_to_hour()
        await office.fire()
        for name, why in (("revoked", "was revoked"), ("gone", "is gone"), ("expired", "has expired")):
            row = await office.row(name)
            assert row.next_at == office.clock.at.replace(minute=0) + HOUR, "it goes on trying"
            fired = name == "expired" and hours < 3
            assert (row.last_error is None) if fired else (why in (row.last_error or ""))
    assert len(await office.runs("expired")) == 2
    assert await office.runs("revoked") == await office.runs("gone") == []
    taken_over = await office.platform.schedules.update("revoked", await office.caller(), missed="once")
    assert taken_over.key_id != revoked.key_id
    office.clock.turn_to_hour()
    await office.fire()
    assert len(await office.runs("revoked")) == 1
    assert (await office.row("revoked")).last_error is None


async def test_the_schedules_of_a_user_who_is_deleted_are_switched_off_and_say_why(office: Office) -> None:
    user, other = [(await office.platform.store.write(lambda tx: tx.users.create())).user_id for _ in range(2)]
    made = await office.make(caller=await office.caller(user_id=user))
    await office.make(caller=await office.caller(), name="unbound", request=RunRequest("echo", "x", user_id=user))
    late = await office.make(name="late", request=RunRequest("echo", "x", user_id=other))
    await office.make(name="nobody's")
    await office.platform.store.write(lambda tx: tx.users.delete(user))
    for name in ("report", "unbound"):
        row = await office.row(name)
        assert (row.active, row.next_at, row.revision) == (False, None, made.revision + 1)
        assert "was deleted" in (row.last_error or "")
    await office.platform.store.write(lambda tx: tx.users.delete(other))
    await office.platform.store.write(  # as one that was made just then, or before this was so
        lambda tx: tx.schedules.update(
            late.schedule_id, if_revision=late.revision + 1, active=True, next_at=late.next_at
        )
    )
    office.clock.turn_to_hour()
    await office.fire()
    row = await office.row("late")
    assert (row.active, row.next_at, "was deleted" in (row.last_error or "")) == (False, None, True)
    assert len(await office.runs("nobody's")) == 1
    with pytest.raises(NotFound, match="user"):
        await office.platform.schedules.update("unbound", await office.caller(), active=True)


async def test_an_agent_that_is_gone_and_an_override_that_is_closed_are_told(office: Office) -> None:
    owner = await office.caller("agents:*:run")
    config = {"instructions": "x", "allow_overrides": ["system_prompt"]}
    await office.platform.agents.create("tutor", config, caller=SYSTEM)
    await office.make(caller=owner, request=RunRequest("tutor", "hi", system_prompt="y"))
    office.clock.turn_to_hour()
    await office.fire()
    await office.platform.agents.update("tutor", {"allow_overrides": None}, caller=SYSTEM)
    office.clock.turn_to_hour()
    await office.fire()
    assert "system_prompt" in ((await office.row()).last_error or "")
    await office.platform.agents.delete("tutor", caller=SYSTEM)
    office.clock.turn_to_hour()
    await office.fire()
    assert "no agent 'tutor'" in ((await office.row()).last_error or "")
    assert len(await office.runs()) == 1


@pytest.mark.parametrize("office", [{"max_queued_runs": 1}], indirect=True)
async def test_a_full_queue_is_waited_for(office: Office) -> None:
    made = await office.make()
    await office.make("30 * * * *", name="first")
    assert made.next_at is not None
    blocking = await office.platform.runs.submit(ASK, await office.caller())
    office.clock.turn_to(made.next_at)
    await office.fire()
    row = await office.row()
    assert row.next_at == made.next_at
    assert "wait in the queue" in (row.last_error or "")
    await office.platform.runs.cancel(blocking.run_id, SYSTEM)
    office.clock.turn(timedelta(seconds=10))
    await office.fire()
    assert await office.fired() == [made.next_at]
    assert (await office.row()).last_error is None


async def test_one_that_can_not_be_fired_keeps_no_other_waiting(office: Office) -> None:
    broken = await office.make(name="broken")
    strange = await office.make(name="strange")
    await office.make()
    await office.platform.store.write(
        lambda tx: (
            tx.schedules.update(broken.schedule_id, if_revision=1, request={}),
            tx.schedules.update(strange.schedule_id, if_revision=1, time_zone="Mars/Base"),
        )
    )
    office.clock.turn_to_hour()
    await office.fire()
    assert len(await office.runs()) == 1
    assert "the server's log" in ((await office.row("broken")).last_error or "")
    row = await office.row("strange")
    assert (row.next_at, "Mars/Base" in (row.last_error or "")) == (None, True)


# -- making and changing


async def test_a_paused_schedule_misses_nothing(office: Office) -> None:
    made = await office.make(missed="all", active=False)
    assert made.next_at is None
    owner = await office.caller()
    office.clock.turn(5 * HOUR)
    await office.fire()
    resumed = await office.platform.schedules.update("report", owner, active=True)
    assert resumed.next_at == office.clock.at.replace(minute=0) + HOUR
    await office.platform.schedules.update("report", owner, active=False)
    office.clock.turn(5 * HOUR)
    await office.fire()
    assert await office.runs() == []


async def test_whoever_changes_a_schedule_must_be_allowed_to_run_it(office: Office) -> None:
    owner, other, weak = await office.caller(), await office.caller(), await office.caller("schedules:write")
    made = await office.make(caller=owner)
    for edit in ({"cron": "* * * * * *"}, {"active": True}, {"request": RunRequest("echo", "other")}, {"name": "mine"}):
        with pytest.raises(MissingScope):
            await office.platform.schedules.update("report", weak, **cast("Any", edit))
    assert await office.row() == made
    paused = await office.platform.schedules.update("report", weak, active=False)
    assert (paused.key_id, paused.active, paused.next_at) == (owner.key_id, False, None)
    resumed = await office.platform.schedules.update("report", other, active=True)
    assert resumed.key_id == other.key_id
    with pytest.raises(MissingScope):
        await office.make(caller=weak, name="another")
    with pytest.raises(OverrideNotAllowed):
        await office.make(caller=owner, name="another", request=RunRequest("echo", "x", model="demo"))
    with pytest.raises(NotFound):
        await office.make(caller=owner, name="another", request=RunRequest("ecco", "x"))


async def test_a_change_is_of_what_was_read(office: Office) -> None:
    owner = await office.caller()
    made = await office.make(caller=owner)
    changed = await office.platform.schedules.update("report", owner, if_revision=1, missed="all")
    assert (changed.revision, changed.next_at, changed.missed) == (2, made.next_at, "all")
    with pytest.raises(PreconditionFailed):
        await office.platform.schedules.update("report", owner, if_revision=1, missed="once")
    moved = await office.platform.schedules.update("report", owner, cron="15 * * * *", time_zone="Asia/Kolkata")
    assert moved.next_at == office.clock.at.replace(minute=45), "half an hour off"
    renamed = await office.platform.schedules.update(made.schedule_id, owner, name="other")
    assert (renamed.name, renamed.request) == ("other", made.request)


async def test_users_keys_see_and_make_only_their_own(office: Office) -> None:
    ann, bob = [(await office.platform.store.write(lambda tx: tx.users.create())).user_id for _ in range(2)]
    of_ann, of_bob = await office.caller(user_id=ann), await office.caller(user_id=bob)
    mine = await office.make(caller=of_ann, name="mine")
    assert mine.user_id == ann
    await office.make(name="nobodys")
    await office.make(name="given", request=RunRequest("echo", "x", user_id=ann))
    schedules = office.platform.schedules
    assert [row.name for row in (await schedules.list(of_ann)).data] == ["given", "mine"]
    assert [row.name for row in (await schedules.list(of_bob)).data] == []
    for work in (schedules.get("mine", of_bob), schedules.delete("mine", of_bob), schedules.fire("mine", of_bob)):
        with pytest.raises(NotFound):
            await work
    with pytest.raises(NotFound):
        await office.make(caller=of_ann, name="bobs", request=RunRequest("echo", "x", user_id=bob))
    with pytest.raises(NotFound):
        await office.make(name="whose", request=RunRequest("echo", "x", user_id=uuid.uuid4()))
    office.clock.turn_to_hour()
    await office.fire()
    assert [run.user_id for run in await office.runs("mine")] == [ann]
    assert [run.user_id for run in await office.runs("given")] == [ann]


async def test_a_schedule_that_can_not_be_is_refused_by_its_field(office: Office) -> None:
    for field_name, changes in (
        ("cron", {"cron": "0 0 30 2 *"}),
        ("cron", {"cron": "often"}),
        ("time_zone", {"time_zone": "Europe/Berlim"}),
        ("name", {"name": "sched_1"}),
        ("request", {"request": RunRequest("echo", "x", session_id=uuid.uuid4(), session_name="y")}),
    ):
        with pytest.raises(InvalidInput) as refused:
            await office.make(**cast("Any", changes))
        assert refused.value.field[:2] == ("body", field_name)
    with pytest.raises(TooLarge):
        await office.make(request=RunRequest("echo", "x" * 5_000_000))
    assert (await office.platform.schedules.list(SYSTEM)).data == []


async def test_a_run_by_hand_is_the_callers_and_leaves_the_times_alone(office: Office) -> None:
    made, caller = await office.make(active=False), await office.caller()
    run = await office.platform.schedules.fire("report", caller, idempotency_key="once")
    again = await office.platform.schedules.fire("report", caller, idempotency_key="once")
    assert again.run_id == run.run_id
    assert (run.key_id, run.labels) == (caller.key_id, {"schedule": "report"})
    row = await office.row()
    assert (row.last_run_id, row.last_at, row.next_at, row.revision) == (
        run.run_id,
        office.clock.at,
        None,
        made.revision,
    )
    with pytest.raises(MissingScope):
        await office.platform.schedules.fire("report", await office.caller("schedules:write"))


async def test_the_times_to_come_are_shown_in_local_time_too(office: Office) -> None:
    office.clock.turn_to(utc("2027-10-02T12:00"))
    await office.make("15 2 * * *", time_zone="Australia/Lord_Howe")
    times = await office.platform.schedules.next_times("report", SYSTEM, 3)
    assert [local.isoformat() for _, local in times] == [
        "2027-10-03T02:30:00+11:00",
        "2027-10-04T02:15:00+11:00",
        "2027-10-05T02:15:00+11:00",
    ]
    assert [moment for moment, _ in times] == [local.astimezone(UTC) for _, local in times]


# -- the loop, by the machine's own clock


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 40) -> float:
    """Wait until the condition holds; how long that took."""
    began = time.monotonic()
    while not await condition():
        assert time.monotonic() - began < seconds
        await asyncio.sleep(0.02)
    return time.monotonic() - began


async def test_a_new_schedule_wakes_the_loop_which_fires_second_by_second(office: Office) -> None:
    platform, clock = office.platform, SystemClock()
    scheduler = Scheduler(
        store=platform.store,
        runs=platform.runs,
        keys=platform.keys,
        limits=platform.limits,
        clock=clock,
        poll_seconds=3600,
    )
    looping = asyncio.create_task(scheduler.run())
    await asyncio.sleep(0.3)  # it has seen that there is nothing to do
    office.clock.turn_to(clock.now())
    await office.make("* * * * * *")

    async def fired() -> bool:
        return len(await office.runs()) >= 3

    await until(fired, 60)
    await scheduler.close()
    await looping
    runs = await office.runs()
    times = await office.fired()
    assert times == [times[0] + n * timedelta(seconds=1) for n in range(len(times))]
    assert all(datetime.fromisoformat(str(run.labels["scheduled_at"])) <= clock.now() for run in runs), "none too early"


async def test_the_loop_goes_on_when_the_database_was_away_and_ends_when_it_is_closed(office: Office) -> None:
    platform = office.platform
    scheduler = Scheduler(
        store=platform.store,
        runs=platform.runs,
        keys=platform.keys,
        limits=platform.limits,
        clock=office.clock,
        poll_seconds=0.05,
    )
    made = await office.make()
    assert made.next_at is not None
    await platform.store.close()
    looping = asyncio.create_task(scheduler.run())
    await asyncio.sleep(0.2)
    assert not looping.done()
    await platform.store.open()
    office.clock.turn_to(made.next_at)

    async def fired() -> bool:
        return len(await office.runs()) == 1

    await until(fired)
    await asyncio.wait_for(scheduler.close(), 20)
    assert await asyncio.wait_for(looping, 20) is None
