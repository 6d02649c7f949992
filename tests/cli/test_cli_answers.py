"""`run` and `chat`: the answer streams, a broken connection is resumed, Ctrl-C cancels the run."""

import base64
import uuid
from pathlib import Path

import pytest
from cli_harness import Answer, Asked, Command, StubApi, event, problem, run_document

STREAM = "/api/v1/agent/simple/run/stream"
EVENTS = "/api/v1/runs/run_1/events"


def finished(seq: int, **changes: object) -> str:
    return event("run_finished", {"run": run_document(**changes)}, seq)


HELLO = (
    event("run_started", {}, 1)
    + event("text_delta", {"text": "Hello "})
    + event("text_delta", {"text": "there"})
    + event("message_completed", {"text": "Hello there"}, 2)
    + event("usage", {}, 3)
    + finished(4)
)


def test_the_answer_streams_to_standard_output_and_nothing_else_does(api: StubApi, command: Command) -> None:
    api.on("POST", STREAM, HELLO)
    done = command("run", "simple", "hi")
    assert (done.code, done.out, done.err) == (0, "Hello there\n", "")
    (asked,) = api.asked
    assert asked.body == {"message_content": "hi", "session_origin": "cli"}
    assert asked.headers["x-api-key"] == "amk_" + "e" * 43
    assert asked.headers["accept"] == "text/event-stream"


def test_what_an_agent_does_besides_is_told_on_standard_error(api: StubApi, command: Command) -> None:
    api.on(
        "POST",
        STREAM,
        event("run_started", {}, 1)
        + event("text_delta", {"text": "Let me see."})
        + event("message_completed", {"text": "Let me see."}, 2)
        + event("tool_call", {"tool_call_id": "1", "tool_name": "look_up", "args": {}}, 3)
        + event("tool_result", {"tool_call_id": "1", "content": "x", "is_error": False}, 4)
        + event("thinking_delta", {"text": "hidden"})
        + event("text_delta", {"text": "It is x."})
        + finished(6),
    )
    done = command("run", "simple", "hi")
    assert "look_up" in done.err
    assert [line for line in done.out.splitlines() if line] == ["Let me see.", "It is x."]


def test_an_answer_that_did_not_stream_is_printed_whole(api: StubApi, command: Command) -> None:
    api.on("POST", STREAM, event("run_started", {}, 1) + finished(2))
    assert command("run", "simple", "hi").out == "Hello there\n"
    api.on("POST", STREAM, event("message_completed", {"text": "Hello there"}, 1) + finished(2))
    assert command("run", "simple", "hi").out == "Hello there\n"


def test_a_background_run_is_put_into_the_queue_and_its_id_is_printed(api: StubApi, command: Command) -> None:
    queued = run_document(status="queued", outcome=None, output=None)
    api.on("POST", "/api/v1/agent/simple/run/async", queued)
    done = command("run", "simple", "hi", "--background", "--priority", "-5", "--queue-timeout", "60")
    assert (done.code, done.out) == (0, "run_1\n")
    assert "automagik runs events run_1" in done.err
    (asked,) = api.asked
    assert asked.body == {
        "message_content": "hi",
        "session_origin": "cli",
        "priority": -5,
        "queue_timeout_seconds": 60.0,
    }
    assert command("run", "simple", "hi", "--background", "--json").lines == [queued]


@pytest.mark.parametrize("option", [("--priority", "1"), ("--queue-timeout", "5")])
def test_a_place_in_the_queue_is_for_background_runs(command: Command, option: tuple[str, str]) -> None:
    done = command("run", "simple", "hi", *option)
    assert done.code == 2
    assert "--background" in done.err


def test_json_prints_the_run_when_it_has_ended(api: StubApi, command: Command) -> None:
    api.on("POST", STREAM, HELLO)
    done = command("run", "simple", "hi", "--json")
    assert (done.code, done.lines, done.err) == (0, [run_document()], "")


def test_a_failed_run_is_exit_code_1_and_its_cause_is_told(api: StubApi, command: Command) -> None:
    error = {"code": "model_error", "detail": "The model failed.", "hint": "Try again.", "retryable": True}
    api.on("POST", STREAM, event("run_started", {}, 1) + finished(2, status="failed", output=None, error=error))
    done = command("run", "simple", "hi")
    assert (done.code, done.out) == (1, "")
    assert "The model failed. (run_1)" in done.err
    assert "Try again." in done.err
    as_json = command("run", "simple", "hi", "--json")
    assert as_json.code == 1
    assert as_json.lines[0]["error"] == error


