"""The only way out to a URL that a caller gave: address rules, limits, and a connection to the very address that was checked.

What is refused, unless the administrator allows a host or network by `AUTOMAGIK_OUTBOUND_ALLOW`:

* every scheme but http and https, and a URL with a user name or password in it;
* every port but 80 and 443;
* a host of which any address is not public: loopback, private, link-local (cloud metadata), shared, multicast, reserved
  (IANA special-purpose registries), IPv6 forms that carry such an IPv4 address, and addresses of this machine itself.

Each hop of a redirect is checked anew, and the checked address is the one connected to, so a name that changes its
answer (DNS rebinding) gains nothing. Refusals read the same whatever the reason, so they can't be used to map the
inside. No proxy, cookie or credential is ever used.
"""

import asyncio
import errno
import ipaddress
import re
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache, partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from types import TracebackType
from typing import Self

import httpcore2
import httpx2

from automagik.errors import InvalidInput
from automagik.settings import Settings

__all__ = ["AddressRefused", "Called", "FetchFailed", "Fetched", "Outbound", "Posted", "Resolve"]

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to the addresses (texts) that the host has now; raises OSError where it has none."""

Address = IPv4Address | IPv6Address

_MAX_REDIRECTS = 5
_MAX_URL_CHARS = 8192
_MAX_ADDRESSES = 4
_CONNECT_SECONDS = 5.0
_MAX_CONNECTIONS = 100
_RAW_SLACK = 64 * 1024  # what compression and framing may add to the bytes on the wire
_LOOKUP_THREADS = 16
_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PUBLIC_PORTS = frozenset({80, 443})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}")

# https://www.iana.org/assignments/iana-ipv4-special-registry, and Azure's host agent, which has a public address.
_REFUSED_4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
# Of IPv6 only 2000::/3 is public; in it the IETF block (Teredo and others), documentation and 6to4 are not.
_PUBLIC_6 = IPv6Network("2000::/3")
_REFUSED_6 = tuple(IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
_NAT64 = IPv6Network("64:ff9b::/96")


class FetchFailed(InvalidInput):
    """The URL can't be used or did not give what was asked for; the text says which, `field` where it came from."""

    code = "fetch_failed"


class AddressRefused(FetchFailed):
    """The URL leads to where the platform doesn't go. The text is the same for every such URL."""

    code = "address_refused"


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a URL gave: the decoded bytes, the media type it claims (no parameters), and the URL after redirects."""

    content: bytes
    media_type: str
    url: str


@dataclass(frozen=True, slots=True)
class Posted:
    """What a receiver answered: its status, and how many seconds it asked to wait (`Retry-After`). Its body is not read."""

    status_code: int
    retry_after_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Called:
    """What an API answered: its status and the decoded bytes of its body."""

    status_code: int
    content: bytes


class _Refused(Exception):
    """Raised below httpcore, which lets it pass; becomes AddressRefused where the field is known."""


class _Policy:
    """Which address of a host may be connected to."""

    def __init__(self, settings: Settings, resolve: Resolve) -> None:
        self._hosts = settings.outbound_hosts
        self._networks = settings.outbound_networks
        self._resolve = resolve

    async def addresses(self, host: str, port: int, *, any_port: bool = False) -> list[Address]:
        """The addresses of `host`, all of them checked. Raises _Refused, also where there are none."""
        try:
            found = await self._resolve(host, port)
            addresses = list(dict.fromkeys(ipaddress.ip_address(text) for text in found))
        except (OSError, ValueError):  # no such host, or a name that can't be one (UnicodeError)
            raise _Refused from None
        named = host.lower().rstrip(".") in self._hosts
        if not addresses or not (named or all(self._permits(address, port, any_port) for address in addresses)):
            raise _Refused
        return addresses

    def _permits(self, address: Address, port: int, any_port: bool) -> bool:
        if any(address.version == network.version and address in network for network in self._networks):
            return True
        return (any_port or port in _PUBLIC_PORTS) and _is_public(address) and not _is_own(address, port)


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _REFUSED_4)
    embedded = address.ipv4_mapped
    if embedded is None and address in _NAT64:
        embedded = IPv4Address(int(address) & 0xFFFFFFFF)
    if embedded is not None:
        return _is_public(embedded)
    return address in _PUBLIC_6 and not any(address in network for network in _REFUSED_6)


def _is_own(address: Address, port: int) -> bool:
    """Whether `address` belongs to this machine: its services may be open to itself only. Sends nothing."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), port))
            return ipaddress.ip_address(probe.getsockname()[0]) == address
    except OSError as error:  # no route there, so connecting will say so; or it can't be asked, and might be
        return error.errno in _SHORTAGES


