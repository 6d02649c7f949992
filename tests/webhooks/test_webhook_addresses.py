"""Where webhooks go, and where they don't: the same rules as for media; and receivers that never end."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from webhook_house import Sent, WebhookHouse, answering, open_webhook_house

from automagik.errors import InvalidInput
from automagik.outbound import AddressRefused, FetchFailed, Outbound
from automagik.settings import Settings
from automagik.types import SYSTEM

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.2/hook",
        "http://10.1.2.3/hook",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/hook",
        "http://localhost.invalid/hook",
        "http://8.8.8.8:25/hook",
        "ftp://93.184.215.14/hook",
        "https://user:hidden@93.184.215.14/hook",
        "file:///etc/passwd",
        "no url",
        "http://127.0.0.1:99999/",
    ],
)
async def test_an_address_where_the_platform_does_not_go_is_refused_with_its_field(
    house: WebhookHouse, url: str
) -> None:
    with pytest.raises(FetchFailed) as refused:
        await house.create(url)
    assert isinstance(refused.value, InvalidInput)
    assert refused.value.field == ("body", "url")
    assert "hidden" not in str(refused.value)
    webhook = await house.create()
    with pytest.raises(FetchFailed):
        await house.webhooks.update(webhook.webhook_id, {"url": url}, caller=SYSTEM)
    assert (await house.webhooks.get(webhook.webhook_id, SYSTEM)).url == house.receiver.url()


async def test_a_name_that_later_leads_inside_is_refused_when_it_is_sent(tmp_path: Path) -> None:
    answers = [["93.184.215.14"], ["127.0.0.9"], ["93.184.215.14", "10.0.0.1"]]

    async def resolve(host: str, port: int) -> Sequence[str]:
        del host, port
        return answers.pop(0)

    async with open_webhook_house(Settings(data_dir=tmp_path), resolve=resolve) as house:
        webhook = await house.create("http://receiver.example/hook")
        await house.end_run()
        await house.deliver()
        house.clock.turn(seconds=10)
        await house.deliver()
        row = await house.only_delivery(webhook)
        assert (row.status, row.attempts) == ("pending", 2)
        for attempt in await house.attempts(row.delivery_id):
            assert attempt.status_code is None
            assert attempt.error == "The URL's host has no address that may be reached."
            assert "127.0.0.9" not in str(attempt)


async def test_a_redirect_is_not_followed(house: WebhookHouse) -> None:
    house.receiver.answers = [answering(307, "location: http://127.0.0.2/inside")]
    webhook = await house.create()
    await house.end_run()
    await house.deliver()
    row = await house.only_delivery(webhook)
    (attempt,) = await house.attempts(row.delivery_id)
    assert (row.status, attempt.status_code, len(house.receiver.got)) == ("pending", 307, 1)


async def test_an_answer_that_never_ends_counts_by_its_status_alone(house: WebhookHouse) -> None:
    written = 0

    async def endless(sent: Sent, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            await writer.drain()
            written += 0x10000

    house.receiver.answers = [endless]
    webhook = await house.create()
    await house.end_run()
    async with asyncio.timeout(20):
        await house.deliver()
    assert (await house.only_delivery(webhook)).status == "delivered"
    assert written < 50_000_000


async def test_a_receiver_that_is_slow_broken_or_away_is_an_attempt_that_failed(tmp_path: Path) -> None:
    async def trickling(sent: Sent, writer: asyncio.StreamWriter) -> None:
        for byte in b"HTTP/1.1 200 OK\r\n" * 100:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.05)

    async def babbling(sent: Sent, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 1_000_000)

    async def nonsense(sent: Sent, writer: asyncio.StreamWriter) -> None:
        writer.write(b"what?\r\n\r\n")

    async def hanging_up(sent: Sent, writer: asyncio.StreamWriter) -> None:
        writer.close()

    expected = {
        trickling: "did not answer",
        babbling: "can't be read",
        nonsense: "can't be read",
        hanging_up: "can't be read",
    }
    async with open_webhook_house(Settings(data_dir=tmp_path)) as house:
        for answer, error in expected.items():
            house.receiver.answers = [answer]
            with pytest.raises(FetchFailed, match=error):
                await house.outbound.post(
                    house.receiver.url(), b"{}", headers={}, timeout_seconds=0.5 if answer is trickling else 20
                )
        free = house.receiver.url().replace(str(house.receiver.port), "1")
        with pytest.raises(FetchFailed, match="can't be reached"):
            await house.outbound.post(free, b"{}", headers={}, timeout_seconds=20)


async def test_a_post_has_the_body_its_length_and_no_more_than_the_given_headers(house: WebhookHouse) -> None:
    house.receiver.answers = [answering(202, "retry-after: 7"), answering(200, "retry-after: soon")]
    body = b"x" * 300_000
    first, second = [
        await house.outbound.post(house.receiver.url(), body, headers={"x-mine": "1"}, timeout_seconds=5)
        for _ in range(2)
    ]
    assert (first.status_code, first.retry_after_seconds) == (202, 7)
    assert (second.status_code, second.retry_after_seconds) == (200, None)
    sent = house.receiver.got[0]
    assert sent.body == body
    assert set(sent.headers) == {"host", "user-agent", "content-length", "x-mine"}


async def test_a_post_inside_is_refused(tmp_path: Path) -> None:
    async with Outbound(Settings(data_dir=tmp_path)) as outbound:
        with pytest.raises(AddressRefused):
            await outbound.post("http://127.0.0.1/", b"", headers={}, timeout_seconds=5)
