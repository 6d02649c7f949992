"""Where the time of a run goes: a sampling profile that charges each sample to who asked for the work, and cProfile."""

import asyncio
import cProfile
import gc
import io
import pstats
import re
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType

import uvloop

from benchmarks.inprocess import layers, runs
from benchmarks.running import Database, Ground

__all__ = ["deterministic", "profile", "run", "sampled"]

_SOURCE = str(Path(__file__).resolve().parents[1] / "src" / "automagik")
_AGENT = re.compile(r"/site-packages/pydantic_(ai|graph)/")
_INTERVAL = 0.001


class _Collections:
    """Time that the garbage collector took, by generation."""

    def __init__(self) -> None:
        self.spent = [0.0, 0.0, 0.0]
        self.times = [0, 0, 0]
        self._began = 0.0

    def note(self, phase: str, info: dict[str, int]) -> None:
        """Take what the collector tells as it starts and stops."""
        now = time.thread_time()
        if phase == "start":
            self._began = now
        else:
            self.spent[info["generation"]] += now - self._began
            self.times[info["generation"]] += 1


class _Samples:
    """CPU time of the main thread, charged to what stands on its stack: a sample each millisecond of CPU."""

    def __init__(self) -> None:
        self.count = 0
        self.rooms: dict[str, float] = defaultdict(float)
        """By who asked for the work: a room of ours, or Pydantic AI, or (where neither stands on the stack) a package."""
        self.lines: dict[str, float] = defaultdict(float)
        """By the innermost line of ours, where the work isn't Pydantic AI's."""
        self.selves: dict[str, float] = defaultdict(float)
        """By the innermost function, whoever's, where the work isn't Pydantic AI's."""
        self.others: dict[str, float] = defaultdict(float)
        """Of other threads: by thread and the innermost function of ours or of DBOS."""
        self._last = time.thread_time()
        self._main = threading.get_ident()
        self._clocks: dict[int, float] = {}

    def take(self, _: int, frame: FrameType | None) -> None:
        """Charge what was used since the last sample to `frame` and those who called it."""
        now = time.thread_time()
        spent, self._last = now - self._last, now
        self.count += 1
        self._take_others()
        if frame is None:
            return
        at: FrameType | None = frame
        of_agent = False
        while at is not None and not (name := at.f_code.co_filename).startswith(_SOURCE):
            of_agent = of_agent or _AGENT.search(name) is not None
            at = at.f_back
        room = "" if at is None else at.f_code.co_filename.removeprefix(_SOURCE).strip("/").split("/")[0]
        if of_agent:
            self.rooms["pydantic_ai" if room in {"", "agents"} else f"pydantic_ai under {room}"] += spent
            return
        self.rooms[room or f"(no frame of ours) {_package(frame)}"] += spent
        code = frame.f_code
        self.selves[f"{_short(code.co_filename)}:{code.co_firstlineno} {code.co_qualname}"] += spent
        if at is not None:
            self.lines[f"{_short(at.f_code.co_filename)}:{at.f_lineno} {at.f_code.co_qualname}"] += spent

    def _take_others(self) -> None:
        for ident, frame in sys._current_frames().items():
            if ident == self._main:
                continue
            try:
                now = time.clock_gettime(time.pthread_getcpuclockid(ident))
            except OSError:  # it has just ended
                continue
            spent = now - self._clocks.get(ident, now)
            self._clocks[ident] = now
            if spent:
                self.others[_place_in_thread(ident, frame)] += spent


def _place_in_thread(ident: int, frame: FrameType) -> str:
    thread = next((one.name for one in threading.enumerate() if one.ident == ident), "?")
    at: FrameType | None = frame
    while at is not None and not (_SOURCE in at.f_code.co_filename or "/dbos/" in at.f_code.co_filename):
        at = at.f_back
    code = (at or frame).f_code
    return f"{re.sub(r'[0-9]+$', '', thread)}: {_short(code.co_filename)} {code.co_qualname}"


