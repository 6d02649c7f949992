"""WebhookSender: delivers what is due, in every process that does background work."""

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final, Literal, Protocol, TypeVar, cast

import httpx2
import structlog
from pydantic import SecretStr

from automagik.errors import AutomagikError, Conflict, ServiceUnavailable
from automagik.outbound import Outbound, Posted
from automagik.security.keys import caller_of_key
from automagik.security.secrets import SecretStore
from automagik.store import Store, Transaction
from automagik.store.delivery_sql import DELIVERY_TOPIC
from automagik.store.rows import DeliveryRow, RunRow
from automagik.store.webhooks import LEASE, PING, AttemptResult, DueDelivery
from automagik.types import Clock, JsonObject, utc_text
from automagik.webhooks.registry import signing_secrets
from automagik.webhooks.signing import signed_headers

__all__ = ["RETRY_DELAYS", "DeliveryObserver", "WebhookSender"]

T = TypeVar("T")

_log = structlog.stdlib.get_logger(__name__)

RETRY_DELAYS: Final = (5, 30, 120, 600, 3600, 6 * 3600, 24 * 3600)
"""Seconds from a failed attempt to the next one, a fifth more or less; after the last of them a delivery has failed."""

_JITTER: Final = 0.2
_LONGEST_WAIT: Final = 24 * 3600
"""How long a receiver may ask us to wait (`Retry-After`), in seconds."""
_ATTEMPT_SECONDS: Final = 15.0
"""How long one attempt may take; the specification advises 15 to 30."""
_AT_ONCE: Final = 32
_AT_ONCE_PER_HOST: Final = 4
"""Attempts under way in this process, in all and to one host: a slow receiver holds only its own back."""
_POLL_SECONDS: Final = {"postgresql": 30.0, "sqlite": 1.0}
"""How long it takes at the most where there was no signal: on SQLite ends outside the hot path give none, and looking is cheap."""
_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 30.0
"""How long a sender waits after the database failed, or for another sender: at first, and at the most."""
_TURN_SECONDS: Final = 0.02
_CUT_SECONDS: Final = 0.05
_PATIENCE: Final = 20
_GONE: Final = 410

_INTERRUPTED: Final = "The sender was stopped during the attempt."


@dataclass(frozen=True, slots=True)
class _Parcel:
    """What an attempt needs. `run` is None for a ping."""

    url: str
    secrets: Sequence[SecretStr]
    run: RunRow | None


class DeliveryObserver(Protocol):
    """Who is told of attempts: metrics."""

    def delivery_attempted(
        self, result: Literal["delivered", "refused", "unanswered"], seconds: float, *, gives_up: bool
    ) -> None:
        """Count an attempt; `gives_up`: the delivery has failed for good."""
        ...


class _NoRun(Exception):
    """The run that was to be told of was deleted: no attempt can help."""


