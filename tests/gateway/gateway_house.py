"""Gateways as processes have them, and the clients that runs ask them with."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from pydantic import SecretStr

from automagik.budget import Ledger, ModelCall, Party, Price, Prices
from automagik.gateway import Door, Gateway, RunAccess
from automagik.security.secrets import SecretStore
from automagik.settings import Settings
from automagik.store import BeginRun, Store
from automagik.testing.scripted_messages import ScriptedMessages
from automagik.types import JsonObject, SystemClock

__all__ = ["KEY", "MODEL", "RUN", "TOKEN", "USD", "House", "OpenHouse", "anthropic", "openai", "raw", "say", "talk"]

TOKEN = "run-token-5f1c2d"
KEY = "sk-ant-the-real-key"
MODEL = "claude-sonnet-4-6"
RUN = "run_gateway"
USD = 10**9


class _ListPrices(Prices):
    """The vendors' prices for the scripted provider, which would cost nothing as it is on loopback."""

    def of(self, model: str, *, provider: str | None = None, base_url: str | None = None) -> Price | None:
        del base_url
        return super().of(model, provider=provider)


@dataclass
class House:
    """One process's gateway."""

    settings: Settings
    store: Store
    ledger: Ledger
    gateway: Gateway
    secrets: SecretStore
    sockets: Path
    told: list[tuple[str, JsonObject]] = field(default_factory=list[tuple[str, JsonObject]])

    async def door(self, run_id: str = RUN, *, token: str = TOKEN, **access: Any) -> Door:
        """A run's door."""
        opened = RunAccess(run_id, Party(run_id=run_id), hashlib.sha256(token.encode()).digest(), **access)
        return await self.gateway.open_door(opened, self.socket(run_id), tell=self._tell)

    def _tell(self, kind: str, data: JsonObject) -> None:
        self.told.append((kind, data))

    def socket(self, run_id: str = RUN) -> Path:
        """Where its door is."""
        return self.sockets / f"{run_id[4:]}.sock"

    async def calls(self, run_id: str = RUN) -> list[ModelCall]:
        """Its calls as they are stored."""
        return await self.store.read(lambda tx: tx.calls.of_run(run_id))

    async def until_calls(self, count: int, run_id: str = RUN) -> list[ModelCall]:
        """Its calls, once there are so many: they are stored after the answer's last byte."""
        async with asyncio.timeout(40):
            while len(found := await self.calls(run_id)) < count:
                await asyncio.sleep(0.01)
        return found

    async def limit(self, usd: float, run_id: str = RUN) -> None:
        """Give the run a budget; the run is there, as a budget of one that isn't under way limits nobody."""
        if await self.store.read(lambda tx: tx.runs.find(run_id)) is None:
            await self.store.begin_run(
                BeginRun(run_id=run_id, kind="agent", name="coder", created_at=SystemClock().now())
            )
        await self.ledger.limit_run(run_id, round(usd * USD))

    async def budget(self, run_id: str = RUN) -> tuple[int, int]:
        """What of it is spent and what is reserved, in nano-dollars."""
        page = await self.store.read(
            lambda tx: tx.budgets.list(of=None, scope="run", scope_id=run_id, limit=1, cursor=None)
        )
        return page.data[0].spent_nano, page.data[0].reserved_nano

    async def close(self) -> None:
        """End it as a process that stops ends."""
        await self.gateway.close()
        await self.ledger.close()
        await self.store.close()


class OpenHouse:
    """Opens gateways on one database."""

    def __init__(self, settings: Settings, sockets: Path) -> None:
        self.settings = settings
        self._sockets = sockets
        self._opened: list[House] = []

    async def __call__(self, **changes: Any) -> House:
        settings = self.settings.model_copy(update={"anthropic_api_key": SecretStr(KEY), **changes})
        clock = SystemClock()
        store = Store.from_settings(settings, clock)
        await store.open()
        ledger = Ledger(store, clock, executor_id=lambda: "exec_gateway")
        await ledger.open()
        secrets = SecretStore(store, settings)
        await secrets.open()
        gateway = Gateway(settings, store, ledger, _ListPrices(settings), secrets, clock)
        await gateway.open()
        house = House(settings, store, ledger, gateway, secrets, self._sockets)
        self._opened.append(house)
        return house

    async def close_all(self) -> None:
        for house in self._opened:
            await house.close()


@asynccontextmanager
async def anthropic(socket: Path, *, token: str = TOKEN, retries: int = 0) -> AsyncGenerator[Any]:
    """Anthropic's client, through a door."""
    transport = httpx2.AsyncHTTPTransport(uds=str(socket))
    async with AsyncAnthropic(
        base_url="http://localhost",
        api_key=token,
        max_retries=retries,
        http_client=httpx2.AsyncClient(transport=transport),
    ) as client:
        yield client


@asynccontextmanager
async def openai(socket: Path, *, token: str = TOKEN) -> AsyncGenerator[Any]:
    """OpenAI's client, through a door."""
    transport = httpx2.AsyncHTTPTransport(uds=str(socket))
    async with AsyncOpenAI(
        base_url="http://localhost/v1",
        api_key=token,
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=transport),
    ) as client:
        yield client


@asynccontextmanager
async def raw(socket: Path) -> AsyncGenerator[httpx2.AsyncClient]:
    """A plain HTTP client, through a door."""
    async with httpx2.AsyncClient(
        transport=httpx2.AsyncHTTPTransport(uds=str(socket)), base_url="http://localhost", headers={"x-api-key": TOKEN}
    ) as client:
        yield client


def say(api: ScriptedMessages, turn: Any) -> None:
    """Have the provider answer so from now on."""
    script: Any = {"default": turn}
    api.script = script


async def talk(socket: Path, data: bytes, *, wait: float = 5.0) -> bytes:
    """All that a door answers to these bytes, until it closes."""
    reader, writer = await asyncio.open_unix_connection(str(socket))
    writer.write(data)
    try:
        async with asyncio.timeout(wait):
            return await reader.read()
    finally:
        writer.close()
