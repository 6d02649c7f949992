"""Reaper: what runs have left on this host whose end is stored, or that nobody knows of, is removed."""

import asyncio
import itertools
from datetime import timedelta

import structlog

from automagik.claude_code.factory import ExecutorFactory
from automagik.claude_code.repositories import Repositories
from automagik.errors import AutomagikError
from automagik.store import Store

__all__ = ["forget_forever", "forget_gone", "reap", "reap_forever"]

_log = structlog.stdlib.get_logger(__name__)

_FIRST_SECONDS = 10.0
_EVERY_SECONDS = 30.0
_FORGET_ROUNDS = 120
"""How often it is looked for commits of runs that retention has deleted: once in so many rounds, an hour."""
_UNUSED_SECONDS = 30 * 86_400.0
"""How long a toolchain stays that no run begins with, and an image that was made for runs."""
_UNUSED = timedelta(days=7)
"""How long a repository stays that nothing uses: it is made again from its bundle or place where a run asks for it."""


async def reap(store: Store, executors: ExecutorFactory, *, host: str) -> list[str]:
    """The runs whose sandboxes were removed from this host: they are over, however that came about (its process died, somebody
    else ended it), or have begun again on another host, which took this one for gone."""
    reaped: list[str] = []
    for executor in await executors.working():
        places = await executor.places()
        for run_id in await store.read(lambda tx, places=places: tx.executions.over(places, host=host)):
            _log.warning("sandbox_reaped", run_id=run_id, executor=executor.name)
            await executor.remove(run_id)
            reaped.append(run_id)
    return reaped


async def forget_gone(store: Store, repositories: Repositories) -> int:
    """How many runs had commits here that are not kept any more; those are gone, and repositories that nothing uses."""
    kept = sorted({run_id for runs in (await repositories.runs()).values() for run_id in runs})
    gone = await store.read(lambda tx: tx.executions.gone(kept)) if kept else []
    forgotten = await repositories.forget(gone) if gone else 0
    await repositories.prune(_UNUSED)
    return forgotten


async def forget_forever(store: Store, repositories: Repositories) -> None:
    """Forget now and then, until cancelled: for a process that carries out no runs, but brings here what others made to show it."""
    for round_number in itertools.count():
        await asyncio.sleep(_EVERY_SECONDS * (_FORGET_ROUNDS if round_number else 1))
        try:
            await forget_gone(store, repositories)
        except AutomagikError as away:
            _log.warning("forgetting_put_off", reason=away.detail)


async def reap_forever(store: Store, executors: ExecutorFactory, repositories: Repositories, *, host: str) -> None:
    """Reap now and then, until cancelled."""
    for round_number in itertools.count():
        await asyncio.sleep(_EVERY_SECONDS if round_number else _FIRST_SECONDS)
        try:
            await reap(store, executors, host=host)
            if round_number % _FORGET_ROUNDS == 1:
                await forget_gone(store, repositories)
                for executor in await executors.working():
                    await executor.drop_toolchains(unused_seconds=_UNUSED_SECONDS)
                    dropped = await executor.drop_images(unused_seconds=_UNUSED_SECONDS)
                    if dropped:
                        _log.info("images_dropped", executor=executor.name, count=dropped)
        except AutomagikError as away:
            _log.warning("reaping_put_off", reason=away.detail)
