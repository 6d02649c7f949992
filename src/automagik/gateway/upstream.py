"""Upstream: the providers' APIs, the keys that open them, and the connections by which they are asked."""

import asyncio
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
from pydantic import SecretStr

from automagik.budget import is_loopback
from automagik.errors import NotFound
from automagik.gateway.connection import Header
from automagik.gateway.pool import Origin, Pool, Reply
from automagik.gateway.proxied import ProxiedPool
from automagik.gateway.wire import Refusal, Vendor
from automagik.security.secrets import SecretStore
from automagik.settings import Settings
from automagik.types import Clock

__all__ = ["Account", "Upstream"]

_KEPT_SECONDS = 10.0
"""How long a secret is used before it is read anew: one that was changed is in use soon, without a read for every call."""
_PRIVATE_SUFFIXES = (".internal", ".local", ".lan", ".localhost", ".home.arpa", ".svc", ".cluster.local")

_SETTINGS: Mapping[Vendor, str] = MappingProxyType(
    {
        "anthropic": "ANTHROPIC_API_KEY (or ANTHROPIC_AUTH_TOKEN, or the secret `anthropic_api_key`)",
        "openai": "OPENAI_API_KEY (or the secret `openai_api_key`)",
    }
)
_URL_SETTINGS: Mapping[Vendor, str] = MappingProxyType(
    {"anthropic": "AUTOMAGIK_ANTHROPIC_BASE_URL", "openai": "AUTOMAGIK_OPENAI_BASE_URL"}
)


@dataclass(frozen=True, slots=True)
class Account:
    """Where a vendor's requests go, and what opens it."""

    base_url: str
    headers: tuple[Header, ...] = field(repr=False)
    secret: str = field(repr=False)
    """What may stand in no answer, log or event; empty where none is needed."""


class Upstream:
    """Sends requests to the vendors with the platform's own keys."""

    def __init__(self, settings: Settings, secrets: SecretStore, clock: Clock) -> None:
        self._settings = settings
        self._secrets = secrets
        self._clock = clock
        self._pool: Pool | None = None
        self._proxied: ProxiedPool | None = None
        self._kept: dict[str, tuple[float, SecretStr | None]] = {}
        self._accounts: dict[Vendor, tuple[SecretStr, Account]] = {}
        """Each vendor's account by its key, as long as it is the same."""

    async def open(self) -> None:
        """Make ready; opens no connection."""
        context = await asyncio.to_thread(httpx2.create_ssl_context)  # reads the authorities, at 20 ms
        context.set_alpn_protocols(["http/1.1"])
        self._pool = Pool(context)
        if any(_proxy(url) for url in (self._settings.anthropic_base_url, self._settings.openai_base_url)):
            self._proxied = ProxiedPool(context)

    async def close(self) -> None:
        """End what is under way."""
        if self._pool is not None:
            await self._pool.close()
            self._pool = None
        if self._proxied is not None:
            await self._proxied.close()
            self._proxied = None

    async def account(self, vendor: Vendor) -> Account:
        """Where this vendor's requests go, with the platform's key.

        Raises: Refusal where there is none, or its address can't be used.
        """
        settings = self._settings
        base_url = (settings.anthropic_base_url if vendor == "anthropic" else settings.openai_base_url).rstrip("/")
        _check_address(base_url, vendor)
        if vendor == "anthropic":
            key = _set(settings.anthropic_api_key)
            bearer = _set(settings.anthropic_auth_token) if key is None else None
            if key is None and bearer is None:
                key = await self._secret("anthropic_api_key")
            if key is None and bearer is None:
                bearer = await self._secret("anthropic_auth_token")
        else:
            key, bearer = None, _set(settings.openai_api_key) or await self._secret("openai_api_key")
        opens = key or bearer
        if opens is not None:
            known = self._accounts.get(vendor)
            if known is None or known[0] is not opens:
                secret = opens.get_secret_value()
                header = (b"x-api-key", secret.encode()) if key else (b"authorization", b"Bearer " + secret.encode())
                known = self._accounts[vendor] = opens, Account(base_url, (header,), secret)
            return known[1]
        if _is_near(base_url):  # a server of one's own may need none
            return Account(base_url, (), "")
        raise Refusal(
            401,
            f"The platform has no key for this API: an administrator sets {_SETTINGS[vendor]}.",
            may_retry=False,
        )

    async def check(self, vendor: Vendor) -> None:
        """Return where there is an account, also one that was not there a moment ago. Raises as `account`."""
        self._kept = {name: kept for name, kept in self._kept.items() if kept[1] is not None}
        await self.account(vendor)

    async def send(
        self, method: str, account: Account, path: str, headers: tuple[Header, ...], body: bytes | None
    ) -> Reply:
        """The vendor's answer, its body not yet read.

        Raises: Unreachable, BrokeOff.
        """
        assert self._pool is not None, "the gateway is not open"
        sent = (*headers, *account.headers)
        if self._proxied is not None and _proxy(account.base_url):
            return await self._proxied.send(method, account.base_url + path, sent, body)
        origin, base_path = _target(account.base_url)
        return await self._pool.send(origin, method, base_path + path, sent, body)

    async def _secret(self, name: str) -> SecretStr | None:
        now = self._clock.monotonic()
        known = self._kept.get(name)
        if known is not None and now - known[0] < _KEPT_SECONDS:
            return known[1]
        try:
            found = _set(await self._secrets.get(name))
        except NotFound:
            found = None
        self._kept[name] = (now, found)
        return found


@lru_cache(maxsize=64)
def _target(base_url: str) -> tuple[Origin, str]:
    """Whom to connect to, and the path that requests go below."""
    parts = urlsplit(base_url)
    return (parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)), parts.path


def _proxy(base_url: str) -> bool:
    """Whether the environment names a proxy for this address: it serves the vendors, never this machine."""
    if is_loopback(base_url):
        return False
    parts = urlsplit(base_url)
    proxies = getproxies()
    return (parts.scheme in proxies or "all" in proxies) and not proxy_bypass(parts.hostname or "")


def _set(secret: SecretStr | None) -> SecretStr | None:
    return secret if secret is not None and secret.get_secret_value() else None


def _check_address(base_url: str, vendor: Vendor) -> None:
    if not _may_have_keys(base_url):
        raise Refusal(
            502,
            f"{_URL_SETTINGS[vendor]} is no address that a key may be sent to: it must be an https URL, or an http one of "
            "this machine or a private network.",
            may_retry=False,
        )


@lru_cache(maxsize=64)
def _may_have_keys(base_url: str) -> bool:
    """Whether a key may be sent to this address."""
    try:
        parts = urlsplit(base_url)
        sound = parts.hostname is not None and parts.username is None and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
    return sound and (parts.scheme == "https" or (parts.scheme == "http" and _is_near(base_url)))


@lru_cache(maxsize=64)
def _is_near(base_url: str) -> bool:
    """Whether the address is of this machine or of a private network, as far as it says so itself."""
    host = (urlsplit(base_url).hostname or "").lower()
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith(_PRIVATE_SUFFIXES)
    return address.is_loopback or (address.is_private and not address.is_unspecified)
