"""Webhooks over a real store, with a real receiver on loopback and a clock that a test turns."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from automagik.outbound import Outbound, Resolve
from automagik.runs.document import run_document
from automagik.security.secrets import SecretStore
from automagik.settings import Settings
from automagik.store import BeginRun, FinishRun, Store
from automagik.store.rows import AttemptRow, DeliveryRow, WebhookRow
from automagik.store.webhooks import LEASE
from automagik.types import SYSTEM, Caller, new_id
from automagik.webhooks import Webhooks, WebhookSender

__all__ = [
    "Receiver",
    "Sent",
    "TurnedClock",
    "WebhookHouse",
    "answering",
    "open_webhook_house",
    "receiving",
    "signatures_by",
]

Answer = Callable[["Sent", asyncio.StreamWriter], Awaitable[None]]


class TurnedClock:
    """A clock that stands still until a test turns it, or lets it go on with `flow`."""

    def __init__(self) -> None:
        self._at = datetime.now(UTC)
        self._since: float | None = None

    def now(self) -> datetime:
        return self._at + timedelta(seconds=time.monotonic() - self._since if self._since is not None else 0)

    def monotonic(self) -> float:
        return self.now().timestamp()

    def turn(self, **by: float) -> None:
        self._at += timedelta(**by)

    def flow(self) -> None:
        self._since = time.monotonic()


@dataclass(frozen=True)
class Sent:
    """What a receiver got."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: datetime

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def document(self) -> Any:
        return json.loads(self.body)


def answering(status: int, *headers: str) -> Answer:
    async def answer(sent: Sent, writer: asyncio.StreamWriter) -> None:
        lines = "".join(f"{line}\r\n" for line in headers)
        writer.write(f"HTTP/1.1 {status} Whatever\r\n{lines}content-length: 0\r\n\r\n".encode())

    return answer


@dataclass
class Receiver:
    """A server on loopback that answers as a test says: the next of `answers`, and the last for ever."""

    port: int
    answers: list[Answer] = field(default_factory=lambda: [answering(200)])
    got: list[Sent] = field(default_factory=list[Sent])
    open_requests: int = 0
    most_at_once: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def wait_for(self, count: int) -> None:
        """Return when so many requests have come."""
        async with asyncio.timeout(20):
            while len(self.got) < count:
                self.arrived.clear()
                await self.arrived.wait()


@asynccontextmanager
async def receiving() -> AsyncGenerator[Receiver]:
    receiver = Receiver(0)
    serving: set[asyncio.Task[Any]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            start, *lines = head.split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            sent = Sent(start.split(" ")[1], headers, body, datetime.now(UTC))
            receiver.got.append(sent)
            receiver.open_requests += 1
            receiver.most_at_once = max(receiver.most_at_once, receiver.open_requests)
            receiver.arrived.set()
            answer = receiver.answers[0] if len(receiver.answers) == 1 else receiver.answers.pop(0)
            try:
                await answer(sent, writer)
                await writer.drain()
            finally:
                receiver.open_requests -= 1
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            serving.discard(task)
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        receiver.port = server.sockets[0].getsockname()[1]
        yield receiver
        for task in list(serving):
            task.cancel()
        if serving:
            await asyncio.wait(list(serving))


@dataclass
class WebhookHouse:
    """The parts that a platform has, and a receiver."""

    settings: Settings
    clock: TurnedClock
    store: Store
    secrets: SecretStore
    outbound: Outbound
    webhooks: Webhooks
    sender: WebhookSender
    receiver: Receiver

    def another_sender(self, *, outbound: Outbound | None = None, lease: timedelta = LEASE) -> WebhookSender:
        parts = self.store, outbound or self.outbound, self.secrets
        return WebhookSender(*parts, clock=self.clock, render=run_document, lease=lease)

    async def create(self, url: str | None = None, caller: Caller = SYSTEM, **given: Any) -> WebhookRow:
        row, _ = await self.webhooks.create(url or self.receiver.url(), caller=caller, **given)
        return row

    async def end_run(
        self, status: str = "completed", *, name: str = "simple", user_id: uuid.UUID | None = None, **changes: Any
    ) -> str:
        """A run that began and ended."""
        run_id = new_id("run")
        now = self.clock.now()
        await self.store.begin_run(
            BeginRun(run_id=run_id, kind="agent", name=name, created_at=now, user_id=user_id, owner="me")
        )
        outcome = {"failed": "model_error"}.get(status, status)
        finish = FinishRun(
            run_id=run_id,
            owner="me",
            status=status,
            outcome=outcome,
            finished_at=now,
            output_json='{"message":"hi"}',
            **changes,
        )
        assert await self.store.finish_run(finish)
        return run_id

    async def deliver(self) -> int:
        """Send what is due and wait for the answers; how many there were."""
        started = await self.sender.start_due()
        await self.sender.settled()
        return started

    async def deliveries(self, webhook: WebhookRow) -> Sequence[DeliveryRow]:
        return (await self.webhooks.deliveries(webhook.webhook_id, SYSTEM)).data

    async def only_delivery(self, webhook: WebhookRow) -> DeliveryRow:
        (row,) = await self.deliveries(webhook)
        return row

    async def attempts(self, delivery_id: str) -> Sequence[AttemptRow]:
        return (await self.webhooks.delivery(delivery_id, SYSTEM)).attempts


@asynccontextmanager
async def open_webhook_house(settings: Settings, *, resolve: Resolve | None = None) -> AsyncGenerator[WebhookHouse]:
    settings = settings.model_copy(update={"outbound_allow": ["127.0.0.1", "localhost"]})
    clock = TurnedClock()
    store = Store.from_settings(settings, clock)
    await store.open()
    try:
        secrets = SecretStore(store, settings)
        await secrets.open()
        async with Outbound(settings, resolve=resolve) as outbound, receiving() as receiver:
            sender = WebhookSender(store, outbound, secrets, clock=clock, render=run_document)
            webhooks = Webhooks(store, secrets, outbound)
            yield WebhookHouse(settings, clock, store, secrets, outbound, webhooks, sender, receiver)
            await sender.close()
    finally:
        await store.close()


def signatures_by(secret: str, sent: Sent) -> str:
    """The signature that the specification asks for, by its words and not by our code."""
    key = base64.b64decode(secret.split("_", 1)[1])
    content = f"{sent.headers['webhook-id']}.{sent.headers['webhook-timestamp']}.".encode() + sent.body
    return "v1," + base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
