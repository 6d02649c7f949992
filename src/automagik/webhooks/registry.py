"""Webhooks: the addresses that people have told of runs that ended, and what became of each delivery."""

import contextlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from pydantic import SecretStr

from automagik.errors import ConfigurationError, Conflict, InvalidInput, MissingScope, NotFound, nearest
from automagik.outbound import Outbound
from automagik.security.secrets import SecretStore
from automagik.store import Page, Store, Transaction
from automagik.store.delivery_sql import DELIVERY_TOPIC
from automagik.store.rows import AttemptRow, DeliveryRow, WebhookRow
from automagik.store.webhooks import WebhookChanges
from automagik.types import Caller, JsonObject
from automagik.webhooks.signing import new_signing_secret

__all__ = ["EVENTS", "TrackedDelivery", "Webhooks", "signing_secrets"]

EVENTS: Final = ("run.completed", "run.failed", "run.cancelled")
"""What a webhook can be told of."""

_KEEP_PREVIOUS: Final = timedelta(hours=24)
"""How long deliveries are signed by the secret before, too, so that a receiver can change over."""
_MOST: Final = 100
"""How many webhooks there may be for one user's runs, or for everybody's: each run's end is stored with a delivery to each."""
_RUNS: Final = "runs:read"
"""Whoever says where runs are sent to must be allowed to read them."""


@dataclass(frozen=True, slots=True)
class TrackedDelivery:
    """A delivery with its attempts so far, in order."""

    row: DeliveryRow
    attempts: Sequence[AttemptRow]


