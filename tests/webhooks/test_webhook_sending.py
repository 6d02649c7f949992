"""What a receiver gets, when it is tried again, and what is written down."""

import asyncio
import itertools
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from webhook_house import Sent, WebhookHouse, answering, signatures_by

from automagik.errors import Conflict
from automagik.runs.document import run_document
from automagik.store import BeginRun
from automagik.store.delivery_sql import queue_deliveries
from automagik.types import SYSTEM, RunOutcome, RunStatus, new_id
from automagik.webhooks import RETRY_DELAYS

pytestmark = pytest.mark.anyio


async def hang(sent: Sent, writer: asyncio.StreamWriter) -> None:
    del sent
    await asyncio.sleep(30)
    writer.close()


async def test_a_receiver_gets_the_run_with_a_signature_that_its_secret_verifies(house: WebhookHouse) -> None:
    webhook, secret = await house.webhooks.create(house.receiver.url("/a?b=c"), caller=SYSTEM)
    run_id = await house.end_run()

    assert await house.deliver() == 1

    (sent,) = house.receiver.got
    run = await house.store.read(lambda tx: tx.runs.get(run_id))
    delivery = await house.only_delivery(webhook)
    assert sent.path == "/a?b=c"
    assert sent.headers["content-type"] == "application/json"
    assert sent.headers["user-agent"] == "automagik-agents"
    assert sent.headers["webhook-signature"] == signatures_by(secret.get_secret_value(), sent)
    assert abs(int(sent.headers["webhook-timestamp"]) - house.clock.now().timestamp()) < 5
    assert sent.id == delivery.delivery_id
    assert sent.id == f"dlv_{run_id.removeprefix('run_')}_{webhook.webhook_id.removeprefix('whk_')}"
    assert list(sent.document) == ["id", "type", "created_at", "data"]
    assert sent.document["id"] == sent.id
    assert sent.document["type"] == "run.completed"
    assert sent.document["data"] == {"run": run_document(run)}
    assert sent.document["data"]["run"]["output"] == {"message": "hi"}
    assert (delivery.status, delivery.attempts, delivery.next_at) == ("delivered", 1, None)
    assert delivery.delivered_at is not None
    (attempt,) = await house.attempts(delivery.delivery_id)
    assert (attempt.attempt, attempt.status_code, attempt.error) == (1, 200, None)
    assert await house.deliver() == 0


async def test_a_webhook_is_told_only_of_its_events_agents_and_user(house: WebhookHouse) -> None:
    user, other = [(await house.store.write(lambda tx: tx.users.create())).user_id for _ in range(2)]
    hooks = {
        "all": await house.create(),
        "failed": await house.create(events=["run.failed"]),
        "ended badly": await house.create(events=["run.failed", "run.cancelled"]),
        "named": await house.create(names=["tutor", "clerk"]),
        "one user's": await house.create(user_id=user),
    }
    runs = {
        await house.end_run("completed", name="tutor"): {"all", "named"},
        await house.end_run("failed"): {"all", "failed", "ended badly"},
        await house.end_run("cancelled", user_id=other): {"all", "ended badly"},
        await house.end_run("completed", user_id=user): {"all", "one user's"},
        await house.end_run("failed", name="clerk", user_id=user): {
            "all",
            "failed",
            "ended badly",
            "named",
            "one user's",
        },
    }
    for name, hook in hooks.items():
        told = {row.run_id for row in await house.deliveries(hook)}
        assert told == {run_id for run_id, expected in runs.items() if name in expected}, name


async def test_the_end_of_a_run_and_its_deliveries_are_one_however_often_it_is_asked_for(house: WebhookHouse) -> None:
    webhook = await house.create()
    run_id = await house.end_run()
    again = [await house.store.write(lambda tx: queue_deliveries(tx.connection, run_id)) for _ in range(2)]
    assert again == [0, 0]
    assert (await house.only_delivery(webhook)).run_id == run_id


async def test_a_run_that_was_ended_from_outside_is_told_of_too(house: WebhookHouse) -> None:
    webhook = await house.create()
    run_id = new_id("run")
    now = house.clock.now()
    await house.store.accept_run(BeginRun(run_id=run_id, kind="agent", name="simple", created_at=now, background=True))
    statuses = (RunStatus.QUEUED,)
    await house.store.write(lambda tx: tx.queue.end(run_id, RunOutcome.CANCELLED, None, statuses=statuses))
    await house.deliver()
    (sent,) = house.receiver.got
    assert (sent.document["type"], sent.document["data"]["run"]["run_id"]) == ("run.cancelled", run_id)
    assert (await house.only_delivery(webhook)).status == "delivered"


