"""The watch over a workspace ends a run that is over its limit or can't be measured, and leaves the host to others."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count, pairwise

import pytest

from automagik.claude_code.measuring import Size
from automagik.claude_code.size_watch import SizeWatch
from automagik.errors import ServiceUnavailable
from automagik.types import SystemClock

pytestmark = pytest.mark.anyio

LIMIT = 1000
AWAY = ServiceUnavailable("The container engine is away.")


class TurnedClock(SystemClock):
    """Goes on by what is slept, and by what measuring takes."""

    moment = 0.0

    def monotonic(self) -> float:
        return self.moment

    async def sleep(self, seconds: float) -> None:
        self.moment += seconds
        await asyncio.sleep(0)


@dataclass
class Executor:
    """One whose workspace has these sizes, one after another, and that takes so long to find out."""

    sizes: list[Size | ServiceUnavailable]
    takes: float = 0.0
    fullness: Callable[[float], int | None] = lambda moment: 0
    """How full the disk is at a moment."""
    clock: TurnedClock = field(default_factory=TurnedClock)
    measured_at: list[float] = field(default_factory=list[float])

    async def size(self) -> Size:
        self.measured_at.append(self.clock.moment)
        self.clock.moment += self.takes
        found = self.sizes.pop(0)
        if isinstance(found, ServiceUnavailable):
            raise found
        return found

    async def disk_used(self) -> int | None:
        return self.fullness(self.clock.moment)

    async def until_over(self) -> Size:
        return await self.watch.until_over()

    @property
    def watch(self) -> SizeWatch:
        return SizeWatch("run_a", LIMIT, self.size, self.disk_used, self.clock, self.clock.sleep)

    @property
    def pauses(self) -> list[float]:
        return [after - before - self.takes for before, after in pairwise(self.measured_at)]


@pytest.mark.parametrize(
    ("sizes", "end"),
    [
        ([Size(LIMIT), Size(LIMIT + 1), Size(LIMIT + 2)], Size(LIMIT + 2)),
        ([Size(LIMIT + 1), Size(600), Size(1), Size(LIMIT + 1), Size(LIMIT + 1)], Size(LIMIT + 1)),
        ([Size(1), Size(7, "time")], Size(7, "time")),
        ([Size(7, "moved"), Size(7), Size(7, "moved"), Size(7, "unreadable")], Size(7, "unreadable")),
        ([AWAY, AWAY, Size(1), AWAY, Size(0, "failed"), Size(0, "device")], Size(0, "device")),
    ],
    ids=["over", "moved while it was measured", "late", "unknown twice", "engine away"],
)
async def test_what_is_over_the_limit_or_unknown_twice_in_a_row_or_late_ends_the_run(
    sizes: list[Size | ServiceUnavailable], end: Size
) -> None:
    executor = Executor(sizes)
    assert await executor.until_over() == end
    assert executor.sizes == []


@pytest.mark.parametrize(("takes", "pause"), [(0.01, 5), (0.5, 5), (2, 20), (50, 450)])
async def test_measuring_takes_a_tenth_of_the_time_at_the_most(takes: float, pause: float) -> None:
    executor = Executor([Size(1), Size(1), Size(1), Size(1, "time")], takes=takes)
    await executor.until_over()
    assert executor.pauses == [pytest.approx(pause)] * 3


@pytest.mark.parametrize(
    ("held", "growth", "pause"),
    [(400, 59, 55), (400, 60, 50), (400, 600, 5), (999, 9, 60), (999, 10, 50), (1000, 100, 5)],
    ids=[
        "by less than is left",
        "by what is left",
        "much",
        "by next to nothing",
        "by a part of the limit",
        "at the limit",
    ],
)
async def test_a_run_is_measured_at_once_when_the_disk_got_fuller_by_what_it_had_left(
    held: int, growth: int, pause: float
) -> None:
    steps = count()

    def fullness(moment: float) -> int:
        del moment
        return growth * next(steps)

    executor = Executor([Size(held), Size(held, "time")], takes=60, fullness=fullness)
    await executor.until_over()
    assert executor.pauses == [pause]


async def test_where_the_disk_is_not_seen_a_run_is_left_alone_for_a_minute_at_the_most() -> None:
    executor = Executor([Size(1), Size(1), Size(1), Size(1, "time")], takes=50, fullness=lambda moment: None)
    await executor.until_over()
    assert executor.pauses == [60] * 3
