"""The platform in two roles on one database: a server, workers, and what the database says of their runs."""

import asyncio
import itertools
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from automagik.store import Store
from automagik.store.rows import RunRow
from automagik.types import SystemClock
from benchmarks.load import Plan, Seen, Target
from benchmarks.processes import SERVER_CORES, Process, cores, python
from benchmarks.queue_models import GATE
from benchmarks.running import Database, Ground, measure
from benchmarks.scenario import QUESTION
from benchmarks.servers import AGENT, Prepared, http_request, prepare, remember, worker

__all__ = ["PLACES", "Fleet", "fleet", "now", "seconds_between", "sound", "waits", "write_agents"]

PLACES = 16
"""How many runs a worker carries out at once: the platform's default."""

_AGENTS = ("gated", "talking")
_AGENT_FILE = "from benchmarks.queue_models import {name}_agent\n\nagent = {name}_agent()\n"
_ENOUGH = "1000000"
"""Runs that may wait in the queue: more than any benchmark has."""
_POLL_SECONDS = 0.1
_END_SECONDS = 180.0
_LARGEST_PAGE = 1000

T = TypeVar("T")


@dataclass(slots=True)
class Fleet:
    """A server and any number of workers; on SQLite the server is the worker, too."""

    ground: Ground
    database: Database
    prepared: Prepared
    url: str | None
    """PostgreSQL's; None on SQLite."""
    gate: Path
    server: Process
    stack: ExitStack
    workers: list[Process] = field(default_factory=list[Process])
    _names: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    # -- processes

    def add_worker(self) -> Process:
        """Another worker, ready, on whatever core the system gives it."""
        name = f"worker-{next(self._names)}"
        started = self.stack.enter_context(worker(self.ground, self.prepared.env, on=self.ground.everywhere, name=name))
        self.workers.append(started)
        return started

    def replace_worker(self, place: int) -> None:
        """Another worker in the place of one that is gone."""
        self.add_worker()
        self.workers[place] = self.workers.pop()

    @property
    def worker_pids(self) -> list[int]:
        """The processes that carry out queued work."""
        return [one.pid for one in self.workers] or [self.server.pid]

    # -- requests

    def ask(self, agent: str = AGENT, *, session_id: uuid.UUID | None = None) -> str:
        """A request for a run of the background, in a session of its own where none is given."""
        body = {"message_content": QUESTION, "session_id": str(session_id) if session_id is not None else None}
        path = f"/api/v1/agent/{agent}/run/async"
        return http_request(path, {key: value for key, value in body.items() if value}, key=self.prepared.key)

    def target(self, requests: list[str]) -> Target:
        """The server, and what is asked of it."""
        return Target(port=int(self.prepared.env["AUTOMAGIK_PORT"]), requests=requests, pids=[self.server.pid])

    def accept(self, requests: list[str], count: int, *, clients: int = 16) -> Seen:
        """Have `count` runs accepted, as fast as that goes. Raises RuntimeError where one is refused."""
        plan = Plan("closed", [self.target(requests)], clients=min(clients, len(requests), count), count=count)
        return sound(measure(self.ground, plan))

    # -- what the database says

    def runs(self, since: datetime, *, name: str = AGENT) -> list[RunRow]:
        """The runs of an agent that were accepted since then, in the order of acceptance."""
        return asyncio.run(self._with_store(lambda store: _runs_since(store, since, name)))

    def wait_ended(self, name: str = AGENT) -> None:
        """Return when no run of an agent waits or is under way. Raises RuntimeError when that takes too long."""
        self._wait_for(lambda open_runs: not open_runs.total(), name, most=1)

    def wait_running(self, count: int, name: str) -> None:
        """Return when so many runs of an agent are under way. Raises RuntimeError when that takes too long."""
        self._wait_for(lambda open_runs: open_runs["running"] >= count, name, most=count)

    def _wait_for(self, met: Callable[[Counter[str]], bool], name: str, *, most: int) -> None:
        async def wait(store: Store) -> None:
            until = time.monotonic() + _END_SECONDS
            while not met(open_runs := await _open_runs(store, name, most)):
                if time.monotonic() > until:
                    raise RuntimeError(f"the runs of {name!r} did not come so far: {dict(open_runs)}")
                await asyncio.sleep(_POLL_SECONDS)

        asyncio.run(self._with_store(wait))

    async def _with_store(self, use: Callable[[Store], Awaitable[T]]) -> T:
        store = Store.from_settings(self.prepared.settings, SystemClock())
        await store.open()
        try:
            return await use(store)
        finally:
            await store.close()

    # -- the gate

    def take_all_places(self) -> None:
        """Have runs that wait for the gate take every place of every worker, so that what is accepted now waits."""
        self.gate.unlink(missing_ok=True)
        places = PLACES * len(self.worker_pids)
        self.accept([self.ask("gated")], places)
        self.wait_running(places, "gated")

    def open_gate(self) -> None:
        """Let those go that wait at the gate."""
        self.gate.touch()


