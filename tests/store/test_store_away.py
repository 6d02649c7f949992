"""Runs that somebody stops while their host has no place for them, or is away."""

import asyncio
from decimal import Decimal
from typing import Any

import pytest
from store_samples import accept, claim

from automagik.store import Store, Transaction
from automagik.store.queue import ClaimLimits, EndedRun
from automagik.types import RunOutcome, RunStatus, Usage, new_id

pytestmark = pytest.mark.anyio


async def accepted(store: Store, **changes: Any) -> str:
    """The id of a new run of the background."""
    return (await store.accept_run(accept(**changes))).run_id


async def test_a_process_that_only_answers_requests_keeps_no_run_to_its_host(store: Store) -> None:
    front = new_id("exec")
    await store.write(lambda tx: tx.executors.register(front, host="there", role="api", version="1"))
    bound = await accepted(store, host="there")
    assert await store.read(lambda tx: tx.executors.host_seen_at("there")) is None
    assert [run.row.run_id for run in await claim(store, host="here", lease=300.0)] == [bound]


async def test_a_run_that_is_to_be_stopped_is_claimed_by_its_host_within_no_limit(store: Store) -> None:
    async def stopped(owner: str = "me", count: int = 10) -> list[str]:
        claimed = await store.write(lambda tx: tx.queue.claim_stopped(owner, "here", count))
        return [run.row.run_id for run in claimed]

    def lose(tx: Transaction) -> None:
        tx.executors.register("exec_lost", host="here", role="worker", version="1")
        assert tx.executors.lose("exec_lost", seen=tx.executors.living()["exec_lost"], to="me")

    async def seen() -> bool:
        return (await store.read(lambda tx: tx.queue.look("here"))).has_stops

    async def claimed_ids(**how: Any) -> list[str]:
        return [run.row.run_id for run in await claim(store, **how)]

    runs = [await accepted(store, host=host) for host in ("here", "here", "here", "here", "there")]
    assert await stopped() == [] and not await seen()
    for run_id in runs[1:]:
        assert await store.write(lambda tx, run_id=run_id: tx.queue.request_cancel(run_id))
    assert await claimed_ids(limits=ClaimLimits(total=0)) == []
    await store.write(lose)
    assert await stopped("exec_lost") == []
    assert [await stopped(count=2), await seen()] == [runs[1:3], True]
    assert [await stopped(), await seen(), await stopped()] == [runs[3:4], False, []]
    assert await claimed_ids() == [runs[0], runs[4]], "of the other host nobody lives"


async def test_a_run_that_is_to_be_stopped_is_found_when_its_host_is_away(store: Store) -> None:
    here, other = new_id("exec"), new_id("exec")

    def register(tx: Transaction) -> None:
        tx.executors.register(here, host="there", role="worker", version="1")
        tx.executors.register(other, host="there", role="api", version="1")

    async def away(unseen_seconds: float) -> list[str]:
        return await store.read(lambda tx: tx.queue.cancelled_away(unseen_seconds))

    async def end(run_id: str) -> EndedRun | None:
        used = Usage(requests=2, input_tokens=7, cost_usd=Decimal("0.5"))
        return await store.write(
            lambda tx: tx.queue.end(
                run_id, RunOutcome.CANCELLED, None, statuses=(RunStatus.QUEUED,), unclaimed=True, usage=used
            )
        )

    await store.write(register)
    unasked, stopped, free = [
        await accepted(store, host="there"),
        await accepted(store, host="there"),
        await accepted(store),
    ]
    for run_id in (stopped, free):
        await store.write(lambda tx, run_id=run_id: tx.queue.request_cancel(run_id))
    assert await away(0.0) == [], "a worker that is not declared lost lives"
    await store.write(lambda tx: tx.executors.retire(here))
    assert await away(60.0) == [], "it may come back"
    await asyncio.sleep(0.05)
    assert await away(0.01) == [stopped], "one that only answers requests stops nothing"

    assert sorted(run.row.run_id for run in await claim(store, host="there")) == sorted([unasked, stopped, free])
    assert await away(0.01) == []
    assert await end(stopped) is None, "somebody has it"
    await store.write(lambda tx: tx.queue.let_go(stopped, "me"))
    ended = await end(stopped)
    assert ended is not None
    assert (ended.row.status, ended.row.usage.requests, ended.row.usage.cost_usd) == ("cancelled", 2, Decimal("0.5"))
