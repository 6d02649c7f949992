"""The keeper of a test server: runs PostgreSQL while anybody holds the folder's lock, then ends it and removes its data.

Run as `python postgres_keeper.py FOLDER USER COMMAND...`. Processes that use the server hold a shared lock on
`FOLDER/users.lock`; the system drops it however they end, killed too.
"""

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


def main() -> None:
    """Start the server, wait until nobody uses it, end it."""
    if os.fork():
        return  # the caller waits for this process only; its child is nobody's to wait for
    os.setsid()
    folder, user, command = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            user=None if user < 0 else user,
            group=None if user < 0 else user,
            extra_groups=None if user < 0 else [],
            preexec_fn=_end_with_parent,
        )
    lock = os.open(folder / "users.lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    (folder / "ready").unlink(missing_ok=True)
    server.send_signal(signal.SIGINT)
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    shutil.rmtree((folder / "data").resolve(), ignore_errors=True)  # it may lie elsewhere
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
