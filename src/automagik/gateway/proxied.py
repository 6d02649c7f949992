"""ProxiedPool: the same as Pool through the proxy that the environment names, by the HTTP client that knows proxies."""

import ssl
from collections.abc import AsyncIterator
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx2

from automagik.gateway.connection import Header
from automagik.gateway.pool import BrokeOff, Reply, Unreachable

__all__ = ["ProxiedPool"]

_LIMITS = httpx2.Limits(max_connections=2000, max_keepalive_connections=64, keepalive_expiry=30)
_TIMEOUT = {"connect": 10.0, "pool": 30.0, "read": None, "write": None}
"""How long an answer may take is the call's own deadline."""


class ProxiedPool:
    """Connections through a proxy."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._client = httpx2.AsyncClient(
            verify=context,
            limits=_LIMITS,
            follow_redirects=False,
            # What a vendor sets for one run's calls must not come back with another's.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        )

    async def send(self, method: str, url: str, headers: tuple[Header, ...], body: bytes | None) -> Reply:
        """The answer's head. Raises Unreachable, BrokeOff."""
        request = httpx2.Request(method, url, headers=[*headers], content=body, extensions={"timeout": _TIMEOUT})
        try:
            return _Answer(await self._client.send(request, stream=True, auth=None))
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError) as error:
            raise Unreachable(type(error).__name__) from error
        except httpx2.TransportError as error:
            raise BrokeOff(type(error).__name__) from error

    async def close(self) -> None:
        """End every connection."""
        await self._client.aclose()


class _Answer:
    """A Reply of the HTTP client."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self.status = response.status_code
        self.headers: tuple[Header, ...] = tuple((name.lower(), value) for name, value in response.headers.raw)

    def value(self, name: bytes) -> bytes:
        return next((value for known, value in reversed(self.headers) if known == name), b"")

    @property
    def complete(self) -> bool:
        return False

    @property
    def has_piece(self) -> bool:
        return False

    async def pieces(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._response.aiter_raw():
                yield piece
        except httpx2.TransportError as error:
            raise BrokeOff(type(error).__name__) from error

    async def close(self) -> None:
        await self._response.aclose()