async def test_a_run_that_goes_on_is_not_told_of(house: WebhookHouse) -> None:
    webhook = await house.create()
    assert await house.store.write(lambda tx: queue_deliveries(tx.connection, "run_unknown")) == 0
    assert list(await house.deliveries(webhook)) == []


async def test_what_fails_is_tried_again_by_a_growing_plan_and_given_up_at_its_end(house: WebhookHouse) -> None:
    house.receiver.answers = [answering(500)]
    webhook = await house.create()
    await house.end_run()
    for number, delay in enumerate(RETRY_DELAYS, start=1):
        assert await house.deliver() == 1
        row = await house.only_delivery(webhook)
        assert (row.status, row.attempts) == ("pending", number)
        assert row.next_at is not None
        wait = (row.next_at - house.clock.now()).total_seconds()
        assert 0.75 * delay < wait < 1.25 * delay
        house.clock.turn(seconds=wait - 0.5)
        assert await house.deliver() == 0
        house.clock.turn(seconds=1)
    assert await house.deliver() == 1
    row = await house.only_delivery(webhook)
    assert (row.status, row.attempts, row.next_at) == ("failed", 8, None)
    attempts = await house.attempts(row.delivery_id)
    assert [(a.attempt, a.status_code, a.error) for a in attempts] == [(n, 500, None) for n in range(1, 9)]
    assert all(later.at > earlier.at for earlier, later in itertools.pairwise(attempts))
    assert len({sent.id for sent in house.receiver.got}) == 1
    assert len({sent.body for sent in house.receiver.got}) == 1
    assert len({sent.headers["webhook-timestamp"] for sent in house.receiver.got}) == 8
    house.clock.turn(days=30)
    assert await house.deliver() == 0


@pytest.mark.parametrize("status", [302, 400, 404, 429, 500, 503])
async def test_any_answer_but_success_is_tried_again(house: WebhookHouse, status: int) -> None:
    house.receiver.answers = [answering(status, f"location: {house.receiver.url('/elsewhere')}"), answering(204)]
    webhook = await house.create()
    await house.end_run()
    await house.deliver()
    assert (await house.only_delivery(webhook)).status == "pending"
    house.clock.turn(seconds=10)
    await house.deliver()
    row = await house.only_delivery(webhook)
    assert (row.status, row.attempts) == ("delivered", 2)
    assert [a.status_code for a in await house.attempts(row.delivery_id)] == [status, 204]
    assert [sent.path for sent in house.receiver.got] == ["/hook", "/hook"]


async def test_a_receiver_may_ask_to_wait_longer(house: WebhookHouse) -> None:
    house.receiver.answers = [answering(429, "retry-after: 3000")]
    webhook = await house.create()
    await house.end_run()
    await house.deliver()
    row = await house.only_delivery(webhook)
    assert row.next_at is not None
    assert abs(row.next_at - house.clock.now() - timedelta(seconds=3000)) < timedelta(seconds=5)


async def test_gone_switches_the_webhook_off_and_what_waits_is_sent_when_it_is_on_again(house: WebhookHouse) -> None:
    house.receiver.answers = [answering(500), answering(410), answering(200)]
    webhook = await house.create()
    first = await house.end_run()
    await house.deliver()
    second = await house.end_run()
    await house.deliver()

    rows = {row.run_id: row for row in await house.deliveries(webhook)}
    assert (await house.webhooks.get(webhook.webhook_id, SYSTEM)).active is False
    assert (rows[second].status, rows[second].next_at) == ("failed", None)
    assert (rows[first].status, rows[first].next_at) == ("pending", None)
    page = await house.store.read(lambda tx: tx.audit.list(action="webhook.disable"))
    assert [(row.target, row.key_id) for row in page.data] == [(webhook.webhook_id, None)]
    await house.end_run()  # while it is off, nothing is queued
    house.clock.turn(days=2)
    assert await house.deliver() == 0
    with pytest.raises(Conflict, match="not active"):
        await house.webhooks.redeliver(rows[second].delivery_id, caller=SYSTEM)

    await house.webhooks.update(webhook.webhook_id, {"active": True}, caller=SYSTEM)
    assert await house.deliver() == 1
    assert Counter(row.status for row in await house.deliveries(webhook)) == {"failed": 1, "delivered": 1}