class Webhooks:
    """Webhooks and their deliveries. A caller bound to a user sees and makes only those for that user's runs.

    A webhook sends in the name of a key, as long as that key is valid: of whoever made it, or changed it last.
    """

    def __init__(self, store: Store, secrets: SecretStore, outbound: Outbound) -> None:
        self._store = store
        self._secrets = secrets
        self._outbound = outbound

    async def create(
        self,
        url: str,
        *,
        caller: Caller,
        events: Sequence[str] | None = None,
        names: Sequence[str] = (),
        description: str | None = None,
        user_id: uuid.UUID | None = None,
        request_id: str | None = None,
    ) -> tuple[WebhookRow, SecretStr]:
        """A new webhook and its signing secret, which is to be had only here.

        `events` (None: all) and `names` (of agents and workflows; empty: all) say which runs it is told of, `user_id` whose.

        Raises:
            InvalidInput: the URL leads where the platform doesn't go, or there is no such event.
            MissingScope: the caller may not read runs; NotFound: the user is unknown, or another than the caller's.
            Conflict: there are too many already.
        """
        _check_scope(caller)
        wanted = _check_events(EVENTS if events is None else events)
        if caller.user_id is not None and user_id not in {None, caller.user_id}:
            raise NotFound("user", str(user_id), hint="This key is bound to another user; leave `user_id` out.")
        await self._outbound.check_url(url, field=("body", "url"))
        secret = new_signing_secret()

        def work(tx: Transaction) -> WebhookRow:
            if tx.webhooks.count(user_id or caller.user_id) >= _MOST:
                raise Conflict(
                    f"There are {_MOST} webhooks for these runs already.",
                    code="too_many_webhooks",
                    hint="Delete one that nobody needs, or let one receiver hand on what it gets.",
                )
            row = tx.webhooks.create(
                url,
                events=wanted,
                names=names,
                description=description,
                key_id=caller.key_id,
                user_id=user_id or caller.user_id,
            )
            self._secrets.put(tx, _secret_name(row.webhook_id), secret)
            details: JsonObject = {"events": [*wanted], "user_id": str(row.user_id) if row.user_id else None}
            tx.audit.append("webhook.create", row.webhook_id, caller=caller, request_id=request_id, details=details)
            return row

        return await self._store.write(work), secret

    async def get(self, webhook_id: str, caller: Caller) -> WebhookRow:
        """One webhook. Raises NotFound, for what the caller may not see too."""
        return await self._store.read(lambda tx: _get(tx, webhook_id, caller))

    async def list(
        self, caller: Caller, *, user_id: uuid.UUID | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page[WebhookRow]:
        """Webhooks, newest first; with `user_id` those for that user's runs only."""
        if caller.user_id is not None:
            if user_id not in {None, caller.user_id}:
                return Page([], None)
            user_id = caller.user_id
        return await self._store.read(lambda tx: tx.webhooks.list(user_id=user_id, limit=limit, cursor=cursor))

    async def update(
        self,
        webhook_id: str,
        changes: WebhookChanges,
        *,
        caller: Caller,
        if_revision: int | None = None,
        request_id: str | None = None,
    ) -> WebhookRow:
        """The changed webhook, in the caller's name from now on, unless it was only switched off. What was queued for one that is
        not active waits until it is again.

        Raises:
            NotFound, PreconditionFailed: there is none, or not at `if_revision` any more.
            InvalidInput, MissingScope: as `create`.
        """
        _check_scope(caller)
        if "events" in changes:
            changes = {**changes, "events": _check_events(changes["events"])}
        if changes and changes != {"active": False}:
            changes = {**changes, "key_id": caller.key_id}
        await self.get(webhook_id, caller)  # before the URL is looked at
        if "url" in changes:
            await self._outbound.check_url(changes["url"], field=("body", "url"))

        def work(tx: Transaction) -> WebhookRow:
            _get(tx, webhook_id, caller)
            row = tx.webhooks.update(webhook_id, if_revision=if_revision, **changes)
            details: JsonObject = {"changed": [*sorted(changes.keys() - {"key_id"})]}
            tx.audit.append("webhook.update", webhook_id, caller=caller, request_id=request_id, details=details)
            return row

        row = await self._store.write(work)
        if changes.get("active"):
            await self._wake()
        return row

    async def delete(
        self, webhook_id: str, *, caller: Caller, if_revision: int | None = None, request_id: str | None = None
    ) -> None:
        """Delete a webhook with its secret and its deliveries, those too that wait. Raises NotFound, PreconditionFailed."""

        def work(tx: Transaction) -> None:
            _get(tx, webhook_id, caller)
            tx.webhooks.delete(webhook_id, if_revision=if_revision)
            tx.secrets.delete(_secret_name(webhook_id), _previous_name(webhook_id))
            tx.audit.append("webhook.delete", webhook_id, caller=caller, request_id=request_id)

        await self._store.write(work)

    async def rotate_secret(
        self, webhook_id: str, *, caller: Caller, request_id: str | None = None
    ) -> tuple[WebhookRow, SecretStr]:
        """The webhook and its new signing secret. For 24 hours deliveries are signed by the one before, too.

        Raises: NotFound.
        """
        secret = new_signing_secret()

        def work(tx: Transaction) -> WebhookRow:
            row = _get(tx, webhook_id, caller)
            with contextlib.suppress(NotFound, ConfigurationError):  # lost with its key: then nothing is to be kept
                self._secrets.put(tx, _previous_name(webhook_id), self._secrets.take(tx, _secret_name(webhook_id)))
            self._secrets.put(tx, _secret_name(webhook_id), secret)
            tx.audit.append("webhook.rotate_secret", webhook_id, caller=caller, request_id=request_id)
            return row

        return await self._store.write(work), secret

    async def ping(self, webhook_id: str, *, caller: Caller, request_id: str | None = None) -> DeliveryRow:
        """A delivery that tells of no run, on its way: it is tried once. Raises NotFound."""

        def work(tx: Transaction) -> DeliveryRow:
            _get(tx, webhook_id, caller)
            row = tx.webhooks.ping(webhook_id)
            tx.audit.append("webhook.test", webhook_id, caller=caller, request_id=request_id)
            return row

        row = await self._store.write(work)
        await self._wake()
        return row

    # -- deliveries

    async def deliveries(
        self,
        webhook_id: str,
        caller: Caller,
        *,
        status: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page[DeliveryRow]:
        """A webhook's deliveries, newest first. Raises NotFound."""

        def work(tx: Transaction) -> Page[DeliveryRow]:
            _get(tx, webhook_id, caller)
            return tx.webhooks.deliveries(webhook_id, status=status, limit=limit, cursor=cursor)

        return await self._store.read(work)

    async def delivery(self, delivery_id: str, caller: Caller) -> TrackedDelivery:
        """One delivery with its attempts. Raises NotFound."""
        return await self._store.read(lambda tx: _tracked(tx, delivery_id, caller))

    async def redeliver(self, delivery_id: str, *, caller: Caller, request_id: str | None = None) -> TrackedDelivery:
        """The delivery, on its way again under the same id.

        Raises: NotFound; Conflict where it is under way, or its webhook is not active.
        """

        def work(tx: Transaction) -> TrackedDelivery:
            _tracked(tx, delivery_id, caller)
            tx.webhooks.redeliver(delivery_id)
            tx.audit.append("delivery.redeliver", delivery_id, caller=caller, request_id=request_id)
            return _tracked(tx, delivery_id, caller)

        tracked = await self._store.write(work)
        await self._wake()
        return tracked

    async def _wake(self) -> None:
        await self._store.signals.send(DELIVERY_TOPIC)


def signing_secrets(tx: Transaction, secrets: SecretStore, webhook_id: str) -> list[SecretStr]:
    """By what a webhook's deliveries are signed now: its secret, and for a day after a rotation the one before.

    Raises: NotFound where it has none; ConfigurationError where it can't be opened.
    """
    found = [secrets.take(tx, _secret_name(webhook_id))]
    previous = tx.secrets.find(_previous_name(webhook_id))
    if previous is not None and tx.now < previous.updated_at + _KEEP_PREVIOUS:
        found.append(secrets.take(tx, previous.name))
    return found


def _secret_name(webhook_id: str) -> str:
    return f"webhooks/{webhook_id}"


def _previous_name(webhook_id: str) -> str:
    return f"webhooks/{webhook_id}/previous"


def _get(tx: Transaction, webhook_id: str, caller: Caller) -> WebhookRow:
    row = tx.webhooks.find(webhook_id)
    if row is None or caller.user_id not in {None, row.user_id}:
        raise NotFound("webhook", webhook_id, hint="GET /api/v1/webhooks lists the webhooks that this key may see.")
    return row


def _tracked(tx: Transaction, delivery_id: str, caller: Caller) -> TrackedDelivery:
    row = tx.webhooks.find_delivery(delivery_id)
    webhook = None if row is None else tx.webhooks.find(row.webhook_id)
    if row is None or webhook is None or caller.user_id not in {None, webhook.user_id}:
        raise NotFound(
            "delivery", delivery_id, hint="GET /api/v1/webhooks/{webhook_id}/deliveries lists those of a webhook."
        )
    return TrackedDelivery(row, tx.webhooks.attempts(delivery_id))


def _check_scope(caller: Caller) -> None:
    if not (caller.allows(_RUNS) or caller.allows("runs:write")):
        raise MissingScope(_RUNS)


def _check_events(events: Sequence[str]) -> list[str]:
    for index, event in enumerate(events):
        if event not in EVENTS:
            close = nearest(event, EVENTS)
            raise InvalidInput(
                f"There is no event '{event[:100]}'.",
                field=("body", "events", index),
                hint=f"Did you mean '{close}'?" if close else f"Known are: {', '.join(EVENTS)}.",
            )
    if not events:
        raise InvalidInput(
            "A webhook is told of one event at least.",
            field=("body", "events"),
            hint=f"Known are: {', '.join(EVENTS)}.",
        )
    return list(dict.fromkeys(events))
