"""A claimed run goes on with its own events, whatever others have."""

import pytest
from store_samples import accept, begin, event

from automagik.store import Store
from automagik.store.queue import ClaimLimits

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("limits", [ClaimLimits(), ClaimLimits(total=5)], ids=["free", "limited"])
async def test_the_last_event_of_a_claimed_run_is_its_own(store: Store, limits: ClaimLimits) -> None:
    busy = await store.begin_run(begin())
    assert await store.append_events(busy.run_id, "me", [event(number) for number in range(2, 9)])
    accepted = await store.accept_run(accept())
    [claimed] = await store.write(lambda tx: tx.queue.claim("me", "here", 9, limits=limits, host_lease_seconds=60))
    assert (claimed.row.run_id, claimed.last_seq) == (accepted.run_id, 1)
