"""Counters of rate limits by the injected clock."""

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from limits import RateLimitItem, parse

from automagik.security.rate_limits import Hits, SharedHits

pytestmark = pytest.mark.anyio


@dataclass
class TurnedClock:
    seconds: float = 1000.0

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return self.seconds


@dataclass
class Shared:
    """A shared counter that can be away."""

    away: bool = False
    asked: int = 0

    async def hit(self, name: str, limit: RateLimitItem) -> Hits:
        self.asked += 1
        if self.away:
            raise ConnectionError
        return Hits(100, 5.0)


async def test_a_shared_counter_that_is_away_is_left_alone_for_two_seconds_of_the_clock() -> None:
    shared, clock, limit = Shared(away=True), TurnedClock(), parse("3/minute")
    hits = SharedHits(shared, (ConnectionError,), clock)
    assert [(await hits.hit("key", limit)).count for _ in range(3)] == [1, 2, 3]
    assert shared.asked == 1
    shared.away = False
    clock.seconds += 1.9
    assert ((await hits.hit("key", limit)).count, shared.asked) == (4, 1)
    clock.seconds += 0.2
    assert ((await hits.hit("key", limit)).count, shared.asked) == (100, 2)
