"""RunningServer: the real server as a process of its own, on a free port of loopback."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["RunningServer"]

_START_SECONDS = 30


class RunningServer:
    """`automagik serve` in a folder of its own, with a first key in the profile of the command line.

    `environment` is what a child needs to speak to it: the address, the data folder, the profile; and nothing of the
    caller's own secrets.
    """

    def __init__(self, data_dir: Path, *, settings: dict[str, str] | None = None) -> None:
        """`settings`: further environment variables, as AUTOMAGIK_DATABASE_URL."""
        self._data_dir = data_dir
        self._process: subprocess.Popen[bytes] | None = None
        self._log = data_dir / "server-output.log"
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
        self.start()
        self.command("keys", "create", "--first")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._running().pid

    def start(self) -> None:
        """Start, and return when it is ready. Raises RuntimeError with its output when it isn't in time."""
        self._data_dir.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as output:
            began = output.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "automagik", "serve"],
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            written = self._log.read_bytes()[began:].decode(errors="replace")
            if "server_ready" in written and (found := re.search(r"http://127\.0\.0\.1:\d+", written)):
                self.url = found.group(0)
                self.environment["AUTOMAGIK_URL"] = self.url
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.02)
        self.kill()
        raise RuntimeError(f"the server did not start:\n{self._log.read_text(errors='replace')[-4000:]}")

    def command(self, *arguments: str) -> str:
        """What `automagik ARGUMENTS` prints. Raises CalledProcessError when it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "automagik", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout

    @property
    def key(self) -> str:
        """The first key, as the profile holds it."""
        profile = json.loads((self._data_dir / "config" / "profile.json").read_text())
        return str(profile["key"])

    def stop(self) -> int:
        """End it as Ctrl-C does; its exit code."""
        process = self._running()
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            return process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """End it as `kill -9` does."""
        process = self._running()
        process.kill()
        process.wait()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise RuntimeError("the server was not started")
        return self._process
