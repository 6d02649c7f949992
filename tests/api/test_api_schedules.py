"""Schedules over HTTP: made, shown, changed, paused, fired; what is wrong is named by its field."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from api_house import ApiHouse

pytestmark = pytest.mark.anyio

PATH = "/api/v1/schedules"
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def body(name: str = "report", **changes: Any) -> dict[str, Any]:
    # Far away: what a test makes must not fire while it looks.
    made = {"name": name, "agent_name": "echo", "cron": "0 0 1 1 *", "request": {"message_content": "report!"}}
    return {**made, **changes}


async def test_a_schedule_is_made_shown_changed_and_deleted(each_house: ApiHouse) -> None:
    admin = each_house.admin
    made = await admin.post(PATH, json=body(time_zone="Europe/Berlin", missed="once"))
    schedule, path = made.json(), made.headers["location"]
    assert made.status_code == 201
    assert path == f"{PATH}/{schedule['schedule_id']}"
    assert schedule["next_at"].endswith("-12-31T23:00:00.000000Z")
    assert schedule["key_id"].startswith("key_")
    expected = {
        "name": "report",
        "agent_name": "echo",
        "cron": "0 0 1 1 *",
        "time_zone": "Europe/Berlin",
        "missed": "once",
        "active": True,
        "request": {"message_content": "report!"},
        "user_id": None,
        "last_at": None,
        "last_run_id": None,
        "last_error": None,
        "revision": 1,
    }
    assert {name: schedule[name] for name in expected} == expected
    assert set(schedule) == {*expected, "schedule_id", "key_id", "next_at", "created_at", "updated_at"}
    shown = await admin.get(path)
    assert (shown.json(), shown.headers["etag"]) == (schedule, made.headers["etag"])
    assert (await admin.get(f"{PATH}/report")).json() == schedule
    listed = (await admin.get(PATH)).json()["data"]
    assert listed == [{name: value for name, value in schedule.items() if name != "request"}]
    changed = await admin.patch(
        path,
        json={"cron": "@daily", "request": {"message_content": "x", "labels": {"a": "b"}, "session_name": "s"}},
        headers={"if-match": made.headers["etag"]},
    )
    assert (changed.status_code, changed.json()["revision"], changed.json()["cron"]) == (200, 2, "@daily")
    assert changed.json()["request"] == {"message_content": "x", "session_name": "s", "labels": {"a": "b"}}
    assert changed.json()["next_at"] != schedule["next_at"]
    stale = await admin.patch(path, json={"cron": "@hourly"}, headers={"if-match": made.headers["etag"]})
    assert (stale.status_code, stale.json()["code"]) == (412, "stale_edit")
    assert (await admin.delete(path, headers={"if-match": '"1"'})).status_code == 412
    assert (await admin.delete(path)).status_code == 204
    missing = await admin.get(path)
    assert (missing.status_code, missing.json()["code"]) == (404, "schedule_not_found")
    for action in ("schedule.create", "schedule.update", "schedule.delete"):
        (row,) = await each_house.audit(action)
        assert (row["target"], row["details"]["name"]) == (schedule["schedule_id"], "report")
        assert "report!" not in str(row)


async def test_a_paused_schedule_waits_for_nothing_until_it_is_resumed(house: ApiHouse) -> None:
    made = (await house.admin.post(PATH, json=body(active=False))).json()
    assert (made["active"], made["next_at"]) == (False, None)
    resumed = (await house.admin.patch(f"{PATH}/report", json={"active": True})).json()
    assert resumed["next_at"] is not None
    paused = (await house.admin.patch(f"{PATH}/report", json={"active": False})).json()
    assert (paused["active"], paused["next_at"]) == (False, None)
    active = {"active": "true"}
    assert (await house.admin.get(PATH, params=active)).json()["data"] == []
    assert len((await house.admin.get(PATH, params={"active": "false", "agent_name": "echo"})).json()["data"]) == 1


async def test_firing_now_answers_the_run(each_house: ApiHouse) -> None:
    admin = each_house.admin
    await admin.post(PATH, json=body(request={"message_content": "hi", "labels": {"team": "a"}}))
    fired = await admin.post(f"{PATH}/report/fire")
    run = fired.json()
    assert (fired.status_code, run["status"], run["name"]) == (202, "queued", "echo")
    assert fired.headers["location"] == f"/api/v1/runs/{run['run_id']}"
    assert run["labels"] == {"team": "a", "schedule": "report"}
    events = await admin.get(f"{fired.headers['location']}/events", headers={"accept": "text/event-stream"})
    assert "run_finished" in events.text
    ended = (await admin.get(fired.headers["location"])).json()
    assert (ended["status"], ended["output"]["message"].strip()) == ("completed", "1: hi / Be plain.")
    shown = (await admin.get(f"{PATH}/report")).json()
    assert (shown["last_run_id"], shown["revision"]) == (run["run_id"], 1)
    assert (await each_house.audit("schedule.fire"))[0]["details"] == {"name": "report", "run_id": run["run_id"]}
    again = [await admin.post(f"{PATH}/report/fire", headers={"idempotency-key": "k"}) for _ in range(2)]
    assert len({answer.json()["run_id"] for answer in again}) == 1


async def test_the_next_times_are_told_in_utc_and_in_local_time(house: ApiHouse) -> None:
    await house.admin.post(PATH, json=body(cron="30 2 * * *", time_zone="Asia/Kolkata"))
    answer = (await house.admin.get(f"{PATH}/report/next", params={"count": 3})).json()
    assert answer["next_cursor"] is None
    assert [time["local_time"][10:] for time in answer["data"]] == ["T02:30:00+05:30"] * 3
    moments = [datetime.fromisoformat(time["next_at"]) for time in answer["data"]]
    assert moments[0] > datetime.now(UTC)
    assert moments[1] - moments[0] == timedelta(days=1)
    assert len((await house.admin.get(f"{PATH}/report/next")).json()["data"]) == 5
    for count in (0, 101, "x"):
        wrong = await house.admin.get(f"{PATH}/report/next", params={"count": count})
        assert (wrong.status_code, wrong.json()["errors"][0]["loc"]) == (422, ["query", "count"])


WRONG: list[tuple[dict[str, Any], list[str], str]] = [
    ({"cron": "61 * * * *"}, ["body", "cron"], "'61' names no minute."),
    ({"cron": "0 0 30 2 *"}, ["body", "cron"], "No time in the next 12 years matches."),
    ({"cron": "* " * 200}, ["body", "cron"], "String should have at most 200 characters"),
    ({"cron": None}, ["body", "cron"], "Input should be a valid string"),
    ({"time_zone": "Europe/Berlim"}, ["body", "time_zone"], "There is no time zone 'Europe/Berlim'."),
    ({"name": "a b"}, ["body", "name"], "String should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$'"),
    ({"name": "sched_1"}, ["body", "name"], "A schedule's name does not begin with 'sched_': the ids do."),
    ({"missed": "often"}, ["body", "missed"], "Input should be 'skip', 'once' or 'all'"),
    ({"active": "yes"}, ["body", "active"], "Input should be a valid boolean"),
    ({"when": "now"}, ["body", "when"], "There is no field 'when'."),
    ({"request": {}}, ["body", "request", "message_content"], "Field required"),
    ({"request": {"message_content": ""}}, ["body", "request", "message_content"], "The message is empty."),
    ({"request": {"message_content": "x", "session_id": str(uuid.uuid4()), "session_name": "y"}},
     ["body", "request", "session_name"], "Give `session_id` or `session_name`, not both."),
    ({"request": {"message_content": "x", "timeout_seconds": -1}},
     ["body", "request", "timeout_seconds"], "Input should be greater than or equal to 0.001"),
    ({"request": {"message_content": "x", "media_contents": [{"mime_type": "image/png", "data": "!"}]}},
     ["body", "request", "media_contents", "0", "data"], ""),
]  # fmt: skip


@pytest.fixture(scope="module")
async def quiet_house(shared_house: ApiHouse) -> ApiHouse:
    await shared_house.admin.post(PATH, json=body("there", active=False))
    return shared_house


@pytest.mark.parametrize(("changes", "loc", "msg"), WRONG, ids=lambda value: str(value)[:40])
async def test_what_is_wrong_is_named_by_its_field(
    quiet_house: ApiHouse, changes: dict[str, Any], loc: list[str], msg: str
) -> None:
    for method, path in (("POST", PATH), ("PATCH", f"{PATH}/there")):
        if method == "PATCH" and changes.get("cron", "") is None:
            continue  # there null means that it stays
        sent = {**body(), **changes} if method == "POST" else changes
        if method == "PATCH" and changes.get("cron") == "0 0 30 2 *":
            sent = {**changes, "active": True}
        answer = await quiet_house.admin.request(method, path, json=sent)
        assert answer.status_code == 422, answer.text
        error = answer.json()["errors"][0]
        assert [str(part) for part in error["loc"]] == loc
        assert error["msg"].startswith(msg)


async def test_two_schedules_have_not_one_name_and_a_near_name_is_told(house: ApiHouse) -> None:
    await house.admin.post(PATH, json=body())
    again = await house.admin.post(PATH, json=body())
    assert (again.status_code, again.json()["detail"]) == (409, "There is already a schedule 'report'.")
    near = await house.admin.get(f"{PATH}/repport")
    assert (near.status_code, near.json()["hint"]) == (404, "Did you mean 'report'?")


async def test_a_key_needs_the_scopes_of_schedules_and_of_the_agent(house: ApiHouse) -> None:
    reader = await house.client("schedules:read")
    writer = await house.client("schedules:write")
    owner = await house.client("schedules:write", "agents:echo:run")
    nobody = await house.client("runs:read")
    assert (await owner.post(PATH, json=body())).status_code == 201
    for client, status in ((reader, 200), (writer, 200), (nobody, 403)):
        assert (await client.get(PATH)).status_code == status
        assert (await client.get(f"{PATH}/report/next")).status_code == status
    refused = await reader.post(PATH, json=body("another"))
    assert (refused.status_code, refused.json()["code"]) == (403, "missing_scope")
    for answer in (
        await writer.post(PATH, json=body("another")),
        await writer.patch(f"{PATH}/report", json={"cron": "* * * * *"}),
        await writer.post(f"{PATH}/report/fire"),
    ):
        assert (answer.status_code, "agents:echo:run" in answer.json()["detail"]) == (403, True)
    override = await owner.post(PATH, json=body("another", request={"message_content": "x", "model": "demo"}))
    assert (override.status_code, override.json()["code"]) == (403, "override_not_allowed")
    unknown = await owner.post(PATH, json=body("another", agent_name="ecko"))
    assert (unknown.status_code, unknown.json()["hint"]) == (404, "Did you mean 'echo'?")
    assert (await writer.patch(f"{PATH}/report", json={"active": False})).status_code == 200
    assert (await writer.delete(f"{PATH}/report")).status_code == 204


async def test_users_keys_see_and_make_only_their_own(house: ApiHouse) -> None:
    ann, bob = await house.user(), await house.user()
    scopes = ("schedules:write", "agents:echo:run")
    of_ann, of_bob = await house.client(*scopes, user_id=ann), await house.client(*scopes, user_id=bob)
    made = await of_ann.post(PATH, json=body("anns"))
    assert (made.status_code, made.json()["user_id"]) == (201, str(ann))
    assert made.json()["request"]["user_id"] == str(ann)
    await house.admin.post(PATH, json=body("nobodys"))
    assert [row["name"] for row in (await of_ann.get(PATH)).json()["data"]] == ["anns"]
    assert (await of_bob.get(PATH)).json()["data"] == []
    hidden = await of_bob.get(f"{PATH}/ann")
    assert (hidden.status_code, "anns" in hidden.text) == (404, False)
    for answer in (
        await of_bob.get(made.headers["location"]),
        await of_bob.patch(f"{PATH}/anns", json={"active": False}),
        await of_bob.delete(f"{PATH}/anns"),
        await of_bob.post(f"{PATH}/anns/fire"),
        await of_bob.post(PATH, json=body("more", request={"message_content": "x", "user_id": str(ann)})),
    ):
        assert answer.status_code == 404


async def test_media_are_kept_with_the_schedule(house: ApiHouse) -> None:
    media = [{"mime_type": "image/png", "data": PICTURE}]
    made = await house.admin.post(PATH, json=body(request={"message_content": "see", "media_contents": media}))
    assert made.json()["request"]["media_contents"] == media
    fired = await house.admin.post(f"{PATH}/report/fire")
    assert fired.status_code == 202