def test_a_run_that_is_refused_is_told_as_the_problem_it_is(api: StubApi, command: Command) -> None:
    api.on("POST", STREAM, problem(404, "agent_not_found", "There is no agent 'simple'."))
    assert command("run", "simple", "hi").code == 5


def test_a_broken_stream_is_resumed_where_it_stopped(api: StubApi, command: Command) -> None:
    api.on(
        "POST",
        STREAM,
        Answer(event("run_started", {}, 1) + event("text_delta", {"text": "Hel"}), breaks=True),
    )
    rest = [
        Answer(event("text_snapshot", {"text": "Hello th"}) + event("text_delta", {"text": "ere"}), breaks=True),
        problem(503, "service_unavailable", "Starting."),
        Answer(event("message_completed", {"text": "Hello there"}, 2) + finished(3)),
    ]
    api.on("GET", EVENTS, lambda asked: rest.pop(0))
    done = command("run", "simple", "hi")
    assert (done.code, done.out) == (0, "Hello there\n")
    assert [asked.headers.get("last-event-id") for asked in api.asked] == [None, "1", "1", "1"]


def test_a_stream_that_ends_early_is_resumed_too(api: StubApi, command: Command) -> None:
    api.on("POST", STREAM, event("run_started", {}, 1))
    api.on("GET", EVENTS, finished(2))
    assert command("run", "simple", "hi").out == "Hello there\n"


def test_a_stream_that_breaks_before_the_run_is_known_is_not_sent_again(api: StubApi, command: Command) -> None:
    api.on("POST", STREAM, Answer("", breaks=True))
    done = command("run", "simple", "hi")
    assert done.code == 3
    assert len(api.asked) == 1
    api.on("POST", STREAM, ": keep-alive\n\n")
    done = command("run", "simple", "hi")
    assert done.code == 3
    assert "runs list" in done.err


def test_a_run_that_waits_ends_the_command_and_says_so(api: StubApi, command: Command) -> None:
    api.on("POST", STREAM, event("run_started", {}, 1) + event("run_waiting", {}, 2))
    api.on("GET", "/api/v1/runs/run_1", run_document(status="waiting", output=None))
    done = command("run", "simple", "hi")
    assert done.code == 1
    assert "waiting" in done.err


@pytest.mark.parametrize(
    ("session", "field"), [("holidays", "session_name"), ("01900000-0000-7000-8000-000000000001", "session_id")]
)
def test_a_session_is_named_or_given_by_its_uuid(api: StubApi, command: Command, session: str, field: str) -> None:
    api.on("POST", STREAM, HELLO)
    user = str(uuid.uuid4())
    command("run", "simple", "hi", "--session", session, "--model", "openai:x", "--user", user)
    assert api.asked[0].body == {
        "message_content": "hi",
        "session_origin": "cli",
        field: session,
        "model": "openai:x",
        "user_id": user,
    }


def test_text_may_come_from_standard_input(api: StubApi, command: Command) -> None:
    api.on("POST", STREAM, HELLO)
    command("run", "simple", "-", stdin="line one\nline twö\n")
    assert api.asked[0].body["message_content"] == "line one\nline twö\n"


def test_files_go_along_by_bytes_and_urls_by_address(api: StubApi, command: Command, tmp_path: Path) -> None:
    api.on("POST", STREAM, HELLO)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "notes").write_bytes(b"text")
    command(
        "run", "simple", "hi",
        "--file", str(tmp_path / "picture.png"),
        "--file", f"text/plain={tmp_path / 'notes'}",
        "--file", "https://example.com/a.pdf?x=1",
        "--file", "audio/mpeg=https://example.com/listen",
    )  # fmt: skip
    assert api.asked[0].body["media_contents"] == [
        {"mime_type": "image/png", "data": base64.b64encode(b"\x89PNG").decode()},
        {"mime_type": "text/plain", "data": base64.b64encode(b"text").decode(), "name": "notes"},
        {"mime_type": "application/pdf", "media_url": "https://example.com/a.pdf?x=1"},
        {"mime_type": "audio/mpeg", "media_url": "https://example.com/listen"},
    ]