@contextmanager
def fleet(
    ground: Ground,
    database: Database,
    *,
    workers: int = 0,
    on: frozenset[int] = SERVER_CORES,
    settings: Mapping[str, str] | None = None,
) -> Generator[Fleet]:
    """The platform, ready: `serve --api-only` and `workers` on PostgreSQL, or `serve` on SQLite.

    `on`: the server's cores, where things are pinned at all.
    """
    with ExitStack() as stack:
        data_dir = Path(stack.enter_context(TemporaryDirectory(prefix="automagik-bench-")))
        url = stack.enter_context(ground.postgresql()) if database == "postgresql" else None
        prepared = prepare(ground, data_dir, None, url)
        gate = data_dir / "gate"
        prepared.env.update(
            {"AUTOMAGIK_MAX_QUEUED_RUNS": _ENOUGH, GATE: str(gate), **(settings or {})},
        )
        write_agents(data_dir)
        command = python("-m", "automagik", "serve", *([] if url is None else ["--api-only"]))
        server = Process(command, on=cores(on, pin=ground.pin), log=ground.log("server"), env=prepared.env)
        stack.enter_context(server)
        server.wait_ready(f"http://127.0.0.1:{prepared.env['AUTOMAGIK_PORT']}/ready")
        asyncio.run(remember(prepared.settings))
        opened = Fleet(ground, database, prepared, url, gate, server, stack)
        for _ in range(workers):
            opened.add_worker()
        yield opened


def write_agents(data_dir: Path) -> None:
    """Add the agents of `queue_models` to a data folder."""
    for name in _AGENTS:
        (data_dir / "agents" / f"{name}.py").write_text(_AGENT_FILE.format(name=name))


def sound(seen: list[Seen]) -> Seen:
    """What was seen of the only target. Raises RuntimeError where a request failed."""
    (one,) = seen
    if one.errors:
        raise RuntimeError(f"{one.errors} of {one.answered} requests failed: {one.complaints}")
    return one


def now() -> datetime:
    """The time on this machine, by which its processes date their runs."""
    return datetime.now(UTC)


def waits(rows: Sequence[RunRow]) -> list[float]:
    """From acceptance to start of each run, in ms. Raises RuntimeError where one has not started."""
    found: list[float] = []
    for row in rows:
        if row.started_at is None:
            raise RuntimeError(f"the run {row.run_id} has not started: {row.status}")
        found.append((row.started_at - row.created_at).total_seconds() * 1000)
    return found


def seconds_between(rows: Sequence[RunRow]) -> float:
    """From the first start to the last end. Raises RuntimeError where one has not ended well."""
    bad = [row for row in rows if row.status != "completed"]
    if bad or not rows:
        raise RuntimeError(f"{len(bad)} of {len(rows)} runs did not end well: {bad[:3]}")
    first = min(row.started_at for row in rows if row.started_at is not None)
    last = max(row.finished_at for row in rows if row.finished_at is not None)
    return (last - first).total_seconds()


async def _runs_since(store: Store, since: datetime, name: str) -> list[RunRow]:
    found: list[RunRow] = []
    cursor: str | None = None
    while True:
        page = await store.read(lambda tx, cursor=cursor: tx.runs.list(name=name, limit=_LARGEST_PAGE, cursor=cursor))
        new = [row for row in page.data if row.created_at >= since]
        found += new
        cursor = page.next_cursor
        if cursor is None or len(new) < len(page.data):
            return found[::-1]


async def _open_runs(store: Store, name: str, most: int) -> Counter[str]:
    """How many runs are queued, and how many are running, at most `most` of each; in this order, so that none is missed on
    its way."""
    counts: Counter[str] = Counter()
    for status in ("queued", "running"):
        page = await store.read(lambda tx, status=status: tx.runs.list(name=name, status=status, limit=most))
        counts[status] = len(page.data)
    return counts
