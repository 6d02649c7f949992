"""A process with one door, to be killed: `python gateway_killed.py SOCKET EXECUTOR LIMIT_USD [DEAD_EXECUTOR]` (0: no limit).

Its settings come from the environment, as a platform's do. It prints `ready`, and at SIGTERM what the run used.
"""

import asyncio
import hashlib
import signal
import sys
from pathlib import Path

from automagik.budget import Ledger, Party, Price, Prices
from automagik.gateway import Gateway, RunAccess
from automagik.security.secrets import SecretStore
from automagik.settings import Settings
from automagik.store import Store
from automagik.types import SystemClock

# As in gateway_house, which takes seconds to import: it has two vendors' clients.
RUN = "run_gateway"
TOKEN = "run-token-5f1c2d"
USD = 10**9


class _ListPrices(Prices):
    """The vendors' prices for the scripted provider, which would cost nothing as it is on loopback."""

    def of(self, model: str, *, provider: str | None = None, base_url: str | None = None) -> Price | None:
        del base_url
        return super().of(model, provider=provider)


async def main(socket: Path, executor: str, limit_usd: float, dead: str | None) -> None:
    settings, clock = Settings(), SystemClock()
    store = Store.from_settings(settings, clock)
    await store.open()
    if dead is not None:  # as the heart of another, or the next start, finds
        await store.write(lambda tx: tx.executors.retire(dead))
    await store.write(lambda tx: tx.executors.register(executor, host="h", role="all", version="1"))
    ledger = Ledger(store, clock, executor_id=lambda: executor)
    await ledger.open()
    if limit_usd:
        await ledger.limit_run(RUN, round(limit_usd * USD))
    secrets = SecretStore(store, settings)
    await secrets.open()
    gateway = Gateway(settings, store, ledger, _ListPrices(settings), secrets, clock)
    await gateway.open()
    access = RunAccess(RUN, Party(run_id=RUN, agents=("coder",)), hashlib.sha256(TOKEN.encode()).digest())
    door = await gateway.open_door(access, socket, tell=lambda _kind, _data: None)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await ended.wait()
    await gateway.close()
    sys.stdout.write(f"{door.usage.requests} {door.usage.cost_usd}\n")
    await ledger.close()
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else None))
