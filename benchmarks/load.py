"""The load generator: a process of its own that reads a Plan as JSON on stdin and writes what it saw as JSON on stdout.

It is one bare protocol over httptools and uvloop (about 0.03 ms of CPU a request), because it shares the machine with
what it measures. All times are in seconds unless a name says otherwise.
"""

import asyncio
import gc
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

import httptools
import uvloop

from benchmarks.processes import cpu_seconds

__all__ = ["Plan", "Seen", "Target", "percentile"]

_WELL = frozenset({200, 202})
"""Statuses of requests that went well: answered, or accepted."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server and the requests that are sent to it."""

    port: int
    requests: list[str]
    """Whole HTTP/1.1 requests; client number i sends number i (modulo their count), again and again."""
    first_text: str = ""
    """What stands in a stream where its first text comes (`event: token`); empty: answers are no streams."""
    ending: str = ""
    """What must stand in a stream for it to have ended well."""
    pids: list[int] = field(default_factory=list[int])
    """The server's processes, whose CPU time is read."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do to the targets.

    `closed`: `clients` keep-alive clients, each sending its next request when the last is answered, for `seconds` or
    `count` requests in all. `alternate`: one client for each target, one request at a time, target after target,
    `count` rounds. `ramp`: `clients` new connections, `rate` a second whatever the server does, one stream each.
    `window`: `clients` streams at once; CPU and tokens are read from `warm` on for `seconds`.
    """

    mode: Literal["closed", "alternate", "ramp", "window"]
    targets: list[Target]
    clients: int = 1
    seconds: float = 0.0
    count: int = 0
    rate: float = 20.0
    warm: float = 0.0
    gap: float = 0.0
    """Seconds of rest before each request of `alternate`."""
    tokens: int = 0
    """How many tokens each stream must bring (`token` is counted in its texts); 0: not checked."""


@dataclass(slots=True)
class Seen:
    """What was seen of one target."""

    answered: int = 0
    errors: int = 0
    complaints: list[str] = field(default_factory=list[str])
    """The first few errors, in words."""
    elapsed: float = 0.0
    per_second: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    first_p50_ms: float = 0.0
    """Time to the first text of a stream, from when its request was due."""
    first_p99_ms: float = 0.0
    gap_p50_ms: float = 0.0
    """Between one write with text and the next."""
    gap_p99_ms: float = 0.0
    tokens: int = 0
    cpu: float = 0.0
    """CPU seconds that the server's processes used meanwhile."""
    most_at_once: int = 0
    firsts_ms: list[float] = field(default_factory=list[float])
    """Times to the first text, one for each stream, in the order in which they came."""


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of `values` do not exceed (nearest rank); 0 of none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(percent / 100 * len(ordered)) - 1))]


class _Record:
    """What all clients of one target have seen so far."""

    def __init__(self, target: Target, tokens: int) -> None:
        self.target = target
        self.expected_tokens = tokens
        self.latencies: list[float] = []
        self.firsts: list[float] = []
        self.gaps: list[float] = []
        self.tokens = 0
        self.errors = 0
        self.complaints: list[str] = []
        self.open = 0
        self.most_at_once = 0

    def error(self, words: str) -> None:
        self.errors += 1
        if len(self.complaints) < 5:
            self.complaints.append(words)

    def seen(self, *, elapsed: float, cpu: float, answered: int | None = None) -> Seen:
        done = len(self.latencies) if answered is None else answered
        return Seen(
            answered=done,
            errors=self.errors,
            complaints=self.complaints,
            elapsed=elapsed,
            per_second=done / elapsed if elapsed else 0.0,
            p50_ms=percentile(self.latencies, 50) * 1000,
            p99_ms=percentile(self.latencies, 99) * 1000,
            max_ms=max(self.latencies, default=0.0) * 1000,
            first_p50_ms=percentile(self.firsts, 50) * 1000,
            first_p99_ms=percentile(self.firsts, 99) * 1000,
            gap_p50_ms=percentile(self.gaps, 50) * 1000,
            gap_p99_ms=percentile(self.gaps, 99) * 1000,
            tokens=self.tokens,
            cpu=cpu,
            most_at_once=self.most_at_once,
            firsts_ms=[first * 1000 for first in self.firsts],
        )


class _Client(asyncio.Protocol):
    """One keep-alive connection; `ask` sends a request, and `answered` is awaited for its end."""

    def __init__(self, record: _Record) -> None:
        self._record = record
        self._marker = record.target.first_text.encode()
        self._parser = httptools.HttpResponseParser(self)
        self._answered: asyncio.Future[bool] | None = None
        self._transport: asyncio.Transport | None = None
        self._asked_at = 0.0
        self._text_at = 0.0
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        if not self._marker:
            return
        texts = body.count(self._marker)
        if not texts:
            return
        now = time.perf_counter()
        if self._text_at:
            self._record.gaps.append(now - self._text_at)
        else:
            self._record.firsts.append(now - self._asked_at)
        self._text_at = now
        self._record.tokens += body.count(b"token") - texts * self._marker.count(b"token")

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        keeps = self._parser.should_keep_alive()
        # httptools' response parser can be fed on for the next message of a kept connection
        self._record.latencies.append(time.perf_counter() - self._asked_at)
        self._record.open -= 1
        body = b"".join(self._body)
        if status not in _WELL:
            self._record.error(f"{status}: {body[:300].decode(errors='replace')}")
        elif self._marker:
            self._check_stream(body)
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(keeps)

    def _check_stream(self, body: bytes) -> None:
        expected = self._record.expected_tokens
        if self._record.target.ending.encode() not in body:
            self._record.error(f"the stream did not end well: {body[-300:].decode(errors='replace')}")
        elif expected and (tokens := _tokens_of(body, self._marker)) != expected:
            self._record.error(f"the stream brought {tokens} tokens of {expected}")

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._record.open -= 1
            self._record.error(f"the connection was lost: {exc}")
            self._answered.set_result(False)

    async def ask(self, request: bytes, *, due: float | None = None) -> bool:
        """Send `request` and wait for the whole answer; whether the connection can be used again."""
        assert self._transport is not None
        self._answered = asyncio.get_running_loop().create_future()
        self._body.clear()
        self._text_at = 0.0
        self._record.open += 1
        self._record.most_at_once = max(self._record.most_at_once, self._record.open)
        self._asked_at = time.perf_counter() if due is None else due
        if self._transport.is_closing():
            self._record.open -= 1
            self._record.error("the connection was closed before a request")
            return False
        self._transport.write(request)
        return await self._answered

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _tokens_of(body: bytes, marker: bytes) -> int:
    """How often `token` stands in the texts of the events that begin with `marker`."""
    tokens = 0
    for event in body.split(b"\n\n"):
        if marker in event:
            data = event.partition(b"data: ")[2]
            tokens += data.count(b"token")
    return tokens