class _PinnedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to a checked address itself: the name is resolved once, and never again below this."""

    def __init__(self, policy: _Policy) -> None:
        self._policy = policy
        # httpcore2's stand-in for a machine without anyio hides the real class from the type checker.
        self._tcp: httpcore2.AsyncNetworkBackend = httpcore2.AnyIOBackend()  # pyright: ignore[reportAttributeAccessIssue]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        addresses = await self._policy.addresses(host, port)
        failure: Exception | None = None
        for address in addresses[:_MAX_ADDRESSES]:
            try:
                return await self._tcp.connect_tcp(
                    str(address), port, timeout=timeout, local_address=local_address, socket_options=socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        assert failure is not None  # addresses() gives one at least
        raise failure

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        raise _Refused

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Body(httpx2.AsyncByteStream):
    """An httpcore response's bytes, as httpx2 decodes them."""

    def __init__(self, response: httpcore2.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._response.aiter_stream():
            yield chunk


@cache
def _system_authorities() -> ssl.SSLContext:
    return httpx2.create_ssl_context(trust_env=False)


class Outbound:
    """Fetches URLs that callers gave. `resolve` (the loop's getaddrinfo) and `ssl_context` (the system's authorities) can be replaced."""

    def __init__(
        self, settings: Settings, *, resolve: Resolve | None = None, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self._timeout_seconds = settings.fetch_timeout_seconds
        self._lookups = _lookup_threads()
        self._policy = _Policy(settings, resolve or self._system_addresses)
        self._ssl_context = ssl_context
        self._pool: httpcore2.AsyncConnectionPool | None = None

    async def open(self) -> None:
        """Make ready; opens no connection."""
        # Made once: reading the authorities takes 20 ms, which the pool would spend on each connection.
        context = self._ssl_context or await asyncio.to_thread(_system_authorities)
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=context,
            max_connections=_MAX_CONNECTIONS,
            max_keepalive_connections=0,  # the next fetch checks its address anew
            network_backend=_PinnedBackend(self._policy),
        )

    async def close(self) -> None:
        """End what is under way."""
        if self._pool is not None:
            await self._pool.aclose()
            self._pool = None
        self._lookups.shutdown(wait=False, cancel_futures=True)
        self._lookups = _lookup_threads()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def check_url(self, url: str, *, field: Sequence[str | int] = ("body", "url")) -> None:
        """Nothing, where `url` could be fetched as far as its form and its host's present addresses say.

        Raises: AddressRefused, FetchFailed.
        """
        target = _parse(url, field)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._policy.addresses(target.host, _port(target))
        except (_Refused, TimeoutError):
            raise _refusal(field) from None

    async def addresses(self, host: str, port: int, *, any_port: bool = False) -> list[str]:
        """The addresses that `host` has now, each of which may be connected to; connect to one of them, never to the name.

        `any_port`: somebody who may has named the port, so it need not be 80 or 443.

        Raises: AddressRefused, also where the host has no address.
        """
        try:
            async with asyncio.timeout(self._timeout_seconds):
                found = await self._policy.addresses(host, port, any_port=any_port)
        except (_Refused, TimeoutError):
            raise _refusal(("host",)) from None
        return [str(address) for address in found[:_MAX_ADDRESSES]]

    async def fetch(self, url: str, *, max_bytes: int, field: Sequence[str | int] = ("body", "url")) -> Fetched:
        """The content of `url`, of `max_bytes` (decoded) at the most, within `fetch_timeout_seconds` over all hops.

        Raises: AddressRefused, FetchFailed.
        """
        async with _spelled(self._timeout_seconds, field):
            return await self._follow(_parse(url, field), max_bytes, field)

    async def post(
        self,
        url: str,
        content: bytes,
        *,
        headers: Mapping[str, str],
        timeout_seconds: float,
        field: Sequence[str | int] = ("body", "url"),
    ) -> Posted:
        """What `url` answers to `content`. A redirect is an answer like any other: it is not followed.

        Raises: AddressRefused, FetchFailed.
        """
        assert self._pool is not None, "Outbound is not open"
        async with _spelled(timeout_seconds, field):
            target = _parse(url, field)
            request = httpx2.Request(
                "POST", target, headers={"User-Agent": "automagik-agents", **headers}, content=content
            )
            async with self._pool.stream(
                "POST",
                _wire_url(target),
                headers=request.headers.raw,
                content=content,
                extensions={"timeout": {"connect": _CONNECT_SECONDS}},
            ) as raw:
                return Posted(raw.status, _retry_after(raw.headers))

    async def call(
        self,
        method: str,
        url: str,
        content: bytes = b"",
        *,
        headers: Mapping[str, str],
        max_bytes: int,
        timeout_seconds: float,
        field: Sequence[str | int] = ("body", "url"),
    ) -> Called:
        """What an API answers to a request, whatever its status, of `max_bytes` at the most. A redirect is not followed.

        Raises: AddressRefused, FetchFailed.
        """
        assert self._pool is not None, "Outbound is not open"
        async with _spelled(timeout_seconds, field):
            target = _parse(url, field)
            request = httpx2.Request(
                method, target, headers={"User-Agent": "automagik-agents", **headers}, content=content
            )
            async with self._pool.stream(
                method,
                _wire_url(target),
                headers=request.headers.raw,
                content=content,
                extensions={"timeout": {"connect": _CONNECT_SECONDS}},
            ) as raw:
                response = httpx2.Response(raw.status, headers=raw.headers, stream=_Body(raw), request=request)
                return Called(raw.status, await _read(response, max_bytes, field))

    async def _system_addresses(self, host: str, port: int) -> Sequence[str]:
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._lookups, ask)
        return [str(entry[4][0]) for entry in found]

    async def _follow(self, target: httpx2.URL, max_bytes: int, field: Sequence[str | int]) -> Fetched:
        for _ in range(_MAX_REDIRECTS + 1):
            answer = await self._get(target, max_bytes, field)
            if isinstance(answer, Fetched):
                return answer
            if target.scheme == "https" and answer.scheme == "http":
                raise FetchFailed("The URL redirects from https to http.", field=field)
            target = answer
        raise FetchFailed(f"The URL redirects more than {_MAX_REDIRECTS} times.", field=field)

    async def _get(self, target: httpx2.URL, max_bytes: int, field: Sequence[str | int]) -> Fetched | httpx2.URL:
        """What `target` gives, or where it redirects to."""
        assert self._pool is not None, "Outbound is not open"
        request = httpx2.Request(
            "GET", target, headers={"User-Agent": "automagik-agents", "Accept": "*/*", "Accept-Encoding": "gzip"}
        )
        async with self._pool.stream(
            "GET",
            _wire_url(target),
            headers=request.headers.raw,
            extensions={"timeout": {"connect": _CONNECT_SECONDS}},
        ) as raw:
            response = httpx2.Response(raw.status, headers=raw.headers, stream=_Body(raw), request=request)
            if response.status_code in _REDIRECTS:
                return _next(target, response, field)
            if response.status_code != 200:
                raise FetchFailed(f"The URL answers with status {response.status_code}.", field=field)
            content = await _read(response, max_bytes, field)
            return Fetched(content, _media_type(response), str(target))


