"""A process that does nothing but send: `python sender_process.py DATA_DIR [DATABASE_URL]`. It says `ready`, and sends until it is killed."""

import asyncio
import sys
from pathlib import Path

from pydantic import SecretStr

from automagik.outbound import Outbound
from automagik.runs.document import run_document
from automagik.security.secrets import SecretStore
from automagik.settings import Settings
from automagik.store import Store
from automagik.types import SystemClock
from automagik.webhooks import WebhookSender


async def main(data_dir: str, url: str | None) -> None:
    settings = Settings(
        data_dir=Path(data_dir), database_url=SecretStr(url) if url else None, outbound_allow=["127.0.0.1"]
    )
    clock = SystemClock()
    store = Store.from_settings(settings, clock)
    await store.open()
    await store.signals.open()
    secrets = SecretStore(store, settings)
    await secrets.open()
    async with Outbound(settings) as outbound:
        print("ready", flush=True)
        await WebhookSender(store, outbound, secrets, clock=clock, render=run_document).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
