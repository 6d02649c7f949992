"""Who is taken for dead: never a living process, and always a dead one; with real processes on a real PostgreSQL."""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from automagik.errors import ConfigurationError, ServiceUnavailable
from automagik.runs.liveness import Heart, LivenessTimes, Watch
from automagik.settings import Settings
from automagik.store import Store
from automagik.store.heart import HeartLine, Pulse
from automagik.testing.postgres import PostgresServer
from automagik.testing.stopwatch import Stopwatch
from automagik.testing.stores import fresh_settings
from automagik.types import SystemClock, new_id

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def postgres_server() -> Iterator[PostgresServer]:
    """A server of these tests' own, for they break its connections."""
    with PostgresServer() as server:
        yield server


NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


# -- Watch: what its looks prove


class Looks:
    """A watch that is shown beats at moments of a clock that the test turns."""

    def __init__(self) -> None:
        self.now = 100.0
        self.watch = Watch("exec_me")
        self.beats: dict[str, datetime] = {"exec_me": NOON, "exec_other": NOON}

    def beat(self, name: str = "exec_other") -> None:
        self.beats[name] += timedelta(seconds=0.5)

    def look(self, after: float = 0.5, took: float = 0.002) -> list[str]:
        self.now += after
        sent = self.now - took
        return [name for name, _ in self.watch.look(sent, self.now, self.beats)]

    def looks(self, count: int) -> list[list[str]]:
        return [self.look() for _ in range(count)]


def test_a_beat_that_stands_still_is_dead_after_three_seconds_and_again_at_each_look() -> None:
    looks = Looks()
    assert looks.looks(6) == [[]] * 6
    assert looks.looks(2) == [["exec_other"]] * 2
    looks.beat()
    assert looks.look() == []


def test_a_process_that_beats_at_least_every_two_and_a_half_seconds_is_alive() -> None:
    looks = Looks()
    for _ in range(20):
        assert looks.looks(5) == [[]] * 5
        looks.beat()


def test_the_own_beat_is_not_watched_and_one_that_ended_is_forgotten() -> None:
    looks = Looks()
    looks.looks(6)
    ended = looks.beats.pop("exec_other")
    assert looks.look() == [], "not even the own, which stood still too"
    looks.beats["exec_other"] = ended
    assert looks.looks(6) == [[]] * 6, "counting begins anew"


def test_a_look_that_comes_late_proves_nothing_about_the_time_before() -> None:
    looks = Looks()
    looks.looks(6)
    assert looks.look(after=2.1) == []
    assert looks.looks(5) == [[]] * 5
    assert looks.look() == ["exec_other"]


def test_a_look_that_was_answered_slowly_counts_from_when_it_was_sent() -> None:
    looks = Looks()
    looks.looks(4)
    assert looks.look(after=1.5, took=1.4) == [], "1.5 s were proved before, and 0.1 s by this one"
    assert looks.look() == ["exec_other"]


def test_a_clock_of_the_database_that_jumps_back_is_a_sign_of_life_too() -> None:
    looks = Looks()
    for _ in range(4):
        looks.looks(5)
        looks.beats["exec_other"] -= timedelta(hours=1)
        assert looks.look() == []


def test_owners_without_a_living_row_are_reported_when_they_stay_so() -> None:
    watch = Watch("exec_me")
    owners = ["exec_gone", "exec_me"]
    assert watch.sweep(10.0, 10.0, owners) == []
    assert watch.sweep(12.0, 12.0, owners) == []
    assert watch.sweep(14.0, 14.0, owners) == ["exec_gone"]
    assert watch.sweep(16.0, 16.0, []) == []
    assert watch.sweep(18.0, 18.0, owners) == []


# -- Heart: over a line that the test holds


@dataclass(frozen=True)
class Found:
    alive: bool
    beats: Mapping[str, datetime]


@dataclass
class Line:
    """A line whose answers the test sets."""

    alive: bool = True
    away: bool = False
    beats: dict[str, datetime] = field(default_factory=dict[str, datetime])
    left: list[str] = field(default_factory=list[str])
    beaten: int = 0
    failed_at: list[float] = field(default_factory=list[float])
    closed: bool = False

    async def beat(self) -> Found:
        if self.away:
            self.failed_at.append(time.monotonic())
            raise ServiceUnavailable("away")
        self.beaten += 1
        return Found(self.alive, dict(self.beats))

    async def left_behind(self) -> list[str]:
        return self.left

    async def close(self) -> None:
        self.closed = True


FAST = LivenessTimes(
    beat_seconds=0.02,
    dead_after_seconds=0.1,
    late_seconds=0.5,
    sweep_seconds=0.05,
    ask_seconds=0.05,
    stuck_seconds=0.3,
)


