"""What people say into a run: taken while somebody listens, refused from then on."""

import json

import pytest

from automagik.errors import Conflict
from automagik.store import BeginRun, Store
from automagik.store.queue import ClaimLimits
from automagik.types import SystemClock, new_id, new_uuid

pytestmark = pytest.mark.anyio

OWNER = "a-worker"


async def a_run(store: Store) -> str:
    """A workflow's run that waits."""
    run_id = new_id("run")
    begin = BeginRun(
        run_id=run_id,
        kind="workflow",
        name="plain",
        created_at=SystemClock().now(),
        background=True,
        input_json=json.dumps({"work": {}}),
    )
    await store.accept_run(begin)
    return run_id


async def test_no_message_is_taken_once_nobody_is_heard_and_an_interrupt_until_the_cli_has_ended(store: Store) -> None:
    run_id = await a_run(store)
    assert await store.write(lambda tx: tx.words.say(run_id, "message", "Before it begins", key_id=None))
    await store.write(lambda tx: tx.queue.claim(OWNER, "one", 1, limits=ClaimLimits(), host_lease_seconds=300))
    await store.write(
        lambda tx: tx.executions.begin(
            run_id, OWNER, executor="local", host="one", cli_session_id=new_uuid(), token_hash=b"x" * 32
        )
    )
    await store.write(lambda tx: tx.executions.update(run_id, OWNER, stage="running"))

    assert not await store.write(lambda tx: tx.executions.close(run_id, OWNER)), "somebody's words wait"
    [word] = await store.read(lambda tx: tx.words.waiting(run_id))
    assert await store.write(lambda tx: tx.words.take(word.id))
    assert await store.write(lambda tx: tx.executions.close(run_id, OWNER))
    assert await store.write(lambda tx: tx.executions.close(run_id, OWNER)), "it stays closed"

    assert not await store.write(lambda tx: tx.words.say(run_id, "message", "Too late", key_id=None))
    assert await store.write(lambda tx: tx.words.say(run_id, "interrupt", "", key_id=None))
    await store.write(lambda tx: tx.executions.update(run_id, OWNER, stage="collecting"))
    assert not await store.write(lambda tx: tx.words.say(run_id, "interrupt", "", key_id=None))


async def test_so_much_waits_for_a_run_that_reads_nothing_and_no_more(store: Store) -> None:
    run_id = await a_run(store)
    for number in range(100):
        assert await store.write(lambda tx, said=str(number): tx.words.say(run_id, "message", said, key_id=None))
    with pytest.raises(Conflict) as refused:
        await store.write(lambda tx: tx.words.say(run_id, "message", "One more", key_id=None))
    assert refused.value.code == "words_waiting"
    first, *_ = waiting = await store.read(lambda tx: tx.words.waiting(run_id))
    assert len(waiting) == 100
    await store.write(lambda tx: tx.words.take(first.id))
    assert await store.write(lambda tx: tx.words.say(run_id, "message", "One more", key_id=None))
