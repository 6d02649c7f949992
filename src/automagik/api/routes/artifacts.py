"""Artefacts: bytes that sessions and runs refer to."""

import mimetypes
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from automagik.api.admission import CallerOf
from automagik.api.platform import PlatformOf
from automagik.api.problems import problems
from automagik.api.route import ApiRoute
from automagik.artifacts import Artifact
from automagik.errors import MissingScope, NotFound
from automagik.types import Caller

__all__ = ["router"]

router = APIRouter(prefix="/api/v1", tags=["artifacts"], route_class=ApiRoute)

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)
_SCOPES = ("sessions:read", "sessions:write", "runs:read", "runs:write")
_BYTES = {"schema": {"type": "string", "format": "binary"}}
_HEADERS: dict[str, Any] = {
    "ETag": {"description": "The digest", "schema": {"type": "string"}},
    "Content-Disposition": {"description": "`attachment`, with a file's name", "schema": {"type": "string"}},
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The bytes, under the media type that they were stored with",
        "content": {"*/*": _BYTES},
        "headers": _HEADERS,
    },
    206: {"description": "The part that `Range` asks for", "content": {"*/*": _BYTES}, "headers": _HEADERS},
    304: {"description": "`If-None-Match` names the digest"},
    416: {"description": "The artefact has no such part", "content": problems(404)[404]["content"]},
    **problems(404, 500),
}


@router.get("/artifacts/{digest}", summary="Get an artefact's bytes", response_class=Response, responses=_RESPONSES)
async def get_artifact(
    digest: str,
    platform: PlatformOf,
    caller: CallerOf,
    range_: Annotated[str | None, Header(alias="Range", max_length=100)] = None,
    if_none_match: Annotated[str | None, Header(max_length=1000)] = None,
) -> Response:
    """For who may see a session or run that uses it (`sessions:read`, `runs:read`). A browser saves it and never shows it."""
    _check_scopes(caller)
    if not await platform.artifacts.is_visible(digest, caller):
        raise NotFound("artifact", digest[:100], hint="Messages and runs name the artefacts that this key may see.")
    artifact = await platform.artifacts.find(digest)
    headers = _headers(artifact)
    if if_none_match is not None and digest in if_none_match:
        return Response(status_code=304, headers=headers)
    part = _part(range_, artifact.size)
    if part is None:
        chunks, status = platform.artifacts.stream(digest), 200
        start, end = 0, artifact.size
    else:
        start, end = part
        chunks, status = platform.artifacts.stream_range(digest, start, end), 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{artifact.size}"
    headers["Content-Length"] = str(end - start)
    first = await anext(chunks, b"")  # what is wrong is told now, as a Problem
    return StreamingResponse(_rest(first, chunks), status, headers)


def _check_scopes(caller: Caller) -> None:
    if not any(caller.allows(scope) for scope in _SCOPES):
        raise MissingScope("sessions:read")


def _headers(artifact: Artifact) -> dict[str, str]:
    """What keeps a browser from showing or running what somebody stored."""
    media_type = artifact.media_type
    extension = mimetypes.guess_extension(media_type) or ""
    return {
        "Content-Type": media_type,
        "Content-Disposition": f'attachment; filename="{artifact.digest[:16]}{extension}"',
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",
        "ETag": f'"{artifact.digest}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",  # kept, but asked again whether the key may still see it
    }


def _part(asked: str | None, size: int) -> tuple[int, int] | None:
    """The one range that is asked for; None for none, and for what a server may leave unread (several, other units).

    Raises: HTTPException 416 for a range that the artefact does not have.
    """
    match = _RANGE.fullmatch(asked.replace(" ", "")) if asked is not None else None
    if match is None or match.group(1) == match.group(2) == "":
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < start:
            return None
    if start >= end:
        raise HTTPException(416, "The artefact has no such part.", headers={"Content-Range": f"bytes */{size}"})
    return start, end


async def _rest(first: bytes, chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(chunks):
        yield first
        async for chunk in chunks:
            yield chunk
