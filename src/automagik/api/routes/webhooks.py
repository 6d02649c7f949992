"""Webhooks: who is told of runs that ended, and what became of each delivery."""

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from automagik.api.admission import request_id_of, require
from automagik.api.answers import answer, created, no_content, page_of
from automagik.api.etags import IfMatch, etag, revision_of
from automagik.api.paging import Cursor, Limit
from automagik.api.platform import PlatformOf
from automagik.api.problems import problems
from automagik.api.route import ApiRoute
from automagik.api.schemas.common import PageOf
from automagik.api.schemas.webhooks import (
    DeliveryResource,
    DeliveryStatus,
    NewWebhookResource,
    TrackedDeliveryResource,
    WebhookChange,
    WebhookCreate,
    WebhookResource,
    delivery_resource,
    tracked_resource,
    webhook_resource,
)
from automagik.store.webhooks import WebhookChanges
from automagik.types import Caller

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["webhooks"], route_class=ApiRoute)

Reader = Annotated[Caller, Depends(require("webhooks:read"))]
Writer = Annotated[Caller, Depends(require("webhooks:write"))]

_ETAG: dict[str, Any] = {"ETag": {"description": "What `If-Match` compares", "schema": {"type": "string"}}}
_ONE: dict[str, Any] = {"model": WebhookResource, "description": "The webhook, without its secret", "headers": _ETAG}
_NEW: dict[str, Any] = {
    "model": NewWebhookResource,
    "description": "The webhook; its secret is shown only now",
    "headers": _ETAG,
}
_SENT: dict[str, Any] = {
    "description": "It is on its way",
    "headers": {"Location": {"description": "Where the delivery is to be seen", "schema": {"type": "string"}}},
}


@router.get(
    "/webhooks",
    summary="List webhooks",
    responses={200: {"model": PageOf[WebhookResource], "description": "Newest first"}, **problems()},
)
async def list_webhooks(
    platform: PlatformOf,
    caller: Reader,
    user_id: uuid.UUID | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """All webhooks; with a key that is bound to a user, those for that user's runs."""
    page = await platform.webhooks.list(caller, user_id=user_id, limit=limit, cursor=cursor)
    return page_of(page, webhook_resource)


@router.post(
    "/webhooks",
    summary="Create a webhook",
    status_code=201,
    responses={201: _NEW, **problems(404, 409, 413)},
)
async def create_webhook(body: WebhookCreate, request: Request, platform: PlatformOf, caller: Writer) -> Response:
    """From now on the address is told of each run that ends. Runs are sent whole, so the key needs `runs:read`, too."""
    row, secret = await platform.webhooks.create(
        body.url,
        caller=caller,
        events=body.events,
        names=body.names or (),
        description=body.description,
        user_id=body.user_id,
        request_id=request_id_of(request),
    )
    document = {**webhook_resource(row), "secret": secret.get_secret_value()}
    return created(document, f"/api/v1/webhooks/{row.webhook_id}", headers={"ETag": etag(row.revision)})


@router.get("/webhooks/{webhook_id}", summary="Show a webhook", responses={200: _ONE, **problems(404)})
async def get_webhook(webhook_id: str, platform: PlatformOf, caller: Reader) -> Response:
    """The webhook, with its `ETag`."""
    row = await platform.webhooks.get(webhook_id, caller)
    return answer(webhook_resource(row), headers={"ETag": etag(row.revision)})


@router.patch("/webhooks/{webhook_id}", summary="Change a webhook", responses={200: _ONE, **problems(404, 412, 413)})
async def change_webhook(
    webhook_id: str,
    body: WebhookChange,
    request: Request,
    platform: PlatformOf,
    caller: Writer,
    if_match: IfMatch = None,
) -> Response:
    """What is given takes the place of what is there. It sends in the name of this key from then on, which needs `runs:read`, too;
    unless `{"active": false}` was all."""
    row = await platform.webhooks.update(
        webhook_id,
        WebhookChanges(**body.given()),
        caller=caller,
        if_revision=revision_of(if_match),
        request_id=request_id_of(request),
    )
    return answer(webhook_resource(row), headers={"ETag": etag(row.revision)})


@router.delete(
    "/webhooks/{webhook_id}",
    summary="Delete a webhook",
    status_code=204,
    responses={204: {"description": "It is gone"}, **problems(404, 412)},
)
async def delete_webhook(
    webhook_id: str, request: Request, platform: PlatformOf, caller: Writer, if_match: IfMatch = None
) -> Response:
    """With its deliveries, those too that wait."""
    await platform.webhooks.delete(
        webhook_id, caller=caller, if_revision=revision_of(if_match), request_id=request_id_of(request)
    )
    return no_content()


@router.post(
    "/webhooks/{webhook_id}/rotate-secret",
    summary="Give a webhook a new secret",
    responses={200: _NEW, **problems(404)},
)
async def rotate_webhook_secret(webhook_id: str, request: Request, platform: PlatformOf, caller: Writer) -> Response:
    """For 24 hours deliveries carry a signature by the old secret, too, so that the receiver can change over."""
    row, secret = await platform.webhooks.rotate_secret(webhook_id, caller=caller, request_id=request_id_of(request))
    document = {**webhook_resource(row), "secret": secret.get_secret_value()}
    return answer(document, headers={"ETag": etag(row.revision)})


@router.post(
    "/webhooks/{webhook_id}/test",
    summary="Test a webhook",
    status_code=202,
    responses={202: {"model": DeliveryResource, **_SENT}, **problems(404)},
)
async def test_webhook(webhook_id: str, request: Request, platform: PlatformOf, caller: Writer) -> Response:
    """Send the event `ping`, once, also where the webhook is not active."""
    row = await platform.webhooks.ping(webhook_id, caller=caller, request_id=request_id_of(request))
    return answer(delivery_resource(row), 202, headers={"Location": f"/api/v1/deliveries/{row.delivery_id}"})


@router.get(
    "/webhooks/{webhook_id}/deliveries",
    summary="List a webhook's deliveries",
    responses={200: {"model": PageOf[DeliveryResource], "description": "Newest first"}, **problems(404)},
)
async def list_deliveries(
    webhook_id: str,
    platform: PlatformOf,
    caller: Reader,
    status: DeliveryStatus | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """Each event that the webhook was, or is to be, told of."""
    page = await platform.webhooks.deliveries(webhook_id, caller, status=status, limit=limit, cursor=cursor)
    return page_of(page, delivery_resource)


@router.get(
    "/deliveries/{delivery_id}",
    summary="Show a delivery",
    responses={200: {"model": TrackedDeliveryResource, "description": "With its attempts"}, **problems(404)},
)
async def get_delivery(delivery_id: str, platform: PlatformOf, caller: Reader) -> Response:
    """What became of it, attempt by attempt."""
    return answer(tracked_resource(await platform.webhooks.delivery(delivery_id, caller)))


@router.post(
    "/deliveries/{delivery_id}/redeliver",
    summary="Deliver again",
    status_code=202,
    responses={202: {"model": TrackedDeliveryResource, **_SENT}, **problems(404, 409)},
)
async def redeliver(delivery_id: str, request: Request, platform: PlatformOf, caller: Writer) -> Response:
    """At once, and under the same id: a receiver that had it can tell. One that had failed for good is tried once more."""
    tracked = await platform.webhooks.redeliver(delivery_id, caller=caller, request_id=request_id_of(request))
    return answer(tracked_resource(tracked), 202, headers={"Location": f"/api/v1/deliveries/{delivery_id}"})
