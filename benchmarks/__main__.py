"""`python -m benchmarks [NAME ...]`: run benchmarks; `micro`, `profile NAME` and `table` besides."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import FrameType
from typing import get_args

import uvloop

from benchmarks import (
    commits,
    executors,
    gateway,
    ledger,
    profiling,
    queue_comparison,
    queue_events,
    queue_failover,
    queue_profile,
    queue_runs,
    report,
    sessions,
    startup,
    streams,
    throughput,
    workflow_events,
)
from benchmarks.inprocess import micro, micro_table
from benchmarks.running import Database, Ground, ground

__all__ = ["BENCHMARKS", "main"]

BENCHMARKS: dict[str, Callable[[Ground], list[report.Result]]] = {
    "persisted_run_sqlite": lambda on: throughput.persisted_run(on, "sqlite"),
    "persisted_run_postgresql": lambda on: throughput.persisted_run(on, "postgresql"),
    "inprocess_run_sqlite": lambda on: throughput.inprocess_run(on, "sqlite"),
    "inprocess_run_postgresql": lambda on: throughput.inprocess_run(on, "postgresql"),
    "stream_first_token": streams.first_token,
    "stream_bulk_cpu": streams.bulk_cpu,
    "stream_paced_cpu": streams.paced_cpu,
    "long_session_sqlite": lambda on: sessions.long_session(on, "sqlite"),
    "long_session_postgresql": lambda on: sessions.long_session(on, "postgresql"),
    "start_to_ready": startup.start_to_ready,
    "streams_600": streams.many_streams,
    "streams_1000_two_processes": streams.many_streams_two_processes,
    "queue_accept_sqlite": lambda on: queue_runs.accept(on, "sqlite"),
    "queue_accept_postgresql": lambda on: queue_runs.accept(on, "postgresql"),
    "queue_dispatch_sqlite": lambda on: queue_runs.dispatch(on, "sqlite"),
    "queue_dispatch_postgresql": lambda on: queue_runs.dispatch(on, "postgresql"),
    "queue_drain_postgresql": queue_runs.drain,
    "queue_takeover": queue_failover.takeover,
    "queue_idle_worker_cpu": queue_runs.idle_worker,
    "queue_event_other_instance": queue_events.other_instance,
    "queue_against_procrastinate": queue_comparison.against_procrastinate,
    "queue_sync_postgresql_two_roles": throughput.two_roles,
    "ledger_reserve_sqlite": lambda on: ledger.ledger_reserve(on, "sqlite"),
    "ledger_reserve_postgresql": lambda on: ledger.ledger_reserve(on, "postgresql"),
    "gateway_added_sqlite": lambda on: gateway.added_latency(on, "sqlite"),
    "gateway_added_postgresql": lambda on: gateway.added_latency(on, "postgresql"),
    "commit_extraction": commits.commit_extraction,
    "executor_local_start": executors.local_start,
    "executor_docker_start": executors.docker_start,
    "workflow_event_seen": workflow_events.event_seen,
}

_UNPINNED = frozenset(
    {
        "streams_600",
        "streams_1000_two_processes",
        "executor_local_start",
        "executor_docker_start",
        "workflow_event_seen",
        "queue_dispatch_postgresql",
        "queue_drain_postgresql",
        "queue_takeover",
        "queue_idle_worker_cpu",
        "queue_event_other_instance",
        "queue_against_procrastinate",
    }
)
"""They hold one or two cores nearly full, or have more than two processes, so the system may spread them."""

_QUEUE_PROFILES: dict[str, Callable[[Ground], str]] = {
    "queue_accept_postgresql": queue_profile.profile_accepted,
    "queue_drain_postgresql": queue_profile.profile_drained,
}
"""Where the time of the queue goes has layers of its own."""

_LAYERS = ("agent.run", "baseline app", "platform service", "platform api")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 1 with `--strict` when a target is missed, else 0."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop)
    names: list[str] = options.names
    if names[:1] == ["table"]:
        print(report.table(report.read_results()))
        return 0
    unknown = [name for name in names if name not in {*BENCHMARKS, "micro", "profile"}]
    if unknown:
        sys.stderr.write(f"There is no benchmark {unknown[0]!r}. There are: {', '.join(BENCHMARKS)}.\n")
        return 2
    match names:
        case ["micro", *_]:
            with _ground(options) as on:
                _micro(on, options)
        case ["profile", *rest]:
            with _ground(options) as on:
                print(_profile(on, rest[0] if rest else "inprocess_run_sqlite", options.layer))
        case _:
            return _run(options, names or list(BENCHMARKS))
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    """End as at an exception, so that what was started is stopped, too."""
    sys.exit(f"Stopped by signal {number}; what was measured until then is saved.")


def _ground(options: argparse.Namespace, *, may_pin: bool = True) -> AbstractContextManager[Ground]:
    return ground(
        pin=may_pin and not options.no_pin,
        repetitions=options.repetitions,
        seconds=options.seconds,
        quick=options.quick,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; or micro, profile NAME, table; none: all"
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 when a target is missed")
    parser.add_argument("--repetitions", type=int, default=5, help="pairs of baseline and platform (5)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement of throughput (5)")
    parser.add_argument("--quick", action="store_true", help="small counts, to try the harness; nothing is saved")
    parser.add_argument("--no-pin", action="store_true", help="leave the cores to the system")
    parser.add_argument("--wire", choices=("yes", "no", "both"), default="both", help="micro: which models")
    parser.add_argument("--database", choices=(*get_args(Database), "both"), default="both", help="micro: which stores")
    parser.add_argument("--clients", type=int, default=16, help="micro: how many runs at once (16)")
    parser.add_argument("--layer", choices=_LAYERS, default="platform api", help="profile: which layer")
    return parser


def _run(options: argparse.Namespace, names: Sequence[str]) -> int:
    results: list[report.Result] = []
    for name in names:
        with _ground(options, may_pin=name not in _UNPINNED) as on:
            found = BENCHMARKS[name](on)
        for result in found:
            if not options.quick:
                report.save(result)
            print(report.line(result), flush=True)
        results += found
    print()
    print(report.table(report.document(result) for result in results))
    return 1 if options.strict and not all(result.met for result in results) else 0


def _micro(on: Ground, options: argparse.Namespace) -> None:
    databases: list[Database] = list(get_args(Database)) if options.database == "both" else [options.database]
    wires = {"yes": [True], "no": [False], "both": [False, True]}[options.wire]
    for wire in wires:
        for database in databases:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                rows = runner.run(micro(on, database, wire=wire, clients=options.clients))
            model = "OpenAI wire" if wire else "in-process model"
            print(f"{database}, {model}, {options.clients} at once\n{micro_table(rows)}", flush=True)


def _profile(on: Ground, name: str, layer: str) -> str:
    if name in _QUEUE_PROFILES:
        return _QUEUE_PROFILES[name](on)
    database: Database = "postgresql" if name.endswith("postgresql") else "sqlite"
    return profiling.run(on, database, wire=name.startswith("persisted"), stack=layer)


if __name__ == "__main__":
    sys.exit(main())
