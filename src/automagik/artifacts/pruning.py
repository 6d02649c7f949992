"""prune_platform: what retention says goes, from every table and from the artefact store, in short transactions."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from automagik.artifacts.store import ArtifactStore
from automagik.errors import AutomagikError
from automagik.settings import Settings
from automagik.store import Store, Transaction
from automagik.store.retention import Deleted
from automagik.types import Caller, Clock, JsonObject

__all__ = ["Pruned", "keep_pruned", "prune_platform"]

_log = structlog.stdlib.get_logger(__name__)

_EVERY = timedelta(hours=1)

_RUNS = 200
_SESSIONS = 20
_ROWS = 1000
_NOTABLE = ("runs", "sessions", "messages", "deliveries", "artifacts")
"""What is worth an entry in the audit log when the platform prunes by itself."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was deleted, or would be: rows by table; `artifact_bytes` and `orphan_objects` besides."""

    counts: dict[str, int] = field(default_factory=dict[str, int])
    dry_run: bool = False

    @property
    def total(self) -> int:
        """All rows and orphans."""
        return sum(count for name, count in self.counts.items() if name != "artifact_bytes")


async def prune_platform(
    store: Store,
    artifacts: ArtifactStore,
    clock: Clock,
    *,
    older_than: timedelta | None,
    unused_for: timedelta,
    sessions: bool = False,
    dry_run: bool = False,
    every: timedelta | None = None,
    caller: Caller | None = None,
) -> Pruned | None:
    """What was deleted: finished runs and deliveries older than `older_than` (None: none), artefacts unused for `unused_for`.

    And what is of no use whatever retention says: idempotency keys, counters of rate limits, executors that are long gone.
    `sessions`: conversations that nothing was said in for `older_than`, too. With `every`, only one process does it in that
    time; None: another has. `caller` (None: the platform itself) stands in the audit log.

    Raises: ServiceUnavailable when the database or the artefact store is away; what was deleted until then stays deleted.
    """
    before = None if older_than is None else clock.now() - older_than
    if dry_run:
        found = await store.read(lambda tx: tx.retention.count(before, sessions=sessions))
        unused = await artifacts.prune(unused_for, dry_run=True)
        return Pruned({**found, "artifacts": unused.artifacts, "artifact_bytes": unused.size}, dry_run=True)
    if every is not None and not await store.write(lambda tx: tx.retention.claim(every)):
        return None
    counts: Counter[str] = Counter()
    try:
        await _prune_rows(store, counts, before, sessions=sessions)
        gone = await artifacts.prune(unused_for)
        counts.update(artifacts=gone.artifacts, artifact_bytes=gone.size)
        counts.update(artifact_uses=gone.lost_uses, orphan_objects=gone.orphans)
    finally:
        if caller is not None or any(counts[name] for name in _NOTABLE):
            days = None if older_than is None else older_than / timedelta(days=1)
            details: JsonObject = {"older_than_days": days, "sessions": sessions, "deleted": dict(counts)}
            await store.write(lambda tx: tx.audit.append("db.prune", "database", caller=caller, details=details))
    return Pruned(dict(counts))


async def keep_pruned(
    store: Store, artifacts: ArtifactStore, settings: Settings, clock: Clock, *, look_seconds: float = 300.0
) -> None:
    """Prune by the settings, once an hour over all processes, until it is cancelled; `look_seconds`: how often it is looked."""
    days = settings.retention_days
    while True:
        await asyncio.sleep(look_seconds)
        try:
            await prune_platform(
                store,
                artifacts,
                clock,
                older_than=None if days is None else timedelta(days=days),
                unused_for=timedelta(days=settings.artifact_retention_days),
                every=_EVERY,
            )
        except AutomagikError as error:
            _log.warning("pruning_put_off", reason=error.detail)


async def _prune_rows(store: Store, counts: Counter[str], before: datetime | None, *, sessions: bool) -> None:
    if before is not None:
        steps: list[Callable[[Transaction, str], Deleted]] = [
            lambda tx, after: tx.retention.delete_runs(before, after=after, limit=_RUNS),
            lambda tx, after: tx.retention.delete_deliveries(before, after=after, limit=_ROWS),
        ]
        if sessions:
            steps.append(lambda tx, _: tx.retention.delete_sessions(before, limit=_SESSIONS))
        for step in steps:
            after: str | None = ""
            while after is not None:
                done = await store.write(lambda tx, step=step, after=after: step(tx, after))
                counts.update(done.rows)
                after = done.after
    while True:
        expired = await store.write(lambda tx: tx.retention.delete_expired(limit=_ROWS))
        counts.update(expired)
        if all(count < _ROWS for count in expired.values()):
            return
