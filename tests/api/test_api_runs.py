"""Runs over HTTP: at once, as a stream, in the background; looked at, resumed, cancelled."""

import asyncio
import uuid
from typing import Any

import httpx2
import pytest
from api_house import ApiHouse, read_events

pytestmark = pytest.mark.anyio

RUN = "/api/v1/agent/echo/run"


async def ask(client: httpx2.AsyncClient, text: str, **more: Any) -> httpx2.Response:
    return await client.post(RUN, json={"message_content": text, **more})


async def test_a_run_answers_in_the_words_of_the_earlier_api(each_house: ApiHouse) -> None:
    client = await each_house.client("agents:echo:run")
    answer = await ask(client, "hello", session_name="trip", message_limit=10, prompt_variables={"style": "kind"})
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert set(document) == {"run_id", "session_id", "message", "success", "tool_calls", "tool_outputs", "usage"}
    assert document["message"] == "1: hello / Be kind."
    assert document["success"] is True
    assert document["usage"]["requests"] == 1
    again = (await ask(client, "and now", session_name="trip")).json()
    assert again["session_id"] == document["session_id"]
    assert again["message"].startswith("2: and now")


async def test_tool_calls_and_their_outputs_are_in_the_answer(house: ApiHouse) -> None:
    document = (await house.admin.post("/api/v1/agent/tooled/run", json={"message_content": "go"})).json()
    call = document["tool_calls"][0]
    assert (call["tool_name"], call["args"]) == ("work", {"how": "well"})
    assert document["tool_outputs"] == [
        {"tool_name": "work", "content": "done well", "tool_call_id": call["tool_call_id"]}
    ]


async def test_an_unknown_session_uuid_makes_that_session(house: ApiHouse) -> None:
    session_id = str(uuid.uuid4())
    assert (await ask(house.admin, "hi", session_id=session_id)).json()["session_id"] == session_id
    session = (await house.admin.get(f"/api/v1/sessions/{session_id}")).json()
    assert (session["agent_name"], session["message_count"]) == ("echo", 2)


async def test_fields_without_effect_are_kept_as_metadata(house: ApiHouse) -> None:
    more = {
        "message_type": "text",
        "channel_payload": {"a": 1},
        "user": {"email": "a@b.c"},
        "run_count": 3,
        "force": None,
    }
    run_id = (await ask(house.admin, "hi", session_origin="whatsapp", **more)).json()["run_id"]
    run = (await house.admin.get(f"/api/v1/runs/{run_id}")).json()
    assert run["input"]["metadata"] == {name: value for name, value in more.items() if value is not None}
    assert run["input"]["session_origin"] == "whatsapp"


async def test_a_failing_model_is_a_502_that_names_the_run(house: ApiHouse) -> None:
    answer = await ask(house.admin, "boom")
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (502, "model_error")
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text
    run = (await house.admin.get(f"/api/v1/runs/{problem['run_id']}")).json()
    assert (run["status"], run["outcome"], run["error"]["code"]) == ("failed", "model_error", "model_error")


async def test_a_bug_in_an_agent_is_a_500_without_its_cause(house: ApiHouse) -> None:
    answer = await ask(house.admin, "bug")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "secret" not in answer.text


async def test_a_run_over_its_time_is_a_504(house: ApiHouse) -> None:
    answer = await ask(house.admin, "sleep 5", timeout_seconds=0.05)
    assert (answer.status_code, answer.json()["code"]) == (504, "timed_out")


async def test_a_stream_begins_with_run_started_and_ends_with_the_whole_run(house: ApiHouse) -> None:
    answer = await house.admin.post(f"{RUN}/stream", json={"message_content": "one two three"})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = read_events(answer.text)
    assert (events[0].type, events[0].id) == ("run_started", "1")
    text = "".join(event.data["data"]["text"] for event in events if event.type == "text_delta")
    assert text.strip() == "1: one two three / Be plain."
    assert all(event.id is None and event.data["seq"] is None for event in events if event.type == "text_delta")
    last = events[-1]
    assert last.type == "run_finished"
    assert last.data["data"]["run"]["status"] == "completed"
    stored = [event for event in events if event.id is not None]
    assert [int(event.id or 0) for event in stored] == list(range(1, len(stored) + 1))


async def test_a_stream_of_a_failing_run_ends_with_the_failed_run(house: ApiHouse) -> None:
    answer = await house.admin.post(f"{RUN}/stream", json={"message_content": "boom"})
    last = read_events(answer.text)[-1]
    assert (last.type, last.data["data"]["run"]["outcome"]) == ("run_finished", "model_error")
    assert "secret" not in answer.text


async def test_a_background_run_is_accepted_at_once_and_found_at_its_location(each_house: ApiHouse) -> None:
    admin = each_house.admin
    answer = await admin.post(f"{RUN}/async", json={"message_content": "later"})
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    location = answer.headers["location"]
    assert location == f"/api/v1/runs/{answer.json()['run_id']}"
    events = read_events((await admin.get(f"{location}/events", headers={"accept": "text/event-stream"})).text)
    assert events[-1].type == "run_finished"
    run = (await admin.get(location)).json()
    assert (run["status"], run["output"]["message"].strip()) == ("completed", "1: later / Be plain.")


