"""The queue: how many runs are accepted a second, when they start, how fast they are drained, what an idle worker costs."""

import time
import uuid
from typing import Any

from benchmarks.load import Plan, Seen, percentile
from benchmarks.processes import cpu_seconds, tree_seconds
from benchmarks.queue_fleet import Fleet, fleet, now, seconds_between, sound, waits
from benchmarks.report import Result, measured
from benchmarks.report import Target as Goal
from benchmarks.running import Database, Ground, measure, quietly

__all__ = ["SESSIONS", "accept", "dispatch", "drain", "drain_once", "idle_worker"]

_CLIENTS = 16
SESSIONS = 5
_TRICKLE = 20.0
_REST_SECONDS = 10.0
_IDLE_SECONDS = 20.0


def accept(on: Ground, database: Database) -> list[Result]:
    """Async runs that 16 clients have accepted: on PostgreSQL for each CPU-second of the server, on SQLite each second.

    Each client asks in a session of its own, or each run makes a session. On PostgreSQL nobody carries the runs out; on
    SQLite the server's own worker has all its places taken, or is free and carries them out meanwhile.
    """
    with fleet(on, database) as ours:
        kinds = {
            "own_sessions": [ours.ask(session_id=uuid.uuid4()) for _ in range(_CLIENTS)],
            "new_sessions": [ours.ask()],
        }
        if database == "sqlite":
            ours.take_all_places()
        for requests in kinds.values():
            _accept_for(ours, requests, 1.0)
        taken = {
            kind: [
                quietly(on, lambda requests=requests: _accept_for(ours, requests, on.seconds))
                for _ in range(on.repetitions)
            ]
            for kind, requests in kinds.items()
        }
        if database == "sqlite":
            ours.open_gate()
            ours.wait_ended("gated")
            taken["while_carried_out"] = [
                quietly(on, lambda: _accept_for(ours, kinds["own_sessions"], on.seconds)) for _ in range(on.repetitions)
            ]
    return [_accepted(f"queue_accept_{database}", kind, database, seen) for kind, seen in taken.items()]


def _accept_for(ours: Fleet, requests: list[str], seconds: float) -> Seen:
    return sound(measure(ours.ground, Plan("closed", [ours.target(requests)], clients=_CLIENTS, seconds=seconds)))


def _accepted(name: str, kind: str, database: Database, taken: list[tuple[Seen, float]]) -> Result:
    by_cpu = database == "postgresql"
    figures = [seen.answered / seen.cpu if by_cpu else seen.per_second for seen, _ in taken]
    return measured(
        name if kind == "own_sessions" else f"{name}_{kind}",
        figures,
        unit="accepted a CPU-second of the server" if by_cpu else "accepted/s",
        target=Goal("figure", "at least", 400.0 if by_cpu else 200.0),
        samples=[
            {
                "accepted_a_second": seen.per_second,
                "accepted_a_cpu_second": seen.answered / seen.cpu,
                "cpu_ms_each": seen.cpu / seen.answered * 1000,
                "cpu_share_of_a_core": seen.cpu / seen.elapsed,
                "p50_ms": seen.p50_ms,
                "p99_ms": seen.p99_ms,
                "accepted": seen.answered,
                "cores_used_by_others": others,
            }
            for seen, others in taken
        ],
        notes={"clients": _CLIENTS, "how": _ACCEPT_NOTES[kind, database]},
    )


_ACCEPT_NOTES = {
    ("own_sessions", "postgresql"): "each client asks in a session of its own; no worker is there",
    ("new_sessions", "postgresql"): "each run makes a session of its own; no worker is there",
    ("own_sessions", "sqlite"): "each client asks in a session of its own; all places of the server's worker are taken",
    ("new_sessions", "sqlite"): "each run makes a session of its own; all places of the server's worker are taken",
    ("while_carried_out", "sqlite"): "each client asks in a session of its own; the server carries runs out meanwhile",
}


def dispatch(on: Ground, database: Database) -> list[Result]:
    """From acceptance to start of runs that come at a steady trickle, while workers are free: p95."""
    count = 60 if on.quick else 200
    with fleet(on, database, workers=2 if database == "postgresql" else 0) as ours:
        began = now()
        ours.accept([ours.ask()], 1)
        ours.wait_ended()
        (first,) = waits(ours.runs(began))
        _trickle(ours, 20)
        taken = [quietly(on, lambda: _trickle(ours, count)) for _ in range(on.repetitions)]
    return [
        measured(
            f"queue_dispatch_{database}",
            [percentile(found, 95) for found, _ in taken],
            unit="ms, p95",
            target=Goal("figure", "at most", 100.0 if database == "postgresql" else 300.0),
            samples=[
                {
                    **{f"p{percent}_ms": percentile(found, percent) for percent in (50, 95, 99)},
                    "max_ms": max(found),
                    "cores_used_by_others": others,
                }
                for found, others in taken
            ],
            notes={
                "runs_a_repetition": count,
                "runs_a_second": _TRICKLE,
                "workers": 2 if database == "postgresql" else "the server itself",
                "first_run_ms": first,
                "how": "from the run's created_at, taken before it is stored, to its started_at",
            },
        )
    ]