@dataclass
class Told:
    lost: int = 0
    dead: list[tuple[str, datetime | None]] = field(default_factory=list[tuple[str, datetime | None]])
    fails: list[Exception] = field(default_factory=list[Exception])
    seconds: float = 0.0
    at_once: int = 0
    most_at_once: int = 0

    def on_lost(self) -> None:
        self.lost += 1

    async def on_dead(self, executor_id: str, seen: datetime | None) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.seconds)
            self.dead.append((executor_id, seen))
            if self.fails:
                raise self.fails.pop(0)
        finally:
            self.at_once -= 1


@asynccontextmanager
async def beating(line: Line, told: Told, times: LivenessTimes = FAST) -> AsyncGenerator[Heart]:
    heart = Heart(line, "exec_me", clock=SystemClock(), on_lost=told.on_lost, on_dead=told.on_dead, times=times)
    await heart.open()
    try:
        yield heart
    finally:
        await heart.close()
    assert line.closed


async def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_an_open_heart_beats_until_it_is_closed_and_loses_nothing_by_that() -> None:
    line, told = Line(), Told()
    async with beating(line, told):
        assert line.beaten == 1, "it has beaten once when it is open"
        await until(lambda: line.beaten > 10)
    beaten = line.beaten
    await asyncio.sleep(0.1)
    assert line.beaten == beaten
    assert told.lost == 0


async def test_a_heart_whose_row_is_missing_or_whose_database_is_away_does_not_open() -> None:
    for line, error in ((Line(alive=False), ConfigurationError), (Line(away=True), ServiceUnavailable)):
        told = Told()
        heart = Heart(line, "exec_me", clock=SystemClock(), on_lost=told.on_lost, on_dead=told.on_dead, times=FAST)
        with pytest.raises(error):
            await heart.open()
        assert line.closed
        assert told.lost == 0


async def test_a_heart_opens_over_a_line_that_answers_only_at_the_second_time() -> None:
    line, told = Line(away=True), Told()
    patient = LivenessTimes(dead_after_seconds=60)
    heart = Heart(line, "exec_me", clock=SystemClock(), on_lost=told.on_lost, on_dead=told.on_dead, times=patient)
    opening = asyncio.create_task(heart.open())
    await until(lambda: bool(line.failed_at))
    line.away = False
    await opening
    assert line.beaten >= 1
    await heart.close()


async def test_a_process_that_was_declared_lost_is_told_once_in_its_own_event_loop() -> None:
    line, told = Line(), Told()
    threads: list[int] = []
    heart = Heart(
        line,
        "exec_me",
        clock=SystemClock(),
        on_lost=lambda: threads.append(threading.get_ident()),
        on_dead=told.on_dead,
        times=FAST,
    )
    await heart.open()
    line.alive = False
    await until(lambda: bool(threads))
    await asyncio.sleep(0.1)
    await heart.close()
    assert threads == [threading.get_ident()]


async def test_who_stands_still_is_reported_until_it_is_gone_one_report_at_a_time() -> None:
    line, told = Line(beats={"exec_a": NOON}, left=["exec_b"]), Told(seconds=0.1)
    told.fails = [ServiceUnavailable("away"), ValueError("a fault of the platform")]
    async with beating(line, told):
        await until(lambda: len(told.dead) >= 5)
        line.beats.clear()
        line.left.clear()
        beaten = line.beaten
        await until(lambda: line.beaten > beaten + 10 and told.at_once == 0)
        reported = len(told.dead)
        await until(lambda: line.beaten > beaten + 20)
        assert len(told.dead) == reported
    assert set(told.dead) == {("exec_a", NOON), ("exec_b", None)}
    assert told.most_at_once <= 2, "each executor's report waits for the one before"
    assert told.lost == 0


async def test_a_line_that_is_away_is_tried_again_at_once_and_then_with_growing_waits() -> None:
    line, told = Line(), Told()
    async with beating(line, told, replace(FAST, beat_seconds=0.4)):
        firsts: list[float] = []
        while not firsts or (
            firsts[-1] >= 0.2 and len(firsts) < 4
        ):  # a machine that pauses makes one of them long, not all
            line.failed_at.clear()
            line.away = True
            await until(lambda: len(line.failed_at) >= 5)
            gaps = [later - earlier for earlier, later in itertools.pairwise(line.failed_at)]
            firsts.append(gaps[0])
            assert gaps[3] >= 0.35
            line.away = False
            beaten = line.beaten
            await until(lambda beaten=beaten: line.beaten > beaten + 2)
        assert firsts[-1] < 0.2, firsts
    assert told.lost == 0


