"""Streams: when the first token comes, what a token costs, and how many streams one process holds."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from benchmarks.load import Plan, Seen, Target
from benchmarks.processes import rss_mb
from benchmarks.report import Result, compare
from benchmarks.report import Target as Goal
from benchmarks.running import Database, Ground, finish, measure, quietly, start
from benchmarks.servers import Baseline, Platform, Scenario, baseline, platform

__all__ = ["bulk_cpu", "first_token", "many_streams", "many_streams_two_processes", "paced_cpu"]


_Pair = tuple[tuple[Seen, float], tuple[Seen, float]]
"""What was seen of the baseline and of the platform, each with the MiB by which it grew."""


def first_token(on: Ground, database: Database = "sqlite") -> list[Result]:
    """The time to the first text of a stream, one stream at a time, alternating between the two servers."""
    scenario = Scenario(model="bulk-8", clients=1, stream=True)
    rounds = 40 if on.quick else 200
    with baseline(on, scenario) as theirs, platform(on, scenario, database) as ours:
        targets = [theirs.target, ours.target]
        measure(on, Plan("alternate", targets, count=20))
        repeated = [
            quietly(on, lambda: _sound(measure(on, Plan("alternate", targets, count=rounds, gap=0.01, tokens=8))))[0]
            for _ in range(on.repetitions)
        ]
    return [
        compare(
            "stream_first_token",
            [(first.first_p50_ms, second.first_p50_ms) for first, second in repeated],
            unit="ms",
            target=Goal("difference", "at most", 2.0),
            samples=[
                {
                    side: {"first_p50_ms": seen.first_p50_ms, "first_p99_ms": seen.first_p99_ms}
                    for side, seen in zip(("baseline", "platform"), pair, strict=True)
                }
                for pair in repeated
            ],
            notes={"streams_a_repetition": rounds, "database": database},
        )
    ]


def bulk_cpu(on: Ground) -> list[Result]:
    """CPU of the server for a token that arrives with hundreds of others: long streams less short ones."""
    short, long = 10, 1010
    count = 12 if on.quick else 32
    with ExitStack() as stack:
        sides: list[tuple[Target, Target]] = []
        scenarios = [
            Scenario(model=f"bulk-{tokens}", clients=4, stream=True, history=False) for tokens in (short, long)
        ]
        for open_server in (baseline, _platform_on_sqlite):
            few, many = [stack.enter_context(open_server(on, scenario)).target for scenario in scenarios]
            sides.append((few, many))
        pairs: list[tuple[float, float]] = []
        whole: list[dict[str, float]] = []
        for target in [target for side in sides for target in side]:
            measure(on, Plan("closed", [target], clients=4, count=20))
        for _ in range(on.repetitions):
            per_stream, _ = quietly(
                on,
                lambda: [
                    [_cpu_a_stream(on, *one, count) for one in zip(side, (short, long), strict=True)] for side in sides
                ],
            )
            pair = [(many - few) / (long - short) for few, many in per_stream]
            pairs.append((pair[0], pair[1]))
            whole.append({"baseline": per_stream[0][1], "platform": per_stream[1][1]})
    return [
        compare(
            "stream_bulk_cpu",
            pairs,
            unit="CPU ms a token",
            target=Goal("ratio", "at most", 1.0),
            notes={
                "how": f"(CPU of a stream of {long} tokens - CPU of one of {short}) / {long - short}",
                "whole_stream_cpu_ms": whole,
            },
        )
    ]


def paced_cpu(on: Ground) -> list[Result]:
    """CPU of the server for a token that arrives alone: 20 streams of 50 tokens a second, read while all of them run."""
    streams, rate, seconds = 20, 50, 4.0
    tokens = int((seconds + 4) * rate)
    scenario = Scenario(model=f"paced-{tokens}-{1 / rate}", clients=streams, stream=True, history=False)
    plan = Plan("window", [], clients=streams, warm=2.0, seconds=seconds, gap=1 / rate / streams, tokens=tokens)
    with baseline(on, scenario) as theirs, platform(on, scenario, "sqlite") as ours:
        pairs = [(_window(on, plan, theirs.target), _window(on, plan, ours.target)) for _ in range(on.repetitions)]
    return [
        compare(
            "stream_paced_cpu",
            [(_cpu_a_token(first), _cpu_a_token(second)) for first, second in pairs],
            unit="CPU ms a token",
            target=Goal("ratio", "at most", 1.2),
            samples=[
                {
                    side: {"cpu_ms_a_token": _cpu_a_token(seen), "tokens": seen.tokens, "gap_p99_ms": seen.gap_p99_ms}
                    for side, seen in zip(("baseline", "platform"), pair, strict=True)
                }
                for pair in pairs
            ],
            notes={"streams": streams, "tokens_a_second_each": rate},
        )
    ]


def many_streams(on: Ground) -> list[Result]:
    """600 streams of one token a second in one process, 20 new ones a second."""
    count = 60 if on.quick else 600
    tokens = 5 if on.quick else 40
    scenario = Scenario(model=f"paced-{tokens}-1.0", stream=True, history=False, fresh_sessions=count)
    plan = Plan("ramp", [], clients=count, rate=20.0, tokens=tokens)

    def take() -> _Pair:
        with baseline(on, scenario) as theirs:
            first = _ramp(on, plan, [theirs])
        with platform(on, scenario, "sqlite") as ours:
            return first, _ramp(on, plan, [ours])

    taken = [quietly(on, take, attempts=2) for _ in range(on.repetitions)]
    return _many("streams_600", taken, {"streams": count, "tokens_each": tokens, "database": "sqlite"})


def many_streams_two_processes(on: Ground) -> list[Result]:
    """1,000 streams of one token a second over two processes that share a PostgreSQL, 20 new ones a second."""
    count = 100 if on.quick else 1000
    tokens = 5 if on.quick else 60
    scenario = Scenario(model=f"paced-{tokens}-1.0", stream=True, history=False, fresh_sessions=count)
    plan = Plan("ramp", [], clients=count, rate=20.0, tokens=tokens)

    def take() -> _Pair:
        with ExitStack() as stack:
            theirs = [stack.enter_context(baseline(on, scenario)) for _ in range(2)]
            first = _ramp(on, plan, theirs)
        with ExitStack() as stack:
            url = stack.enter_context(on.postgresql())
            ours = [stack.enter_context(platform(on, scenario, "postgresql", database_url=url)) for _ in range(2)]
            return first, _ramp(on, plan, ours)

    taken = [quietly(on, take, attempts=2) for _ in range(min(on.repetitions, 3))]
    notes = {"streams": count, "tokens_each": tokens, "processes": 2, "database": "postgresql"}
    return _many("streams_1000_two_processes", taken, notes)


def _many(name: str, taken: Sequence[tuple[_Pair, float]], notes: dict[str, Any]) -> list[Result]:
    pairs = [(first, second) for ((first, _), (second, _)), _ in taken]
    memory = [(first / notes["streams"], second / notes["streams"]) for ((_, first), (_, second)), _ in taken]
    samples = [
        {
            "baseline": _ramp_sample(first, first_mb),
            "platform": _ramp_sample(second, second_mb),
            "cores_used_by_others": others,
        }
        for (first, second), (first_mb, second_mb), (_, others) in zip(pairs, memory, taken, strict=True)
    ]
    firsts = [(first.first_p99_ms, second.first_p99_ms) for first, second in pairs]
    errors = [(float(first.errors), float(second.errors)) for first, second in pairs]
    notes = notes | {"complaints": [second.complaints for _, second in pairs if second.complaints]}
    return [
        compare(
            f"{name}_first_token_p99",
            firsts,
            unit="ms",
            target=Goal("figure", "at most", 2000.0),
            samples=samples,
            notes=notes,
        ),
        compare(
            f"{name}_first_token_p99_ratio",
            firsts,
            unit="ms",
            target=Goal("ratio", "at most", 1.25),
            samples=samples,
            notes=notes,
        ),
        replace(
            compare(
                f"{name}_errors",
                errors,
                unit="streams",
                target=Goal("figure", "at most", 0.0),
                samples=samples,
                notes=notes,
            ),
            figure=max(second for _, second in errors),
        ),
        compare(
            f"{name}_memory",
            memory,
            unit="MiB a stream",
            target=Goal("figure", "at most", 0.2),
            samples=samples,
            notes=notes,
        ),
    ]


def _ramp(on: Ground, plan: Plan, servers: Sequence[Baseline | Platform]) -> tuple[Seen, float]:
    """What was seen of all servers together, and by how many MiB they grew."""
    _sound(measure(on, Plan("closed", [server.warm for server in servers], clients=4, count=40)))
    before = sum(rss_mb(server.process.pid) for server in servers)
    child = start(on, replace(plan, targets=[server.target for server in servers]))
    most = before
    while child.poll() is None:
        most = max(most, sum(rss_mb(server.process.pid) for server in servers))
        time.sleep(0.5)
    return _together(finish(child)), most - before


def _together(seen: list[Seen]) -> Seen:
    """Records of several targets as one; the percentiles are the worst of them."""
    if len(seen) == 1:
        return seen[0]
    return Seen(
        answered=sum(one.answered for one in seen),
        errors=sum(one.errors for one in seen),
        complaints=[words for one in seen for words in one.complaints],
        elapsed=max(one.elapsed for one in seen),
        first_p50_ms=max(one.first_p50_ms for one in seen),
        first_p99_ms=max(one.first_p99_ms for one in seen),
        gap_p50_ms=max(one.gap_p50_ms for one in seen),
        gap_p99_ms=max(one.gap_p99_ms for one in seen),
        tokens=sum(one.tokens for one in seen),
        cpu=sum(one.cpu for one in seen),
        most_at_once=sum(one.most_at_once for one in seen),
    )


def _ramp_sample(seen: Seen, mb: float) -> dict[str, float]:
    return {
        "first_p50_ms": seen.first_p50_ms,
        "first_p99_ms": seen.first_p99_ms,
        "gap_p50_ms": seen.gap_p50_ms,
        "gap_p99_ms": seen.gap_p99_ms,
        "errors": seen.errors,
        "most_at_once": seen.most_at_once,
        "cpu_share_of_a_core": seen.cpu / seen.elapsed,
        "mb_a_stream": mb,
    }


def _platform_on_sqlite(on: Ground, scenario: Scenario) -> Any:
    return platform(on, scenario, "sqlite")


def _cpu_a_stream(on: Ground, target: Target, tokens: int, count: int) -> float:
    (seen,) = _sound(measure(on, Plan("closed", [target], clients=4, count=count, tokens=tokens)))
    return seen.cpu / count * 1000


def _window(on: Ground, plan: Plan, target: Target) -> Seen:
    (seen,) = _sound(measure(on, replace(plan, targets=[target])))
    return seen


def _cpu_a_token(seen: Seen) -> float:
    return seen.cpu / seen.tokens * 1000


def _sound(seen: list[Seen]) -> list[Seen]:
    for one in seen:
        if one.errors:
            raise RuntimeError(f"{one.errors} of {one.answered} streams failed: {one.complaints}")
    return seen
