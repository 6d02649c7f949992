"""Names of models to models: any `provider:model` of Pydantic AI, over one HTTP client for all.

Building an HTTP client is the main cost of an agent (its certificates alone take 20 ms), so there is one. Importing a
vendor's SDK takes up to a second: that happens in a thread, when a model of that vendor is first asked for.
"""

import asyncio
import inspect
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import httpx2
from pydantic import SecretStr
from pydantic_ai.exceptions import ModelAPIError, UserError
from pydantic_ai.models import Model, get_user_agent, infer_model, known_model_names
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.providers import Provider, infer_provider, infer_provider_class

from automagik.errors import InvalidInput, nearest
from automagik.providers.demo import DEMO_MODEL, DemoModel
from automagik.providers.discovery import Discovery, LocalServer
from automagik.settings import Settings
from automagik.types import Clock, SystemClock

__all__ = ["DEFAULT_MODELS", "ModelRegistry"]

DEFAULT_MODELS = {
    "openai": "openai:gpt-6.1-sol",
    "anthropic": "anthropic:claude-sonnet-5-5",
    "google": "google:gemini-3.8-flash",
}
"""The default model where only that vendor's key is set: each vendor's middle one, in this order."""

_FIELD = ("body", "model")
_CODE = "model_not_available"
_MAX_NAME_CHARS = 256
_MAX_CACHED = 512
_SEARCH_EVERY_SECONDS = 30.0
_OUR_EXTRAS = frozenset({"groq", "mistral", "cohere", "bedrock"})
# 1,000 streams at once, and their agents' other calls. Idle connections are kept for as long as most vendors keep them.
_LIMITS = httpx2.Limits(max_connections=2000, max_keepalive_connections=256, keepalive_expiry=30)
# A model may think for minutes before its first byte; the run's own deadline ends what takes too long.
_READ_SECONDS = 600.0
_CONNECT_SECONDS = 10.0
_POOL_SECONDS = 30.0
_LOOPBACK_MOUNTS = ("all://127.0.0.1", "all://localhost", "all://[::1]")
# These sign in by OAuth and write to the client that they are given, so it must be their own.
_WANT_OWN_CLIENT = frozenset({"openai-codex", "openai-chatgpt", "github-copilot"})
_OPENAI = frozenset({"openai", "openai-chat", "openai-responses", "openai-decisions"})
_UNSET_KEY = "api-key-not-set"  # the OpenAI client wants one; local servers don't


