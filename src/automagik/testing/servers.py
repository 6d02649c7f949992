"""RunningServer: the real server, or a worker, as a process of its own; a server on a free port of loopback."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from automagik.testing.warm import WarmCommand, WarmPython

__all__ = ["RunningServer"]

_START_SECONDS = 60
_STOP_SECONDS = 30


class RunningServer:
    """`automagik serve`, or another command that runs until it is ended, in a folder of its own; with a first key in the
    profile of the command line.

    `environment` is what a child needs to speak to it: the address, the data folder, the profile; and nothing of the
    caller's own secrets.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        settings: dict[str, str] | None = None,
        command: Sequence[str] = ("serve",),
        warm: WarmPython | None = None,
    ) -> None:
        """`settings`: further environment variables, as AUTOMAGIK_DATABASE_URL. `command`: what is run, as `serve --api-only`,
        or `worker`, which has no address. `warm`: what the processes are forked of, which spares each its second of start."""
        self._data_dir = data_dir
        self._warm = warm
        self._process: subprocess.Popen[bytes] | WarmCommand | None = None
        self._log = data_dir / "server-output.log"
        self._command = tuple(command)
        self._serves = self._command[0] == "serve"
        self.url = ""
        self.environment = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(data_dir),
            "AUTOMAGIK_DATA_DIR": str(data_dir),
            "AUTOMAGIK_CONFIG_DIR": str(data_dir / "config"),
            "AUTOMAGIK_MODEL": "demo",
            "AUTOMAGIK_PORT": "0",
            "AUTOMAGIK_LOG_FORMAT": "json",
            **(settings or {}),
        }

    def __enter__(self) -> Self:
        """Started; a server makes the first key where the profile has none."""
        self.start()
        if self._serves and not self._profile.exists():
            self.command("keys", "create", "--first")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._running().pid

    @property
    def output(self) -> str:
        """All that it has logged, of every start."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> None:
        """Start, and return when it is ready; after `stop` or `kill` anew, a server at another port unless `settings` has one.

        Raises: RuntimeError with its output when it isn't ready in time.
        """
        self._data_dir.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as output:
            began = output.tell()
            self._process = self._spawn(output)
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            written = self._log.read_bytes()[began:].decode(errors="replace")
            if self._is_ready(written):
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.02)
        self.kill()
        raise RuntimeError(f"the server did not start:\n{self.output[-4000:]}")

    def _spawn(self, output: BinaryIO) -> "subprocess.Popen[bytes] | WarmCommand":
        with Path(os.devnull).open("rb") as nothing:
            if self._warm is None:
                return subprocess.Popen(
                    [sys.executable, "-m", "automagik", *self._command],
                    env=self.environment,
                    stdin=nothing,
                    stdout=output,
                    stderr=output,
                )
            return self._warm.start(
                self._command,
                env=self.environment,
                stdin=nothing.fileno(),
                stdout=output.fileno(),
                stderr=output.fileno(),
            )

    def _is_ready(self, written: str) -> bool:
        if not self._serves:
            return f"{self._command[0]}_ready" in written
        found = re.search(r"http://127\.0\.0\.1:\d+", written)
        if "server_ready" not in written or found is None:
            return False
        self.url = found.group(0)
        self.environment["AUTOMAGIK_URL"] = self.url
        return True

    def command(self, *arguments: str) -> str:
        """What `automagik ARGUMENTS` prints. Raises CalledProcessError when it fails."""
        done = self.try_command(*arguments)
        done.check_returncode()
        return done.stdout

    def try_command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """How `automagik ARGUMENTS` ends."""
        if self._warm is not None:
            return self._warm.run(arguments, env=self.environment)
        return subprocess.run(
            [sys.executable, "-m", "automagik", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def key(self) -> str:
        """The first key, as the profile holds it."""
        return str(json.loads(self._profile.read_text())["key"])

    @property
    def _profile(self) -> Path:
        return Path(self.environment["AUTOMAGIK_CONFIG_DIR"]) / "profile.json"

    def stop(self) -> int:
        """End it as Ctrl-C does; its exit code."""
        process = self._running()
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGCONT)  # a frozen one would not hear
        try:
            return process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """End it as `kill -9` does."""
        process = self._running()
        process.kill()
        process.wait()

    def freeze(self) -> None:
        """Have it stand still, as a host does whose virtual machine is paused."""
        self._running().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Have a frozen one go on."""
        self._running().send_signal(signal.SIGCONT)

    def _running(self) -> "subprocess.Popen[bytes] | WarmCommand":
        if self._process is None:
            raise RuntimeError("the server was not started")
        return self._process
