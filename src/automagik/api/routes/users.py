"""Users: whom sessions, memories and runs belong to."""

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from automagik.api.admission import request_id_of, require
from automagik.api.answers import answer, created, no_content, page_of
from automagik.api.paging import Cursor, Limit
from automagik.api.platform import PlatformOf
from automagik.api.problems import problems
from automagik.api.route import ApiRoute
from automagik.api.schemas.common import PageOf
from automagik.api.schemas.users import UserChange, UserCreate, UserResource, user_resource
from automagik.errors import Forbidden, NotFound
from automagik.store import Transaction
from automagik.store.rows import UserRow
from automagik.store.users import UserChanges
from automagik.types import Caller

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["users"], route_class=ApiRoute)

Reader = Annotated[Caller, Depends(require("users:read"))]
Writer = Annotated[Caller, Depends(require("users:write"))]

_ONE: dict[str, Any] = {"model": UserResource, "description": "The user"}


@router.get(
    "/users",
    summary="List users",
    responses={200: {"model": PageOf[UserResource], "description": "Newest first"}, **problems()},
)
async def list_users(
    platform: PlatformOf,
    caller: Reader,
    email: Annotated[str | None, Query(max_length=320)] = None,
    phone_number: Annotated[str | None, Query(max_length=64)] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """All users; with a key that is bound to one, that one."""
    page = await platform.store.browse(
        lambda tx: tx.users.list(
            user_id=caller.user_id, email=email, phone_number=phone_number, limit=limit, cursor=cursor
        )
    )
    return page_of(page, user_resource)


@router.post("/users", summary="Create a user", status_code=201, responses={201: _ONE, **problems(409, 413)})
async def create_user(body: UserCreate, request: Request, platform: PlatformOf, caller: Writer) -> Response:
    """A key that is bound to a user makes no others."""
    if caller.user_id is not None:
        raise Forbidden("This key is bound to a user and can't make others.", hint="Use a key that is bound to nobody.")

    def write(tx: Transaction) -> UserRow:
        row = tx.users.create(
            user_id=body.user_id, email=body.email, phone_number=body.phone_number, user_data=body.user_data
        )
        tx.audit.append("user.create", str(row.user_id), caller=caller, request_id=request_id_of(request))
        return row

    row = await platform.store.write(write)
    return created(user_resource(row), f"/api/v1/users/{row.user_id}")


@router.get("/users/{user}", summary="Show a user", responses={200: _ONE, **problems(404)})
async def get_user(user: str, platform: PlatformOf, caller: Reader) -> Response:
    """By id, email address or phone number."""
    return answer(user_resource(await platform.store.read(lambda tx: _visible(tx, user, caller))))


@router.patch("/users/{user}", summary="Change a user", responses={200: _ONE, **problems(404, 409, 413)})
async def change_user(user: str, body: UserChange, request: Request, platform: PlatformOf, caller: Writer) -> Response:
    """What is given takes the place of what is there; `user_data` as a whole."""
    given = body.given()

    def write(tx: Transaction) -> UserRow:
        row = _visible(tx, user, caller)
        row = tx.users.update(row.user_id, **UserChanges(**given)) if given else row
        tx.audit.append(
            "user.update",
            str(row.user_id),
            caller=caller,
            request_id=request_id_of(request),
            details={"changed": [*sorted(given)]},
        )
        return row

    return answer(user_resource(await platform.store.write(write)))


@router.delete(
    "/users/{user}",
    summary="Delete a user",
    status_code=204,
    responses={204: {"description": "They are gone"}, **problems(404)},
)
async def delete_user(user: str, request: Request, platform: PlatformOf, caller: Writer) -> Response:
    """With their sessions and memories; their keys are revoked, their webhooks switched off, their runs stay as a record."""

    def write(tx: Transaction) -> None:
        row = tx.users.delete(_visible(tx, user, caller).user_id)
        tx.audit.append("user.delete", str(row.user_id), caller=caller, request_id=request_id_of(request))

    await platform.store.write(write)
    platform.keys.forget()
    return no_content()


def _visible(tx: Transaction, user: str, caller: Caller) -> UserRow:
    """The user of this id or contact, where the caller may see them. Raises NotFound."""
    try:
        row = tx.users.find(uuid.UUID(user))
    except ValueError:
        row = tx.users.find_by_contact(user)
    if row is None or caller.user_id not in {None, row.user_id}:
        raise NotFound("user", user, hint="GET /api/v1/users lists the users that this key may see.")
    return row
