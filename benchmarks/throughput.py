"""Runs a second: a persisted run of the platform against the same run that stores nothing."""

from benchmarks.load import Plan, Seen, Target
from benchmarks.report import Result, compare
from benchmarks.report import Target as Goal
from benchmarks.running import Database, Ground, measure, quietly
from benchmarks.servers import Scenario, baseline, platform

__all__ = ["inprocess_run", "persisted_run", "two_roles"]

_CLIENTS = 16


def persisted_run(on: Ground, database: Database) -> list[Result]:
    """A run over the OpenAI wire, 16 clients: requests a second, and p99."""
    goal = {"sqlite": 0.75, "postgresql": 0.80}[database]
    return _runs(on, f"persisted_run_{database}", Scenario(model="scripted", clients=_CLIENTS), database, goal)


def inprocess_run(on: Ground, database: Database) -> list[Result]:
    """A run with the in-process model, 16 clients: requests a second, and p99."""
    return _runs(on, f"inprocess_run_{database}", Scenario(clients=_CLIENTS), database, 0.65)


def two_roles(on: Ground) -> list[Result]:
    """`persisted_run` on PostgreSQL where the server leaves queued work to a worker, which has none."""
    scenario = Scenario(model="scripted", clients=_CLIENTS)
    return _runs(on, "queue_sync_postgresql_two_roles", scenario, "postgresql", 0.80, two_roles=True)


def _runs(
    on: Ground, name: str, scenario: Scenario, database: Database, goal: float, *, two_roles: bool = False
) -> list[Result]:
    with baseline(on, scenario) as theirs, platform(on, scenario, database, two_roles=two_roles) as ours:
        _load(on, theirs.target, 1.0)
        _load(on, ours.target, 1.0)
        taken = [
            quietly(on, lambda: (_load(on, theirs.target, on.seconds), _load(on, ours.target, on.seconds)))
            for _ in range(on.repetitions)
        ]
    pairs = [pair for pair, _ in taken]
    samples = [
        {"baseline": _sample(first), "platform": _sample(second), "cores_used_by_others": others}
        for (first, second), others in taken
    ]
    cpu = compare(
        name,
        [(_cpu_ms(first), _cpu_ms(second)) for first, second in pairs],
        unit="CPU ms a run",
        target=Goal("ratio", "at most", 1 / goal),
    )
    notes = {
        "clients": scenario.clients,
        "history_messages": 20,
        "cpu_ms_a_run": {"baseline": cpu.baseline, "platform": cpu.figure, "ratio": cpu.ratio},
        "pinned": "server on one core, the rest on the other" if on.pin else "not pinned",
    }
    return [
        compare(
            name,
            [(first.per_second, second.per_second) for first, second in pairs],
            unit="runs/s",
            target=Goal("ratio", "at least", goal),
            samples=samples,
            notes=notes,
        ),
        compare(
            f"{name}_p99",
            [(first.p99_ms, second.p99_ms) for first, second in pairs],
            unit="ms",
            target=Goal("ratio", "at most", 2.0),
            samples=samples,
            notes=notes,
        ),
    ]


def _load(on: Ground, target: Target, seconds: float) -> Seen:
    (seen,) = measure(on, Plan("closed", [target], clients=_CLIENTS, seconds=seconds))
    if seen.errors:
        raise RuntimeError(f"{seen.errors} of {seen.answered} runs failed: {seen.complaints}")
    return seen


def _cpu_ms(seen: Seen) -> float:
    return seen.cpu / seen.answered * 1000


def _sample(seen: Seen) -> dict[str, float]:
    return {
        "per_second": seen.per_second,
        "p50_ms": seen.p50_ms,
        "p99_ms": seen.p99_ms,
        "cpu_ms": _cpu_ms(seen),
        "runs": seen.answered,
    }
