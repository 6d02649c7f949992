"""Senders that are killed, and senders that work at the same time, as processes of their own."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from webhook_house import Sent, WebhookHouse, answering, open_webhook_house

from automagik.errors import ServiceUnavailable
from automagik.store.rows import WebhookRow
from automagik.testing.postgres import PostgresServer
from automagik.testing.stores import fresh_settings

pytestmark = pytest.mark.anyio

PROGRAM = Path(__file__).with_name("sender_process.py")


@asynccontextmanager
async def sender_process(house: WebhookHouse) -> AsyncGenerator[asyncio.subprocess.Process]:
    settings = house.settings
    url = [settings.database_url.get_secret_value()] if settings.database_url is not None else []
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), str(settings.data_dir), *url, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            assert await process.stdout.readline() == b"ready\n"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_delivery_survives_a_sender_that_is_killed_in_its_midst(house: WebhookHouse) -> None:
    async def hang(sent: Sent, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    house.receiver.answers = [hang, answering(200)]
    webhook = await house.create()
    await house.end_run()
    async with sender_process(house) as process:
        await house.receiver.wait_for(1)
        process.kill()
        await process.wait()

    assert await house.deliver() == 0  # for a minute it is still the dead one's
    house.clock.turn(seconds=120)
    await asyncio.sleep(0.6)
    heir = house.another_sender(lease=timedelta(seconds=0.5))
    assert await heir.start_due() == 1
    await heir.settled()
    row = await house.only_delivery(webhook)
    assert (row.status, row.attempts) == ("delivered", 2)
    first, second = await house.attempts(row.delivery_id)
    assert (first.status_code, first.error) == (None, "The sender stopped before the attempt had ended.")
    assert (second.status_code, second.error) == (200, None)
    killed, repeated = house.receiver.got
    assert killed.id == repeated.id == row.delivery_id
    assert killed.body == repeated.body


async def test_senders_that_work_at_the_same_time_send_each_attempt_once(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    async with (
        fresh_settings("postgresql", tmp_path, server=postgres_server) as settings,
        open_webhook_house(settings) as house,
    ):
        await _send_from_two_processes(house)


async def _send_from_two_processes(house: WebhookHouse) -> None:
    async def slowly(sent: Sent, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.01)
        await answering(200)(sent, writer)

    house.receiver.answers = [slowly]
    webhooks = [await house.create() for _ in range(4)]
    async with sender_process(house), sender_process(house):
        runs = 30
        for _ in range(runs):
            await house.end_run()
        await house.store.signals.send("delivery")
        await house.receiver.wait_for(runs * len(webhooks))
        await asyncio.sleep(0.3)
    times = Counter(sent.id for sent in house.receiver.got)
    assert len(times) == runs * len(webhooks)
    assert set(times.values()) == {1}
    for webhook in webhooks:
        rows = await house.store.read(
            lambda tx, webhook_id=webhook.webhook_id: tx.webhooks.deliveries(webhook_id, limit=100)
        )
        assert {(row.status, row.attempts) for row in rows.data} == {("delivered", 1)}


async def test_two_senders_that_look_at_the_same_moment_share_what_is_due(house: WebhookHouse) -> None:
    await house.create()
    for _ in range(6):
        await house.end_run()
    senders = [house.sender, *(house.another_sender() for _ in range(3))]
    started = await asyncio.gather(*(sender.start_due() for sender in senders))
    for sender in senders:
        await sender.settled()
    assert sum(started) == 6
    assert Counter(Counter(sent.id for sent in house.receiver.got).values()) == {1: 6}


async def test_a_sender_goes_on_when_the_database_was_away(tmp_path: Path) -> None:
    with PostgresServer() as server:
        async with (
            fresh_settings("postgresql", tmp_path, server=server) as settings,
            open_webhook_house(settings) as house,
        ):
            house.clock.flow()
            gate = asyncio.Event()

            async def late(sent: Sent, writer: asyncio.StreamWriter) -> None:
                await gate.wait()
                await answering(200)(sent, writer)

            house.receiver.answers = [late]
            await house.store.signals.open()
            webhook = await house.create()
            running = asyncio.create_task(house.sender.run())
            await house.end_run()
            await house.receiver.wait_for(1)
            server.break_connections()
            gate.set()
            await _until_delivered(house, webhook, 1)
            server.break_connections()
            await _ended_again(house)
            await _until_delivered(house, webhook, 2)
            assert [sent.id for sent in house.receiver.got] == list(dict.fromkeys(s.id for s in house.receiver.got))
            await house.sender.close()
            await running


async def _ended_again(house: WebhookHouse) -> None:
    for _ in range(20):
        try:
            await house.end_run()
        except ServiceUnavailable:
            await asyncio.sleep(0.1)
        else:
            return


async def _until_delivered(house: WebhookHouse, webhook: WebhookRow, count: int) -> None:
    async with asyncio.timeout(40):
        while True:
            try:
                rows = await house.deliveries(webhook)
            except ServiceUnavailable:
                await asyncio.sleep(0.1)
                continue
            if [row.status for row in rows].count("delivered") == count:
                return
            await asyncio.sleep(0.05)