async def test_a_delivery_that_failed_for_good_is_tried_once_more_when_a_person_asks(house: WebhookHouse) -> None:
    house.receiver.answers = [answering(500)]
    webhook = await house.create()
    await house.end_run()
    for _ in range(8):
        await house.deliver()
        house.clock.turn(days=2)
    row = await house.only_delivery(webhook)
    assert row.status == "failed"
    tracked = await house.webhooks.redeliver(row.delivery_id, caller=SYSTEM)
    assert (tracked.row.status, len(tracked.attempts)) == ("pending", 8)
    await house.deliver()
    assert (await house.only_delivery(webhook)).status == "failed"
    await house.webhooks.redeliver(row.delivery_id, caller=SYSTEM)
    house.receiver.answers = [answering(200)]
    await house.deliver()
    row = await house.only_delivery(webhook)
    assert (row.status, row.attempts) == ("delivered", 10)
    await house.webhooks.redeliver(row.delivery_id, caller=SYSTEM)
    await house.deliver()
    assert (await house.only_delivery(webhook)).attempts == 11
    assert len({sent.id for sent in house.receiver.got}) == 1


async def test_what_is_under_way_is_not_sent_a_second_time_at_once(house: WebhookHouse) -> None:
    house.receiver.answers = [hang]
    webhook = await house.create()
    await house.end_run()
    assert await house.sender.start_due() == 1
    await house.receiver.wait_for(1)
    row = await house.only_delivery(webhook)
    with pytest.raises(Conflict, match="under way"):
        await house.webhooks.redeliver(row.delivery_id, caller=SYSTEM)
    (attempt,) = await house.attempts(row.delivery_id)
    assert (attempt.status_code, attempt.error) == (None, None)
    assert await house.another_sender().start_due() == 0


async def test_a_stopped_sender_gives_back_what_was_not_answered(house: WebhookHouse) -> None:
    house.receiver.answers = [hang, answering(200)]
    webhook = await house.create()
    await house.end_run()
    await house.sender.start_due()
    await house.receiver.wait_for(1)
    await house.sender.close(0.1)
    row = await house.only_delivery(webhook)
    assert (row.status, row.attempts) == ("pending", 1)
    other = house.another_sender()
    assert await other.start_due() == 1
    await other.settled()
    row = await house.only_delivery(webhook)
    assert (row.status, row.attempts) == ("delivered", 2)
    first, second = await house.attempts(row.delivery_id)
    assert first.error == "The sender was stopped during the attempt."
    assert second.status_code == 200


async def test_a_loop_that_is_closed_while_it_claims_leaves_nothing_under_way(house: WebhookHouse) -> None:
    house.receiver.answers = [hang]
    webhook = await house.create()
    await house.end_run()
    for turns in range(40):
        sender = house.another_sender()
        running = asyncio.create_task(sender.run())
        for _ in range(turns):
            await asyncio.sleep(0.0005)
        await sender.close()
        await running
        attempts = await house.attempts((await house.only_delivery(webhook)).delivery_id)
        assert all(attempt.error is not None for attempt in attempts)
        assert sum(task.get_name().startswith("deliver") for task in asyncio.all_tasks()) == 0


async def test_a_secret_that_is_changed_signs_together_with_the_one_before_for_a_day(house: WebhookHouse) -> None:
    webhook, old = await house.webhooks.create(house.receiver.url(), caller=SYSTEM)
    _, new = await house.webhooks.rotate_secret(webhook.webhook_id, caller=SYSTEM)
    await house.end_run()
    await house.deliver()
    house.clock.turn(hours=25)
    await house.end_run()
    await house.deliver()
    during, after = house.receiver.got
    both = [signatures_by(secret.get_secret_value(), during) for secret in (new, old)]
    assert during.headers["webhook-signature"].split(" ") == both
    assert after.headers["webhook-signature"] == signatures_by(new.get_secret_value(), after)