def _trickle(ours: Fleet, count: int) -> list[float]:
    began = now()
    sound(measure(ours.ground, Plan("ramp", [ours.target([ours.ask()])], clients=count, rate=_TRICKLE)))
    ours.wait_ended()
    return waits(ours.runs(began))


def drain(on: Ground) -> list[Result]:
    """500 turns of 5 sessions, all accepted before, carried out by two workers: turns a second."""
    count = 100 if on.quick else 500
    with fleet(on, "postgresql", workers=2) as ours:
        drain_once(ours, count, sessions=SESSIONS)
        taken = [quietly(on, lambda: drain_once(ours, count, sessions=SESSIONS)) for _ in range(on.repetitions)]
    return [
        measured(
            "queue_drain_postgresql",
            [sample["turns_a_second"] for sample, _ in taken],
            unit="turns/s",
            target=Goal("figure", "at least", 150.0),
            samples=[sample | {"cores_used_by_others": others} for sample, others in taken],
            notes={
                "turns": count,
                "sessions": SESSIONS,
                "workers": 2,
                "how": "from the first start to the last end; the CPU has the ends of the 32 runs in it that held the places",
            },
        )
    ]


def drain_once(ours: Fleet, count: int, *, sessions: int | None) -> dict[str, Any]:
    """Have `count` runs accepted while the workers' places are taken, then let them go: turns a second, and their CPU.

    They are turns of so many sessions, or each has a session of its own.
    """
    requests = [ours.ask(session_id=uuid.uuid4()) for _ in range(sessions)] if sessions else [ours.ask()]
    ours.take_all_places()
    began = now()
    ours.accept(requests, count)
    postgres = ours.ground.postgres_pid
    before = [*map(cpu_seconds, ours.worker_pids), tree_seconds(postgres)]
    ours.open_gate()
    ours.wait_ended()
    used = [
        after - cpu
        for after, cpu in zip([*map(cpu_seconds, ours.worker_pids), tree_seconds(postgres)], before, strict=True)
    ]
    rows = ours.runs(began)
    if len(rows) != count:
        raise RuntimeError(f"{len(rows)} runs were stored, not {count}")
    elapsed = seconds_between(rows)
    by_worker: dict[str, int] = {}
    for row in rows:
        by_worker[row.owner or ""] = by_worker.get(row.owner or "", 0) + 1
    return {
        "turns_a_second": count / elapsed,
        "seconds": elapsed,
        "worker_cpu_ms_a_turn": sum(used[:-1]) / count * 1000,
        "postgresql_cpu_ms_a_turn": used[-1] / count * 1000,
        "turns_by_worker": sorted(by_worker.values()),
    }


def idle_worker(on: Ground) -> list[Result]:
    """The share of a core that a worker uses which has nothing to do."""
    rest, seconds = (3.0, 5.0) if on.quick else (_REST_SECONDS, _IDLE_SECONDS)
    with fleet(on, "postgresql", workers=1) as ours:
        ours.accept([ours.ask()], 20)
        ours.wait_ended()
        ours.server.stop()
        time.sleep(rest)
        worker = ours.workers[0]
        taken = [
            quietly(on, lambda: _percent_of_a_core(on.postgres_pid, [worker.pid], seconds))
            for _ in range(on.repetitions)
        ]
        worker.stop()
        time.sleep(1.0)
        _, alone = _percent_of_a_core(on.postgres_pid, [], seconds)
    return [
        measured(
            "queue_idle_worker_cpu",
            [of_worker for (of_worker, _), _ in taken],
            unit="% of a core",
            target=Goal("figure", "at most", 5.0),
            samples=[
                {"worker_percent": of_worker, "postgresql_percent": of_postgres, "cores_used_by_others": others}
                for (of_worker, of_postgres), others in taken
            ],
            notes={"seconds": seconds, "rest_before": rest, "postgresql_percent_alone": alone, "runs_before": 20},
        )
    ]


def _percent_of_a_core(postgres: int, pids: list[int], seconds: float) -> tuple[float, float]:
    """What the processes use for a while, and what PostgreSQL uses meanwhile."""
    began, own, theirs = time.monotonic(), sum(map(cpu_seconds, pids)), tree_seconds(postgres)
    time.sleep(seconds)
    elapsed = time.monotonic() - began
    own, theirs = sum(map(cpu_seconds, pids)) - own, tree_seconds(postgres) - theirs
    return own / elapsed * 100, theirs / elapsed * 100
