"""How long the runs of a worker that was killed wait until another one has started them."""

import signal
import statistics
import time
from collections import Counter
from datetime import datetime

import psycopg

from benchmarks.queue_fleet import PLACES, Fleet, fleet
from benchmarks.report import Result, measured
from benchmarks.report import Target as Goal
from benchmarks.running import Ground

__all__ = ["takeover"]

_RUNS = PLACES - 4
"""Under way at once on two workers; either one alone has places for all of them."""
_MOST_SECONDS = 60.0
_POLL_SECONDS = 0.02
_SETTLE_SECONDS = 2.0
"""After the start of a worker, so that the next one that dies has lived for a while."""

_LIVING = "SELECT executor_id FROM executors WHERE role = 'worker' AND lost_at IS NULL"
_RUNNING = "SELECT owner, run_id FROM runs WHERE status = 'running' AND name = 'gated'"
_TAKEN = """
SELECT max(started_at) FROM runs WHERE run_id = ANY(%s)
HAVING bool_and(attempt > 1 AND status = 'running' AND owner <> %s)
"""


def takeover(on: Ground) -> list[Result]:
    """From `kill -9` of a worker with runs under way until the last of them is started by another one."""
    kills = 2 if on.quick else 3 * on.repetitions
    with fleet(on, "postgresql") as ours:
        assert ours.url is not None
        with psycopg.connect(ours.url, autocommit=True) as database:
            executors: dict[str, int] = {}
            for place in range(2):
                ours.add_worker()
                executors[_newest(database, executors)] = place
            samples: list[dict[str, float]] = []
            for _ in range(kills):
                time.sleep(_SETTLE_SECONDS)
                samples.append(_kill_one(ours, database, executors))
    figures = [sample["seconds"] for sample in samples]
    return [
        measured(
            "queue_takeover",
            figures,
            unit="s, the slowest",
            target=Goal("figure", "at most", 5.0),
            worst=True,
            samples=samples,
            notes={"kills": kills, "median_seconds": statistics.median(figures), "fastest_seconds": min(figures)},
        )
    ]


def _kill_one(
    ours: Fleet, database: "psycopg.Connection[tuple[object, ...]]", executors: dict[str, int]
) -> dict[str, float]:
    """Kill the worker that has the most runs under way; how long the last of them waited. Starts another in its place."""
    ours.gate.unlink(missing_ok=True)
    ours.accept([ours.ask("gated")], _RUNS, clients=4)
    ours.wait_running(_RUNS, "gated")
    running: list[tuple[str, str]] = database.execute(_RUNNING).fetchall()  # type: ignore[assignment]
    ((victim, had),) = Counter(owner for owner, _ in running).most_common(1)
    left = [run_id for owner, run_id in running if owner == victim]
    place = executors.pop(victim)
    killed = time.time()
    ours.workers[place].stop(signal.SIGKILL)
    started = _await_started(database, left, victim, until=killed + _MOST_SECONDS)
    ours.open_gate()
    ours.wait_ended("gated")
    ours.replace_worker(place)
    executors[_newest(database, executors)] = place
    return {"seconds": started.timestamp() - killed, "runs": had}


def _await_started(
    database: "psycopg.Connection[tuple[object, ...]]", run_ids: list[str], victim: str, *, until: float
) -> datetime:
    while time.time() < until:
        found = database.execute(_TAKEN, (run_ids, victim)).fetchone()
        if found is not None and isinstance(found[0], datetime):
            return found[0]
        time.sleep(_POLL_SECONDS)
    raise RuntimeError(f"the runs of a worker that was killed were not started again within {_MOST_SECONDS:g} s")


def _newest(database: "psycopg.Connection[tuple[object, ...]]", known: dict[str, int]) -> str:
    """The executor of the worker that has just come."""
    (new,) = [str(executor) for (executor,) in database.execute(_LIVING) if executor not in known]
    return new