def test_ctrl_c_cancels_the_run_and_is_exit_code_130(api: StubApi, command: Command) -> None:
    api.on("POST", STREAM, Answer(event("run_started", {}, 1) + event("text_delta", {"text": "Hel"}), holds_seconds=20))
    api.on("POST", "/api/v1/runs/run_1/cancel", run_document(status="cancelled"))
    done = command.interrupted("run", "simple", "hi", when=lambda: len(api.asked) == 1)
    assert done.code == 130
    assert done.out == "Hel\n"
    assert "Cancelled run_1" in done.err
    assert api.asked[-1].path == "/api/v1/runs/run_1/cancel"


def test_what_a_model_writes_can_not_steer_the_terminal(api: StubApi, command: Command) -> None:
    nasty = "\x1b]0;owned\x07\x1b[2Jok\u202e\x9b31m"
    api.on("POST", STREAM, event("text_delta", {"text": nasty}) + finished(1))
    shown = command.on_terminal("run", "simple", "hi").out
    assert "ok" in shown
    assert not any(char in shown for char in "\x1b\x07\x9b\u202e")
    assert command("run", "simple", "hi").out == nasty + "\n"


def test_chat_reads_lines_where_there_is_no_terminal(api: StubApi, command: Command) -> None:
    api.on("POST", STREAM, HELLO)
    done = command("chat", "simple", stdin="one\n\ntwo\n")
    assert (done.code, done.out) == (0, "Hello there\nHello there\n")
    first, second = api.bodies("POST")
    assert (first["message_content"], second["message_content"]) == ("one", "two")
    assert uuid.UUID(first["session_id"])
    assert first["session_id"] == second["session_id"]


def test_chat_goes_on_after_a_run_that_failed_and_tells_so_at_the_end(api: StubApi, command: Command) -> None:
    def answer(asked: Asked) -> Answer:
        failed = asked.body["message_content"] == "bad"
        return Answer(finished(1, status="failed", output=None, error={"detail": "No."}) if failed else HELLO)

    api.on("POST", STREAM, answer)
    done = command("chat", "simple", "--session", "talk", stdin="bad\ngood\n")
    assert (done.code, done.out) == (1, "Hello there\n")
    assert "No. (run_1)" in done.err
    assert [body["session_name"] for body in api.bodies("POST")] == ["talk", "talk"]


def test_chat_talks_on_a_terminal_until_ctrl_d(api: StubApi, command: Command) -> None:
    api.on("POST", STREAM, HELLO)
    done = command.on_terminal("chat", "simple", types=[("> ", "hi\n"), ("> ", "\x04")])
    assert done.code == 0
    assert "Talking with 'simple'" in done.out
    assert "Hello there" in done.out
    assert len(api.asked) == 1


def test_ctrl_c_in_a_chat_stops_the_answer_and_the_talk_goes_on(api: StubApi, command: Command) -> None:
    slow = Answer(event("run_started", {}, 1) + event("text_delta", {"text": "Hel"}), holds_seconds=20)
    answers = [slow, Answer(HELLO)]
    api.on("POST", STREAM, lambda _: answers.pop(0))
    api.on("POST", "/api/v1/runs/run_1/cancel", run_document(status="cancelled"))
    typed = [("> ", "hi\n"), ("Hel", "\x03"), ("> ", "again\n"), ("Hello there", ""), ("> ", "\x04")]
    done = command.on_terminal("chat", "simple", types=typed)
    assert "Cancelled run_1" in done.out
    assert "Hello there" in done.out
    assert done.code == 0


def test_events_of_a_run_are_followed_to_its_end(api: StubApi, command: Command) -> None:
    rest = [
        Answer(event("run_started", {}, 3), breaks=True),
        Answer(event("text_delta", {"text": "a\nb"}) + finished(4)),
    ]
    api.on("GET", EVENTS, lambda asked: rest.pop(0))
    done = command("runs", "events", "run_1", "--after", "2", "--json")
    assert [line["type"] for line in done.lines] == ["run_started", "text_delta", "run_finished"]
    assert [line["seq"] for line in done.lines] == [3, None, 4]
    assert [asked.headers["last-event-id"] for asked in api.asked] == ["2", "3"]
    rest.append(Answer(HELLO))
    assert len(command("runs", "events", "run_1").out.splitlines()) == 6
