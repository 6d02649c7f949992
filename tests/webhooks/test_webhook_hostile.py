"""Webhooks under clocks that differ, keys that are revoked, and deletions in the midst of a delivery."""

import asyncio
from datetime import timedelta

import pytest
from webhook_house import Sent, TurnedClock, WebhookHouse, answering

from automagik.errors import Conflict
from automagik.runs.document import run_document
from automagik.security import KeyRing
from automagik.store import Store
from automagik.telemetry import Metrics
from automagik.types import SYSTEM, Caller
from automagik.webhooks import WebhookSender

pytestmark = pytest.mark.anyio


async def key_of(house: WebhookHouse) -> tuple[KeyRing, Caller]:
    keys = KeyRing(house.store, house.clock)
    row, _ = await keys.create("a test", ["webhooks:write", "runs:read"], caller=SYSTEM)
    return keys, await keys.caller_of(row.key_id)


@pytest.mark.parametrize("dialect", ["postgresql"])  # one host owns an SQLite database
@pytest.mark.parametrize("minutes", [-10, 10])
async def test_a_host_whose_clock_is_wrong_does_not_repeat_what_another_is_sending(
    house: WebhookHouse, minutes: int
) -> None:
    gate = asyncio.Event()

    async def late(sent: Sent, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await answering(200)(sent, writer)

    house.receiver.answers = [late]
    webhook = await house.create()
    await house.end_run()
    wrong = TurnedClock()
    wrong.turn(minutes=minutes)
    store = Store.from_settings(house.settings, wrong)
    await store.open()
    try:
        other = WebhookSender(store, house.outbound, house.secrets, clock=wrong, render=run_document)
        assert await house.sender.start_due() == 1
        await house.receiver.wait_for(1)
        assert await other.start_due() == 0
        running = asyncio.create_task(other.run())
        await asyncio.sleep(0.3)
        gate.set()
        await house.sender.settled()
        await other.close()
        await running
    finally:
        await store.close()
    assert len(house.receiver.got) == 1
    assert (await house.only_delivery(webhook)).status == "delivered"


async def test_a_webhook_that_is_paused_and_resumed_in_the_midst_of_an_attempt_sends_no_second_one(
    house: WebhookHouse,
) -> None:
    gate = asyncio.Event()

    async def late(sent: Sent, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await answering(200)(sent, writer)

    house.receiver.answers = [late]
    webhook = await house.create()
    await house.end_run()
    await house.sender.start_due()
    await house.receiver.wait_for(1)
    for active in (False, True):
        await house.webhooks.update(webhook.webhook_id, {"active": active}, caller=SYSTEM)
    assert await house.another_sender().start_due() == 0
    gate.set()
    await house.sender.settled()
    assert (len(house.receiver.got), (await house.only_delivery(webhook)).status) == (1, "delivered")


async def test_nothing_is_sent_in_the_name_of_a_key_that_was_revoked_until_somebody_takes_it_over(
    house: WebhookHouse,
) -> None:
    keys, leaked = await key_of(house)
    assert leaked.key_id is not None
    webhook = await house.create(caller=leaked)
    await house.end_run()
    await keys.revoke(leaked.key_id, SYSTEM)
    await house.deliver()
    row = await house.only_delivery(webhook)
    assert (row.status, house.receiver.got) == ("pending", [])
    assert "was revoked" in ((await house.attempts(row.delivery_id))[0].error or "")

    _, valid = await key_of(house)
    paused = await house.webhooks.update(webhook.webhook_id, {"active": False}, caller=valid)
    assert paused.key_id == leaked.key_id, "who only switches it off does not answer for it"
    taken_over = await house.webhooks.update(webhook.webhook_id, {"active": True}, caller=valid)
    assert taken_over.key_id == valid.key_id
    await house.deliver()
    assert ((await house.only_delivery(webhook)).status, len(house.receiver.got)) == ("delivered", 1)


async def test_nothing_is_sent_in_the_name_of_a_key_that_has_expired(house: WebhookHouse) -> None:
    keys = KeyRing(house.store, house.clock)
    expires_at = house.clock.now() + timedelta(hours=1)
    key, _ = await keys.create("short", ["webhooks:write", "runs:read"], caller=SYSTEM, expires_at=expires_at)
    webhook = await house.create(caller=await keys.caller_of(key.key_id))
    await house.end_run()
    await house.deliver()
    house.clock.turn(hours=2)
    await house.end_run()
    await house.deliver()
    assert len(house.receiver.got) == 1
    newest = (await house.deliveries(webhook))[0]
    assert "has expired" in ((await house.attempts(newest.delivery_id))[0].error or "")


@pytest.mark.parametrize("status", [200, 410, 500])
async def test_a_webhook_that_is_deleted_in_the_midst_of_an_attempt_leaves_nothing(
    house: WebhookHouse, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = asyncio.Event()

    async def late(sent: Sent, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await answering(status)(sent, writer)

    house.receiver.answers = [late]
    webhook = await house.create()
    await house.end_run()
    await house.sender.start_due()
    await house.receiver.wait_for(1)
    await house.webhooks.delete(webhook.webhook_id, caller=SYSTEM)
    gate.set()
    await house.sender.settled()
    said = capsys.readouterr()
    assert "delivery_attempt_lost" not in said.out + said.err
    assert await house.sender.start_due() == 0
    assert await house.secrets.names() == []


async def test_one_user_has_no_more_webhooks_than_the_end_of_a_run_can_bear(house: WebhookHouse) -> None:
    user, other = [(await house.store.write(lambda tx: tx.users.create())).user_id for _ in range(2)]
    for _ in range(100):
        await house.create(user_id=user)
    with pytest.raises(Conflict, match="100 webhooks"):
        await house.create(user_id=user)
    await house.create(user_id=other)
    await house.create()


async def test_attempts_are_counted(house: WebhookHouse) -> None:
    metrics = Metrics()
    sender = WebhookSender(
        house.store, house.outbound, house.secrets, clock=house.clock, render=run_document, observer=metrics
    )
    await house.create()
    await house.create("http://127.0.0.1:1/")
    house.receiver.answers = [answering(500), answering(200), answering(410)]
    for _ in range(3):
        await house.end_run()
        await sender.start_due()
        await sender.settled()
    text = metrics.render().decode()
    assert 'automagik_webhook_attempts_total{result="delivered"} 1.0' in text
    assert 'automagik_webhook_attempts_total{result="refused"} 2.0' in text
    assert 'automagik_webhook_attempts_total{result="unanswered"} 3.0' in text
    assert "automagik_webhook_deliveries_failed_total 1.0" in text
    assert "automagik_webhook_attempt_seconds_count 6.0" in text
