"""How many background runs of a key may be under way at once, and of the keys that it makes."""

from collections.abc import AsyncIterator

import pytest

from automagik.errors import Forbidden, InvalidInput
from automagik.security import KeyRing
from automagik.store import BeginRun, Store
from automagik.store.queue import ClaimLimits
from automagik.types import SYSTEM, Caller, SystemClock, new_id

pytestmark = pytest.mark.anyio

SCOPES = ["keys:write", "agents:*:run"]


@pytest.fixture
async def keys(store: Store) -> AsyncIterator[KeyRing]:
    ring = KeyRing(store, SystemClock())
    yield ring
    await ring.close()


async def made(keys: KeyRing, by: Caller, runs: int | None = None) -> Caller:
    """A key with the limit, made by another, as a caller."""
    _, key = await keys.create("a key", SCOPES, caller=by, max_concurrent_runs=runs)
    return await keys.authenticate(key.get_secret_value())


async def limit_of(keys: KeyRing, caller: Caller) -> int | None:
    assert caller.key_id is not None
    return (await keys.get(caller.key_id, SYSTEM)).max_concurrent_runs


async def claimed(store: Store, *callers: Caller) -> list[str | None]:
    """Whose runs are taken first of one more run of each caller."""
    for caller in callers:
        await store.accept_run(
            BeginRun(new_id("run"), "agent", "echo", SystemClock().now(), key_id=caller.key_id, background=True)
        )

    has_limits = await store.read(lambda tx: tx.queue.look("here").has_key_limits)
    limits = ClaimLimits(has_key_limits=has_limits)
    runs = await store.write(lambda tx: tx.queue.claim("me", "here", 100, limits=limits, host_lease_seconds=60))
    return [run.row.key_id for run in runs]


async def test_a_key_that_is_made_takes_over_its_makers_limit_or_gets_a_smaller_one(keys: KeyRing) -> None:
    maker = await made(keys, SYSTEM, 5)
    assert await limit_of(keys, await made(keys, maker)) == 5
    assert await limit_of(keys, await made(keys, maker, 5)) == 5
    smaller = await made(keys, maker, 2)
    assert await limit_of(keys, smaller) == 2
    for by, runs in ((maker, 6), (smaller, 3)):
        with pytest.raises(Forbidden, match="background runs") as refused:
            await made(keys, by, runs)
        assert f"{runs - 1} or less" in str(refused.value.hint)
    free = await made(keys, SYSTEM)
    assert await limit_of(keys, await made(keys, free)) is None
    assert await limit_of(keys, await made(keys, free, 9)) == 9


@pytest.mark.parametrize("runs", [0, -1, 10**7])
async def test_a_limit_that_is_none_is_refused(keys: KeyRing, runs: int) -> None:
    with pytest.raises(InvalidInput) as refused:
        await made(keys, SYSTEM, runs)
    assert refused.value.field == ("body", "max_concurrent_runs")


async def test_the_runs_of_keys_that_a_limited_key_made_count_for_it(store: Store, keys: KeyRing) -> None:
    maker = await made(keys, SYSTEM, 3)
    children = [await made(keys, maker, 2) for _ in range(3)]
    grandchild = await made(keys, children[0])
    other = await made(keys, SYSTEM)
    taken = await claimed(store, grandchild, grandchild, grandchild, children[1], children[2], maker, other)
    assert taken == [grandchild.key_id, grandchild.key_id, children[1].key_id, other.key_id]
    assert await claimed(store, maker, children[2], other) == [other.key_id], "three are under way"


async def test_a_limited_key_that_is_revoked_bounds_those_it_made(store: Store, keys: KeyRing) -> None:
    maker = await made(keys, SYSTEM, 1)
    child, second = await made(keys, maker), await made(keys, maker)
    assert maker.key_id is not None
    await keys.revoke(maker.key_id, SYSTEM)
    assert await claimed(store, child, second) == [child.key_id]
