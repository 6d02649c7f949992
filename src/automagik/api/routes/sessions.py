"""Sessions: conversations and their messages."""

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from automagik.api.admission import request_id_of, require, visible_user
from automagik.api.answers import answer, created, no_content, page_of
from automagik.api.lookups import check_agent
from automagik.api.paging import Cursor, Limit
from automagik.api.platform import PlatformOf
from automagik.api.problems import problems
from automagik.api.route import ApiRoute
from automagik.api.schemas.common import PageOf
from automagik.api.schemas.sessions import (
    MessageResource,
    MessageSummary,
    SessionChange,
    SessionCreate,
    SessionResource,
    message_resource,
    session_resource,
)
from automagik.errors import NotFound
from automagik.store import Page, Transaction
from automagik.store.rows import MessageRow, SessionRow
from automagik.types import Caller, JsonObject

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["sessions"], route_class=ApiRoute)

Reader = Annotated[Caller, Depends(require("sessions:read"))]
Writer = Annotated[Caller, Depends(require("sessions:write"))]

_ONE: dict[str, Any] = {"model": SessionResource, "description": "The session"}


@router.get(
    "/sessions",
    summary="List sessions",
    responses={200: {"model": PageOf[SessionResource], "description": "Newest first"}, **problems(404)},
)
async def list_sessions(
    platform: PlatformOf,
    caller: Reader,
    agent_name: Annotated[str | None, Query(max_length=128)] = None,
    user_id: uuid.UUID | None = None,
    session_name: Annotated[str | None, Query(max_length=255)] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Response:
    """The sessions that the key may see."""
    owner = visible_user(caller, user_id)
    await check_agent(platform, caller, agent_name)

    def read(tx: Transaction) -> Page[SessionRow]:
        agent_id = _agent_id(tx, agent_name)
        return tx.sessions.list(agent_id=agent_id, user_id=owner, session_name=session_name, limit=limit, cursor=cursor)

    return page_of(await platform.store.browse(read), session_resource)


@router.post("/sessions", summary="Create a session", status_code=201, responses={201: _ONE, **problems(404, 409, 413)})
async def create_session(body: SessionCreate, request: Request, platform: PlatformOf, caller: Writer) -> Response:
    """A run makes a session by itself; this makes one beforehand."""
    owner = visible_user(caller, body.user_id)
    await check_agent(platform, caller, body.agent_name)

    def write(tx: Transaction) -> SessionRow:
        row = tx.sessions.create(
            session_id=body.session_id,
            agent_id=_agent_id(tx, body.agent_name),
            user_id=owner,
            session_name=body.session_name,
            session_origin=body.session_origin,
            metadata=body.metadata,
        )
        _note(tx, "session.create", row, caller, request)
        return row

    row = await platform.store.write(write)
    return created(session_resource(row), f"/api/v1/sessions/{row.session_id}")


@router.get("/sessions/{session}", summary="Show a session", responses={200: _ONE, **problems(404)})
async def get_session(session: str, platform: PlatformOf, caller: Reader) -> Response:
    """By its id, or by its name among those of the key's user (of no user, where the key has none)."""
    return answer(session_resource(await platform.store.read(lambda tx: _visible(tx, session, caller))))


@router.patch("/sessions/{session}", summary="Change a session", responses={200: _ONE, **problems(404, 409, 413)})
async def change_session(
    session: str, body: SessionChange, request: Request, platform: PlatformOf, caller: Writer
) -> Response:
    """Its name, or its metadata as a whole."""

    def write(tx: Transaction) -> SessionRow:
        row = _visible(tx, session, caller)
        if body.session_name is not None:
            row = tx.sessions.update(row.session_id, session_name=body.session_name)
        if body.metadata is not None:
            row = tx.sessions.update(row.session_id, metadata=body.metadata)
        _note(tx, "session.update", row, caller, request)
        return row

    return answer(session_resource(await platform.store.write(write)))


@router.delete(
    "/sessions/{session}",
    summary="Delete a session",
    status_code=204,
    responses={204: {"description": "It is gone"}, **problems(404)},
)
async def delete_session(session: str, request: Request, platform: PlatformOf, caller: Writer) -> Response:
    """With its messages and memories; its runs stay as a record."""

    def write(tx: Transaction) -> None:
        row = tx.sessions.delete(_visible(tx, session, caller).session_id)
        _note(tx, "session.delete", row, caller, request)

    await platform.store.write(write)
    return no_content()


@router.get(
    "/sessions/{session}/messages",
    summary="List a session's messages",
    responses={200: {"model": PageOf[MessageSummary], "description": "Newest first"}, **problems(404)},
)
async def list_messages(
    session: str, platform: PlatformOf, caller: Reader, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """The messages, without their payloads."""

    def read(tx: Transaction) -> Page[MessageRow]:
        return tx.messages.list(_visible(tx, session, caller).id, limit=limit, cursor=cursor)

    return page_of(await platform.store.browse(read), lambda row: message_resource(row, whole=False))


@router.get(
    "/messages/{message_id}",
    summary="Show a message",
    responses={200: {"model": MessageResource, "description": "The message"}, **problems(404)},
)
async def get_message(message_id: uuid.UUID, platform: PlatformOf, caller: Reader) -> Response:
    """The message, whole."""
    row = await platform.store.read(lambda tx: _visible_message(tx, message_id, caller))
    return answer(message_resource(row, whole=True))


@router.delete(
    "/messages/{message_id}",
    summary="Delete a message",
    status_code=204,
    responses={204: {"description": "It is gone"}, **problems(404)},
)
async def delete_message(message_id: uuid.UUID, request: Request, platform: PlatformOf, caller: Writer) -> Response:
    """The session goes on without it."""

    def write(tx: Transaction) -> None:
        _visible_message(tx, message_id, caller)
        tx.messages.delete(message_id)
        tx.audit.append("message.delete", str(message_id), caller=caller, request_id=request_id_of(request))

    await platform.store.write(write)
    return no_content()


def _visible(tx: Transaction, session: str, caller: Caller) -> SessionRow:
    """The session of this id or name, where the caller may see it. Raises NotFound with the nearest name."""
    try:
        row = tx.sessions.find(uuid.UUID(session))
    except ValueError:
        row = tx.sessions.find_by_name(caller.user_id, session)
    if row is not None and (caller.user_id is None or row.user_id == caller.user_id):
        return row
    raise NotFound(
        "session",
        session,
        known=tx.sessions.names(user_id=caller.user_id),
    )


def _visible_message(tx: Transaction, message_id: uuid.UUID, caller: Caller) -> MessageRow:
    row = tx.messages.get(message_id)
    session = tx.sessions.find_by_key(row.session_id)
    if session is None or (caller.user_id is not None and session.user_id != caller.user_id):
        raise NotFound("message", str(message_id))
    return row


def _agent_id(tx: Transaction, name: str | None) -> int | None:
    return None if name is None else tx.agents.get(name).id


def _note(tx: Transaction, action: str, row: SessionRow, caller: Caller, request: Request) -> None:
    details: JsonObject = {} if row.session_name is None else {"session_name": row.session_name}
    tx.audit.append(action, str(row.session_id), caller=caller, request_id=request_id_of(request), details=details)
