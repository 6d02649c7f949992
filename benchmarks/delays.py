"""Results of how late readers saw a run's events: one for those that are stored, and one for pieces of text under way."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from benchmarks.load import percentile
from benchmarks.report import Result, Target, measured

__all__ = ["TEXT", "delay_results"]

TEXT = "text_delta"
"""The type of a piece of text."""


def delay_results(
    taken: Sequence[tuple[Mapping[str, Sequence[float]], float]],
    *,
    events: tuple[str, Target | None],
    texts: tuple[str, Target | None],
    left_out: Collection[str] = (),
    notes: Mapping[str, object],
) -> list[Result]:
    """p95 of each repetition. `taken` has the delays in ms by the event's type, and the cores that other programs used;
    `events` and `texts` are the results' names and targets; `left_out` are types that don't count."""
    stored = [
        [delay for kind, delays in found.items() if kind != TEXT and kind not in left_out for delay in delays]
        for found, _ in taken
    ]
    pieces = [found[TEXT] for found, _ in taken]
    samples = [
        {
            "events": len(delays),
            **_percentiles(delays),
            **{f"{kind}_p95_ms": percentile(of_kind, 95) for kind, of_kind in sorted(found.items())},
            "cores_used_by_others": others,
        }
        for delays, (found, others) in zip(stored, taken, strict=True)
    ]
    return [
        _measured(events, stored, samples, notes),
        _measured(texts, pieces, [{"pieces": len(delays), **_percentiles(delays)} for delays in pieces], notes),
    ]


def _measured(
    named: tuple[str, Target | None],
    repetitions: Sequence[Sequence[float]],
    samples: list[dict[str, Any]],
    notes: Mapping[str, object],
) -> Result:
    name, target = named
    figures = [percentile(delays, 95) for delays in repetitions]
    return measured(name, figures, unit="ms, p95", target=target, samples=samples, notes=dict(notes))


def _percentiles(delays: Sequence[float]) -> dict[str, float]:
    return {f"p{percent}_ms": percentile(delays, percent) for percent in (50, 95, 99)}