async def test_an_event_loop_that_is_stuck_lets_the_heart_stop_until_it_answers_again() -> None:
    line, told = Line(), Told()
    async with beating(line, told):
        await until(lambda: line.beaten > 5)
        for _ in range(12):  # by steps, so that the heart has its time to see it after a pause of the machine too
            time.sleep(0.05)
        stopped_at = line.beaten
        time.sleep(0.2)
        assert line.beaten == stopped_at
        await until(lambda: line.beaten > stopped_at + 5)
    assert told.lost == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_heart_that_breaks_by_a_fault_of_its_own_takes_its_process_for_lost() -> None:
    class Broken(Line):
        async def left_behind(self) -> list[str]:
            raise ValueError("a fault of the platform")

    line, told = Broken(), Told()
    async with beating(line, told):
        await until(lambda: told.lost == 1)


# -- with real processes on a real PostgreSQL


@asynccontextmanager
async def executor(store: Store, url: str, line: Callable[[str], HeartLine] | None = None) -> AsyncGenerator[Told]:
    """A process that beats and watches, as a part of this one: it declares others lost."""
    executor_id = new_id("exec")
    told = Told()

    async def declare(dead: str, seen: datetime | None) -> None:
        if await store.write(lambda tx: tx.executors.lose(dead, seen=seen, to=executor_id)):
            told.dead.append((dead, seen))

    await store.write(lambda tx: tx.executors.register(executor_id, host="here", role="worker", version="1"))
    made = line(executor_id) if line is not None else HeartLine(url, executor_id)
    heart = Heart(made, executor_id, clock=SystemClock(), on_lost=told.on_lost, on_dead=declare)
    await heart.open()
    try:
        yield told
    finally:
        await heart.close()


VICTIM = """
import asyncio, json, sys
from automagik.runs.liveness import Heart
from automagik.settings import Settings
from automagik.store import Store
from automagik.store.heart import HeartLine
from automagik.telemetry import configure_logging
from automagik.types import SystemClock, new_id

async def main():
    settings = Settings.model_validate({"database_url": sys.argv[1]})
    configure_logging(settings)
    store = Store.from_settings(settings, SystemClock())
    await store.open()
    executor_id = new_id("exec")
    await store.write(lambda tx: tx.executors.register(executor_id, host="here", role="worker", version="1"))
    lost = asyncio.Event()

    async def on_dead(executor, seen):
        print(json.dumps({"dead": executor}), flush=True)

    line = HeartLine(sys.argv[1], executor_id)
    heart = Heart(line, executor_id, clock=SystemClock(), on_lost=lost.set, on_dead=on_dead)
    await heart.open()
    print(json.dumps({"ready": executor_id}), flush=True)
    await lost.wait()
    print(json.dumps({"lost": executor_id}), flush=True)
    await heart.close()
    await store.close()

asyncio.run(main())
"""


