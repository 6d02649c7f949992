"""A stopwatch counts what the code takes and not what the machine takes from it."""

import os
import signal
import subprocess
import sys
import time

from automagik.testing.stopwatch import Stopwatch

STOPPED = """
import sys, time
from automagik.testing.stopwatch import Stopwatch

with Stopwatch() as took:
    print("begun", flush=True)
    time.sleep(0.3)
print(took.seconds, flush=True)
"""


def test_time_in_which_the_process_was_stopped_is_not_counted() -> None:
    with subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        began = time.monotonic()
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(1)
        os.kill(process.pid, signal.SIGCONT)
        took = float(process.stdout.readline())
        assert time.monotonic() - began >= 1
    assert took < 0.9


def test_what_waits_or_computes_is_counted() -> None:
    with Stopwatch() as waited:
        for _ in range(12):  # so that a pause takes one of them, and not all
            time.sleep(0.02)
    with Stopwatch() as computed:
        began = time.thread_time()
        while time.thread_time() - began < 0.2:
            pass
    assert waited.seconds >= 0.19
    assert computed.seconds >= 0.19
