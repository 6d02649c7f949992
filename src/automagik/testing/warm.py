"""WarmPython: commands of the platform as processes of their own, without the second that each start of Python costs.

One process loads the platform and then only forks: each command is a real process with its own arguments, environment, folder,
standard streams, signals and exit code. What it does not show is the start of Python itself, nor what is loaded for which
command.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["WarmCommand", "WarmPython"]

_START_SECONDS = 100
_LANG = "C.UTF-8"
_STEERS_PYTHON = ("PYTHON", "LC_", "MALLOC", "LD_")

_SCRIPT = """#!{python} -ISE
import json, os, signal, socket, sys
line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
line.connect({socket!r})
wish = {{"arguments": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "own_terminal": False}}
socket.send_fds(line, [json.dumps(wish).encode()], [0, 1, 2])
pid = int(line.recv(64))
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.kill(pid, number))
code = int(line.recv(64))
sys.exit(code if code >= 0 else 128 - code)
"""


class WarmCommand:
    """A command that was started, with the methods of `subprocess.Popen` that a caller needs."""

    def __init__(self, line: socket.socket, pid: int) -> None:
        self._line = line
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """How it ended, None while it runs; minus the signal's number where that ended it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(timeout=0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """How it ended. Raises subprocess.TimeoutExpired when it still runs after so many seconds."""
        if self.returncode is None:
            self._line.settimeout(None if timeout is None else max(timeout, 0.000001))
            try:
                said = self._line.recv(64)
            except TimeoutError as error:
                raise subprocess.TimeoutExpired("automagik", timeout or 0.0) from error
            self._line.close()
            if not said:
                raise RuntimeError("the process that commands are forked of is gone")
            self.returncode = int(said)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


class WarmPython:
    """The process that commands are forked of. A context manager; it ends with this process, however that ends."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._home: Path | None = None

    def __enter__(self) -> Self:
        """Start; commands can be started when this returns."""
        base = tempfile.gettempdir() if len(tempfile.gettempdir()) < 60 else "/tmp"  # noqa: S108 - sockets' paths are short
        self._home = Path(tempfile.mkdtemp(prefix="awarm", dir=base))
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm_parent.py")), str(self.socket)],
            stdin=subprocess.PIPE,
            env={"LANG": _LANG},
        )
        deadline = time.monotonic() + _START_SECONDS
        while not self.socket.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the process that commands are forked of did not start")
            time.sleep(0.02)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)

    @property
    def socket(self) -> Path:
        """Where commands are asked for."""
        if self._home is None:
            raise RuntimeError("it is not started")
        return self._home / "socket"

    def script(self, path: Path) -> None:
        """Write a command `automagik` that a shell can start: it asks here, with the shell's environment, folder and streams."""
        path.write_text(_SCRIPT.format(python=sys.executable, socket=str(self.socket)))
        path.chmod(0o700)

    def run(
        self, arguments: Sequence[str], *, env: Mapping[str, str], stdin: str = "", timeout: float = 60
    ) -> "subprocess.CompletedProcess[str]":
        """How `automagik ARGUMENTS` ended, with what it wrote. Raises subprocess.TimeoutExpired, and then it is killed."""
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write(stdin.encode())
            given.seek(0)
            command = self.start(arguments, env=env, stdin=given.fileno(), stdout=out.fileno(), stderr=err.fileno())
            try:
                code = command.wait(timeout)
            except subprocess.TimeoutExpired:
                command.kill()
                raise
            texts = [os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode() for file in (out, err)]
        return subprocess.CompletedProcess(["automagik", *arguments], code, *texts)

    def start(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: int,
        stdout: int,
        stderr: int,
        cwd: Path | None = None,
        own_terminal: bool = False,
    ) -> WarmCommand:
        """Start `automagik ARGUMENTS` with these file descriptors as its streams. With `own_terminal` it leads a session whose
        terminal is its standard input.

        Raises: ValueError when the environment is one that has to be there when Python itself starts.
        """
        steering = [name for name in env if name.startswith(_STEERS_PYTHON)]
        if steering or env.get("LANG") != _LANG:
            raise ValueError(f"start Python itself for an environment with {steering or 'another LANG'}")
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        line.connect(str(self.socket))
        wish = {
            "arguments": list(arguments),
            "env": dict(env),
            "cwd": str(cwd or Path.cwd()),
            "own_terminal": own_terminal,
        }
        socket.send_fds(line, [json.dumps(wish).encode()], [stdin, stdout, stderr])
        return WarmCommand(line, int(line.recv(64)))
