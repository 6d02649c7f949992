"""What a sandbox uses is seen from outside: memory, files in memory, files without a name, a workspace's size."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from rooms import Room

from automagik.sandbox.watch import descendants, folder_bytes, footprint

MIB = 1024**2


def ready(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


@pytest.mark.parametrize(
    ("script", "memory", "unlinked"),
    [
        ("x = bytearray(64 << 20)", 64, 0),
        ("import mmap; x = mmap.mmap(-1, 64 << 20); x.write(b'x' * (64 << 20))", 64, 0),
        ("import os; x = os.memfd_create('x'); os.write(x, b'x' * (64 << 20))", 64, 0),
        (
            "import os; x = os.open('f', os.O_CREAT | os.O_RDWR); os.write(x, b'x' * (64 << 20)); os.fsync(x); os.unlink('f')",
            0,
            64,
        ),
        (
            "[open(f'{place}/{n}', 'w').close() for place in ('/tmp', '/dev/shm', '/home/agent') for n in range(30_000)]",
            88,
            0,
        ),
        ("import socket; x = [socket.socketpair() for _ in range(1500)]", 401, 0),
        ("import socket; x = [socket.socketpair() for _ in range(500)]", 0, 0),
        ("import os; [os.fork() for _ in '12']; x = bytearray(16 << 20)", 64, 0),
    ],
    ids=[
        "anonymous",
        "shared",
        "memfd",
        "without a name",
        "many empty files",
        "many sockets",
        "some sockets",
        "many processes",
    ],
)
def test_what_a_sandbox_holds_is_counted(place: Room, script: str, memory: int, unlinked: int) -> None:
    with place.start(
        place.confine("/usr/bin/python3", "-c", f"{script}; print('ready', flush=True); input()"), stdin=-1
    ) as process:
        ready(process)
        time.sleep(0.3)
        seen = footprint(descendants(process.pid))
        process.kill()
    assert memory * MIB <= seen.memory_bytes < (memory + 120) * MIB
    assert unlinked * MIB <= seen.unlinked_bytes < (unlinked + 2) * MIB
    assert seen.largest is not None


def test_processes_that_have_gone_use_nothing() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    seen = footprint([process.pid])
    assert (seen.memory_bytes, seen.processes, seen.largest) == (0, 0, None)


def test_a_folder_is_as_large_as_its_blocks_and_no_link_counts_twice(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_bytes(b"x" * MIB)
    os.link(tmp_path / "a/b/file", tmp_path / "again")
    (tmp_path / "loop").symlink_to(tmp_path)
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(1024 * MIB)
    os.sync()
    assert MIB <= folder_bytes([tmp_path]) < 1.2 * MIB
    assert folder_bytes([tmp_path / "missing"]) == 0


def test_a_walk_stops_when_it_has_found_enough(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "file").write_bytes(b"x" * MIB)
    os.sync()
    assert 3 * MIB <= folder_bytes([tmp_path], stop_at=3 * MIB) < 6 * MIB
