"""Webhooks under clocks that differ, and changes in the midst of a delivery."""

import asyncio

import pytest
from webhook_house import Sent, TurnedClock, WebhookHouse, answering

from automagik.runs.document import run_document
from automagik.store import Store
from automagik.types import SYSTEM
from automagik.webhooks import WebhookSender

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("minutes", [-10, 10])
async def test_a_host_whose_clock_is_wrong_does_not_repeat_what_another_is_sending(
    house: WebhookHouse, minutes: int
) -> None:
    if house.store.dialect == "sqlite":
        pytest.skip("one host owns an SQLite database")
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
