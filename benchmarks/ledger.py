"""What the ledger adds to each call of a model: to reserve before it, and to settle after it with the call's row."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import uvloop
from pydantic import SecretStr

from automagik.budget import Ledger, ModelCall, Party
from automagik.settings import Settings
from automagik.store import Store
from automagik.store.reservations import Period, Scope
from automagik.types import SystemClock, new_id
from benchmarks.report import Result, Target, measured
from benchmarks.running import Database, Ground

__all__ = ["ledger_reserve"]

_MOST_MS: dict[Database, float] = {"sqlite": 1.0, "postgresql": 2.0}
_BUDGETS: Sequence[tuple[Scope, str, Period]] = (
    ("organisation", "", "month"),
    ("key", "key_bench", "month"),
    ("agent", "claude_code", "day"),
    ("run", "run_bench", "total"),
)
_PARTY = Party(key_id="key_bench", agents=("claude_code", "implement"), run_id="run_bench")
_AT_ONCE = 50
_CALL_SECONDS = 0.05


def ledger_reserve(on: Ground, database: Database) -> list[Result]:
    """The time of one reservation in four budgets and its settlement, one call after the other, and fifty at once."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="automagik-bench-")))
        url = stack.enter_context(on.postgresql()) if database == "postgresql" else None
        settings = Settings(data_dir=folder, database_url=SecretStr(url) if url else None)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            samples = runner.run(_measure(settings, on.repetitions, 100 if on.quick else 1000))
    return [
        measured(
            f"ledger_reserve_{database}",
            [sample["both_p50_ms"] for sample in samples],
            unit="ms",
            target=Target("figure", "at most", _MOST_MS[database]),
            samples=samples,
            notes={
                "what": "p50 of Ledger.reserve and Ledger.settle together, with the call's row",
                "budgets": [f"{scope} by {period}" for scope, _, period in _BUDGETS],
                "at_once": f"{_AT_ONCE} callers, each call {_CALL_SECONDS:g} s long",
            },
        )
    ]


async def _measure(settings: Settings, repetitions: int, calls: int) -> list[dict[str, Any]]:
    clock = SystemClock()
    store = Store.from_settings(settings, clock)
    await store.open()
    ledger = Ledger(store, clock, executor_id=lambda: "exec_bench")
    try:
        for scope, name, period in _BUDGETS:
            await store.write(lambda tx, of=(scope, name, period): tx.budgets.set(*of, 10**15))
        await ledger.open()
        await ledger.limit_run("run_bench", 10**15)
        await _calls(ledger, 50, 0.0)
        samples: list[dict[str, Any]] = []
        for _ in range(repetitions):
            alone = await _calls(ledger, calls, 0.0)
            together = await asyncio.gather(*(_calls(ledger, calls // 20, _CALL_SECONDS) for _ in range(_AT_ONCE)))
            samples.append(
                {
                    "both_p50_ms": median(reserve + settle for reserve, settle in alone),
                    "reserve_p50_ms": median(reserve for reserve, _ in alone),
                    "settle_p50_ms": median(settle for _, settle in alone),
                    "reserve_p99_ms": quantiles([reserve for reserve, _ in alone], n=100)[98],
                    "at_once_reserve_p50_ms": median(reserve for one in together for reserve, _ in one),
                    "at_once_reserve_p99_ms": quantiles([reserve for one in together for reserve, _ in one], n=100)[98],
                }
            )
        return samples
    finally:
        await ledger.close()
        await store.close()


async def _calls(ledger: Ledger, count: int, seconds: float) -> list[tuple[float, float]]:
    """How long each reservation and each settlement took, in milliseconds."""
    taken: list[tuple[float, float]] = []
    for _ in range(count):
        began = time.perf_counter()
        reservation = await ledger.reserve(_PARTY, 50_000_000, at_least_nano=1_000_000)
        reserved = time.perf_counter()
        if seconds:
            await asyncio.sleep(seconds)
        ends = time.perf_counter()
        await ledger.settle(reservation, 10_000_000, call=_call())
        taken.append(((reserved - began) * 1000, (time.perf_counter() - ends) * 1000))
    return taken


def _call() -> ModelCall:
    return ModelCall(
        call_id=new_id("call"),
        run_id="run_bench",
        key_id="key_bench",
        user_id=None,
        wire="anthropic",
        model="claude-sonnet-5-5",
        status=200,
        outcome="completed",
        created_at=SystemClock().now(),
        duration_ms=1000,
        input_tokens=1000,
        output_tokens=200,
        cost_nano=10_000_000,
        reserved_nano=50_000_000,
    )
