"""The queue against procrastinate: the same requests, the same PostgreSQL, the same number of workers and places."""

import asyncio
import time
import uuid
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, LiteralString

import psycopg

from benchmarks.load import Plan, Seen, Target
from benchmarks.processes import SERVER_CORES, Process, cores, cpu_seconds, free_port, python, tree_seconds
from benchmarks.queue_fleet import fleet, sound
from benchmarks.queue_models import GATE
from benchmarks.queue_procrastinate import CONCURRENCY, Deferred, make_queue
from benchmarks.queue_runs import SESSIONS, drain_once
from benchmarks.report import Result, compare
from benchmarks.running import Ground, measure, quietly
from benchmarks.servers import http_request

__all__ = ["against_procrastinate"]

_CLIENTS = 16
_WORKERS = 2
_END_SECONDS = 180.0

_OPEN = "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
_DOING = "SELECT count(*) FROM procrastinate_jobs WHERE status = 'doing'"
_TIMES = """
SELECT count(*) FILTER (WHERE e.type = 'succeeded'),
  extract(epoch FROM max(e.at) FILTER (WHERE e.type = 'succeeded') - min(e.at) FILTER (WHERE e.type = 'started'))
FROM procrastinate_events e JOIN procrastinate_jobs j ON j.id = e.job_id WHERE j.id > %s AND j.task_name = %s
"""
_LAST = "SELECT coalesce(max(id), 0) FROM procrastinate_jobs"

_BOUGHT = (
    "A job of procrastinate is a row and two updates of it. A run of ours checks the key, finds or makes the session, counts "
    "its turn, keeps the idempotency key, loads the conversation and the memories, stores messages, output, usage and every "
    "event for readers on any instance, is fenced against an owner that was declared dead, taken over within 5 s of a death, "
    "bound by limits of agents and keys, and works on SQLite, too. procrastinate has locks for the order, priorities and "
    "retries; a job of a dead worker waits until a task of your own looks for stalled jobs; a task stores its results itself."
)


@dataclass(frozen=True, slots=True)
class _Jobs:
    """procrastinate on a database: its server, its workers, and what the database says."""

    ground: Ground
    target: Target
    database: "psycopg.Connection[Any]"
    workers: list[Process]
    gate: Path

    def defer(self, requests: list[str], *, count: int = 0, seconds: float = 0.0) -> Seen:
        target = Target(port=self.target.port, requests=requests, pids=self.target.pids)
        clients = min(_CLIENTS, count or _CLIENTS)
        return sound(measure(self.ground, Plan("closed", [target], clients=clients, count=count, seconds=seconds)))

    def number(self, query: LiteralString) -> int:
        row = self.database.execute(query).fetchone()
        assert row is not None
        return int(row[0])

    def wait_for(self, query: LiteralString, wanted: int) -> None:
        until = time.monotonic() + _END_SECONDS
        while (found := self.number(query)) != wanted:
            if time.monotonic() > until:
                raise RuntimeError(f"{found} jobs, not {wanted}: {query}")
            time.sleep(0.1)

    def drain(self, task: str, count: int, *, locks: int | None) -> dict[str, Any]:
        """Have `count` jobs deferred while all places are taken, then let them go: jobs a second, and their CPU."""
        self.gate.unlink(missing_ok=True)
        places = CONCURRENCY * len(self.workers)
        self.defer([_request("gated")], count=places)
        self.wait_for(_DOING, places)
        last = self.number(_LAST)
        self.defer(
            [_request(task, lock=str(uuid.uuid4())) for _ in range(locks)] if locks else [_request(task)], count=count
        )
        pids = [worker.pid for worker in self.workers]
        before = sum(map(cpu_seconds, pids)), tree_seconds(self.ground.postgres_pid)
        self.gate.touch()
        self.wait_for(_OPEN, 0)
        after = sum(map(cpu_seconds, pids)), tree_seconds(self.ground.postgres_pid)
        row = self.database.execute(_TIMES, (last, task)).fetchone()
        if row is None or row[0] != count:
            raise RuntimeError(f"{row} instead of {count} jobs that succeeded")
        return {
            "turns_a_second": count / float(row[1]),
            "seconds": float(row[1]),
            "worker_cpu_ms_a_turn": (after[0] - before[0]) / count * 1000,
            "postgresql_cpu_ms_a_turn": (after[1] - before[1]) / count * 1000,
        }


def against_procrastinate(on: Ground) -> list[Result]:
    """Accepted for each CPU-second of the server, and turns a second of five sessions and of sessions of their own."""
    notes: dict[str, Any] = {"places_of_each_worker": CONCURRENCY, "what_the_difference_buys": _BOUGHT}
    return [_accepted(on, notes), *_drained(on, notes | {"workers": _WORKERS})]