async def test_events_resume_after_the_last_one_seen(each_house: ApiHouse) -> None:
    admin = each_house.admin
    run_id = (await admin.post("/api/v1/agent/tooled/run", json={"message_content": "go"})).json()["run_id"]
    path = f"/api/v1/runs/{run_id}/events"
    everything = (await admin.get(path)).json()["data"]
    assert [event["seq"] for event in everything] == list(range(1, len(everything) + 1))
    types = [event["type"] for event in everything]
    assert types[0] == "run_started"
    assert types[-1] == "run_finished"
    assert {"tool_call", "tool_result"} <= set(types)
    assert (await admin.get(path, params={"after": 2})).json()["data"] == everything[2:]
    resumed = await admin.get(path, headers={"accept": "text/event-stream", "last-event-id": "2"})
    assert [event.data for event in read_events(resumed.text)] == everything[2:]
    assert [event.id for event in read_events(resumed.text)] == [str(event["seq"]) for event in everything[2:]]
    ended = await admin.get(path, params={"after": len(everything)}, headers={"accept": "text/event-stream"})
    assert ended.text == ""


async def test_cancelling_really_stops_a_running_run(house: ApiHouse) -> None:
    client = await house.client("agents:echo:run", "runs:read", "runs:write")
    run_id = (await client.post(f"{RUN}/async", json={"message_content": "sleep 30"})).json()["run_id"]
    while (await client.get(f"/api/v1/runs/{run_id}")).json()["status"] != "running":
        await asyncio.sleep(0.01)
    cancelled = (await client.post(f"/api/v1/runs/{run_id}/cancel")).json()
    assert (cancelled["status"], cancelled["outcome"]) == ("cancelled", "cancelled")
    again = await client.post(f"/api/v1/runs/{run_id}/cancel")
    assert (again.status_code, again.json()["finished_at"]) == (200, cancelled["finished_at"])


async def test_a_waiting_caller_of_a_cancelled_run_gets_a_409(house: ApiHouse) -> None:
    waiting = asyncio.create_task(ask(house.admin, "sleep 30", labels={"mine": "yes"}))
    runs: list[dict[str, Any]] = []
    while not runs:
        runs = (await house.admin.get("/api/v1/runs", params={"status": "running"})).json()["data"]
    assert runs[0]["labels"] == {"mine": "yes"}
    await house.admin.post(f"/api/v1/runs/{runs[0]['run_id']}/cancel")
    answer = await waiting
    assert (answer.status_code, answer.json()["code"], answer.json()["run_id"]) == (409, "cancelled", runs[0]["run_id"])


async def test_ten_runs_of_one_session_posted_at_once_are_all_answered_in_order(each_house: ApiHouse) -> None:
    client = await each_house.client("agents:echo:run", "sessions:read")
    answers = await asyncio.gather(*(ask(client, f"text {n}", session_name="rush") for n in range(10)))
    assert [answer.status_code for answer in answers] == [200] * 10
    assert sorted(int(answer.json()["message"].split(":")[0]) for answer in answers) == list(range(1, 11))
    assert len({answer.json()["session_id"] for answer in answers}) == 1
    messages = (await client.get("/api/v1/sessions/rush/messages", params={"limit": 100})).json()["data"][::-1]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 10
    for question, reply in zip(messages[::2], messages[1::2], strict=True):
        assert question["content"] in reply["content"]


async def test_runs_are_listed_newest_first_in_pages(each_house: ApiHouse) -> None:
    ids = [(await ask(each_house.admin, f"{n}")).json()["run_id"] for n in range(5)]
    seen: list[str] = []
    cursor: str | None = None
    while True:
        params = {"limit": "2", "name": "echo"} | ({"cursor": cursor} if cursor else {})
        page = (await each_house.admin.get("/api/v1/runs", params=params)).json()
        assert len(page["data"]) <= 2
        assert all("input" not in run and "output" not in run for run in page["data"])
        seen += [run["run_id"] for run in page["data"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ids[::-1]


async def test_media_by_base64_reach_the_agent(house: ApiHouse) -> None:
    media = [
        {"mime_type": "image/png", "data": "iVBORw0KGgo=", "alt_text": "a dot", "width": 1},
        {"mime_type": "text/plain", "media_url": "data:text/plain;base64,aGVsbG8="},
        {"mime_type": "audio/wav", "data": "UklGRg=="},
    ]
    answer = await ask(house.admin, "look", media_contents=media)
    assert answer.status_code == 200, answer.text
    assert answer.json()["message"].startswith("1: look [image/png] [text/plain] [audio/wav]")


async def test_a_url_that_leads_inside_is_refused_before_the_run_is_accepted(house: ApiHouse) -> None:
    media = [{"mime_type": "image/png", "media_url": "http://127.0.0.1:1/secret.png"}]
    answer = await ask(house.admin, "look", media_contents=media)
    assert (answer.status_code, answer.json()["code"]) == (422, "address_refused")
    assert answer.json()["errors"][0]["loc"] == ["body", "media_contents", 0, "media_url"]
    assert (await house.admin.get("/api/v1/runs")).json()["data"] == []


async def test_a_model_override_needs_the_agents_consent_or_agents_write(house: ApiHouse) -> None:
    client = await house.client("agents:echo:run")
    refused = await ask(client, "hi", model="demo")
    assert (refused.status_code, refused.json()["code"]) == (403, "override_not_allowed")
    assert (await ask(house.admin, "hi", model="demo")).status_code == 200
    allowed = await ask(client, "hi", system_prompt="Only this {{style}}.")
    assert allowed.json()["message"] == "1: hi / Only this {{style}}."


async def test_a_prompt_is_chosen_by_its_status_key(house: ApiHouse) -> None:
    prompt = {"agent_name": "echo", "prompt_text": "ALARM {{style}}", "status_key": "alarm", "is_active": True}
    assert (await house.admin.post("/api/v1/prompts", json=prompt)).status_code == 201
    asked = {"message_content": "help", "prompt_status_key": "alarm"}
    answer = await house.admin.post("/api/v1/agent/echo/run", json=asked)
    assert "ALARM plain" in answer.json()["message"]
    wrong = await house.admin.post("/api/v1/agent/echo/run", json={**asked, "prompt_status_key": "alarn"})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "unknown_status_key")
