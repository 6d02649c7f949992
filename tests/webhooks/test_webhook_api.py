"""Webhooks through the API: what is shown, what never is, and to whom."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal, cast

import httpx2
import pytest
from webhook_house import Receiver, answering, receiving, signatures_by

from automagik.api import create_api
from automagik.app import Platform
from automagik.testing.postgres import PostgresServer
from automagik.testing.stores import fresh_settings
from automagik.types import SYSTEM

pytestmark = pytest.mark.anyio


class Api:
    """A platform, its API, and a receiver."""

    def __init__(self, platform: Platform, receiver: Receiver, stack: AsyncExitStack) -> None:
        self.platform = platform
        self.receiver = receiver
        self._app = create_api(platform)
        self._stack = stack

    async def client(self, *scopes: str, **limits: Any) -> httpx2.AsyncClient:
        _, key = await self.platform.keys.create("a test", scopes, caller=SYSTEM, **limits)
        client = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=self._app),
            base_url="http://platform.test",
            timeout=30,
            headers={"x-api-key": key.get_secret_value()},
        )
        return await self._stack.enter_async_context(client)

    async def user(self) -> uuid.UUID:
        return (await self.platform.store.write(lambda tx: tx.users.create())).user_id


@pytest.fixture
async def api(
    dialect: Literal["sqlite", "postgresql"], tmp_path: Path, request: pytest.FixtureRequest, anyio_backend: str
) -> AsyncIterator[Api]:
    server = cast("PostgresServer", request.getfixturevalue("postgres_server")) if dialect == "postgresql" else None
    async with fresh_settings(dialect, tmp_path, server=server) as settings:
        wanted = settings.model_copy(
            update={"model": "demo", "shutdown_grace_seconds": 0.2, "outbound_allow": ["127.0.0.1"]}
        )
        async with Platform.open(wanted) as platform, receiving() as receiver, AsyncExitStack() as stack:
            yield Api(platform, receiver, stack)


async def settled(client: httpx2.AsyncClient, delivery_id: str) -> dict[str, Any]:
    async with asyncio.timeout(40):
        while True:
            delivery = (await client.get(f"/api/v1/deliveries/{delivery_id}")).json()
            if delivery["status"] != "pending":
                return delivery
            await asyncio.sleep(0.02)


async def test_a_run_that_ends_is_told_of_and_the_delivery_can_be_seen(api: Api) -> None:
    client = await api.client("admin")
    made = await client.post("/api/v1/webhooks", json={"url": api.receiver.url(), "names": ["simple"]})
    webhook = made.json()
    assert made.status_code == 201
    assert made.headers["location"] == f"/api/v1/webhooks/{webhook['webhook_id']}"
    assert webhook["events"] == ["run.completed", "run.failed", "run.cancelled"]

    ran = (await client.post("/api/v1/agent/simple/run", json={"message_content": "hello"})).json()
    await api.receiver.wait_for(1)

    (sent,) = api.receiver.got
    assert sent.headers["webhook-signature"] == signatures_by(webhook["secret"], sent)
    assert sent.document["data"]["run"] == (await client.get(f"/api/v1/runs/{ran['run_id']}")).json()
    delivery = await settled(client, sent.id)
    page = (await client.get(f"/api/v1/webhooks/{webhook['webhook_id']}/deliveries")).json()
    (listed,) = page["data"]
    assert {**listed, "attempts": delivery["attempts"]} == delivery
    assert (delivery["status"], delivery["run_id"], delivery["attempt_count"]) == ("delivered", ran["run_id"], 1)
    (attempt,) = delivery["attempts"]
    assert (attempt["attempt"], attempt["status_code"], attempt["error"]) == (1, 200, None)
    again = await client.post(f"/api/v1/deliveries/{sent.id}/redeliver")
    assert again.status_code == 202
    await api.receiver.wait_for(2)
    assert api.receiver.got[1].body == sent.body
    for status, count in (("failed", 0), ("pending", None), ("delivered", None)):
        found = await client.get(
            f"/api/v1/webhooks/{webhook['webhook_id']}/deliveries", params={"status": status, "limit": 1}
        )
        assert found.status_code == 200
        assert count is None or len(found.json()["data"]) == count


async def test_the_secret_is_shown_once_and_stands_nowhere_readable(
    api: Api, capfd: pytest.CaptureFixture[str]
) -> None:
    client = await api.client("admin")
    made = (await client.post("/api/v1/webhooks", json={"url": api.receiver.url("/?token=in-the-url")})).json()
    path = f"/api/v1/webhooks/{made['webhook_id']}"
    rotated = (await client.post(f"{path}/rotate-secret")).json()
    assert rotated["secret"] != made["secret"]
    secrets = [made["secret"], rotated["secret"], made["secret"].removeprefix("whsec_")]
    api.receiver.answers = [answering(500)]
    ping = await client.post(f"{path}/test")
    assert ping.status_code == 202
    assert ping.headers["location"] == f"/api/v1/deliveries/{ping.json()['delivery_id']}"
    await settled(client, ping.json()["delivery_id"])
    shown = [
        (await client.get(path)).text,
        (await client.get("/api/v1/webhooks")).text,
        (await client.patch(path, json={"description": "mine"})).text,
        (await client.get(f"{path}/deliveries")).text,
        (await client.get(f"/api/v1/deliveries/{ping.json()['delivery_id']}")).text,
        (await client.get("/api/v1/audit")).text,
        "".join(capfd.readouterr()),
    ]
    for text in shown:
        assert "whsec_" not in text
        assert not any(secret in text for secret in secrets)
    assert not any("in-the-url" in text for text in shown[-2:])
    stored = await api.platform.store.read(lambda tx: [row.token for row in tx.secrets.all()])
    assert len(stored) == 2
    assert not any(secret.encode() in token for secret in secrets for token in stored)
    actions = [row["action"] for row in (await client.get("/api/v1/audit")).json()["data"]]
    assert actions[:4] == ["webhook.update", "webhook.test", "webhook.rotate_secret", "webhook.create"]


async def test_a_key_that_is_bound_to_a_user_sees_and_makes_only_webhooks_for_that_user(api: Api) -> None:
    admin = await api.client("admin")
    user, other = await api.user(), await api.user()
    bound = await api.client("webhooks:write", "runs:read", "agents:*:run", user_id=user)
    for_all = (await admin.post("/api/v1/webhooks", json={"url": api.receiver.url("/all")})).json()
    for_other = (
        await admin.post("/api/v1/webhooks", json={"url": api.receiver.url("/other"), "user_id": str(other)})
    ).json()
    mine = (await bound.post("/api/v1/webhooks", json={"url": api.receiver.url("/mine")})).json()
    assert mine["user_id"] == str(user)
    refused = await bound.post("/api/v1/webhooks", json={"url": api.receiver.url(), "user_id": str(other)})
    assert (refused.status_code, refused.json()["code"]) == (404, "user_not_found")
    assert [row["webhook_id"] for row in (await bound.get("/api/v1/webhooks")).json()["data"]] == [mine["webhook_id"]]
    assert (await bound.get("/api/v1/webhooks", params={"user_id": str(other)})).json()["data"] == []
    assert len((await admin.get("/api/v1/webhooks", params={"user_id": str(other)})).json()["data"]) == 1

    ping = (await admin.post(f"/api/v1/webhooks/{for_all['webhook_id']}/test")).json()
    for webhook in (for_all, for_other):
        path = f"/api/v1/webhooks/{webhook['webhook_id']}"
        answers = [
            await bound.get(path),
            await bound.patch(path, json={"active": False}),
            await bound.delete(path),
            await bound.post(f"{path}/rotate-secret"),
            await bound.post(f"{path}/test"),
            await bound.get(f"{path}/deliveries"),
        ]
        assert {answer.status_code for answer in answers} == {404}
    for answer in (
        await bound.get(f"/api/v1/deliveries/{ping['delivery_id']}"),
        await bound.post(f"/api/v1/deliveries/{ping['delivery_id']}/redeliver"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "delivery_not_found")

    await settled(admin, ping["delivery_id"])
    await admin.post("/api/v1/agent/simple/run", json={"message_content": "nobody's"})
    await bound.post("/api/v1/agent/simple/run", json={"message_content": "the user's"})
    await api.receiver.wait_for(4)
    await asyncio.sleep(0.2)
    assert sorted(sent.path for sent in api.receiver.got) == ["/all", "/all", "/all", "/mine"]


async def test_a_key_needs_the_scopes_that_a_webhook_is_worth(api: Api) -> None:
    admin, reader = await api.client("admin"), await api.client("webhooks:read")
    webhook = (await admin.post("/api/v1/webhooks", json={"url": api.receiver.url()})).json()
    path = f"/api/v1/webhooks/{webhook['webhook_id']}"
    assert (await reader.get(path)).status_code == 200
    for answer in (
        await reader.post("/api/v1/webhooks", json={"url": api.receiver.url()}),
        await reader.patch(path, json={"active": False}),
        await reader.delete(path),
        await reader.post(f"{path}/test"),
        await reader.post(f"{path}/rotate-secret"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "missing_scope")
    blind = await api.client("webhooks:write")  # it could have runs sent to itself that it may not read
    for answer in (
        await blind.post("/api/v1/webhooks", json={"url": api.receiver.url()}),
        await blind.patch(path, json={"url": api.receiver.url("/b")}),
    ):
        assert answer.status_code == 403
        assert "runs:read" in answer.json()["detail"]
    assert (await (await api.client("runs:read")).get("/api/v1/webhooks")).status_code == 403


async def test_a_stale_edit_is_refused_and_a_deleted_webhook_is_gone_with_its_secret(api: Api) -> None:
    client = await api.client("admin")
    made = await client.post("/api/v1/webhooks", json={"url": api.receiver.url()})
    path, tag = made.headers["location"], made.headers["etag"]
    changed = await client.patch(path, json={"events": ["run.failed"], "names": []}, headers={"if-match": tag})
    assert (changed.status_code, changed.json()["events"]) == (200, ["run.failed"])
    assert changed.headers["etag"] == (await client.get(path)).headers["etag"] != tag
    for stale in (
        await client.patch(path, json={"active": False}, headers={"if-match": tag}),
        await client.delete(path, headers={"if-match": tag}),
    ):
        assert stale.status_code == 412
    assert (await client.delete(path, headers={"if-match": changed.headers["etag"]})).status_code == 204
    assert (await client.get(path)).status_code == 404
    assert await api.platform.secrets.names() == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "url"),
        ({"url": ""}, "url"),
        ({"url": "http://10.0.0.1/"}, "url"),
        ({"url": "HERE", "events": ["run.complete"]}, "events"),
        ({"url": "HERE", "events": []}, "events"),
        ({"url": "HERE", "names": "simple"}, "names"),
        ({"url": "HERE", "secret": "mine"}, "secret"),
        ({"url": "HERE", "user_id": "me"}, "user_id"),
    ],
)
async def test_what_can_not_be_is_refused_with_its_field(api: Api, body: dict[str, Any], field: str) -> None:
    client = await api.client("admin")
    text = json.dumps(body).replace("HERE", api.receiver.url())
    answer = await client.post("/api/v1/webhooks", content=text, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"][:2] == ["body", field]
    assert (await client.get("/api/v1/webhooks")).json()["data"] == []


async def test_a_webhook_of_nobody_known_is_refused(api: Api) -> None:
    client = await api.client("admin")
    body = {"url": api.receiver.url(), "user_id": str(uuid.uuid4())}
    answer = await client.post("/api/v1/webhooks", json=body)
    assert (answer.status_code, answer.json()["code"]) == (404, "user_not_found")
    assert await api.platform.secrets.names() == []