class WebhookSender:
    """Sends deliveries that are due, retries those that fail, and stores each attempt.

    Any number of processes may do so: each claims what it sends for a minute. A process that dies loses only that minute,
    so a receiver gets every event at least once, and tells repeats by `webhook-id`.
    """

    def __init__(
        self,
        store: Store,
        outbound: Outbound,
        secrets: SecretStore,
        *,
        clock: Clock,
        render: Callable[[RunRow], JsonObject],
        lease: timedelta = LEASE,
        observer: DeliveryObserver | None = None,
    ) -> None:
        """`render`: a run as the API shows it. `lease`: for how long what another sender has claimed is left to it."""
        self._store = store
        self._outbound = outbound
        self._secrets = secrets
        self._clock = clock
        self._render = render
        self._lease = lease
        self._observer = observer
        self._sending: dict[asyncio.Task[None], DueDelivery] = {}
        self._posting: set[asyncio.Task[None]] = set()
        self._busy: frozenset[str] = frozenset()
        self._changed = asyncio.Event()
        self._closing = False
        self._poll_seconds = _POLL_SECONDS[store.dialect]

    async def run(self) -> None:
        """Deliver until `close`. What the database refuses is tried again later."""
        leave = [
            self._store.signals.listen(DELIVERY_TOPIC, lambda _: self._changed.set()),
            self._store.signals.on_gap(self._changed.set),
        ]
        pause = _PAUSE_SECONDS
        try:
            while not self._closing:
                self._changed.clear()
                try:
                    await self.start_due()
                    wait = await self._until_next()
                    pause = _PAUSE_SECONDS
                except AutomagikError as error:
                    _log.warning("deliveries_wait", cause=error.detail)
                    wait, pause = pause, min(2 * pause, _LONGEST_PAUSE_SECONDS)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._changed.wait()
        finally:
            for go in leave:
                go()
        await self._cut_off()  # what was being claimed when it was closed

    async def start_due(self) -> int:
        """How many deliveries were claimed and are being sent now: all that are due, as far as the limits allow."""
        started = 0
        self._busy = frozenset()
        while (free := _AT_ONCE - len(self._sending)) > 0 and not self._closing:
            chosen, busy = self._choose(await self._due(), free)
            claimed = await self._claim(tuple(chosen)) if chosen else ()
            for row in claimed:
                self._start(row, chosen[row.delivery_id])
            started += len(claimed)
            if len(claimed) < len(chosen):  # another sender was faster: what it left is looked at anew
                await asyncio.sleep(0 if claimed else _TURN_SECONDS)
                continue
            self._busy |= busy
            if not chosen and not busy:
                break
        return started

    async def settled(self) -> None:
        """Return when nothing is being sent."""
        while self._sending:
            await asyncio.wait(list(self._sending))

    async def close(self, grace_seconds: float = 0) -> None:
        """Begin nothing more; what is not answered within the grace is given back, to be tried again by whoever is there."""
        self._closing = True
        self._changed.set()
        if self._sending:
            await asyncio.wait(list(self._sending), timeout=grace_seconds)
        await self._cut_off()

    async def _cut_off(self) -> None:
        """End what is being sent. Only posts are cut off: what is being written down is written."""
        while self._sending:
            for task in list(self._posting):
                task.cancel()
            await asyncio.wait(list(self._sending), timeout=_CUT_SECONDS)

    # -- choosing

    def _choose(self, due: Collection[DueDelivery], free: int) -> tuple[dict[str, DueDelivery], set[str]]:
        """What can be sent now, and the webhooks whose hosts are busy."""
        hosts = Counter(_host(sending.url) for sending in self._sending.values())
        chosen: dict[str, DueDelivery] = {}
        busy: set[str] = set()
        for delivery in due:
            host = _host(delivery.url)
            if hosts[host] >= _AT_ONCE_PER_HOST:
                busy.add(delivery.webhook_id)
            elif len(chosen) < free:
                hosts[host] += 1
                chosen[delivery.delivery_id] = delivery
        return chosen, busy

    async def _due(self) -> Sequence[DueDelivery]:
        busy = self._busy
        return await self._store.read(lambda tx: tx.webhooks.due(without=busy, lease=self._lease, limit=4 * _AT_ONCE))

    async def _claim(self, delivery_ids: Sequence[str]) -> Sequence[DeliveryRow]:
        return await self._store.write(lambda tx: tx.webhooks.claim(delivery_ids, lease=self._lease))

    async def _until_next(self) -> float:
        """Seconds until something is due that can be sent; a place that becomes free sets `_changed`."""
        if len(self._sending) >= _AT_ONCE:
            return self._poll_seconds
        busy = self._busy
        next_at = await self._store.read(lambda tx: tx.webhooks.next_due(without=busy))
        if next_at is None:
            return self._poll_seconds
        wait = (next_at - self._clock.now()).total_seconds()
        # What is due and was not claimed is another sender's, whose clock is behind this one.
        return min(wait if wait > 0 else _PAUSE_SECONDS, self._poll_seconds)

    # -- sending

    def _start(self, row: DeliveryRow, delivery: DueDelivery) -> None:
        task = asyncio.get_running_loop().create_task(self._attempt(row), name=f"deliver {row.delivery_id}")
        self._sending[task] = delivery
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        delivery = self._sending.pop(task)
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:  # its lease ends, and it is tried again
            _log.error("delivery_attempt_lost", delivery_id=delivery.delivery_id, exc_info=error)

    async def _attempt(self, row: DeliveryRow) -> None:
        began = self._clock.monotonic()

        def result(status_code: int | None = None, error: str | None = None) -> AttemptResult:
            return AttemptResult(int((self._clock.monotonic() - began) * 1000), status_code, error)

        try:
            packing = partial(self._store.read, lambda tx: _pack(tx, self._secrets, row))
            posted = await self._post(row, await self._patiently(packing))
        except _NoRun as gone:
            await self._fail(row, result(error=str(gone)), None)
        except ServiceUnavailable:
            raise
        except AutomagikError as wrong:  # no answer; or no valid key, no secret to sign by, until somebody sees to it
            await self._fail(row, result(error=wrong.detail), self._next_at(row))
        except asyncio.CancelledError:
            await self._fail(row, result(error=_INTERRUPTED), self._clock.now())
        else:
            answered = result(posted.status_code)
            if 200 <= posted.status_code < 300:
                await self._settle(lambda tx: tx.webhooks.settle_delivered(row, answered))
                self._count(answered, gives_up=False)
            elif posted.status_code == _GONE:
                await self._settle(lambda tx: _disable(tx, row, answered))
                self._count(answered, gives_up=True)
                _log.warning("webhook_disabled", webhook_id=row.webhook_id, status_code=_GONE)
            else:
                await self._fail(row, answered, self._next_at(row, posted.retry_after_seconds))

    async def _post(self, row: DeliveryRow, parcel: _Parcel) -> Posted:
        body = self._body(row, parcel.run)
        signed = signed_headers(row.delivery_id, self._clock.now(), body, parcel.secrets)
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._posting.add(task)
        try:
            return await self._outbound.post(
                parcel.url,
                body,
                headers={"content-type": "application/json", **signed},
                timeout_seconds=_ATTEMPT_SECONDS,
            )
        finally:
            self._posting.discard(task)

    async def _fail(self, row: DeliveryRow, result: AttemptResult, next_at: datetime | None) -> None:
        await self._settle(lambda tx: tx.webhooks.settle_failed(row, result, next_at=next_at))
        self._count(result, gives_up=next_at is None)
        if next_at is None:
            _log.warning("delivery_failed", delivery_id=row.delivery_id, attempts=row.attempts)

    def _count(self, result: AttemptResult, *, gives_up: bool) -> None:
        if self._observer is None or result.error == _INTERRUPTED:
            return
        status = result.status_code
        word = "unanswered" if status is None else "delivered" if 200 <= status < 300 else "refused"
        self._observer.delivery_attempted(word, result.milliseconds / 1000, gives_up=gives_up)

    async def _settle(self, work: Callable[[Transaction], None]) -> None:
        await self._patiently(partial(self._store.write, work))

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` comes to; where the database is away, tried again as long as the delivery is this sender's."""
        for _ in range(_PATIENCE):
            try:
                return await work()
            except ServiceUnavailable:
                if self._closing:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)
        return await work()

    def _next_at(self, row: DeliveryRow, asked_seconds: int | None = None) -> datetime | None:
        """When to try again; None where this was the last time."""
        if row.event == PING or row.attempts > len(RETRY_DELAYS):
            return None
        spread = random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - spreads attempts, keeps no secret
        wait = max(RETRY_DELAYS[row.attempts - 1] * spread, min(asked_seconds or 0, _LONGEST_WAIT))
        return self._clock.now() + timedelta(seconds=wait)

    def _body(self, row: DeliveryRow, run: RunRow | None) -> bytes:
        data: JsonObject = {} if run is None else {"run": self._render(run)}
        document: JsonObject = {
            "id": row.delivery_id,
            "type": row.event,
            "created_at": utc_text(row.created_at),
            "data": data,
        }
        return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()


def _pack(tx: Transaction, secrets: SecretStore, row: DeliveryRow) -> _Parcel:
    webhook = tx.webhooks.get(row.webhook_id)
    run = None if row.run_id is None else tx.runs.find(row.run_id)
    if run is None and row.event != PING:
        raise _NoRun("The run is not stored any more.")
    if not webhook.active and row.event != PING:
        raise Conflict("The webhook is not active.")  # since the delivery was queued: it waits until it is again
    if webhook.key_id is not None:
        caller_of_key(tx, webhook.key_id)  # what was seen with a key that was revoked is seen no more
    return _Parcel(webhook.url, signing_secrets(tx, secrets, row.webhook_id), run)


def _disable(tx: Transaction, row: DeliveryRow, result: AttemptResult) -> None:
    """The receiver wants no more of this: the delivery has failed, and nothing is sent there until a person says so."""
    tx.webhooks.settle_failed(row, result, next_at=None)
    webhook = tx.webhooks.find(row.webhook_id)
    if webhook is not None and webhook.active:
        tx.webhooks.update(row.webhook_id, active=False)
        tx.audit.append("webhook.disable", row.webhook_id, details={"status_code": _GONE})


def _host(url: str) -> str:
    return httpx2.URL(url).host
