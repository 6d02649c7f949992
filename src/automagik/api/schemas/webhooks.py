"""Webhooks and their deliveries on the wire."""

import uuid
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from automagik.api.schemas.common import Body, Flag, Resource, Word
from automagik.store.rows import DeliveryRow, WebhookRow
from automagik.types import JsonObject, utc_text
from automagik.webhooks import TrackedDelivery

__all__ = [
    "AttemptResource",
    "DeliveryResource",
    "DeliveryStatus",
    "NewWebhookResource",
    "TrackedDeliveryResource",
    "WebhookChange",
    "WebhookCreate",
    "WebhookResource",
    "delivery_resource",
    "tracked_resource",
    "webhook_resource",
]

Address = Annotated[str, Field(min_length=1, max_length=2048)]
Events = Annotated[list[Word], Field(max_length=20)]
Names = Annotated[list[Word], Field(max_length=200)]
Description = Annotated[str, Field(max_length=1000)]

DeliveryStatus = Literal["pending", "delivered", "failed"]


class WebhookCreate(Body):
    """An address to tell of runs that ended."""

    url: Address
    """`https` or `http`, with a public address, on port 443 or 80; your own networks as `AUTOMAGIK_OUTBOUND_ALLOW` says."""
    events: Events | None = None
    """`run.completed`, `run.failed`, `run.cancelled`; unset: all of them."""
    names: Names | None = None
    """Only runs of these agents and workflows; unset or empty: of all."""
    description: Description | None = None
    user_id: uuid.UUID | None = None
    """Only this user's runs; a key that is bound to a user makes webhooks for that user."""


class WebhookChange(Body):
    """A change of a webhook."""

    url: Address | None = None
    events: Events | None = None
    names: Names | None = None
    """Empty: runs of all agents and workflows."""
    description: Description | None = None
    active: Flag | None = None
    """Whether anything is sent; what was to be sent before it was switched off waits."""


class WebhookResource(Resource):
    """A webhook, without its secret."""

    webhook_id: str
    url: str
    description: str | None
    events: list[str]
    names: list[str]
    active: bool
    user_id: uuid.UUID | None
    key_id: str | None
    """The key in whose name it sends: of whoever made it, or changed it last."""
    revision: int
    created_at: datetime
    updated_at: datetime


class NewWebhookResource(WebhookResource):
    """A webhook with a new secret: `secret` is shown only here."""

    secret: str
    """What deliveries are signed by: `whsec_` and base64."""


class DeliveryResource(Resource):
    """One event for one webhook. The receiver gets `delivery_id` as `webhook-id`, each time the same."""

    delivery_id: str
    webhook_id: str
    run_id: str | None
    """null: a test."""
    event: str
    status: DeliveryStatus
    attempt_count: int
    next_at: datetime | None
    """When it is tried next, at the latest; null: not again, or when the webhook is active again."""
    delivered_at: datetime | None
    created_at: datetime


class AttemptResource(Resource):
    """One try. Without `status_code` and `error` it is under way."""

    attempt: int
    started_at: datetime
    duration_seconds: float
    status_code: int | None
    """What the receiver answered."""
    error: str | None
    """Why there was no answer."""


class TrackedDeliveryResource(DeliveryResource):
    """A delivery with its attempts."""

    attempts: list[AttemptResource]


def webhook_resource(row: WebhookRow) -> JsonObject:
    """The webhook as on the wire."""
    return {
        "webhook_id": row.webhook_id,
        "url": row.url,
        "description": row.description,
        "events": [*row.events],
        "names": [*row.names],
        "active": row.active,
        "user_id": str(row.user_id) if row.user_id else None,
        "key_id": row.key_id,
        "revision": row.revision,
        "created_at": utc_text(row.created_at),
        "updated_at": utc_text(row.updated_at),
    }


def delivery_resource(row: DeliveryRow) -> JsonObject:
    """The delivery as on the wire."""
    return {
        "delivery_id": row.delivery_id,
        "webhook_id": row.webhook_id,
        "run_id": row.run_id,
        "event": row.event,
        "status": row.status,
        "attempt_count": row.attempts,
        "next_at": utc_text(row.next_at) if row.next_at else None,
        "delivered_at": utc_text(row.delivered_at) if row.delivered_at else None,
        "created_at": utc_text(row.created_at),
    }


def tracked_resource(tracked: TrackedDelivery) -> JsonObject:
    """The delivery with its attempts as on the wire."""
    return {
        **delivery_resource(tracked.row),
        "attempts": [
            {
                "attempt": attempt.attempt,
                "started_at": utc_text(attempt.at),
                "duration_seconds": attempt.milliseconds / 1000,
                "status_code": attempt.status_code,
                "error": attempt.error,
            }
            for attempt in tracked.attempts
        ],
    }