@contextmanager
def victim(url: str) -> "Generator[subprocess.Popen[str]]":
    process = subprocess.Popen(
        [sys.executable, "-c", VICTIM, url],
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def said(process: "subprocess.Popen[str]") -> dict[str, str]:
    assert process.stdout is not None
    return json.loads(await asyncio.to_thread(process.stdout.readline))


@pytest.fixture
async def shared(postgres_server: PostgresServer, tmp_path: Path) -> AsyncIterator[tuple[Store, str]]:
    """A store on a fresh PostgreSQL database, and its URL."""
    async with fresh_settings("postgresql", tmp_path, server=postgres_server) as settings, opened(settings) as both:
        yield both


@asynccontextmanager
async def opened(settings: Settings) -> AsyncGenerator[tuple[Store, str]]:
    assert settings.database_url is not None
    store = Store.from_settings(settings, SystemClock())
    await store.open()
    try:
        yield store, settings.database_url.get_secret_value()
    finally:
        await store.close()


@pytest.mark.long
@pytest.mark.alone
async def test_a_killed_process_is_declared_dead_within_4_seconds_by_exactly_one_of_two_watchers(
    shared: tuple[Store, str],
) -> None:
    store, url = shared
    async with executor(store, url) as first, executor(store, url) as second:
        rounds: list[Stopwatch] = []
        while sum(took.paused == 0 for took in rounds) < 2 and len(rounds) < 8:
            with victim(url) as process:
                executor_id = (await said(process))["ready"]
                await asyncio.sleep(1.5)
                with Stopwatch() as took:
                    process.kill()
                    await until(lambda: bool(first.dead or second.dead), seconds=20)
                rounds.append(took)
                await asyncio.sleep(0.7)
            assert [name for name, _ in [*first.dead, *second.dead]] == [executor_id]
            first.dead.clear()
            second.dead.clear()
        whole = [
            took.seconds for took in rounds if took.paused == 0
        ]  # looks that a pause holds up prove nothing, by intent
        assert whole, "the machine paused in every round"
        assert all(2.4 < seconds < 4 for seconds in whole), whole
    assert (first.lost, second.lost) == (0, 0)


@pytest.mark.long
@pytest.mark.alone
async def test_a_frozen_process_is_declared_dead_and_learns_it_when_it_wakes(shared: tuple[Store, str]) -> None:
    store, url = shared
    async with executor(store, url) as watcher:
        with victim(url) as process:
            executor_id = (await said(process))["ready"]
            process.send_signal(signal.SIGSTOP)
            await until(lambda: bool(watcher.dead))
            await asyncio.sleep(2)
            assert [name for name, _ in watcher.dead] == [executor_id]
            with Stopwatch() as took:
                process.send_signal(signal.SIGCONT)
                assert await said(process) == {"lost": executor_id}, "and it takes nobody else for dead"
            assert took.seconds < 2
    assert watcher.lost == 0


@pytest.mark.long
@pytest.mark.alone
async def test_a_process_that_gets_no_processor_for_2_seconds_again_and_again_lives(shared: tuple[Store, str]) -> None:
    store, url = shared
    async with executor(store, url) as watcher:
        with victim(url) as process:
            await said(process)
            for pause in (0.6, 0.73, 0.9, 1.1):
                process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(2)
                process.send_signal(signal.SIGCONT)
                await asyncio.sleep(pause)
            assert watcher.dead == []
            assert process.poll() is None


@pytest.mark.long
@pytest.mark.alone
async def test_dropping_every_connection_30_times_declares_nobody_dead(
    shared: tuple[Store, str], postgres_server: PostgresServer
) -> None:
    store, url = shared
    async with AsyncExitStack() as stack:
        all_told = [await stack.enter_async_context(executor(store, url)) for _ in range(3)]
        for number in range(30):
            await asyncio.to_thread(postgres_server.break_connections)
            await asyncio.sleep(0.1 + 0.03 * number)
        await asyncio.sleep(1)
        for told in all_told:
            assert (told.lost, told.dead) == (0, [])


class SlowLine(HeartLine):
    """The line of a host on which everything comes late: each beat up to 1.9 s after the one before."""

    waits = (0.0, 1.4, 0.3, 1.4, 0.0, 0.9)

    def __init__(self, url: str, executor_id: str, place: int) -> None:
        super().__init__(url, executor_id)
        self._beaten = place

    async def beat(self) -> Pulse:
        self._beaten += 1
        await asyncio.sleep(self.waits[self._beaten % len(self.waits)])
        return await super().beat()


@pytest.mark.long
@pytest.mark.alone
async def test_hosts_so_slow_that_beats_and_looks_come_late_declare_nobody_dead_and_are_not(
    shared: tuple[Store, str],
) -> None:
    store, url = shared
    async with AsyncExitStack() as stack:
        slow = [
            await stack.enter_async_context(
                executor(store, url, lambda executor_id, place=place: SlowLine(url, executor_id, place))
            )
            for place in (0, 1, 3)
        ]
        quick = await stack.enter_async_context(executor(store, url))
        await asyncio.sleep(12)
        for told in [*slow, quick]:
            assert (told.lost, told.dead) == (0, [])


@pytest.mark.long
@pytest.mark.alone
async def test_a_database_that_is_away_for_5_seconds_makes_nobody_dead_and_the_dead_are_found_after_it(
    tmp_path: Path,
) -> None:
    with PostgresServer() as server:
        async with (
            fresh_settings("postgresql", tmp_path, server=server) as settings,
            opened(settings) as (store, url),
            executor(store, url) as first,
            executor(store, url) as second,
        ):
            with victim(url) as process:
                executor_id = (await said(process))["ready"]
                await asyncio.to_thread(server.halt)
                await asyncio.sleep(5)
                await asyncio.to_thread(server.revive)
                await asyncio.sleep(5)
                for told in (first, second):
                    assert (told.lost, told.dead) == (0, [])
                assert process.poll() is None
                await asyncio.to_thread(server.halt)
                process.kill()
                await asyncio.to_thread(server.revive)
                await until(lambda: bool(first.dead or second.dead), seconds=10)
                assert [name for name, _ in [*first.dead, *second.dead]] == [executor_id]


async def test_two_starts_of_a_process_are_two_executors(shared: tuple[Store, str]) -> None:
    _, url = shared
    ids: list[str] = []
    for _ in range(2):
        with victim(url) as process:
            ids.append((await said(process))["ready"])
    assert len(set(ids)) == 2
    assert sorted(ids) == ids, "and the later one's sorts later"
