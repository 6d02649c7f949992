"""Streams below HTTP: what leaves together, what keeps a silent line open, what a client that leaves ends."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from api_house import ApiHouse, read_events

from automagik.api.sse import EventResponse, encode_events
from automagik.events import RunEvent
from automagik.types import SYSTEM

pytestmark = pytest.mark.anyio

AT = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)


class Line:
    """One request over raw ASGI, whose client takes what comes and may leave."""

    def __init__(
        self, house: ApiHouse, method: str, path: str, body: dict[str, Any] | None = None, **headers: str
    ) -> None:
        self.sent: list[bytes] = []
        self.status = 0
        self._body = orjson.dumps(body) if body is not None else b""
        self._asked = False
        self._left = asyncio.Event()
        key = house.admin.headers["x-api-key"]
        given = {"x-api-key": key, "content-type": "application/json"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        self._scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "state": {},
        }
        self.task = asyncio.get_running_loop().create_task(house.app(self._scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["body"]:
            self.sent.append(message["body"])

    @property
    def text(self) -> str:
        return b"".join(self.sent).decode()

    def leave(self) -> None:
        self._left.set()


async def until(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(40):
        while True:
            found = holds()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.01)


def test_events_that_come_together_leave_in_one_chunk() -> None:
    events = [
        RunEvent("run_1", 1, "run_started", AT, {}),
        RunEvent("run_1", None, "text_delta", AT, {"text": "line\nbreak “quoted”"}),
    ]
    chunk = encode_events(events)
    assert chunk.decode() == (
        'id: 1\nevent: run_started\ndata: {"run_id":"run_1","seq":1,"type":"run_started","at":"2026-11-24T09:30:00.000000Z","data":{}}\n\n'
        'event: text_delta\ndata: {"run_id":"run_1","seq":null,"type":"text_delta","at":"2026-11-24T09:30:00.000000Z",'
        '"data":{"text":"line\\nbreak “quoted”"}}\n\n'
    )


async def test_a_client_that_leaves_ends_the_reading_and_not_the_run(house: ApiHouse) -> None:
    line = Line(house, "POST", "/api/v1/agent/echo/run/stream", {"message_content": "sleep 3"})
    await until(lambda: "run_started" in line.text)
    run_id = read_events(line.text)[0].data["run_id"]
    line.leave()
    await asyncio.wait_for(line.task, 20)
    assert "run_finished" not in line.text
    assert house.platform.metrics.registry.get_sample_value("automagik_active_streams") == 0

    async def completed() -> bool:
        run = (await house.admin.get(f"/api/v1/runs/{run_id}")).json()
        return run["status"] == "completed"

    await until(completed)


async def test_a_watcher_that_leaves_ends_the_reading_only(house: ApiHouse) -> None:
    run_id = (await house.admin.post("/api/v1/agent/echo/run/async", json={"message_content": "sleep 20"})).json()[
        "run_id"
    ]
    line = Line(house, "GET", f"/api/v1/runs/{run_id}/events", accept="text/event-stream")
    await until(lambda: "run_started" in line.text)
    line.leave()
    await asyncio.wait_for(line.task, 20)
    assert (await house.admin.get(f"/api/v1/runs/{run_id}")).json()["status"] == "running"
    await house.admin.post(f"/api/v1/runs/{run_id}/cancel")


async def test_a_silent_line_is_kept_open() -> None:
    async def chunks() -> AsyncGenerator[bytes]:
        yield b"first"
        began = time.monotonic()
        while sent.count(keep_alive) < 4:
            await asyncio.sleep(0.01)
        assert time.monotonic() - began >= 0.15, "and no oftener than was asked"
        yield b"last"

    sent: list[bytes] = []
    keep_alive = b": keep-alive\n\n"

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    async def receive() -> Any:
        await asyncio.Event().wait()

    await EventResponse(chunks(), keep_alive_seconds=0.05)({"type": "http"}, receive, send)
    assert sent[:2] == [b"", b"first"]
    assert sent[-2:] == [b"last", b""]
    assert sent.count(keep_alive) >= 4


async def test_a_stream_ends_soon_after_its_key_is_revoked_and_the_run_goes_on(house: ApiHouse) -> None:
    answer = await house.admin.post("/api/v1/agent/echo/run/async", json={"message_content": "sleep 20"})
    run = f"/api/v1/runs/{answer.json()['run_id']}"
    row, key = await house.platform.keys.create("a reader", ["runs:read"], caller=SYSTEM)
    one = Line(house, "GET", f"{run}/events", accept="text/event-stream", x_api_key=key.get_secret_value())
    another = Line(house, "GET", f"{run}/events", accept="text/event-stream")
    await until(lambda: "run_started" in one.text and "run_started" in another.text)
    await house.platform.keys.revoke(row.key_id, SYSTEM)
    await asyncio.wait_for(one.task, 20)
    assert one.text.endswith(": the key is revoked or expired\n\n")
    assert not another.task.done()
    assert (await house.admin.get(run)).json()["status"] == "running"
    await house.admin.post(f"{run}/cancel")
    await asyncio.wait_for(another.task, 20)
    assert "run_finished" in another.text


async def test_a_server_that_stops_a_stream_is_told_so(house: ApiHouse) -> None:
    line = Line(house, "POST", "/api/v1/agent/echo/run/stream", {"message_content": "sleep 0.3"})
    await until(lambda: "run_started" in line.text)
    line.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await line.task


async def test_two_who_look_on_see_the_same_events(house: ApiHouse) -> None:
    answer = await house.admin.post("/api/v1/agent/tooled/run/async", json={"message_content": "go"})
    path = f"{answer.headers['location']}/events"
    lines = [Line(house, "GET", path, accept="text/event-stream") for _ in range(2)]
    await asyncio.wait_for(asyncio.gather(*(line.task for line in lines)), 10)
    stored = [[event.data for event in read_events(line.text) if event.id is not None] for line in lines]
    assert stored[0] == stored[1] == (await house.admin.get(path)).json()["data"]