async def _connect(record: _Record) -> _Client:
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: _Client(record), "127.0.0.1", record.target.port)
    return client


def _request(target: Target, number: int) -> bytes:
    return target.requests[number % len(target.requests)].encode()


def _cpu(target: Target) -> float:
    return sum(map(cpu_seconds, target.pids))


async def _closed(plan: Plan) -> list[Seen]:
    return [await _closed_on(plan, target) for target in plan.targets]


async def _closed_on(plan: Plan, target: Target) -> Seen:
    record = _Record(target, plan.tokens)
    clients = [await _connect(record) for _ in range(plan.clients)]
    left = plan.count or sys.maxsize
    started, cpu = time.perf_counter(), _cpu(target)
    until = started + plan.seconds if plan.seconds else float("inf")
    ended = started

    async def go(number: int, client: _Client) -> None:
        nonlocal left, ended
        request = _request(target, number)
        while left > 0 and time.perf_counter() < until:
            left -= 1
            if not await client.ask(request):
                client.close()
                client = await _connect(record)
            ended = time.perf_counter()
        client.close()

    await asyncio.gather(*(go(number, client) for number, client in enumerate(clients)))
    return record.seen(elapsed=ended - started, cpu=_cpu(target) - cpu)


async def _alternate(plan: Plan) -> list[Seen]:
    records = [_Record(target, plan.tokens) for target in plan.targets]
    clients = [await _connect(record) for record in records]
    cpu = [0.0] * len(records)
    started = time.perf_counter()
    for turn in range(plan.count):
        order = range(len(clients)) if turn % 2 == 0 else reversed(range(len(clients)))
        for index in order:
            await asyncio.sleep(plan.gap)
            before = _cpu(records[index].target)
            if not await clients[index].ask(_request(records[index].target, turn)):
                clients[index].close()
                clients[index] = await _connect(records[index])
            cpu[index] += _cpu(records[index].target) - before
    elapsed = time.perf_counter() - started
    return [record.seen(elapsed=elapsed, cpu=used) for record, used in zip(records, cpu, strict=True)]


async def _ramp(plan: Plan) -> list[Seen]:
    """New streams at a fixed rate, dealt out to the targets in turn; one record for each target."""
    records = [_Record(target, plan.tokens) for target in plan.targets]
    started, cpu = time.perf_counter(), [_cpu(target) for target in plan.targets]

    async def go(number: int) -> None:
        record = records[number % len(records)]
        due = started + number / plan.rate
        await asyncio.sleep(due - time.perf_counter())
        try:
            client = await _connect(record)
        except OSError as refused:
            record.error(f"no connection: {refused}")
            return
        await client.ask(_request(record.target, number // len(records)), due=due)
        client.close()

    await asyncio.gather(*(go(number) for number in range(plan.clients)))
    elapsed = time.perf_counter() - started
    return [
        record.seen(elapsed=elapsed, cpu=_cpu(record.target) - before)
        for record, before in zip(records, cpu, strict=True)
    ]


async def _window(plan: Plan) -> list[Seen]:
    return [await _window_on(plan, target) for target in plan.targets]


async def _window_on(plan: Plan, target: Target) -> Seen:
    record = _Record(target, plan.tokens)
    clients = [await _connect(record) for _ in range(plan.clients)]

    async def go(number: int, client: _Client) -> None:
        await asyncio.sleep(plan.gap * number)
        await client.ask(_request(target, number))
        client.close()

    streams = asyncio.gather(*(go(number, client) for number, client in enumerate(clients)))
    await asyncio.sleep(plan.warm)
    tokens, cpu, started = record.tokens, _cpu(target), time.perf_counter()
    await asyncio.sleep(plan.seconds)
    cpu, elapsed, tokens = _cpu(target) - cpu, time.perf_counter() - started, record.tokens - tokens
    await streams
    seen = record.seen(elapsed=elapsed, cpu=cpu)
    seen.tokens = tokens
    return seen


_MODES = {"closed": _closed, "alternate": _alternate, "ramp": _ramp, "window": _window}


def _main() -> None:
    read: dict[str, Any] = json.load(sys.stdin)
    targets = [Target(**target) for target in read.pop("targets")]
    plan = Plan(targets=targets, **read)
    gc.freeze()
    gc.disable()
    seen = uvloop.run(_MODES[plan.mode](plan))
    json.dump([asdict(one) for one in seen], sys.stdout)


if __name__ == "__main__":
    _main()
