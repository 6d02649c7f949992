"""The API as an ASGI application over one Platform."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from automagik import __version__
from automagik.api.admission import Admission
from automagik.api.document import describe
from automagik.api.middleware import Gate
from automagik.api.openai import ROUTERS
from automagik.api.openai.envelope import envelope_response
from automagik.api.problems import problem_response
from automagik.api.routes import (
    agents,
    artifacts,
    budgets,
    keys,
    memories,
    prompts,
    records,
    runs,
    schedules,
    sessions,
    system,
    usage,
    users,
    webhooks,
    workflow_runs,
    workflows,
)
from automagik.api.tracing import TracedRequests
from automagik.app import Platform
from automagik.errors import AutomagikError

__all__ = ["create_api"]

_ROUTERS: tuple[APIRouter, ...] = (
    runs.router,
    agents.router,
    sessions.router,
    users.router,
    memories.router,
    prompts.router,
    schedules.router,
    webhooks.router,
    workflow_runs.router,
    workflows.router,
    keys.router,
    artifacts.router,
    budgets.router,
    usage.router,
    records.router,
    *ROUTERS,
    system.router,
)
"""In the order of matching: what is asked most comes first."""


class _Api(FastAPI):
    """FastAPI with the document that we complete."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = describe(super().openapi())
        return self.openapi_schema


def create_api(platform: Platform) -> FastAPI:
    """The API of an open platform."""
    app = _Api(
        title="Automagik Agents",
        version=__version__,
        description="Run AI agents with memory, tools and a record of everything they did.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        separate_input_output_schemas=False,
        strict_content_type=False,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    app.state.platform = platform
    app.state.admission = Admission(platform.keys, platform.limits)
    for router in _ROUTERS:
        # Not include_router: an included router is matched twice for each request in this FastAPI.
        app.router.routes.extend(router.routes)
    for error in (AutomagikError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(error, _render)
    if platform.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=platform.settings.cors_origins,
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "If-Match", "Last-Event-ID", "X-API-Key", "X-Request-ID"],
            expose_headers=["ETag", "Location", "Retry-After", "X-Request-ID"],
        )
    if platform.tracing.enabled:
        app.add_middleware(TracedRequests, tracing=platform.tracing)
    app.add_middleware(
        Gate,
        metrics=platform.metrics,
        max_body_bytes=platform.settings.max_body_bytes,
        max_upload_bytes=platform.settings.max_artifact_bytes,
    )
    return app


async def _render(request: Request, error: Exception) -> Response:
    """The answer to what no route took: an unknown path, a method that a path doesn't take."""
    path = request.scope["path"]
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        error = HTTPException(error.status_code, headers={"Allow": ", ".join(_methods_of(path, request.app.routes))})
    return envelope_response(request, error) if path.startswith("/v1/") else problem_response(request, error)


def _methods_of(path: str, routes: Sequence[BaseRoute]) -> list[str]:
    """The methods that a path takes: Starlette names those of the first route of it only."""
    taking = [
        route
        for route in routes
        if isinstance(route, Route) and route.include_in_schema and route.path_regex.match(path)
    ]
    named = [route for route in taking if route.path == path]  # `/keys/self` is no `/keys/{key_id}`
    return sorted({method for route in named or taking for method in route.methods or ()})
