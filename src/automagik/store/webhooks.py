"""Webhooks: the addresses that are told of runs that ended, the deliveries to them, and each attempt."""

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypedDict, Unpack

from sqlalchemy import ColumnElement, Interval, Row, case, func, insert, literal, select, update
from sqlalchemy import delete as delete_from

from automagik.errors import Conflict, NotFound, PreconditionFailed
from automagik.store import schema
from automagik.store.pages import fetch_page
from automagik.store.repository import Repository
from automagik.store.rows import AttemptRow, DeliveryRow, Page, WebhookRow
from automagik.store.users import Users
from automagik.types import new_id

__all__ = ["LEASE", "PING", "AttemptResult", "DueDelivery", "WebhookChanges", "Webhooks"]

_webhooks = schema.webhooks
_deliveries = schema.deliveries
_attempts = schema.delivery_attempts

PING = "ping"
"""The event of a delivery that tells of no run."""

LEASE = timedelta(seconds=60)
"""For how long a claimed delivery is its sender's: an attempt and its bookkeeping. By the database's clock, on PostgreSQL:
those of the hosts may differ."""

_STOPPED = "The sender stopped before the attempt had ended."
_PENDING = _deliveries.c.status == "pending"


class WebhookChanges(TypedDict, total=False):
    """What an update changes; what is absent stays."""

    url: str
    description: str | None
    events: list[str]
    names: list[str]
    active: bool
    key_id: str | None


@dataclass(frozen=True, slots=True)
class DueDelivery:
    """A delivery whose time has come, with the address that it goes to."""

    delivery_id: str
    webhook_id: str
    url: str


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """How an attempt went: the status that was answered, or the reason why there was none."""

    milliseconds: int
    status_code: int | None = None
    error: str | None = None


