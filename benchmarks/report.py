"""Results: what a benchmark found, written as JSON, as a line and as a table."""

import json
import os
import platform
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, cast

__all__ = [
    "RESULTS",
    "Result",
    "Target",
    "compare",
    "document",
    "line",
    "machine",
    "measured",
    "read_results",
    "save",
    "table",
]

RESULTS = Path(__file__).parent / "results"

_LIBRARIES = (
    "pydantic-ai-slim",
    "pydantic",
    "fastapi",
    "starlette",
    "uvicorn",
    "uvloop",
    "httptools",
    "sqlalchemy",
    "asyncpg",
    "dbos",
    "procrastinate",
    "openai",
    "httpx2",
)


@dataclass(frozen=True, slots=True)
class Target:
    """What a result is held against: its `of` (`ratio` to the baseline, `difference` from it, or the `figure` itself)."""

    of: Literal["ratio", "difference", "figure"]
    bound: Literal["at least", "at most"]
    value: float

    def met_by(self, measured: float) -> bool:
        """Whether `measured` is within the bound."""
        return measured >= self.value if self.bound == "at least" else measured <= self.value

    def __str__(self) -> str:
        return f"{self.of} {self.bound} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Result:
    """What one benchmark found. `figure` and `baseline` are medians over the repetitions, `ratio` the median of their ratios."""

    name: str
    figure: float
    unit: str
    baseline: float | None
    ratio: float | None
    target: Target | None
    """None: a comparison that is only told."""
    samples: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """One for each repetition."""
    notes: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def measured(self) -> float:
        """What is held against the target."""
        if self.target is None:
            return self.figure
        match self.target.of:
            case "ratio":
                assert self.ratio is not None
                return self.ratio
            case "difference":
                assert self.baseline is not None
                return self.figure - self.baseline
            case "figure":
                return self.figure

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.target is None or self.target.met_by(self.measured)


def compare(
    name: str,
    pairs: Sequence[tuple[float, float]],
    *,
    unit: str,
    target: Target | None,
    samples: list[dict[str, Any]] | None = None,
    notes: dict[str, Any] | None = None,
) -> Result:
    """The result of repeated measurements, each a pair (baseline, platform) taken one right after the other."""
    ratios = [ours / theirs for theirs, ours in pairs if theirs]
    return Result(
        name=name,
        figure=statistics.median(ours for _, ours in pairs),
        unit=unit,
        baseline=statistics.median(theirs for theirs, _ in pairs),
        ratio=statistics.median(ratios) if ratios else None,
        target=target,
        samples=samples or [{"baseline": theirs, "platform": ours} for theirs, ours in pairs],
        notes=notes or {},
    )


def measured(
    name: str,
    figures: Sequence[float],
    *,
    unit: str,
    target: Target | None,
    worst: bool = False,
    samples: list[dict[str, Any]] | None = None,
    notes: dict[str, Any] | None = None,
) -> Result:
    """The result of repeated measurements that have no baseline: their median, or the `worst` of figures that should be small."""
    return Result(
        name=name,
        figure=max(figures) if worst else statistics.median(figures),
        unit=unit,
        baseline=None,
        ratio=None,
        target=target,
        samples=samples or [{"figure": figure} for figure in figures],
        notes=notes or {},
    )


def machine() -> dict[str, Any]:
    """The machine and the versions that a result was measured with."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = re.search(r"^MemTotal:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(memory[1]) / 2**20, 1) if memory else None,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in _LIBRARIES},
    }


def document(result: Result) -> dict[str, Any]:
    """A result as it is saved."""
    return _rounded(
        asdict(result)
        | {
            "target": _target_text(result.target),
            "measured": result.measured,
            "met": result.met,
            "machine": machine(),
            "at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        }
    )


def save(result: Result) -> Path:
    """Write a result to `benchmarks/results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{result.name}.json"
    path.write_text(json.dumps(document(result), indent=2) + "\n")
    return path


def line(result: Result) -> str:
    """A result in one line."""
    against = "" if result.baseline is None else f" against {result.baseline:.4g}"
    ratio = "" if result.ratio is None else f", ratio {result.ratio:.3f}"
    verdict = "met" if result.met else "MISSED"
    held = "" if result.target is None else f"; {result.target}: {verdict}"
    return f"{result.name}: {result.figure:.4g} {result.unit}{against}{ratio}{held}"


_COMPARISON = "none"


def _target_text(target: Target | None) -> str:
    return _COMPARISON if target is None else str(target)


def read_results() -> list[dict[str, Any]]:
    """All results that were saved, by name."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]


def table(results: Iterable[dict[str, Any]]) -> str:
    """Results as Markdown: a table for each machine, the latest measured first."""
    by_machine: dict[str, list[dict[str, Any]]] = {}
    for one in results:
        by_machine.setdefault(f"{one['machine']['cpu']}, {one['machine']['cores']} cores", []).append(one)
    latest_first = sorted(by_machine.items(), key=lambda item: max(one["at"] for one in item[1]), reverse=True)
    return "\n\n".join(f"{_heading(machine, found)}\n\n{_rows(found)}" for machine, found in latest_first)


def _heading(machine: str, results: list[dict[str, Any]]) -> str:
    days = sorted({one["at"][:10] for one in results})
    return f"On {machine}, measured on {' and '.join(days)}:"


def _rows(results: list[dict[str, Any]]) -> str:
    rows = ["| benchmark | platform | baseline | unit | ratio | target | met |", "|---|---:|---:|---|---:|---|---|"]
    for one in results:
        baseline = "" if one["baseline"] is None else f"{one['baseline']:.4g}"
        ratio = "" if one["ratio"] is None else f"{one['ratio']:.2f}"
        met = "" if one["target"] == _COMPARISON else "yes" if one["met"] else "**no**"
        rows.append(
            f"| `{one['name']}` | {one['figure']:.4g} | {baseline} | {one['unit']} | {ratio} | {one['target']} | {met} |"
        )
    return "\n".join(rows)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in cast("list[Any]", value)]
    return value
