"""Nouns and verbs: which request each makes, and how lists, tables and resources are shown."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
from cli_harness import Answer, Asked, Command, StubApi

ROWS = [{"run_id": f"run_{index}", "name": "simple", "status": "completed"} for index in range(250)]

SESSION = "01a20e6e-d094-748f-b77f-16ff69de89e6"


def _name_of(value: object) -> str:
    return " ".join(cast("list[str]", value)[:2]) if isinstance(value, list) else ""


def pages(asked: Asked) -> Answer:
    begin = int(asked.query.get("cursor", "0"))
    end = begin + int(asked.query["limit"])
    return Answer({"data": ROWS[begin:end], "next_cursor": str(end) if end < len(ROWS) else None})


@pytest.mark.parametrize(
    ("limit", "asked_for"), [(10, ["10"]), (100, ["100"]), (230, ["100", "100", "30"]), (999, ["100"] * 3)]
)
def test_lists_follow_the_pages_as_far_as_the_limit(
    api: StubApi, command: Command, limit: int, asked_for: list[str]
) -> None:
    api.on("GET", "/api/v1/runs", pages)
    done = command("runs", "list", "--limit", str(limit), "--json")
    assert [line["run_id"] for line in done.lines] == [row["run_id"] for row in ROWS[:limit]]
    assert [asked.query["limit"] for asked in api.asked] == asked_for


def test_a_list_is_a_table_on_a_terminal_and_tabs_in_a_pipe(api: StubApi, command: Command) -> None:
    row: dict[str, Any] = {
        "name": "a",
        "source": "api",
        "active": True,
        "description": "one\ntwo\t[bold]x[/bold]\x1b[2J",
        "error": None,
    }
    api.on("GET", "/api/v1/agents", {"data": [row], "next_cursor": None})
    assert command("agents", "list").out == "a\tapi\tyes\tone two [bold]x[/bold]\x1b[2J\t\n"
    shown = command.on_terminal("agents", "list").out
    assert "NAME" in shown
    assert "[bold]x[/bold]" in shown
    assert "\x1b[2J" not in shown
    api.on("GET", "/api/v1/agents", {"data": [], "next_cursor": None})
    assert command("agents", "list").out == ""


def test_a_resource_is_shown_a_field_a_line(api: StubApi, command: Command) -> None:
    api.on("GET", "/api/v1/agents/a%20b", {"name": "a b", "config": {"tools": ["x"]}, "text": "one\ntwo", "none": None})
    done = command("agents", "show", "a b")
    assert (
        done.out
        == 'name    a b\nconfig:\n    {\n      "tools": [\n        "x"\n      ]\n    }\ntext:\n    one\n    two\nnone\n'
    )


RESOURCE = {
    "name": "a",
    "version": 2,
    "agent_name": "simple",
    "status_key": "default",
    "key": "amk_x",
    "key_id": "key_1",
    "run_id": "run_1",
    "status": "cancelled",
}

REQUESTS: list[tuple[list[str], str, str, Any]] = [
    (["agents", "create", "a", "--config", '{"tools": ["x"], "model": "m"}', "--model", "n", "--description", "d"],
     "POST", "/api/v1/agents", {"name": "a", "config": {"tools": ["x"], "model": "n", "description": "d"}}),
    (["agents", "create", "a", "--tool", "x", "--tool", "y", "--instructions", "Hi {{name}}"],
     "POST", "/api/v1/agents", {"name": "a", "config": {"tools": ["x", "y"], "instructions": "Hi {{name}}"}}),
    (["agents", "delete", "a", "--yes"], "DELETE", "/api/v1/agents/a", None),
    (["sessions", "show", "holi/days"], "GET", "/api/v1/sessions/holi%2Fdays", None),
    (["sessions", "delete", "s", "-y"], "DELETE", "/api/v1/sessions/s", None),
    (["memories", "show", "m"], "GET", "/api/v1/memories/m", None),
    (["memories", "set", "color", "blue", "--agent", "simple", "--user", "u", "--session", SESSION, "--description", "d"],
     "POST", "/api/v1/memories",
     {"name": "color", "content": "blue", "agent_name": "simple", "user_id": "u", "session_id": SESSION, "description": "d"}),
    (["memories", "delete", "m", "--yes"], "DELETE", "/api/v1/memories/m", None),
    (["prompts", "show", "p"], "GET", "/api/v1/prompts/p", None),
    (["prompts", "create", "simple", "You are {{name}}.", "--status-key", "vip", "--name", "n", "--activate"],
     "POST", "/api/v1/prompts",
     {"agent_name": "simple", "prompt_text": "You are {{name}}.", "status_key": "vip", "name": "n", "is_active": True}),
    (["prompts", "activate", "p"], "POST", "/api/v1/prompts/p/activate", None),
    (["prompts", "deactivate", "p"], "POST", "/api/v1/prompts/p/deactivate", None),
    (["prompts", "delete", "p", "--yes"], "DELETE", "/api/v1/prompts/p", None),
    (["users", "show", "u"], "GET", "/api/v1/users/u", None),
    (["users", "create", "--email", "a@b.c", "--phone", "1", "--id", "u", "--data", '{"a": 1}'],
     "POST", "/api/v1/users", {"user_id": "u", "email": "a@b.c", "phone_number": "1", "user_data": {"a": 1}}),
    (["users", "update", "u", "--email", "a@b.c", "--phone", "1", "--data", '{"a": 1}'],
     "PATCH", "/api/v1/users/u", {"email": "a@b.c", "phone_number": "1", "user_data": {"a": 1}}),
    (["users", "delete", "u", "--yes"], "DELETE", "/api/v1/users/u", None),
    (["schedules", "create", "s", "--agent", "a", "--cron", "0 9 * * *", "--time-zone", "Europe/Berlin", "-m", "hi",
      "--session", "daily", "--request", '{"labels": {"a": "b"}, "message_content": "no"}', "--missed", "once", "--paused"],
     "POST", "/api/v1/schedules",
     {"name": "s", "agent_name": "a", "cron": "0 9 * * *", "time_zone": "Europe/Berlin", "missed": "once", "active": False,
      "request": {"labels": {"a": "b"}, "message_content": "hi", "session_name": "daily"}}),
    (["schedules", "create", "s", "--agent", "a", "--cron", "@daily", "--message", "hi", "--session", SESSION],
     "POST", "/api/v1/schedules",
     {"name": "s", "agent_name": "a", "cron": "@daily", "request": {"message_content": "hi", "session_id": SESSION}}),
    (["schedules", "show", "s"], "GET", "/api/v1/schedules/s", None),
    (["schedules", "pause", "s"], "PATCH", "/api/v1/schedules/s", {"active": False}),
    (["schedules", "resume", "s"], "PATCH", "/api/v1/schedules/s", {"active": True}),
    (["schedules", "fire", "s"], "POST", "/api/v1/schedules/s/fire", None),
    (["schedules", "delete", "s", "-y"], "DELETE", "/api/v1/schedules/s", None),
    (["runs", "show", "run_1"], "GET", "/api/v1/runs/run_1", None),
    (["runs", "cancel", "run_1"], "POST", "/api/v1/runs/run_1/cancel", None),
    (["keys", "show", "key_1"], "GET", "/api/v1/keys/key_1", None),
    (["keys", "revoke", "key_1", "--yes"], "DELETE", "/api/v1/keys/key_1", None),
    (["keys", "create", "a", "--scope", "runs:read", "--scope", "admin", "--user", "u", "--rate-limit", "5/minute",
      "--expires", "2030-01-31T12:00:00+01:00"],
     "POST", "/api/v1/keys",
     {"name": "a", "scopes": ["runs:read", "admin"], "user_id": "u", "rate_limit": "5/minute",
      "expires_at": "2030-01-31T11:00:00.000000Z"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "method", "path", "body"),
    REQUESTS,
    ids=_name_of,
)
def test_a_verb_makes_its_request(
    api: StubApi, command: Command, arguments: list[str], method: str, path: str, body: Any
) -> None:
    api.on(method, path, Answer(status=204) if method == "DELETE" else RESOURCE)
    done = command(*arguments, "--json")
    assert done.code == 0, done
    if method == "DELETE":  # of what is gone there is nothing to show but its name
        assert done.lines == [{"revoked" if "revoke" in arguments else "deleted": arguments[2]}]
    else:
        assert done.lines == [RESOURCE]
    assert [(asked.method, asked.path, asked.body) for asked in api.asked] == [(method, path, body)]


FILTERS: list[tuple[list[str], str, dict[str, str]]] = [
    (["agents", "list"], "/api/v1/agents", {}),
    (["sessions", "list", "--agent", "a", "--user", "u"], "/api/v1/sessions", {"agent_name": "a", "user_id": "u"}),
    (["memories", "list", "--name", "n", "--agent", "a", "--user", "u", "--session", SESSION], "/api/v1/memories",
     {"name": "n", "agent_name": "a", "user_id": "u", "session_id": SESSION}),
    (["prompts", "list", "--agent", "a", "--status-key", "k"], "/api/v1/prompts", {"agent_name": "a", "status_key": "k"}),
    (["users", "list"], "/api/v1/users", {}),
    (["schedules", "list", "--agent", "a"], "/api/v1/schedules", {"agent_name": "a"}),
    (["audit", "list", "--action", "key.create", "--target", "key_1"], "/api/v1/audit",
     {"action": "key.create", "target": "key_1"}),
    (["runs", "list", "--status", "failed", "--outcome", "model_error", "--name", "a", "--session", SESSION, "--user", "u"],
     "/api/v1/runs", {"status": "failed", "outcome": "model_error", "name": "a", "session_id": SESSION, "user_id": "u"}),
    (["keys", "list"], "/api/v1/keys", {}),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "path", "query"), FILTERS, ids=_name_of)
def test_filters_are_the_fields_of_the_api(
    api: StubApi, command: Command, arguments: list[str], path: str, query: dict[str, str]
) -> None:
    api.on("GET", path, {"data": [], "next_cursor": None})
    assert command(*arguments).code == 0
    assert {name: value for name, value in api.asked[0].query.items() if name != "limit"} == query


def test_messages_come_in_their_order(api: StubApi, command: Command) -> None:
    newest_first = [{"role": role, "content": role, "created_at": "t"} for role in ("assistant", "user")]
    api.on("GET", "/api/v1/sessions/s/messages", {"data": newest_first, "next_cursor": None})
    assert [line["role"] for line in command("sessions", "messages", "s", "--json").lines] == ["user", "assistant"]
    assert command("sessions", "messages", "s").out.split() == [
        "[t]",
        "user:",
        "user",
        "[t]",
        "assistant:",
        "assistant",
    ]


def test_an_update_changes_single_fields_and_is_of_what_was_read(api: StubApi, command: Command) -> None:
    agent = {"name": "a", "config": {"tools": ["x"], "model": "m"}, "revision": 3}
    api.on("GET", "/api/v1/agents/a", Answer(agent, headers={"etag": '"3"'}))
    api.on("PATCH", "/api/v1/agents/a", agent)
    assert command("agents", "update", "a", "--model", "n").code == 0
    assert command("agents", "update", "a", "--config", "@-", stdin='{"tools": []}').code == 0
    first, second = [asked for asked in api.asked if asked.method == "PATCH"]
    assert (first.headers["if-match"], first.body) == ('"3"', {"config": {"tools": ["x"], "model": "n"}})
    assert second.body == {"config": {"tools": []}}


def test_a_prompts_update_is_of_what_was_read(api: StubApi, command: Command) -> None:
    api.on("GET", "/api/v1/prompts/p", Answer({"prompt_id": "p"}, headers={"etag": '"t"'}))
    api.on("PATCH", "/api/v1/prompts/p", {"prompt_id": "p"})
    assert command("prompts", "update", "p", "@-", "--name", "n", stdin="Be {{style}}.").code == 0
    asked = api.asked[-1]
    assert (asked.headers["if-match"], asked.body) == ('"t"', {"prompt_text": "Be {{style}}.", "name": "n"})


def test_a_schedules_update_keeps_what_is_not_given_of_its_request(api: StubApi, command: Command) -> None:
    schedule = {"name": "s", "request": {"message_content": "a", "session_id": SESSION, "labels": {"a": "b"}}}
    api.on("GET", "/api/v1/schedules/s", Answer(schedule, headers={"etag": '"3"'}))
    api.on("PATCH", "/api/v1/schedules/s", {"name": "s", "next_at": "2026-11-24T09:00:00.000000Z"})
    assert "2026-11-24T09:00" in command("schedules", "update", "s", "--cron", "@daily").err
    assert command("schedules", "update", "s", "--message", "b", "--session", "daily").code == 0
    assert command("schedules", "update", "s", "--request", '{"message_content": "c"}').code == 0
    first, second, third = [asked for asked in api.asked if asked.method == "PATCH"]
    assert (first.headers["if-match"], first.body) == ('"3"', {"cron": "@daily"})
    assert second.body == {"request": {"message_content": "b", "session_name": "daily", "labels": {"a": "b"}}}
    assert third.body == {"request": {"message_content": "c"}}


@pytest.mark.parametrize(
    "arguments",
    [
        ["schedules", "update", "s"],
        ["prompts", "update", "p"],
        ["users", "update", "u"],
        ["schedules", "create", "s", "--agent", "a", "--cron", "@daily"],
    ],
    ids=_name_of,
)
def test_a_verb_with_nothing_to_say_asks_nothing(api: StubApi, command: Command, arguments: list[str]) -> None:
    done = command(*arguments)
    assert (done.code, api.asked) == (2, [])
    assert "hint: Add " in done.err


def test_the_next_times_of_a_schedule_are_shown_in_local_time(api: StubApi, command: Command) -> None:
    times = [{"next_at": "2026-11-24T08:00:00.000000Z", "local_time": "2026-11-24T09:00:00+01:00"}]
    api.on("GET", "/api/v1/schedules/s/next", {"data": times, "next_cursor": None})
    assert command("schedules", "next", "s", "--count", "1").out.split() == [
        "2026-11-24T09:00:00+01:00",
        "2026-11-24T08:00:00.000000Z",
    ]
    assert api.asked[0].query == {"count": "1"}
    assert command("schedules", "next", "s", "--json").lines == times


def test_a_template_and_a_config_may_come_from_files(api: StubApi, command: Command, tmp_path: Path) -> None:
    api.on("POST", "/api/v1/prompts", {})
    api.on("POST", "/api/v1/agents", {})
    (tmp_path / "template.txt").write_text("You are {{name}}.\n")
    (tmp_path / "config.json").write_text('{"tools": ["x"]}')
    command("prompts", "create", "simple", f"@{tmp_path / 'template.txt'}")
    command("agents", "create", "a", "--config", f"@{tmp_path / 'config.json'}")
    assert api.asked[0].body["prompt_text"] == "You are {{name}}.\n"
    assert api.asked[1].body["config"] == {"tools": ["x"]}


def test_a_new_key_is_printed_once_alone_on_standard_output(api: StubApi, command: Command) -> None:
    made = {"key_id": "key_1", "key": "amk_secret"}
    api.on("POST", "/api/v1/keys", made)
    done = command("keys", "create", "a", "--scope", "admin", "--expires", "30d")
    assert done.out == "amk_secret\n"
    assert "key_1" in done.err
    assert api.asked[0].body["expires_at"].endswith("Z")
    assert json.loads(command("keys", "create", "a", "--scope", "admin", "--json").out) == made


def test_a_table_keeps_what_is_copied_in_one_piece_and_leaves_out_what_has_no_room(
    api: StubApi, command: Command
) -> None:
    run_id = "run_01m876xrs25b80qd6twjvzh4a4"
    row: dict[str, Any] = {
        "run_id": run_id,
        "name": "simple",
        "status": "completed",
        "outcome": "completed",
        "session_id": SESSION,
        "created_at": "2026-11-24T16:41:17.858611Z",
    }
    api.on("GET", "/api/v1/runs", {"data": [row], "next_cursor": None})
    wide = command.on_terminal("runs", "list", COLUMNS="120").out
    assert SESSION in wide
    assert "2026-11-24T16:41:17Z" in wide
    narrow = command.on_terminal("runs", "list", COLUMNS="80").out
    assert run_id in narrow
    assert "SESSION" not in narrow
    assert SESSION in command("runs", "list").out


def test_why_an_agent_is_broken_is_told_whole(api: StubApi, command: Command) -> None:
    cause = "ModuleNotFoundError: " + "x" * 100
    api.on("GET", "/api/v1/agents", {"data": [{"name": "a", "error": cause}], "next_cursor": None})
    assert cause in command.on_terminal("agents", "list").out


@pytest.mark.parametrize(
    ("arguments", "method", "path"),
    [
        (["memories", "set", "city", "Lisbon"], "POST", "/api/v1/memories"),
        (["memories", "list"], "GET", "/api/v1/memories"),
        (["runs", "list"], "GET", "/api/v1/runs"),
    ],
    ids=_name_of,
)
def test_a_session_may_be_named_wherever_one_is_meant(
    api: StubApi, command: Command, arguments: list[str], method: str, path: str
) -> None:
    api.on("GET", "/api/v1/sessions/my%20trip", {"session_id": SESSION})
    api.on(method, path, {"data": [], "next_cursor": None})
    assert command(*arguments, "--session", "my trip").code == 0
    asked = api.asked[-1]
    assert (asked.body or asked.query)["session_id"] == SESSION


def test_a_prompt_that_is_not_used_yet_says_how_to_use_it(api: StubApi, command: Command) -> None:
    api.on("POST", "/api/v1/prompts", {"prompt_id": "p1"})
    assert "prompts activate p1" in command("prompts", "create", "simple", "Be brief.").err
    assert command("prompts", "create", "simple", "Be brief.", "--activate").err == ""