class Webhooks(Repository):
    """The webhooks, deliveries and delivery_attempts tables."""

    __slots__ = ()

    def create(
        self,
        url: str,
        *,
        events: Sequence[str],
        names: Sequence[str] = (),
        description: str | None = None,
        key_id: str | None = None,
        user_id: uuid.UUID | None = None,
    ) -> WebhookRow:
        """The new webhook. Raises NotFound for an unknown user."""
        if user_id is not None:
            Users(self._connection, self._now).get(user_id)
        values = {
            "webhook_id": new_id("whk"),
            "url": url,
            "description": description,
            "events": list(events),
            "names": list(names),
            "active": True,
            "key_id": key_id,
            "user_id": user_id,
            "revision": 1,
            "created_at": self._now,
            "updated_at": self._now,
        }
        return _webhook(self._connection.execute(insert(_webhooks).values(values).returning(_webhooks)).one())

    def find(self, webhook_id: str) -> WebhookRow | None:
        """The webhook, or None."""
        record = self._connection.execute(select(_webhooks).where(_webhooks.c.webhook_id == webhook_id)).one_or_none()
        return None if record is None else _webhook(record)

    def get(self, webhook_id: str) -> WebhookRow:
        """The webhook. Raises NotFound."""
        found = self.find(webhook_id)
        if found is None:
            raise NotFound("webhook", webhook_id)
        return found

    def update(
        self, webhook_id: str, *, if_revision: int | None = None, **changes: Unpack[WebhookChanges]
    ) -> WebhookRow:
        """The changed webhook, its revision counted up. While it is not active, what it is to be told waits.

        Raises:
            NotFound: there is no such webhook.
            PreconditionFailed: it is not at `if_revision` any more.
        """
        statement = update(_webhooks).where(_webhooks.c.webhook_id == webhook_id)
        if if_revision is not None:
            statement = statement.where(_webhooks.c.revision == if_revision)
        statement = statement.values(revision=_webhooks.c.revision + 1, updated_at=self._now, **changes)
        record = self._connection.execute(statement.returning(_webhooks)).one_or_none()
        if record is None:
            raise self._stale(webhook_id)
        if "active" in changes:
            self._park(webhook_id, active=changes["active"])
        return _webhook(record)

    def delete(self, webhook_id: str, *, if_revision: int | None = None) -> WebhookRow:
        """The webhook that was deleted, with its deliveries. Raises as `update`."""
        statement = delete_from(_webhooks).where(_webhooks.c.webhook_id == webhook_id)
        if if_revision is not None:
            statement = statement.where(_webhooks.c.revision == if_revision)
        record = self._connection.execute(statement.returning(_webhooks)).one_or_none()
        if record is None:
            raise self._stale(webhook_id)
        return _webhook(record)

    def list(self, *, user_id: uuid.UUID | None = None, limit: int = 50, cursor: str | None = None) -> Page[WebhookRow]:
        """Webhooks, newest first."""
        statement = select(_webhooks)
        if user_id is not None:
            statement = statement.where(_webhooks.c.user_id == user_id)
        return fetch_page(self._connection, statement, (_webhooks.c.webhook_id,), _webhook, limit=limit, cursor=cursor)

    def count(self, user_id: uuid.UUID | None) -> int:
        """How many there are for this user's runs; None: for everybody's."""
        counted = select(func.count()).select_from(_webhooks)
        return self._connection.scalar(counted.where(_webhooks.c.user_id.is_not_distinct_from(user_id))) or 0

    # -- deliveries

    def find_delivery(self, delivery_id: str) -> DeliveryRow | None:
        """The delivery, or None."""
        wanted = select(_deliveries).where(_deliveries.c.delivery_id == delivery_id)
        record = self._connection.execute(wanted).one_or_none()
        return None if record is None else _delivery(record)

    def deliveries(
        self, webhook_id: str, *, status: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> Page[DeliveryRow]:
        """A webhook's deliveries, newest first."""
        statement = select(_deliveries).where(_deliveries.c.webhook_id == webhook_id)
        if status is not None:
            statement = statement.where(_deliveries.c.status == status)
        return fetch_page(
            self._connection, statement, (_deliveries.c.delivery_id,), _delivery, limit=limit, cursor=cursor
        )

    def attempts(self, delivery_id: str) -> Sequence[AttemptRow]:
        """A delivery's attempts, in order; one without status and error is under way."""
        wanted = select(_attempts).where(_attempts.c.delivery_id == delivery_id).order_by(_attempts.c.attempt)
        return [_attempt(record) for record in self._connection.execute(wanted)]

    def ping(self, webhook_id: str) -> DeliveryRow:
        """A delivery that tells of no run, due at once."""
        values = {
            "delivery_id": new_id("dlv"),
            "webhook_id": webhook_id,
            "event": PING,
            "status": "pending",
            "attempts": 0,
            "next_at": self._now,
            "created_at": self._now,
        }
        record = self._connection.execute(insert(_deliveries).values(values).returning(_deliveries)).one()
        return _delivery(record)

    def redeliver(self, delivery_id: str) -> DeliveryRow:
        """The delivery, due at once, whatever became of it before.

        Raises:
            NotFound: there is no such delivery.
            Conflict: it is being delivered now, or its webhook is not active.
        """
        row = self.find_delivery(delivery_id)
        if row is None:
            raise NotFound("delivery", delivery_id)
        if not self.get(row.webhook_id).active:
            raise Conflict(
                f"The webhook '{row.webhook_id}' is not active.",
                code="webhook_not_active",
                hint="Make it active, then deliver again.",
            )
        statement = update(_deliveries).where(_deliveries.c.delivery_id == delivery_id, self._is_free(LEASE))
        statement = statement.values(status="pending", next_at=self._now, delivered_at=None)
        record = self._connection.execute(statement.returning(_deliveries)).one_or_none()
        if record is None:
            raise Conflict(
                f"The delivery '{delivery_id}' is under way.",
                code="delivery_under_way",
                hint="Look at it again in a minute.",
            )
        return _delivery(record)

    # -- sending

    def next_due(self, *, without: Collection[str] = ()) -> datetime | None:
        """When the next delivery is due, or None while none waits; those of the webhooks `without` don't count."""
        statement = select(_deliveries.c.next_at).where(_PENDING, _deliveries.c.next_at.is_not(None))
        if without:
            statement = statement.where(_deliveries.c.webhook_id.not_in(without))
        return self._connection.scalar(statement.order_by(_deliveries.c.next_at).limit(1))

    def due(
        self, *, without: Collection[str] = (), lease: timedelta = LEASE, limit: int = 100
    ) -> Sequence[DueDelivery]:
        """Deliveries whose time has come, the longest waiting first; none that a sender claimed less than `lease` ago, and none of
        the webhooks `without`."""
        statement = (
            select(_deliveries.c.delivery_id, _webhooks.c.webhook_id, _webhooks.c.url)
            .join(_webhooks, _webhooks.c.webhook_id == _deliveries.c.webhook_id)
            .where(_PENDING, _deliveries.c.next_at <= self._now, self._is_free(lease))
            .order_by(_deliveries.c.next_at)
            .limit(limit)
        )
        if without:
            statement = statement.where(_deliveries.c.webhook_id.not_in(without))
        return [DueDelivery(*record) for record in self._connection.execute(statement)]

    def claim(self, delivery_ids: Collection[str], *, lease: timedelta = LEASE) -> Sequence[DeliveryRow]:
        """Those of the deliveries that are this caller's now, each with its next attempt begun; nobody else tries for `lease`.

        What another sender is claiming at the same moment is left to it.
        """
        due = (_deliveries.c.delivery_id.in_(delivery_ids), _PENDING, _deliveries.c.next_at <= self._now)
        held = self._connection.scalars(
            select(_deliveries.c.delivery_id).where(*due).with_for_update(skip_locked=True)
        ).all()
        if not held:
            return []
        # A statement of its own, now that the rows are held: it sees the attempts of whoever held them before.
        statement = update(_deliveries).where(_deliveries.c.delivery_id.in_(held), self._is_free(lease))
        statement = statement.values(attempts=_deliveries.c.attempts + 1, next_at=self._now + lease)
        claimed = [_delivery(record) for record in self._connection.execute(statement.returning(_deliveries))]
        if claimed:
            mine = [row.delivery_id for row in claimed]
            self._connection.execute(
                update(_attempts).where(_attempts.c.delivery_id.in_(mine), *_unfinished()).values(error=_STOPPED)
            )
            begun = [
                {"delivery_id": row.delivery_id, "attempt": row.attempts, "at": self._moment(), "milliseconds": 0}
                for row in claimed
            ]
            self._connection.execute(insert(_attempts).values(begun))
        return claimed

    def settle_delivered(self, row: DeliveryRow, result: AttemptResult) -> None:
        """Note that an attempt succeeded."""
        self._note(row, result)
        self._connection.execute(
            update(_deliveries)
            .where(_deliveries.c.delivery_id == row.delivery_id, _PENDING)
            .values(status="delivered", next_at=None, delivered_at=self._now)
        )

    def settle_failed(self, row: DeliveryRow, result: AttemptResult, *, next_at: datetime | None) -> None:
        """Note that an attempt failed; with `next_at` there will be another (where the webhook is active), else it was the last."""
        self._note(row, result)
        statement = update(_deliveries).where(
            _deliveries.c.delivery_id == row.delivery_id, _PENDING, _deliveries.c.attempts == row.attempts
        )
        if next_at is None:
            self._connection.execute(statement.values(status="failed", next_at=None))
            return
        active = select(_webhooks.c.active).where(_webhooks.c.webhook_id == _deliveries.c.webhook_id).scalar_subquery()
        again = literal(next_at, _deliveries.c.next_at.type)
        self._connection.execute(statement.values(next_at=case((active, again), else_=None)))

    # -- inside

    def _moment(self, before: timedelta = timedelta()) -> ColumnElement[datetime]:
        """So long before now, by the clock that all senders share."""
        if self._connection.dialect.name == "postgresql":
            return func.clock_timestamp() - literal(before, Interval)
        return literal(self._now - before, _attempts.c.at.type)

    def _is_free(self, lease: timedelta) -> ColumnElement[bool]:
        """Whether no sender is at the delivery: none began its latest attempt less than `lease` ago and has not ended it."""
        under_way = select(_attempts.c.attempt).where(
            _attempts.c.delivery_id == _deliveries.c.delivery_id,
            _attempts.c.attempt == _deliveries.c.attempts,
            _attempts.c.at > self._moment(lease),
            *_unfinished(),
        )
        return ~under_way.exists()

    def _note(self, row: DeliveryRow, result: AttemptResult) -> None:
        self._connection.execute(
            update(_attempts)
            .where(_attempts.c.delivery_id == row.delivery_id, _attempts.c.attempt == row.attempts)
            .values(milliseconds=result.milliseconds, status_code=result.status_code, error=result.error)
        )

    def _park(self, webhook_id: str, *, active: bool) -> None:
        waiting = update(_deliveries).where(_deliveries.c.webhook_id == webhook_id, _PENDING)
        if not active:
            self._connection.execute(waiting.values(next_at=None))
            return
        self._connection.execute(waiting.where(_deliveries.c.next_at.is_(None)).values(next_at=self._now))

    def _stale(self, webhook_id: str) -> PreconditionFailed:
        found = self.get(webhook_id)
        return PreconditionFailed(
            f"The webhook '{webhook_id}' was changed since you read it; it is at revision {found.revision}.",
            hint="Read it again and repeat your change.",
        )


def _unfinished() -> tuple[Any, Any]:
    return _attempts.c.status_code.is_(None), _attempts.c.error.is_(None)


def _webhook(record: Row[Any]) -> WebhookRow:
    return WebhookRow(
        webhook_id=record.webhook_id,
        url=record.url,
        description=record.description,
        events=record.events,
        names=record.names,
        active=record.active,
        key_id=record.key_id,
        user_id=record.user_id,
        revision=record.revision,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )


def _delivery(record: Row[Any]) -> DeliveryRow:
    return DeliveryRow(
        delivery_id=record.delivery_id,
        webhook_id=record.webhook_id,
        run_id=record.run_id,
        event=record.event,
        status=record.status,
        attempts=record.attempts,
        next_at=record.next_at,
        delivered_at=record.delivered_at,
        created_at=record.created_at,
    )


def _attempt(record: Row[Any]) -> AttemptRow:
    return AttemptRow(
        delivery_id=record.delivery_id,
        attempt=record.attempt,
        at=record.at,
        milliseconds=record.milliseconds,
        status_code=record.status_code,
        error=record.error,
    )
