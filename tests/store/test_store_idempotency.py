"""Idempotency keys: one run for each, whoever gets it at once; a key that is kept stands for a run that is stored."""

import asyncio
import uuid
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from store_pairs import Pair
from store_samples import accept, begin

from automagik.errors import Conflict, NotFound
from automagik.store import Idempotency, Store
from automagik.types import SystemClock, new_uuid

pytestmark = pytest.mark.anyio


def keyed(key: str = "k", **changes: Any) -> dict[str, Any]:
    return {"idempotency": Idempotency("key_1", key, b"hash"), **changes}


async def test_a_key_that_two_processes_get_at_once_makes_one_run(pair: Pair) -> None:
    session_id = uuid.uuid4()
    works: list[Any] = [
        store.accept_run(accept(**keyed(session_id=session_id)))
        if place % 2
        else store.begin_run(begin(**keyed(session_id=session_id)))
        for place, store in enumerate([pair.one, pair.one, pair.two, pair.two] * 5)
    ]
    results = await asyncio.gather(*works, return_exceptions=True)
    refused = [result for result in results if isinstance(result, Conflict)]
    (stored,) = [result for result in results if not isinstance(result, BaseException)]
    assert len(refused) == 19
    assert {error.code for error in refused} == {"idempotency_key_used"}
    runs = await pair.one.read(lambda tx: tx.runs.list())
    assert [row.run_id for row in runs.data] == [stored.run_id]
    assert await pair.one.read(lambda tx: tx.queue.idempotent("key_1", "k")) == (stored.run_id, b"hash")
    counts = text("SELECT turns, open_runs FROM sessions")
    assert await pair.one.read(lambda tx: [tuple(row) for row in tx.connection.execute(counts)]) == [(1, 1)]


async def test_runs_beside_one_whose_key_is_taken_are_stored(store: Store) -> None:
    await store.begin_run(begin(**keyed()))
    asked = [begin(session_id=new_uuid(), **(keyed() if place == 7 else keyed(f"{place}"))) for place in range(20)]
    results = await asyncio.gather(*(store.begin_run(run) for run in asked), return_exceptions=True)
    assert [place for place, result in enumerate(results) if isinstance(result, Conflict)] == [7]
    assert await store.read(lambda tx: tx.runs.find(asked[7].run_id)) is None
    assert await store.read(lambda tx: tx.sessions.find(asked[7].session_id or uuid.UUID(int=0))) is None
    for place in (6, 8):
        known = await store.read(lambda tx, key=f"{place}": tx.queue.idempotent("key_1", key))
        assert known == (asked[place].run_id, b"hash")


async def test_a_key_is_not_kept_where_its_run_is_not(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.begin_run(begin(**keyed(session_id=uuid.uuid4(), create_session=False)))
    assert await store.read(lambda tx: tx.queue.idempotent("key_1", "k")) is None
    await store.begin_run(begin(**keyed()))
    other = {"idempotency": Idempotency("key_2", "k", b"hash")}
    await store.begin_run(begin(**other))
    assert len((await store.read(lambda tx: tx.runs.list())).data) == 2, "a key is of one caller"


async def test_old_keys_are_forgotten(store: Store) -> None:
    await store.begin_run(begin(**keyed("old", created_at=SystemClock().now() - timedelta(days=2))))
    await store.begin_run(begin(**keyed("new")))
    assert await store.write(lambda tx: tx.queue.forget_keys(SystemClock().now() - timedelta(days=1))) == 1
    found = await store.read(lambda tx: [tx.queue.idempotent("key_1", key) is not None for key in ("old", "new")])
    assert found == [False, True]