def _short(path: str) -> str:
    for root in (_SOURCE + "/", "site-packages/", "python3.11/"):
        if root in path:
            return path.rpartition(root)[2]
    return path


def _package(frame: FrameType) -> str:
    return _short(frame.f_code.co_filename).split("/")[0]


async def profile(on: Ground, database: Database, *, wire: bool, stack: str, count: int = 3000) -> str:
    """Profiles of the layer named `stack`, 16 clients: who uses the CPU, by room, by line of ours, and cProfile's table."""
    clients = 16
    async with layers(on, database, wire=wire, clients=clients) as measured:
        layer = next(one for one in measured if one.name == stack)
        base = next(one for one in measured if one.name == "baseline app")
        await runs(base, 200, clients)
        await runs(layer, 200, clients)
        base_ms = await _cpu_ms(lambda: runs(base, count, clients), count)
        text = [f"baseline app: {base_ms:.3f} CPU ms a run"]
        text.append(await sampled(layer.name, lambda: runs(layer, count, clients), count))
        text.append(await deterministic(lambda: runs(layer, count // 4, clients)))
    return "\n\n".join(text)


async def _cpu_ms(work: Callable[[], Awaitable[None]], count: int) -> float:
    began = time.process_time()
    await work()
    return (time.process_time() - began) / count * 1000


async def sampled(name: str, work: Callable[[], Awaitable[None]], count: int) -> str:
    """Who uses the CPU while `work` does `count` runs: by room, by line of ours, by function."""
    samples, collections = _Samples(), _Collections()
    gc.callbacks.append(collections.note)
    threads = _thread_clocks()
    before = signal.signal(signal.SIGPROF, samples.take)
    signal.setitimer(signal.ITIMER_PROF, _INTERVAL, _INTERVAL)
    try:
        cpu = await _cpu_ms(work, count)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        gc.callbacks.remove(collections.note)
    after = _thread_clocks()
    lines = [f"{name}: {cpu:.3f} CPU ms a run ({samples.count} samples)", "by thread (CPU ms a run):"]
    lines += [f"  {(after[name] - threads.get(name, 0.0)) / count * 1000:7.3f}  {name}" for name in sorted(after)]
    lines.append("garbage collection, charged below to whoever was allocating:")
    for generation, (spent, times) in enumerate(zip(collections.spent, collections.times, strict=True)):
        lines.append(f"  {spent / count * 1000:7.3f}  generation {generation}, {times} times")
    for title, charged, most in (
        ("main thread, by who asked for the work (CPU ms a run)", samples.rooms, 25),
        ("main thread, by line of ours, without what Pydantic AI does", samples.lines, 60),
        ("main thread, by innermost function, without what Pydantic AI does", samples.selves, 40),
        ("other threads, by innermost function of ours or of DBOS", samples.others, 25),
    ):
        lines.append(f"{title}:")
        ordered = sorted(charged.items(), key=lambda item: item[1], reverse=True)
        lines += [f"  {spent / count * 1000:7.3f}  {name}" for name, spent in ordered[:most]]
    return "\n".join(lines)


def _thread_clocks() -> dict[str, float]:
    clocks: dict[str, float] = {}
    for thread in threading.enumerate():
        if thread.ident is not None:
            clock = time.pthread_getcpuclockid(thread.ident)
            clocks[f"{thread.name} ({thread.ident})"] = time.clock_gettime(clock)
    return clocks


async def deterministic(work: Callable[[], Awaitable[None]]) -> str:
    """What cProfile says of `work`."""
    profiler = cProfile.Profile()
    profiler.enable()
    await work()
    profiler.disable()
    written = io.StringIO()
    stats = pstats.Stats(profiler, stream=written).sort_stats("cumulative")
    stats.print_stats(r"automagik/(?!testing)", 60)
    stats.sort_stats("tottime").print_stats(40)
    return written.getvalue()


def run(on: Ground, database: Database, *, wire: bool, stack: str) -> str:
    """`profile`, from synchronous code."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(profile(on, database, wire=wire, stack=stack))
