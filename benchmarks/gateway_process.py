"""A process with one door of the model gateway, as a platform has it: `python -m benchmarks.gateway_process FOLDER PROVIDER_URL`.

The run has a budget, so that every call is reserved for and settled. Prints `ready` when the door is open.
"""

import asyncio
import hashlib
import sys
from pathlib import Path

import uvloop

from automagik.budget import Ledger, Party, Price, Prices
from automagik.gateway import Gateway, RunAccess
from automagik.security.secrets import SecretStore
from automagik.server import settle_heap
from automagik.settings import Settings
from automagik.store import BeginRun, Store
from automagik.types import SystemClock

__all__ = ["RUN", "TOKEN", "main"]

RUN = "run_bench"
TOKEN = "token-of-the-benchmark"


class _ListPrices(Prices):
    """The vendors' prices for a provider on loopback, which would cost nothing."""

    def of(self, model: str, *, provider: str | None = None, base_url: str | None = None) -> Price | None:
        del base_url
        return super().of(model, provider=provider)


async def main(folder: Path, provider_url: str) -> None:
    """Serve the door until the process is ended."""
    settings = Settings(data_dir=folder).model_copy(update={"anthropic_base_url": provider_url})
    clock = SystemClock()
    store = Store.from_settings(settings, clock)
    await store.open()
    ledger = Ledger(store, clock, executor_id=lambda: "exec_bench")
    await ledger.open()
    await store.begin_run(BeginRun(run_id=RUN, kind="agent", name="bench", created_at=clock.now()))
    await ledger.limit_run(RUN, 10**15)
    secrets = SecretStore(store, settings)
    await secrets.open()
    gateway = Gateway(settings, store, ledger, _ListPrices(settings), secrets, clock)
    await gateway.open()
    access = RunAccess(RUN, Party(run_id=RUN), hashlib.sha256(TOKEN.encode()).digest())
    await gateway.open_door(access, folder / "api.sock", tell=lambda kind, data: print(kind, data))
    settle_heap()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), sys.argv[2]))
