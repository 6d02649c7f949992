"""The relay among clients that are many, gone or silent: it stays, spends nothing on them and leaves nothing behind."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from automagik.sandbox.relay import relayed
from automagik.sandbox.watch import descendants


@contextmanager
def relay(path: Path, *, files: int = 1024) -> Generator[tuple[int, int]]:
    """A relay to this socket, without a sandbox around it: its port, and its pid."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    limited = ("prlimit", f"--nofile={files}", *relayed(("/bin/sleep", "60"), str(path), port=port))
    with subprocess.Popen(limited, env={"PATH": os.defpath}) as command:
        try:
            pids: list[int] = []
            for _ in range(200):
                pids = descendants(command.pid)
                if len(pids) > 1 and Path(f"/proc/{command.pid}/comm").read_text() == "sleep\n":
                    break
                time.sleep(0.05)
            yield port, pids[1]
        finally:
            command.kill()
    _until(lambda: not Path(f"/proc/{pids[1]}").exists())


@contextmanager
def echoing(path: Path) -> Generator[None]:
    """A server that gives back what it gets."""
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as threads:
        listener.bind(str(path))
        listener.listen(128)

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    thread = threading.Thread(target=echo, args=(client,))
                    thread.start()
                    threads.callback(thread.join)

        def echo(client: socket.socket) -> None:
            with client, suppress(OSError):
                while data := client.recv(65536):
                    client.sendall(data)

        accepting = threading.Thread(target=serve)
        accepting.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()


def _client(port: int) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    client.settimeout(10)
    return client


def _echo(client: socket.socket) -> bytes:
    client.sendall(b"there?")
    return client.recv(100)


def _until(true: object) -> None:
    assert callable(true)
    for _ in range(200):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.parametrize(("files", "count"), [(40, 60), (1024, 300)], ids=["no descriptor left", "all places taken"])
def test_more_clients_than_it_can_hold_cost_it_nothing_and_wait(tmp_path: Path, files: int, count: int) -> None:
    with echoing(tmp_path / "s"), relay(tmp_path / "s", files=files) as (port, pid), ExitStack() as held:
        idle = _open_files(pid)
        clients = [held.enter_context(_client(port)) for _ in range(count)]  # the kernel lets 64 wait
        assert _echo(clients[0]) == b"there?"
        if files == 1024:
            _until(lambda: _open_files(pid) == idle + 2 * 256)
        used = _cpu_seconds(pid)
        time.sleep(2)
        assert _cpu_seconds(pid) - used < 0.3
        assert _echo(clients[0]) == b"there?"
        for client in clients[:-1]:
            client.close()
        assert _echo(clients[-1]) == b"there?"
        clients[-1].close()
        _until(lambda: _open_files(pid) == idle)


def test_a_proxy_that_takes_nobody_holds_up_no_connection_that_is_open(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, relay(tmp_path / "s") as (port, _), ExitStack() as held:
        listener.bind(str(tmp_path / "s"))
        listener.listen(1)
        first = held.enter_context(_client(port))
        server, _ = listener.accept()
        others = [held.enter_context(_client(port)) for _ in range(5)]
        time.sleep(0.3)
        with server:
            for _ in range(5):
                first.sendall(b"there?")
                server.settimeout(10)
                assert server.recv(100) == b"there?"
                server.sendall(b"yes")
                assert first.recv(100) == b"yes"
        others[-1].sendall(b"last")
        served = [listener.accept()[0] for _ in range(5)]
        for one in served:
            held.enter_context(one)
        served[-1].settimeout(10)
        assert served[-1].recv(100) == b"last"


def test_an_answer_of_a_proxy_that_hears_no_more_is_passed_on(tmp_path: Path) -> None:
    """As when it refuses a connection of too many: what it has not read makes its end one that breaks off."""
    with socket.socket(socket.AF_UNIX) as listener, relay(tmp_path / "s") as (port, pid):
        listener.bind(str(tmp_path / "s"))
        listener.listen(8)
        idle = _open_files(pid)
        for _ in range(20):
            with _client(port) as client:
                client.sendall(b"x" * 1000)
                server, _ = listener.accept()
                with server:
                    assert server.recv(1) == b"x"
                    server.sendall(b"refused" * 10_000)
                answer = b""
                while data := client.recv(65536):
                    answer += data
                assert answer == b"refused" * 10_000
        _until(lambda: _open_files(pid) == idle)


def test_peers_that_go_in_any_way_leave_no_descriptor(tmp_path: Path) -> None:
    with echoing(tmp_path / "s"), relay(tmp_path / "s") as (port, pid):
        idle = _open_files(pid)
        for way in ("close", "reset", "half", "unread", "at once"):
            for _ in range(20):
                with _client(port) as client:
                    if way == "reset":
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    if way != "at once":
                        client.sendall(b"x" * 1000)
                    if way == "half":
                        client.shutdown(socket.SHUT_WR)
                        while client.recv(4096):
                            pass
                    if way == "unread":
                        client.recv(1)
        _until(lambda: _open_files(pid) == idle)
        os.kill(pid, signal.SIGPIPE)
        with _client(port) as client:
            assert _echo(client) == b"there?"
