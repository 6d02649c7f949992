"""The process of WarmPython: loads the platform once, then forks a child for each command that is asked for.

Run as `python warm_parent.py SOCKET`; it ends when its standard input does.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import sys
import termios
import threading
import time
from fcntl import ioctl
from typing import TextIO, cast

import typer.main

__all__: list[str] = []

_LOADED = (
    "automagik.server",
    "automagik.cli",
    "automagik.cli.client",
    "automagik.cli.examination",
    "automagik.cli.folder",
    "automagik.store.backup",
    "automagik.store.postgres_backend",
    "alembic.command",
    "anyio._backends._asyncio",
    "dbos",
    "genai_prices",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.auto",
    "rich.console",
    "rich.table",
    "typer.rich_utils",
)
"""What commands load, the servers' included, and what a server loads with its first queued run. A command that needs more loads
that itself."""

_LARGEST_WISH = 256 * 1024


def _serve(path: str) -> tuple[list[str], dict[str, str]]:
    """Fork for every wish. It returns in the children only."""
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    door.bind(f"{path}.part")
    door.listen(64)
    os.rename(f"{path}.part", path)
    chosen = selectors.DefaultSelector()
    chosen.register(door, selectors.EVENT_READ)
    chosen.register(0, selectors.EVENT_READ)
    running: dict[int, tuple[int, socket.socket]] = {}
    while True:
        for key, _ in chosen.select():
            if key.fd == 0:
                shutil.rmtree(os.path.dirname(path), ignore_errors=True)
                os._exit(0)
            if key.fileobj is not door:
                pid, line = running.pop(key.fd)
                _, status = os.waitpid(pid, 0)
                chosen.unregister(key.fd)
                os.close(key.fd)
                with contextlib.suppress(OSError):  # nobody waits for it any more
                    line.send(str(os.waitstatus_to_exitcode(status)).encode())
                line.close()
                continue
            line, _ = door.accept()
            wish, streams, _, _ = socket.recv_fds(line, _LARGEST_WISH, 3)
            if not wish:
                line.close()
                continue
            pid = os.fork()
            if pid == 0:
                return _begin(json.loads(wish), streams)
            for stream in streams:
                os.close(stream)
            ended = os.pidfd_open(pid)
            running[ended] = (pid, line)
            chosen.register(ended, selectors.EVENT_READ)
            line.send(str(pid).encode())


def _begin(wish: dict[str, object], streams: list[int]) -> tuple[list[str], dict[str, str]]:
    """In the child: what a fresh process has. Gives its arguments and its environment."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, max(os.sysconf("SC_OPEN_MAX"), 1024))
    if wish["own_terminal"]:
        os.setsid()
        ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(str(wish["cwd"]))
    own = (sys.stdin, sys.stdout, sys.stderr)
    sys.stdin = _stream(0, "r", errors=own[0].errors)
    sys.stdout = _stream(1, "w", errors=own[1].errors, by_line=os.isatty(1))
    sys.stderr = _stream(2, "w", errors=own[2].errors, by_line=True)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    return cast("list[str]", wish["arguments"]), cast("dict[str, str]", wish["env"])


def _stream(number: int, mode: str, *, errors: str | None, by_line: bool = False) -> TextIO:
    """A standard stream, as the interpreter opens it."""
    made = os.fdopen(number, mode, encoding="utf-8", errors=errors, closefd=False, buffering=1 if by_line else -1)
    return cast("TextIO", made)


def _leave(code: int) -> None:
    """End as the interpreter does, but for the taking apart of all that was loaded, which costs more than most commands."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage] - nothing public runs them before the end
    try:
        sys.stdout.flush()
    except OSError:
        code = 120
    os._exit(code)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the tests, and so this process's standard input
    for name in _LOADED:
        importlib.import_module(name)
    # Typer makes all commands anew of their functions' signatures whenever one is called: most of what a short one takes.
    typer.main.get_command = functools.cache(typer.main.get_command)
    typer.main.get_command(cast("typer.Typer", importlib.import_module("automagik.cli.root").app))
    gc.collect()
    gc.freeze()
    arguments, environment = _serve(sys.argv[1])
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.argv[1:] = arguments
    sys.path[0] = os.getcwd()
    try:
        runpy.run_module("automagik", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, int | None):
            _leave(end.code or 0)
        raise
    _leave(0)