def _accepted(on: Ground, notes: dict[str, Any]) -> Result:
    with _procrastinate(on) as theirs, fleet(on, "postgresql") as ours:

        def take(seconds: float) -> tuple[Seen, Seen]:
            plan = Plan("closed", [ours.target([ours.ask()])], clients=_CLIENTS, seconds=seconds)
            return theirs.defer([_request("nothing")], seconds=seconds), sound(measure(on, plan))

        take(1.0)
        taken = [quietly(on, lambda: take(on.seconds)) for _ in range(on.repetitions)]
    return compare(
        "queue_against_procrastinate_accepted",
        [(first.answered / first.cpu, second.answered / second.cpu) for (first, second), _ in taken],
        unit="accepted a CPU-second of the server",
        target=None,
        samples=[
            {"baseline": _sample(first), "platform": _sample(second), "cores_used_by_others": others}
            for (first, second), others in taken
        ],
        notes=notes | {"clients": _CLIENTS, "how": "over HTTP, each a session of its own; no worker is there"},
    )


def _drained(on: Ground, notes: dict[str, Any]) -> list[Result]:
    count = 100 if on.quick else 500
    kinds = {"in_order": SESSIONS, "each_alone": None}
    with _procrastinate(on, workers=_WORKERS) as theirs, fleet(on, "postgresql", workers=_WORKERS) as ours:

        def take(sessions: int | None) -> dict[str, dict[str, Any]]:
            return {
                "baseline": theirs.drain("answer", count, locks=sessions),
                "baseline_nothing": theirs.drain("nothing", count, locks=sessions),
                "platform": drain_once(ours, count, sessions=sessions),
            }

        for sessions in kinds.values():
            take(sessions)
        taken = {
            kind: [quietly(on, lambda sessions=sessions: take(sessions)) for _ in range(on.repetitions)]
            for kind, sessions in kinds.items()
        }
    return [
        compare(
            f"queue_against_procrastinate_{kind}",
            [(found["baseline"]["turns_a_second"], found["platform"]["turns_a_second"]) for found, _ in of_kind],
            unit="turns/s",
            target=None,
            samples=[found | {"cores_used_by_others": others} for found, others in of_kind],
            notes=notes
            | {
                "turns": count,
                "sessions": kinds[kind] or "one for each turn",
                "baseline": "jobs that ask the same agent, whose conversation is in memory",
                "baseline_nothing": "jobs that do nothing",
            },
        )
        for kind, of_kind in taken.items()
    ]


def _sample(seen: Seen) -> dict[str, float]:
    return {
        "accepted_a_second": seen.per_second,
        "cpu_ms_each": seen.cpu / seen.answered * 1000,
        "p50_ms": seen.p50_ms,
        "p99_ms": seen.p99_ms,
    }


def _request(task: str, *, lock: str | None = None) -> str:
    """A request for a job; one with a lock goes on with a conversation, as a turn of an old session does."""
    deferred = Deferred(task=task, lock=lock, has_history=lock is not None)
    return http_request("/defer", deferred.model_dump(exclude_none=True))


@contextmanager
def _procrastinate(on: Ground, *, workers: int = 0) -> Generator[_Jobs]:
    """procrastinate's server and workers on a database of their own, ready."""
    with ExitStack() as stack:
        gate = Path(stack.enter_context(TemporaryDirectory(prefix="automagik-bench-"))) / "gate"
        url, port = stack.enter_context(on.postgresql()), free_port()
        asyncio.run(_make_tables(url))
        env = {GATE: str(gate)}

        def start(role: str, name: str, on_cores: frozenset[int], *more: str) -> Process:
            command = python("-m", "benchmarks.queue_procrastinate", role, "--url", url, *more)
            return stack.enter_context(Process(command, on=on_cores, log=on.log(name), env=env))

        server = start("serve", "defers", cores(SERVER_CORES, pin=on.pin), "--port", str(port))
        server.wait_ready(f"http://127.0.0.1:{port}/ready")
        started = [start("work", f"jobs-{place}", on.everywhere) for place in range(workers)]
        for process in started:
            process.wait_logged("worker_ready")
        database = stack.enter_context(psycopg.connect(url, autocommit=True))
        yield _Jobs(on, Target(port=port, requests=[], pids=[server.pid]), database, started, gate)


async def _make_tables(url: str) -> None:
    async with make_queue(url).open_async() as queue:
        await queue.schema_manager.apply_schema_async()