class ModelRegistry:
    """Every model that agents use. `discovery` finds a server on this machine where no key is set."""

    def __init__(self, settings: Settings, *, discovery: Discovery | None = None, clock: Clock | None = None) -> None:
        self._settings = settings
        self._discovery = discovery or Discovery()
        self._clock = clock or SystemClock()
        self._client: httpx2.AsyncClient | None = None
        self._stack = AsyncExitStack()
        self._lock = asyncio.Lock()
        self._models: OrderedDict[tuple[str, ...], Model] = OrderedDict()
        self._providers: dict[str, Provider[Any]] = {}
        self._entered: set[str] = set()
        self._local: LocalServer | None = None
        self._search: asyncio.Task[None] | None = None
        self._searched_at = float("-inf")

    async def open(self) -> None:
        """Make the shared client, and begin to look for a local server where one would be used."""
        self._client = await self._stack.enter_async_context(
            httpx2.AsyncClient(
                limits=_LIMITS,
                timeout=httpx2.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS, pool=_POOL_SECONDS),
                headers={"User-Agent": get_user_agent()},
                event_hooks={"request": [_cap_timeouts]},
                # A proxy of the environment serves the vendors, never this machine (None: the plain transport).
                mounts=dict.fromkeys(_LOOPBACK_MOUNTS),
            )
        )
        if self._may_search():
            self._start_search()

    async def close(self) -> None:
        """Close the client and what vendors opened of their own."""
        if self._search is not None:
            self._search.cancel()
            await asyncio.gather(self._search, return_exceptions=True)
        await self._stack.aclose()
        self._client = None
        self._models.clear()
        self._providers.clear()
        self._entered.clear()

    async def default_model_name(self) -> str:
        """The setting; else by which key is set; else a server on loopback; else `demo`.

        While it is `demo`, a local server that was started later is looked for at most every 30 s.
        """
        if self._settings.model:
            return self._settings.model
        for vendor, name in DEFAULT_MODELS.items():
            if self._key_of(vendor) is not None:
                return name
        if self._local is None and self._may_search():
            if self._search is None and self._clock.monotonic() - self._searched_at >= _SEARCH_EVERY_SECONDS:
                self._start_search()
            if self._search is not None:
                await asyncio.shield(self._search)
        return self._local.model_name if self._local is not None else DEMO_MODEL

    def cached(self, *names: str) -> Model | None:
        """The model (with fallbacks, where there are several names) where it was resolved before."""
        model = self._models.get(names)
        if model is not None:
            self._models.move_to_end(names)
        return model

    async def resolve(self, name: str) -> Model:
        """The model `name`; the same object each time.

        Raises: InvalidInput (`model_not_available`), with the setting, the extra or the nearest name in its hint.
        """
        model = self.cached(name)
        if model is None:
            async with self._lock:
                model = self.cached(name) or self._keep((name,), await self._build(name))
        return model

    async def with_fallbacks(self, names: Sequence[str]) -> Model:
        """The first of `names`; where its API fails (an error, no connection, a timeout) the next one, and so on.

        Raises: InvalidInput, as `resolve`, for any of them.
        """
        key = tuple(dict.fromkeys(names))
        model = self.cached(*key)
        if model is None:
            first, *others = [await self.resolve(name) for name in key]
            model = first
            if others:
                model = self._keep(key, FallbackModel(first, *others, fallback_on=(ModelAPIError,)))
        return model

    async def check(self, name: str) -> None:
        """Nothing, where `name` can be used as far as its form, its packages and its key's presence say.

        Raises: InvalidInput, as `resolve`.
        """
        await self.resolve(name)

    def _keep(self, key: tuple[str, ...], model: Model) -> Model:
        self._models[key] = model
        if len(self._models) > _MAX_CACHED:  # names come from requests, so they are without end
            self._models.popitem(last=False)
        return model

    async def _build(self, name: str) -> Model:
        vendor, _, model = name.partition(":")
        if name not in {DEMO_MODEL, "test"} and (
            not vendor or not model or len(name) > _MAX_NAME_CHARS or not name.isprintable()
        ):
            raise _unavailable(f"'{_shown(name)}' is not the name of a model.", _like(name))
        if vendor == "openai-chat" and self._search is not None:
            await asyncio.shield(self._search)
        built = await asyncio.to_thread(self._infer, name, vendor)
        for fresh in self._providers.keys() - self._entered:  # until close(), which ends a client of their own
            self._entered.add(fresh)
            await self._stack.enter_async_context(self._providers[fresh])
        return built

    def _infer(self, name: str, vendor: str) -> Model:
        """In a thread: imports the vendor's SDK and reads its certificates and price table."""
        if name == DEMO_MODEL:
            return DemoModel()
        try:
            return infer_model(name, provider_factory=self._provider)
        except ImportError as error:
            raise _unavailable(f"The model '{name}' needs a package that is not installed.", _extra(error)) from None
        except UserError as error:
            if str(error).startswith("Unknown model"):
                raise _unavailable(f"There is no model '{name}'.", _like(name)) from None
            raise _unavailable(f"The model '{name}' is not set up.", _variables(error)) from None
        except ValueError:
            raise _unavailable(f"There is no provider '{vendor}' of models.", _like(name)) from None
        except _credential_errors(vendor):
            raise _unavailable(f"The model '{name}' is not set up.", "Set its vendor's credentials.") from None

    def _provider(self, vendor: str) -> Provider[Any]:
        known = self._providers.get(vendor)
        if known is None:
            known = self._providers[vendor] = self._new_provider(vendor)
        return known

    def _new_provider(self, vendor: str) -> Provider[Any]:
        if vendor.startswith("gateway/"):  # adds its own hooks to its client
            return infer_provider(vendor)
        kind: type[Any] = infer_provider_class(vendor)
        options: dict[str, Any] = {}
        if vendor not in _WANT_OWN_CLIENT and _takes_our_client(kind):
            options["http_client"] = self._client
        if vendor in _OPENAI or vendor in DEFAULT_MODELS:
            options |= self._endpoint(vendor)
        return kind(**options)

    def _endpoint(self, vendor: str) -> dict[str, str]:
        """The key, and for `openai-chat` the address, of a vendor whose key is a setting of ours."""
        settings = self._settings
        if vendor == "openai-chat" and settings.model_base_url is not None:
            own = settings.model_api_key
            return {"base_url": settings.model_base_url, "api_key": own.get_secret_value() if own else _UNSET_KEY}
        key = self._key_of("openai" if vendor in _OPENAI else vendor)
        if key is not None:
            return {"api_key": key.get_secret_value()}
        if vendor == "openai-chat" and self._local is not None:
            return {"base_url": self._local.base_url, "api_key": _UNSET_KEY}
        variable = "OPENAI" if vendor in _OPENAI else vendor.upper()
        extra = ", or AUTOMAGIK_MODEL_BASE_URL for a server of your own" if vendor == "openai-chat" else ""
        raise UserError(f"Set `{variable}_API_KEY`{extra}.")

    def _key_of(self, vendor: str) -> SecretStr | None:
        settings = self._settings
        keys = {
            "openai": settings.openai_api_key,
            "anthropic": settings.anthropic_api_key,
            "google": settings.google_api_key,
        }
        key = keys[vendor]
        return key if key is not None and key.get_secret_value() else None

    def _may_search(self) -> bool:
        """Whether `openai-chat:` names would go to a server that is found."""
        settings = self._settings
        return (
            settings.discover_local_models
            and settings.model_base_url is None
            and not any(self._key_of(vendor) is not None for vendor in DEFAULT_MODELS)
        )

    def _start_search(self) -> None:
        self._searched_at = self._clock.monotonic()
        self._search = asyncio.create_task(self._look())

    async def _look(self) -> None:
        try:
            self._local = await self._discovery.search()
        finally:
            self._search = None


