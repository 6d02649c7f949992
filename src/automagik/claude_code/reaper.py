"""Reaper: what runs have left on this host whose end is stored, or that nobody knows of, is removed."""

import asyncio

import structlog

from automagik.claude_code.factory import ExecutorFactory
from automagik.errors import AutomagikError
from automagik.store import Store

__all__ = ["reap", "reap_forever"]

_log = structlog.stdlib.get_logger(__name__)

_EVERY_SECONDS = 30.0


async def reap(store: Store, executors: ExecutorFactory) -> list[str]:
    """The runs whose sandboxes were removed: they are over, however that came about (its process died, somebody else ended it)."""
    reaped: list[str] = []
    for executor in await executors.working():
        places = await executor.places()
        for run_id in await store.read(lambda tx, places=places: tx.executions.over(places)):
            _log.warning("sandbox_reaped", run_id=run_id, executor=executor.name)
            await executor.remove(run_id)
            reaped.append(run_id)
    return reaped


async def reap_forever(store: Store, executors: ExecutorFactory) -> None:
    """Reap now and then, until cancelled."""
    while True:
        try:
            await reap(store, executors)
        except AutomagikError as away:
            _log.warning("reaping_put_off", reason=away.detail)
        await asyncio.sleep(_EVERY_SECONDS)
