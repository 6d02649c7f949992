"""The ground of a benchmark: the scripted provider, PostgreSQL, the load generator, logs, and how often things are repeated."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeVar

from automagik.testing.postgres import PostgresServer
from benchmarks.load import Plan, Seen
from benchmarks.processes import SUPPORT_CORES, Process, busy_seconds, cores, environment, own_seconds, pinned, python

__all__ = ["Database", "Ground", "finish", "ground", "measure", "quietly", "start"]

T = TypeVar("T")

_QUIET_CORES = 0.15
_PATIENCE_SECONDS = 3.0

Database = Literal["sqlite", "postgresql"]


@dataclass(slots=True)
class Ground:
    """What all servers of one benchmark stand on."""

    folder: Path
    provider_url: str
    stack: ExitStack
    pin: bool = True
    """Whether servers run on one core and all that serves them on the other."""
    repetitions: int = 5
    seconds: float = 5.0
    """How long one measurement of throughput takes."""
    quick: bool = False
    """Smaller counts, to try the harness; the figures mean little."""
    _postgres: PostgresServer | None = field(default=None, repr=False)

    @property
    def support(self) -> frozenset[int]:
        """The cores of the provider, the load generator and PostgreSQL."""
        return cores(SUPPORT_CORES, pin=self.pin)

    @property
    def everywhere(self) -> frozenset[int]:
        """All cores."""
        return cores(frozenset(), pin=False)

    def log(self, name: str) -> Path:
        """The file that a process's output goes to."""
        return self.folder / f"{name}.log"

    @property
    def postgres_pid(self) -> int:
        """The process above all of PostgreSQL's; it is asked for within `postgresql`."""
        assert self._postgres is not None
        return int((self._postgres.home / "data" / "postmaster.pid").read_text().split()[0])

    @contextmanager
    def postgresql(self) -> Generator[str]:
        """The URL of a new database on a real PostgreSQL with its usual, durable settings."""
        if self._postgres is None:
            with pinned(self.support):
                self._postgres = self.stack.enter_context(PostgresServer(durable=True))
        url = self._postgres.create_database()
        try:
            yield url
        finally:
            self._postgres.drop_database(url)


@contextmanager
def ground(*, pin: bool, repetitions: int, seconds: float, quick: bool) -> Generator[Ground]:
    """The ground, with the scripted provider running."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="automagik-bench-log-")))
        provider = Process(
            python("-m", "automagik.testing.scripted_openai", "--port", "0"),
            on=cores(SUPPORT_CORES, pin=pin),
            log=folder / "provider.log",
            prints_port=True,
        )
        stack.enter_context(provider)
        yield Ground(
            folder=folder,
            provider_url=f"http://127.0.0.1:{provider.port}/v1",
            stack=stack,
            pin=pin,
            repetitions=repetitions,
            seconds=seconds,
            quick=quick,
        )


def measure(on: Ground, plan: Plan) -> list[Seen]:
    """Run the load generator; what it saw of each target."""
    return finish(start(on, plan))


def quietly(on: Ground, take: Callable[[], T], *, attempts: int = 5) -> tuple[T, float]:
    """What `take` measures, while other programs leave the machine alone; and how many cores they used meanwhile.

    A measurement that they disturbed is taken again, a few times; the last one counts whatever they did.
    """
    for attempt in range(attempts):
        began, busy, own = time.monotonic(), busy_seconds(), own_seconds()
        taken = take()
        elapsed = time.monotonic() - began
        others = max(0.0, (busy_seconds() - busy) - (own_seconds() - own)) / elapsed
        if others <= _QUIET_CORES or on.quick or attempt == attempts - 1:
            return taken, others
        time.sleep(_PATIENCE_SECONDS)
    raise AssertionError("the last attempt returns")


def start(on: Ground, plan: Plan) -> "subprocess.Popen[str]":
    """The load generator under way."""
    with pinned(on.support):
        child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment({}),
            cwd=Path(__file__).resolve().parents[1],
        )
    assert child.stdin is not None
    child.stdin.write(json.dumps(asdict(plan)))
    child.stdin.close()
    return child


def finish(child: "subprocess.Popen[str]") -> list[Seen]:
    """What the load generator saw, when it has ended.

    Raises: RuntimeError when it failed.
    """
    assert child.stdout is not None
    written = child.stdout.read()
    if child.wait() != 0:
        raise RuntimeError("the load generator failed")
    return [Seen(**one) for one in json.loads(written)]