async def _cap_timeouts(request: httpx2.Request) -> None:
    """Some SDKs send one number for all phases: ten minutes to read is fine, to connect it is not."""
    asked: dict[str, float | None] = request.extensions.get("timeout", {})
    capped = {
        "connect": min(asked.get("connect") or _CONNECT_SECONDS, _CONNECT_SECONDS),
        "pool": min(asked.get("pool") or _POOL_SECONDS, _POOL_SECONDS),
    }
    request.extensions = {**request.extensions, "timeout": {**asked, **capped}}


def _takes_our_client(kind: type[Any]) -> bool:
    """Whether the vendor's SDK speaks httpx2: some still want the older httpx, and make their own client."""
    parameter = inspect.signature(kind.__init__).parameters.get("http_client")
    return parameter is not None and re.search(r"httpx2|HTTPClient", str(parameter.annotation)) is not None


def _unavailable(detail: str, hint: str) -> InvalidInput:
    return InvalidInput(detail, field=_FIELD, hint=hint, code=_CODE)


def _shown(name: str) -> str:
    return "".join(char if char.isprintable() else "�" for char in name[:80])


def _extra(error: ImportError) -> str:
    """The way to install what the library says is missing, as an extra of ours where there is one."""
    match = re.search(r"pydantic-ai-slim\[([a-z0-9-]+)\]", str(error))
    if match is None:
        return "Install the package of its vendor."
    package = "automagik-agents" if match[1] in _OUR_EXTRAS else "pydantic-ai-slim"
    return f"Run: pip install '{package}[{match[1]}]'"


def _variables(error: UserError) -> str:
    """The environment variables that the library names; nothing else of its text, which could quote a value."""
    names: Iterable[str] = dict.fromkeys(re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b", str(error)))
    listed = " or ".join(names)
    return f"Set {listed}, and restart the server." if listed else "Sign in with its vendor's own tool first."


def _like(name: str) -> str:
    close = nearest(name[:_MAX_NAME_CHARS], (*known_model_names(), DEMO_MODEL))
    meant = f"Did you mean '{close}'? " if close is not None else ""
    return f"{meant}A model is named provider:model, for example {DEFAULT_MODELS['openai']}."


def _credential_errors(vendor: str) -> tuple[type[Exception], ...]:
    if not vendor.endswith("google-cloud"):
        return ()
    from google.auth.exceptions import GoogleAuthError  # noqa: PLC0415 - a heavy vendor, imported by now by its provider

    return (GoogleAuthError,)
