"""ApiRoute: what every route with a key does before its own work, and what it does with an error nobody expected."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from automagik.api.admission import Admission
from automagik.api.bodies import read_json
from automagik.api.problems import problem_response
from automagik.errors import InvalidInput, nearest
from automagik.types import Json

__all__ = ["ApiRoute", "OpenRoute", "only"]

_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class _DecodedRequest(Request):
    """A request whose JSON is read by us."""

    decoded: Json = None

    async def json(self) -> Any:
        return self.decoded


class OpenRoute(APIRoute):
    """A route without a key. Queries and paths are checked: no unknown parameter, no NUL."""

    async def admit(self, request: Request) -> None:
        """Nobody has to say who they are."""

    def render(self, request: Request, error: Exception) -> Response:
        """The answer to a request that ended in `error`."""
        return problem_response(request, error)

    def get_route_handler(self) -> _Handler:
        """FastAPI's handler, after the checks."""
        handle = super().get_route_handler()
        known = [field.alias for field in self.dependant.query_params]
        has_body = self.body_field is not None

        async def checked(request: Request) -> Response:
            try:
                await self.admit(request)
                if request.scope["query_string"]:
                    _check_query(request, known)
                for name, value in request.scope["path_params"].items():
                    _check_text(value, ("path", name))
                if has_body:
                    request = _DecodedRequest(request.scope, request.receive)
                    request.decoded = await read_json(request)
                return await handle(request)
            except Exception as error:  # noqa: BLE001 - the request's edge: a fault is logged, and answered without its cause
                return self.render(request, error)

        return checked


class ApiRoute(OpenRoute):
    """A route that a key is needed for. Who asks is known before anything of the request is read."""

    async def admit(self, request: Request) -> None:
        """Find the caller; see `Admission.admit`."""
        await cast("Admission", request.app.state.admission).admit(request.scope)


def only(*methods: str) -> Callable[[], Coroutine[Any, Any, Response]]:
    """An endpoint for what a path does not take, where the path would else be taken for another's parameter."""

    async def refuse() -> Response:
        raise HTTPException(405, headers={"Allow": ", ".join(methods)})

    return refuse


def _check_query(request: Request, known: Sequence[str]) -> None:
    for name, value in request.query_params.multi_items():
        if name not in known:
            close = nearest(name, known)
            raise InvalidInput(
                f"There is no query parameter '{name[:100]}' here.",
                field=("query", name),
                hint=f"Did you mean '{close}'?" if close else f"Known are: {', '.join(known) or 'none'}.",
            )
        _check_text(value, ("query", name))


def _check_text(value: str, field: tuple[str, str]) -> None:
    if "\x00" in value:
        raise InvalidInput("The text has a NUL character.", field=field, hint="Remove it.")