@asynccontextmanager
async def _spelled(seconds: float, field: Sequence[str | int]) -> AsyncGenerator[None]:
    """Allow so many seconds, and say what went wrong below in words that tell nothing of the inside."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise FetchFailed(f"The URL did not answer in full within {seconds:g} seconds.", field=field) from None
    except _Refused:
        raise _refusal(field) from None
    except (httpcore2.NetworkError, httpcore2.TimeoutException):
        raise FetchFailed("The URL's server can't be reached, or broke off.", field=field) from None
    except (httpcore2.ProtocolError, httpx2.DecodingError):
        raise FetchFailed("The URL's server gave an answer that can't be read.", field=field) from None


def _wire_url(target: httpx2.URL) -> httpcore2.URL:
    return httpcore2.URL(scheme=target.raw_scheme, host=target.raw_host, port=target.port, target=target.raw_path)


def _retry_after(headers: Sequence[tuple[bytes, bytes]]) -> int | None:
    for name, value in headers:
        if name.lower() == b"retry-after" and value.isdigit() and len(value) < 9:
            return int(value)
    return None


async def _read(response: httpx2.Response, max_bytes: int, field: Sequence[str | int]) -> bytes:
    too_large = FetchFailed(f"The URL's content is larger than {max_bytes} bytes.", field=field, code="too_large")
    length = response.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > max_bytes + _RAW_SLACK):
        raise too_large
    if "," in response.headers.get("content-encoding", ""):
        raise FetchFailed("The URL's content is compressed more than once.", field=field)
    content = bytearray()
    stream = response.aiter_bytes()  # in pieces of 1 MiB at most, so a bomb is noticed before it unfolds
    try:
        async for piece in stream:
            content += piece
            if len(content) > max_bytes or response.num_bytes_downloaded > max_bytes + _RAW_SLACK:
                raise too_large
    finally:
        await stream.aclose()
    return bytes(content)


def _media_type(response: httpx2.Response) -> str:
    claimed = response.headers.get("content-type", "").split(";", 1)[0].strip().lower()
    return claimed if _MEDIA_TYPE.fullmatch(claimed) else "application/octet-stream"


def _next(target: httpx2.URL, response: httpx2.Response, field: Sequence[str | int]) -> httpx2.URL:
    location = response.headers.get("location")
    if location is None:
        raise FetchFailed(f"The URL answers with status {response.status_code} and no location.", field=field)
    try:
        joined = str(target.join(location))
    except httpx2.InvalidURL:
        raise FetchFailed("The URL redirects to what is no URL.", field=field) from None
    return _parse(joined, field)


def _parse(text: str, field: Sequence[str | int]) -> httpx2.URL:
    try:
        if len(text) > _MAX_URL_CHARS or not text.isprintable():
            raise httpx2.InvalidURL("too long, or control characters")
        url = httpx2.URL(text).copy_with(fragment=None)
        if url.port is not None and not 0 < url.port < 65536:
            raise httpx2.InvalidURL("no port")
    except httpx2.InvalidURL:
        raise FetchFailed("This is no URL.", field=field, hint="Give a URL like https://example.com/file.") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise FetchFailed("Only http and https URLs are fetched.", field=field)
    if url.userinfo:
        raise FetchFailed("A URL with a user name or password is not fetched.", field=field)
    return url


def _port(url: httpx2.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def _refusal(field: Sequence[str | int]) -> AddressRefused:
    return AddressRefused(
        "The URL's host has no address that may be reached.",
        field=field,
        hint="Only public addresses, on ports 80 and 443, are reached. "
        "An administrator can allow a host or a network by AUTOMAGIK_OUTBOUND_ALLOW.",
    )


def _lookup_threads() -> ThreadPoolExecutor:
    """Threads that begin when they are needed. Names that nobody answers for must not keep the platform's other threads busy."""
    return ThreadPoolExecutor(_LOOKUP_THREADS, thread_name_prefix="outbound-name")
