"""What a sandbox uses is seen from outside: memory, files in memory, files without a name."""

import subprocess
import time

import pytest
from rooms import Room

from automagik.sandbox.watch import descendants, footprint

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
            "import os; x = os.open('/tmp/f', os.O_CREAT | os.O_RDWR); os.write(x, b'x' * (32 << 20)); os.unlink('/tmp/f')",
            0,
            0,
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
        "without a name in memory",
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
