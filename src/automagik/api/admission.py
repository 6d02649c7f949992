"""Admission: from a request to its caller. The key from the headers, its rate limit, and the scopes that a route asks for."""

import functools
import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, cast

from fastapi import Depends, Request

from automagik.errors import AutomagikError, MissingScope, NotFound, Unauthorized
from automagik.security import KeyRing
from automagik.security.rate_limits import RateLimits
from automagik.types import Caller

if TYPE_CHECKING:
    from starlette.types import Scope

__all__ = [
    "Admission",
    "CallerOf",
    "caller_of",
    "check_scope",
    "request_id_of",
    "require",
    "visible_user",
]

_QUERY_KEYS = (b"x-api-key=", b"api_key=", b"apikey=", b"x_api_key=", b"access_token=")


class Admission:
    """Admits requests that carry a valid key within its rate limit, and within those of the keys that it descends from."""

    def __init__(self, keys: KeyRing, limits: RateLimits) -> None:
        self._keys = keys
        self._limits = limits

    async def admit(self, scope: "Scope") -> Caller:
        """The caller; also kept in the scope for `caller_of`, with a way for streams to ask whether the key is valid still.

        Raises:
            Unauthorized: no key in the headers, or one that is unknown, expired or revoked.
            RateLimited: the key used up its allowance.
        """
        key = presented_key(scope)
        caller = self._keys.cached(key) or await self._keys.authenticate(key)
        await self._limits.count(caller)
        scope["automagik.caller"] = caller
        scope["automagik.still_admitted"] = functools.partial(self._is_valid, key)
        return caller

    async def known(self, scope: "Scope") -> Caller | None:
        """The caller where there is a key, None where there is none. Raises Unauthorized."""
        names = {name for name, _ in scope["headers"]}
        return await self.admit(scope) if names & {b"x-api-key", b"authorization"} else None

    async def _is_valid(self, key: str) -> bool:
        try:
            await self._keys.authenticate(key)
        except Unauthorized:
            return False
        except AutomagikError:  # the database is away: that is no word on the key
            return True
        return True


def presented_key(scope: "Scope") -> str:
    """The key in the headers, `x-api-key` before `Authorization`. Raises Unauthorized where there is none."""
    bearer: str | None = None
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            return value.decode("latin-1")
        if name == b"authorization":
            scheme, _, key = value.decode("latin-1").partition(" ")
            if scheme.lower() == "bearer":
                bearer = key.strip()
    if bearer is not None:
        return bearer
    query = scope["query_string"].lower()
    if any(query.startswith(name) or b"&" + name in query for name in _QUERY_KEYS):
        raise Unauthorized(
            "A key in a query string is not read: it would stand in logs and histories.",
            hint="Send it as the header 'x-api-key: KEY' or 'Authorization: Bearer KEY', and revoke this one.",
        )
    raise Unauthorized(
        "The API key is missing.", hint="Send it as the header 'x-api-key: KEY' or 'Authorization: Bearer KEY'."
    )


def caller_of(request: Request) -> Caller:
    """The caller of an admitted request."""
    return cast("Caller", request.scope["automagik.caller"])


def request_id_of(request: Request) -> str | None:
    """The request's id, as in its answer's `X-Request-ID`."""
    return request.scope.get("automagik.request_id")


def check_scope(caller: Caller, scope: str) -> None:
    """Refuse a caller without `scope`; `AREA:write` includes `AREA:read`, for a change answers what it changed.

    Raises: MissingScope.
    """
    if caller.allows(scope):
        return
    area, _, action = scope.rpartition(":")
    if action != "read" or not caller.allows(f"{area}:write"):
        raise MissingScope(scope)


def require(scope: str) -> Callable[[Request], Awaitable[Caller]]:
    """A dependency: the caller, who has `scope`."""

    async def admitted(request: Request) -> Caller:
        caller = caller_of(request)
        check_scope(caller, scope)
        return caller

    return admitted


async def _any_caller(request: Request) -> Caller:
    return caller_of(request)


CallerOf = Annotated[Caller, Depends(_any_caller)]
"""The caller, whatever their scopes."""


def visible_user(caller: Caller, user_id: uuid.UUID | None) -> uuid.UUID | None:
    """The user whose things are meant: the caller's own where their key is bound to one.

    Raises: NotFound for another user than the key's own.
    """
    if caller.user_id is None or user_id is None or user_id == caller.user_id:
        return caller.user_id or user_id
    raise NotFound("user", str(user_id), hint="This key is bound to another user; leave `user_id` out.")
