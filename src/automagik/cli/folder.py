"""The data folder from the command line: commands that need no server open the store themselves."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from automagik.settings import Settings
from automagik.store import Store
from automagik.telemetry import configure_logging
from automagik.types import SystemClock

if TYPE_CHECKING:
    from automagik.security import KeyRing

__all__ = ["local_url", "open_keys", "open_store", "quiet_logs"]


def quiet_logs(settings: Settings) -> None:
    """Only warnings, on standard error: standard output belongs to the command's own answer."""
    configure_logging(settings.model_copy(update={"log_level": "warning"}))


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncGenerator[Store]:
    """The store that the settings name, brought to this code's schema."""
    store = Store.from_settings(settings, SystemClock())
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def open_keys(settings: Settings) -> "AsyncGenerator[KeyRing]":
    """The keys of the store that the settings name."""
    from automagik.security import KeyRing

    async with open_store(settings) as store:
        keys = KeyRing(store, SystemClock())
        try:
            yield keys
        finally:
            await keys.close()


def local_url(settings: Settings) -> str | None:
    """Where a server with these settings is reached on this machine; None where its port is not known beforehand."""
    if settings.port == 0:
        return None
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