async def test_a_ping_is_tried_once_and_tells_of_no_run(house: WebhookHouse) -> None:
    house.receiver.answers = [answering(500), answering(200)]
    webhook = await house.create()
    await house.webhooks.update(webhook.webhook_id, {"active": False}, caller=SYSTEM)
    for expected in ("failed", "delivered"):
        ping = await house.webhooks.ping(webhook.webhook_id, caller=SYSTEM)
        assert (ping.run_id, ping.event, ping.status) == (None, "ping", "pending")
        await house.deliver()
        tracked = await house.webhooks.delivery(ping.delivery_id, SYSTEM)
        assert (tracked.row.status, len(tracked.attempts)) == (expected, 1)
    assert [(sent.document["type"], sent.document["data"]) for sent in house.receiver.got] == [("ping", {})] * 2


async def test_a_slow_receiver_holds_only_its_own_back(house: WebhookHouse) -> None:
    async def by_path(sent: Sent, writer: asyncio.StreamWriter) -> None:
        await (hang if sent.path == "/slow" else answering(200))(sent, writer)

    house.receiver.answers = [by_path]
    slow_host = house.receiver.url("/slow").replace("127.0.0.1", "localhost")
    slow = [await house.create(slow_host) for _ in range(2)]
    for _ in range(10):
        await house.end_run()
    quick = await house.create()
    await house.end_run()
    await house.sender.start_due()
    async with asyncio.timeout(40):
        while (await house.only_delivery(quick)).status != "delivered" or house.receiver.open_requests < 4:
            await asyncio.sleep(0.02)
    assert house.receiver.open_requests == 4
    assert await house.sender.start_due() == 0
    waiting = [row for hook in slow for row in await house.deliveries(hook) if row.attempts == 0]
    assert len(waiting) == 22 - 4


async def test_a_run_that_was_deleted_can_not_be_told_of_and_that_is_said(house: WebhookHouse) -> None:
    webhook = await house.create()
    run_id = await house.end_run()
    await house.store.write(lambda tx: _delete_run(tx, run_id))
    await house.deliver()
    row = await house.only_delivery(webhook)
    assert (row.status, house.receiver.got) == ("failed", [])
    assert (await house.attempts(row.delivery_id))[0].error == "The run is not stored any more."


async def test_the_webhooks_of_a_user_who_is_deleted_are_switched_off(house: WebhookHouse) -> None:
    user = (await house.store.write(lambda tx: tx.users.create())).user_id
    webhook = await house.create(user_id=user)
    run_id = await house.end_run(user_id=user)
    await house.store.write(lambda tx: tx.users.delete(user))
    await house.deliver()
    row = await house.only_delivery(webhook)
    assert (row.run_id, row.status, row.next_at, house.receiver.got) == (run_id, "pending", None, [])
    assert (await house.attempts(row.delivery_id))[0].error == "The webhook is not active."
    await house.end_run(user_id=user)  # the same id again: somebody else, perhaps
    assert len(await house.deliveries(webhook)) == 1


async def test_text_that_no_encoding_carries_is_delivered_all_the_same(house: WebhookHouse) -> None:
    await house.create()
    await house.end_run(error_json='{"detail":"half a pair \\ud800, and \\u0000"}')
    await house.deliver()
    (sent,) = house.receiver.got
    assert sent.document["data"]["run"]["error"] == {"detail": "half a pair \ud800, and \x00"}


async def test_a_loop_is_woken_by_a_signal_and_ends_when_it_is_closed(house: WebhookHouse) -> None:
    house.clock.flow()
    webhook = await house.create()
    await house.store.signals.open()
    running = asyncio.create_task(house.sender.run())
    await asyncio.sleep(0.1)
    await house.webhooks.ping(webhook.webhook_id, caller=SYSTEM)
    await house.receiver.wait_for(1)
    house.receiver.answers = [answering(500), answering(200)]
    await house.end_run()
    await house.store.signals.send("delivery")
    await house.receiver.wait_for(2)
    async with asyncio.timeout(40):  # the second attempt comes after five seconds, without a signal
        while (await house.deliveries(webhook))[-1].status == "pending" or len(house.receiver.got) < 3:
            await asyncio.sleep(0.05)
    await house.sender.close()
    await running


def _delete_run(tx: Any, run_id: str) -> None:
    tx.connection.exec_driver_sql(f"DELETE FROM runs WHERE run_id = '{run_id}'")
