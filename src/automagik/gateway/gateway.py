"""Gateway: opens the doors through which runs reach their models."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from automagik.budget import Ledger, Prices
from automagik.errors import RunFailed
from automagik.gateway.access import RunAccess
from automagik.gateway.allowance import Places
from automagik.gateway.call import Services
from automagik.gateway.door import Door
from automagik.gateway.listener import Listener
from automagik.gateway.tally import RunTally
from automagik.gateway.upstream import Upstream
from automagik.gateway.wire import Refusal, Vendor
from automagik.security.secrets import SecretStore
from automagik.settings import Settings
from automagik.store import Store
from automagik.types import Clock, JsonObject, RunOutcome

__all__ = ["Gateway"]


class Gateway:
    """The platform's keys, its HTTP client and the doors that are open. Open it before use, close it after."""

    def __init__(
        self, settings: Settings, store: Store, ledger: Ledger, prices: Prices, secrets: SecretStore, clock: Clock
    ) -> None:
        self._settings = settings
        self._store = store
        self._ledger = ledger
        self._upstream = Upstream(settings, secrets, clock)
        self._prices = prices
        self._services = Services(
            ledger,
            prices,
            self._upstream,
            clock,
            settings.model_call_timeout_seconds,
            frozenset(settings.gateway_fields),
        )
        self._doors: set[Door] = set()
        self._places = Places.of_process()
        self._opening = asyncio.Lock()
        self._is_open = False

    async def open(self) -> None:
        """Make ready, where that was not done; opens no connection. `open_door` does it too: prices take a moment to load, which a
        start without workflows need not pay."""
        async with self._opening:
            if not self._is_open:
                await self._upstream.open()
                await self._prices.open()
                self._is_open = True

    async def close(self) -> None:
        """Close the doors that are still open, and the client."""
        for door in list(self._doors):
            await door.close()
        self._doors.clear()
        await self._upstream.close()
        self._is_open = False

    async def check_key(self, vendor: Vendor) -> None:
        """Return where the platform can ask this vendor's API.

        Raises: RunFailed (`model_error`) where it has no key for it, or its address can't be used, with the setting that mends it.
        """
        try:
            await self._upstream.check(vendor)
        except Refusal as refusal:
            raise RunFailed(
                refusal.text,
                outcome=RunOutcome.MODEL_ERROR.value,
                hint="`automagik secrets set anthropic_api_key` stores one; a run with `demo` needs none."
                if vendor == "anthropic"
                else None,
            ) from refusal

    async def open_door(self, access: RunAccess, socket: Path, *, tell: Callable[[str, JsonObject], None]) -> Door:
        """A door at `socket`, in the place of one that an earlier process left there, for the holder of the run's token.

        `tell` is given the events of the run: `budget_warning`, and `warning` with its `detail`.

        Raises:
            ConfigurationError: the socket can't be made there.
            ServiceUnavailable: the store is away.
        """
        await self.open()
        # Settles, too, what an earlier process of the run left behind, so that it is in what was used before.
        await self._ledger.hold(access.run_id)
        try:
            before = await self._store.read(lambda tx: tx.calls.usage_of(access.run_id))
            tally = RunTally(tell, before)
            most = self._settings.max_body_bytes
            door = Door(self._services, access, tally, max_body_bytes=most, places=self._places, left=self._left)
            await door.serve(Listener(socket))
        except BaseException:
            self._ledger.let_go(access.run_id)
            raise
        self._doors.add(door)
        return door

    def _left(self, door: Door) -> None:
        if door in self._doors:
            self._doors.remove(door)
            self._ledger.let_go(door.run_id)
