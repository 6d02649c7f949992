"""The machine room: alive, ready, metrics, and the page that shows the API."""

import ipaddress
from importlib.resources import files
from typing import Any, cast

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from automagik import __version__
from automagik.api.admission import Admission, check_scope
from automagik.api.answers import answer
from automagik.api.platform import PlatformOf
from automagik.api.problems import problems
from automagik.api.route import OpenRoute
from automagik.api.schemas.system import HealthResource, HomeResource, ReadyResource
from automagik.errors import AutomagikError
from automagik.telemetry import CONTENT_TYPE
from automagik.types import Caller, utc_text

__all__ = ["router"]

router = APIRouter(tags=["system"], route_class=OpenRoute)

_OPEN: dict[str, Any] = {"security": []}
_PAGE = {
    "docs.html": "text/html; charset=utf-8",
    "docs.js": "text/javascript; charset=utf-8",
    "docs.css": "text/css; charset=utf-8",
}
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}


@router.get(
    "/",
    summary="What answers here",
    openapi_extra=_OPEN,
    responses={200: {"model": HomeResource, "description": "The platform"}, **problems(keyless=True)},
)
async def home() -> Response:
    """Name and version."""
    return answer(
        {
            "status": "online",
            "name": "automagik-agents",
            "description": "A platform that a team runs to put AI agents to work",
            "version": __version__,
            "docs": "/docs",
        }
    )


@router.get(
    "/health",
    summary="Whether the process is alive",
    openapi_extra=_OPEN,
    responses={200: {"model": HealthResource, "description": "It is"}, **problems(keyless=True)},
)
async def health(platform: PlatformOf) -> Response:
    """Asks no dependency."""
    return answer({"status": "healthy", "timestamp": utc_text(platform.clock.now()), "version": __version__})


@router.get(
    "/ready",
    summary="Whether the platform can serve",
    openapi_extra=_OPEN,
    responses={
        200: {
            "model": ReadyResource,
            "description": "It can; `degraded` where a plug-in is broken or a worker takes no work",
        },
        **problems(keyless=True),
        503: {"model": ReadyResource, "description": "A dependency is away"},
    },
)
async def ready(request: Request, platform: PlatformOf) -> Response:
    """How each dependency is. An administrator's key sees the causes, too."""
    report = await platform.ready()
    caller = await _known_caller(request)
    sees_all = caller is not None and caller.allows("admin")
    checks = [
        {"name": check.name, "status": check.status, "detail": check.detail if sees_all else None}
        for check in report.checks
    ]
    failed = report.status == "failed"
    headers = {"Retry-After": "5"} if failed else None
    return answer({"status": report.status, "checks": checks}, 503 if failed else 200, headers=headers)


@router.get(
    "/metrics",
    summary="Counters for Prometheus",
    openapi_extra={"security": [{}, {"ApiKey": []}, {"Bearer": []}]},
    responses={
        200: {"description": "Prometheus' text format", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **problems(401, 403, 429, keyless=True),
    },
    response_class=Response,
)
async def metrics(request: Request, platform: PlatformOf) -> Response:
    """Open on loopback; from elsewhere a key with `admin` is needed, for it names agents."""
    if not _is_local(request):
        check_scope(await _admission(request).admit(request.scope), "admin")
    return Response(platform.metrics.render(), media_type=CONTENT_TYPE)


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """The page that shows the API."""
    return _page("docs.html")


@router.get("/docs/{name}", include_in_schema=False)
async def docs_part(name: str) -> Response:
    """The page's script and style."""
    return _page(name)


def _page(name: str) -> Response:
    media_type = _PAGE.get(name)
    if media_type is None:
        return HTMLResponse("There is no such page.", 404, headers=_PAGE_HEADERS)
    content = (files("automagik.api") / "page" / name).read_bytes()
    return Response(content, media_type=media_type, headers=_PAGE_HEADERS)


def _admission(request: Request) -> Admission:
    return cast("Admission", request.app.state.admission)


async def _known_caller(request: Request) -> Caller | None:
    try:
        return await _admission(request).known(request.scope)
    except AutomagikError:  # a probe must hear how the platform is, whatever it sends along
        return None


def _is_local(request: Request) -> bool:
    """Whether the request comes from this machine itself, and not through a proxy on it."""
    if request.client is None or "x-forwarded-for" in request.headers or "forwarded" in request.headers:
        return False
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
