"""Processes that are measured: started on given cores, asked whether they are ready, read from /proc, stopped."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = [
    "PYTHON_PATH",
    "SERVER_CORES",
    "SUPPORT_CORES",
    "Process",
    "busy_seconds",
    "cores",
    "cpu_seconds",
    "environment",
    "free_port",
    "own_seconds",
    "pinned",
    "python",
    "rss_mb",
    "tree_seconds",
]

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_ROOT = Path(__file__).resolve().parents[1]

PYTHON_PATH = f"{_ROOT / 'src'}:{_ROOT}"
"""The tree that this file belongs to is what is measured, wherever the package is installed from."""

SERVER_CORES = frozenset({0})
SUPPORT_CORES = frozenset({1})


def cores(wanted: frozenset[int], *, pin: bool) -> frozenset[int]:
    """`wanted` where the machine has them and pinning is on, else all that this process may use."""
    own = frozenset(os.sched_getaffinity(0))
    return wanted if pin and wanted <= own and len(own) > 1 else own


def cpu_seconds(pid: int) -> float:
    """CPU time that a process and its threads have used, user and system, in steps of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def busy_seconds() -> float:
    """CPU time that the whole machine has used since it started, of all cores."""
    ticks = Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]
    user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, ticks)
    return (user + nice + system + irq + softirq + steal) / _TICK


def own_seconds() -> float:
    """CPU time that this process and all below it have used, those that have ended included."""
    return tree_seconds(os.getpid())


def tree_seconds(pid: int) -> float:
    """CPU time that a process and all below it have used, those that have ended included."""
    total = 0
    for one in _tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
    return total / _TICK


def rss_mb(pid: int) -> float:
    """Resident memory of a process in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / 2**20


def _tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            for task in Path(f"/proc/{parent}/task").iterdir():
                with contextlib.suppress(OSError):
                    found += [int(child) for child in (task / "children").read_text().split()]
    return found


def free_port() -> int:
    """A port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """A child process on given cores, with its output in a file; stopped at the end of the `with`."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        on: frozenset[int],
        log: Path,
        env: Mapping[str, str] | None = None,
        prints_port: bool = False,
    ) -> None:
        self._command = list(command)
        self._on = on
        self._log = log
        self._env = environment(env or {})
        self._prints_port = prints_port
        self._child: subprocess.Popen[bytes] | None = None
        self._log_began = 0
        self.port = 0
        """The port that the process printed on its first line, where it was asked to."""

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._log_began = log.tell()
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if self._prints_port else log,
                stderr=log,
                env=self._env,
                cwd=_ROOT,
                preexec_fn=lambda: os.sched_setaffinity(0, self._on),
            )
        if self._prints_port:
            assert self._child.stdout is not None
            self.port = int(self._child.stdout.readline() or 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._child is not None
        return self._child.pid

    def stop(self, with_signal: signal.Signals = signal.SIGTERM, *, grace: float = 20.0) -> None:
        """Ask the process to end; kill it when it doesn't."""
        child = self._child
        if child is None or child.poll() is not None:
            return
        child.send_signal(with_signal)
        try:
            child.wait(grace)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def wait_ready(self, url: str, *, seconds: float = 60.0, pause: float = 0.05) -> float:
        """Wait until `url` answers 200; the time on the monotonic clock when it did.

        Raises: RuntimeError with the end of the log when the process ends first or time runs out.
        """
        until = time.monotonic() + seconds
        assert self._child is not None
        while time.monotonic() < until and self._child.poll() is None:
            with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(url, timeout=5):
                return time.monotonic()
            time.sleep(pause)
        raise RuntimeError(f"{' '.join(self._command)} did not become ready at {url}:\n{self._written()[-3000:]}")

    def wait_logged(self, words: str, *, seconds: float = 60.0) -> None:
        """Wait until the process has written `words`, for one that answers no requests.

        Raises: RuntimeError with the end of the log when the process ends first or time runs out.
        """
        until = time.monotonic() + seconds
        assert self._child is not None
        while time.monotonic() < until and self._child.poll() is None:
            if words in self._written():
                return
            time.sleep(0.05)
        raise RuntimeError(f"{' '.join(self._command)} did not write {words!r}:\n{self._written()[-3000:]}")

    def _written(self) -> str:
        return self._log.read_bytes()[self._log_began :].decode(errors="replace")


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """What a measured process sees of the environment: no keys of providers, no settings of yours."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return {**kept, "PYTHONPATH": PYTHON_PATH, **extra}


@contextlib.contextmanager
def pinned(on: frozenset[int]) -> Generator[None]:
    """This process on `on` meanwhile."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, on)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def python(*arguments: str) -> list[str]:
    """A command that runs this interpreter."""
    return [sys.executable, *arguments]
