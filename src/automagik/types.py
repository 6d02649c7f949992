"""Values that every room speaks of: identifiers, time, run status and outcome, usage, the caller."""

import os
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Protocol

__all__ = [
    "OUTCOME_STATUS",
    "SYSTEM",
    "TERMINAL",
    "Caller",
    "Clock",
    "Json",
    "JsonObject",
    "RunOutcome",
    "RunStatus",
    "SystemClock",
    "Usage",
    "new_id",
    "new_uuid",
    "utc_text",
]

Json = bool | int | float | str | None | list["Json"] | dict[str, "Json"]
JsonObject = dict[str, Json]

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"


class _MonotonicStamp:
    """128 bits that grow: 48 of milliseconds, then 80 that are random and count up within a millisecond (the ULID layout)."""

    _POOL_BYTES = 4000
    """Random bytes are fetched by the hundred: one system call for each identifier would be most of its cost."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_ms = 0
        self._tail = 0
        self._pool = b""

    def next(self) -> tuple[int, int]:
        with self._lock:
            ms = max(time.time_ns() // 1_000_000, self._last_ms)
            if ms == self._last_ms:
                self._tail += 1
            else:
                self._last_ms = ms
                self._tail = int.from_bytes(self._ten_bytes(), "big") >> 2
            return ms, self._tail

    def _ten_bytes(self) -> bytes:
        if not self._pool:
            self._pool = os.urandom(self._POOL_BYTES)
        taken, self._pool = self._pool[:10], self._pool[10:]
        return taken

    def forget(self) -> None:
        """Drop the random bytes at hand: a forked child must not give out its parent's."""
        self._pool = b""


_stamp = _MonotonicStamp()
os.register_at_fork(after_in_child=_stamp.forget)


def new_id(kind: str) -> str:
    """A public identifier `{kind}_{26 characters}` that sorts by time; strictly growing within a process."""
    ms, tail = _stamp.next()
    value = (ms << 80) | tail
    digits = [_CROCKFORD[(value >> shift) & 31] for shift in range(125, -1, -5)]
    return f"{kind}_{''.join(digits)}"


def new_uuid() -> uuid.UUID:
    """A UUID version 7 (RFC 9562): sorts by time, strictly growing within a process."""
    ms, tail = _stamp.next()
    high = tail >> 62 & 0xFFF
    low = tail & ((1 << 62) - 1)
    return uuid.UUID(int=(ms << 80) | (0x7 << 76) | (high << 64) | (0b10 << 62) | low)


class Clock(Protocol):
    """Where time comes from, so that a laboratory can turn it."""

    def now(self) -> datetime:
        """The wall clock, in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


def utc_text(moment: datetime) -> str:
    """RFC 3339 in UTC with `Z` and microseconds, as all times on the wire: `2026-11-24T09:30:00.000000Z`."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class RunStatus(StrEnum):
    """Where a run stands."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED})


class RunOutcome(StrEnum):
    """Why a run ended: a closed list."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    MODEL_ERROR = "model_error"
    TOOL_ERROR = "tool_error"
    INVALID_OUTPUT = "invalid_output"
    TIMED_OUT = "timed_out"
    STALLED = "stalled"
    MAX_TURNS = "max_turns"
    BUDGET_EXCEEDED = "budget_exceeded"
    POLICY = "policy"
    SANDBOX_ERROR = "sandbox_error"
    SANDBOX_LOST = "sandbox_lost"
    WORKER_LOST = "worker_lost"
    RETRIES_EXHAUSTED = "retries_exhausted"
    INTERNAL_ERROR = "internal_error"


OUTCOME_STATUS: Mapping[RunOutcome, RunStatus] = {
    outcome: RunStatus.COMPLETED
    if outcome is RunOutcome.COMPLETED
    else RunStatus.CANCELLED
    if outcome in {RunOutcome.CANCELLED, RunOutcome.INTERRUPTED}
    else RunStatus.FAILED
    for outcome in RunOutcome
}
"""The terminal status that each outcome gives."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a run used. Tokens are counts as the provider reports them, the cost is in US dollars (None: price unknown)."""

    requests: int = 0
    tool_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cost_usd: Decimal | None = None

    def __add__(self, other: "Usage") -> "Usage":
        """What both used together; the cost is what is known of it."""
        costs = [cost for cost in (self.cost_usd, other.cost_usd) if cost is not None]
        return Usage(
            requests=self.requests + other.requests,
            tool_calls=self.tool_calls + other.tool_calls,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cache_read_tokens=self.cache_read_tokens + other.cache_read_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
            cost_usd=sum(costs, Decimal()) if costs else None,
        )


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a key, what it may do, and the user it is bound to (None: not bound, sees every user's)."""

    key_id: str | None
    scopes: frozenset[str]
    user_id: uuid.UUID | None = None
    rate_limit: str | None = None
    shared_limits: tuple[tuple[str, str], ...] = ()
    """The keys with a rate limit that its key descends from, nearest first, each with that limit: all count its requests."""
    _memo: dict[str, bool] = field(default_factory=dict[str, bool], compare=False, repr=False)

    def allows(self, scope: str) -> bool:
        """Whether the caller has `scope` (`area:action` or `area:name:action`), by name, by `*` or by `admin`."""
        known = self._memo.get(scope)
        if known is None:
            known = self._memo[scope] = _allows(self.scopes, scope)
        return known


def _allows(scopes: frozenset[str], scope: str) -> bool:
    if "admin" in scopes or scope in scopes:
        return True
    parts = scope.split(":")
    return len(parts) == 3 and f"{parts[0]}:*:{parts[2]}" in scopes


SYSTEM = Caller(key_id=None, scopes=frozenset({"admin"}))
"""The platform itself, or a person with access to the data folder."""
