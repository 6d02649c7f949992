"""Background runs over HTTP: repeated requests, full queues, dead letters."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from api_house import ApiHouse, open_house, read_events

from automagik.settings import Settings

pytestmark = pytest.mark.anyio

RUN = "/api/v1/agent/echo/run"


@pytest.fixture
async def narrow_house(tmp_path: Path) -> AsyncIterator[ApiHouse]:
    """One whose queue holds two runs, of which one is worked on at a time."""
    async with open_house(Settings(data_dir=tmp_path), max_queued_runs=2, max_concurrent_background_runs=1) as opened:
        yield opened


async def ask(client: httpx2.AsyncClient, path: str, text: str, key: str | None = None, **more: Any) -> httpx2.Response:
    headers = {"idempotency-key": key} if key is not None else {}
    return await client.post(path, json={"message_content": text, **more}, headers=headers)


async def ended(client: httpx2.AsyncClient, run_id: str) -> dict[str, Any]:
    async with asyncio.timeout(40):
        while (run := (await client.get(f"/api/v1/runs/{run_id}")).json())["finished_at"] is None:
            await asyncio.sleep(0.02)
    return run


async def test_a_request_with_the_same_key_is_the_same_run_by_each_door(each_house: ApiHouse) -> None:
    admin = each_house.admin
    answers = [(await ask(admin, RUN, "hello", "one")).json() for _ in range(2)]
    assert answers[0] == answers[1]
    queued = [await ask(admin, f"{RUN}/async", "later", "two") for _ in range(2)]
    assert [answer.status_code for answer in queued] == [202, 202]
    assert queued[0].headers["location"] == queued[1].headers["location"]
    streams = [read_events((await ask(admin, f"{RUN}/stream", "a b", "three")).text) for _ in range(2)]
    stored = [[(event.id, event.type) for event in events if event.id is not None] for events in streams]
    assert stored[0] == stored[1]
    assert [events[0].id for events in streams] == ["1", "1"]
    assert len((await admin.get("/api/v1/runs")).json()["data"]) == 3


async def test_another_request_with_the_same_key_is_a_conflict(house: ApiHouse) -> None:
    await ask(house.admin, RUN, "hello", "one")
    for path, text in ((RUN, "hallo"), (f"{RUN}/async", "hello"), ("/api/v1/agent/tooled/run", "hello")):
        answer = await ask(house.admin, path, text, "one")
        assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_key_reused")


@pytest.mark.parametrize("key", ["", "x" * 256, "schl\u00fcssel"])
@pytest.mark.parametrize("path", [RUN, f"{RUN}/stream", f"{RUN}/async"])
async def test_a_bad_key_is_a_422_that_names_the_header(shared_house: ApiHouse, key: str, path: str) -> None:
    headers = [(b"idempotency-key", key.encode("latin-1"))]
    answer = await shared_house.admin.post(path, json={"message_content": "hello"}, headers=headers)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["loc"] == ["header", "idempotency-key"]


async def test_the_key_of_one_user_says_nothing_about_anothers_runs(house: ApiHouse) -> None:
    scopes = ("agents:*:run", "runs:read")
    adas = await house.client(*scopes, user_id=await house.user())
    bobs = await house.client(*scopes, user_id=await house.user())
    hers = (await ask(adas, RUN, "a secret", "guess me")).json()
    his = await ask(bobs, RUN, "a guess", "guess me")
    assert his.status_code == 200, "no conflict tells that she used that word"
    assert his.json()["run_id"] != hers["run_id"]
    assert (await bobs.get(f"/api/v1/runs/{hers['run_id']}")).status_code == 404


async def test_a_full_queue_is_a_429_that_says_when_to_come_back(narrow_house: ApiHouse) -> None:
    admin = narrow_house.admin
    first = (await ask(admin, f"{RUN}/async", "sleep 30")).json()["run_id"]
    while (await admin.get(f"/api/v1/runs/{first}")).json()["status"] != "running":
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.6)  # the count may be half a second old
    assert [(await ask(admin, f"{RUN}/async", "later")).status_code for _ in range(2)] == [202, 202]
    refused = await ask(admin, f"{RUN}/async", "too much")
    assert (refused.status_code, refused.json()["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) > 0
    assert "AUTOMAGIK_MAX_QUEUED_RUNS" in refused.json()["hint"]
    assert (await ask(admin, RUN, "at once")).status_code == 200


async def test_a_run_that_waits_too_long_says_so(narrow_house: ApiHouse) -> None:
    admin = narrow_house.admin
    await ask(admin, f"{RUN}/async", "sleep 30")
    late = (await ask(admin, f"{RUN}/async", "never", queue_timeout_seconds=0.2)).json()["run_id"]
    run = await ended(admin, late)
    assert (run["outcome"], run["error"]["code"]) == ("timed_out", "timed_out")
    assert "queue_timeout_seconds" in run["error"]["hint"]


async def test_a_dead_letter_is_requeued(each_house: ApiHouse) -> None:
    admin = each_house.admin
    asked: dict[str, Any] = {"session_name": "daily", "labels": {"a": "b"}, "priority": 3}
    run_id = (await ask(admin, f"{RUN}/async", "bug", **asked)).json()["run_id"]
    letter = await ended(admin, run_id)
    assert letter["outcome"] == "internal_error"
    answer = await admin.post(f"/api/v1/runs/{run_id}/requeue")
    again = answer.json()
    assert (answer.status_code, again["requeue_of"], again["status"]) == (202, run_id, "queued")
    assert answer.headers["location"] == f"/api/v1/runs/{again['run_id']}"
    assert (again["session_id"], again["labels"], again["priority"]) == (letter["session_id"], {"a": "b"}, 3)
    assert (await ended(admin, again["run_id"]))["outcome"] == "internal_error"
    assert (await admin.get(f"/api/v1/runs/{run_id}")).json() == letter


async def test_who_may_not_ask_or_see_a_run_may_not_requeue_it(house: ApiHouse) -> None:
    run_id = (await ask(house.admin, RUN, "hello")).json()["run_id"]
    path = f"/api/v1/runs/{run_id}/requeue"
    reader = await house.client("runs:read", "agents:echo:run")
    assert (await reader.post(path)).status_code == 403, "it needs runs:write"
    other = await house.client("runs:write", "agents:tooled:run")
    assert (await other.post(path)).status_code in {403, 404}
    bound = await house.client("runs:write", "agents:echo:run", user_id=await house.user())
    assert (await bound.post(path)).status_code == 404
    assert (await house.admin.post("/api/v1/runs/run_none/requeue")).status_code == 404
    queued = (await ask(house.admin, f"{RUN}/async", "sleep 30")).json()["run_id"]
    early = await house.admin.post(f"/api/v1/runs/{queued}/requeue")
    assert (early.status_code, early.json()["code"]) == (409, "run_not_ended")
    await house.admin.post(f"/api/v1/runs/{queued}/cancel")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("priority", 101),
        ("priority", -101),
        ("priority", 1.5),
        ("priority", "high"),
        ("queue_timeout_seconds", 0),
        ("queue_timeout_seconds", -1),
        ("queue_timeout_seconds", "soon"),
    ],
)
async def test_a_place_in_the_queue_that_cannot_be_is_refused(shared_house: ApiHouse, field: str, value: Any) -> None:
    answer = await ask(shared_house.admin, f"{RUN}/async", "hello", **{field: value})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["body", field]
