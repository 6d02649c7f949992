"""Keys: who may do what."""

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from automagik.api.admission import CallerOf, request_id_of, require
from automagik.api.answers import answer, created, no_content, page_of
from automagik.api.paging import Cursor, Limit
from automagik.api.platform import PlatformOf
from automagik.api.problems import problems
from automagik.api.route import ApiRoute, only
from automagik.api.schemas.common import PageOf
from automagik.api.schemas.keys import KeyCreate, KeyResource, NewKeyResource, key_resource
from automagik.types import Caller

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["keys"], route_class=ApiRoute)

Reader = Annotated[Caller, Depends(require("keys:read"))]
Writer = Annotated[Caller, Depends(require("keys:write"))]

_ONE: dict[str, Any] = {"model": KeyResource, "description": "The key, without the key itself"}


@router.get(
    "/keys",
    summary="List keys",
    responses={200: {"model": PageOf[KeyResource], "description": "Newest first, revoked ones too"}, **problems()},
)
async def list_keys(
    platform: PlatformOf,
    caller: Reader,
    user_id: uuid.UUID | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """All keys; with a key that is bound to a user, that user's."""
    page = await platform.keys.list(caller, user_id=user_id, limit=limit, cursor=cursor)
    return page_of(page, key_resource)


@router.post(
    "/keys",
    summary="Create a key",
    status_code=201,
    responses={201: {"model": NewKeyResource, "description": "The key, shown only now"}, **problems(404, 413)},
)
async def create_key(body: KeyCreate, request: Request, platform: PlatformOf, caller: Writer) -> Response:
    """No stronger than the key that makes it: in scopes, user, expiry and limits."""
    row, key = await platform.keys.create(
        body.name,
        body.scopes,
        caller=caller,
        user_id=body.user_id,
        expires_at=body.expires_at,
        rate_limit=body.rate_limit,
        max_concurrent_runs=body.max_concurrent_runs,
        request_id=request_id_of(request),
    )
    return created({**key_resource(row), "key": key.get_secret_value()}, f"/api/v1/keys/{row.key_id}")


@router.get("/keys/self", summary="Show the key that asks", responses={200: _ONE, **problems(404)})
async def get_own_key(platform: PlatformOf, caller: CallerOf) -> Response:
    """What the key may do; needs no scope."""
    return answer(key_resource(await platform.keys.get(caller.key_id or "", caller)))


router.add_api_route("/keys/self", only("GET"), methods=["DELETE"], include_in_schema=False)


@router.get("/keys/{key_id}", summary="Show a key", responses={200: _ONE, **problems(404)})
async def get_key(key_id: str, platform: PlatformOf, caller: Reader) -> Response:
    """What the key may do, and when it was last used."""
    return answer(key_resource(await platform.keys.get(key_id, caller)))


@router.delete(
    "/keys/{key_id}",
    summary="Revoke a key",
    status_code=204,
    responses={204: {"description": "It is revoked, for good"}, **problems(404)},
)
async def revoke_key(key_id: str, request: Request, platform: PlatformOf, caller: Writer) -> Response:
    """The key stays as a record: what it did names it."""
    await platform.keys.revoke(key_id, caller, request_id=request_id_of(request))
    return no_content()
