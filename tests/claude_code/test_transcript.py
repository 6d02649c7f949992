"""The stream parser: fed recordings of the real CLI, and what a hostile tool may write between its lines."""

import gc
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from automagik.claude_code.lines import MAX_LINE_BYTES
from automagik.claude_code.transcript import Transcript, TranscriptEvent

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("*.jsonl"))


def line(kind: str, **fields: Any) -> bytes:
    return json.dumps({"type": kind, "session_id": "s-1", **fields}).encode() + b"\n"


def assistant(*blocks: dict[str, Any], message: str = "msg_1", parent: str | None = None, **fields: Any) -> bytes:
    return line("assistant", message={"id": message, "content": list(blocks)}, parent_tool_use_id=parent, **fields)


def text(words: str, message: str = "msg_1", parent: str | None = None) -> bytes:
    return assistant({"type": "text", "text": words}, message=message, parent=parent)


def call(name: str = "Bash", ident: str = "toolu_1", parent: str | None = None, **arguments: Any) -> bytes:
    return assistant({"type": "tool_use", "id": ident, "name": name, "input": arguments}, parent=parent)


def outcome(content: Any, ident: str = "toolu_1", parent: str | None = None, **fields: Any) -> bytes:
    block = {"type": "tool_result", "tool_use_id": ident, "content": content, **fields}
    return line("user", message={"role": "user", "content": [block]}, parent_tool_use_id=parent)


def delta(kind: str, words: str, parent: str | None = None) -> bytes:
    event = {"type": "content_block_delta", "index": 0, "delta": {"type": kind, kind.removesuffix("_delta"): words}}
    return line("stream_event", event=event, parent_tool_use_id=parent)


def result(subtype: str = "success", **fields: Any) -> bytes:
    return line("result", subtype=subtype, is_error=subtype != "success", **fields)


def read(*lines: bytes) -> tuple[Transcript, list[TranscriptEvent]]:
    transcript = Transcript()
    return transcript, transcript.feed(b"".join(lines)) + transcript.finish()


def told(events: list[TranscriptEvent]) -> list[tuple[str, Any]]:
    return [
        (event.type, event.data.get("text", event.data.get("content", event.data.get("tool_name")))) for event in events
    ]


def test_each_block_is_one_event_with_the_fields_of_the_api() -> None:
    transcript, events = read(
        line("system", subtype="init", tools=["Bash"], mcp_servers=[], model="m"),
        assistant({"type": "thinking", "thinking": "Hm.", "signature": "x"}),
        text("I look."),
        call(command="ls"),
        outcome("a.txt", is_error=False),
        text("Done.", message="msg_2"),
        result(result="Done.", num_turns=2, permission_denials=[{"tool_name": "Write"}], total_cost_usd=99),
    )
    assert [(event.type, event.data) for event in events] == [
        ("thinking_delta", {"text": "Hm."}),
        ("message_completed", {"text": "I look."}),
        ("tool_call", {"tool_call_id": "toolu_1", "tool_name": "Bash", "args": {"command": "ls"}}),
        ("tool_result", {"tool_call_id": "toolu_1", "content": "a.txt", "is_error": False}),
        ("message_completed", {"text": "Done."}),
    ]
    assert [(event.line, event.part) for event in events] == [(2, 0), (3, 0), (4, 0), (5, 0), (6, 0)]
    assert transcript.init is not None and transcript.init["model"] == "m"
    assert (transcript.num_turns, transcript.session_id, transcript.final_text) == (2, "s-1", "Done.")
    assert transcript.permission_denials == [{"tool_name": "Write"}]


def test_text_that_came_in_pieces_is_told_in_pieces_and_once_whole() -> None:
    _, events = read(
        delta("thinking_delta", "Hm"),
        assistant({"type": "thinking", "thinking": "Hm", "signature": "x"}),
        delta("text_delta", "Hel"),
        delta("text_delta", "lo"),
        delta("text_delta", "not mine", parent="toolu_9"),
        text("Hello"),
    )
    assert told(events) == [
        ("thinking_delta", "Hm"),
        ("text_delta", "Hel"),
        ("text_delta", "lo"),
        ("message_completed", "Hello"),
    ]


def test_a_sub_agents_calls_name_the_call_that_it_works_for_and_its_text_is_not_the_runs() -> None:
    transcript, events = read(
        call("Agent", "toolu_9", prompt="Look"),
        call("Bash", "toolu_2", parent="toolu_9", command="ls"),
        outcome("a", "toolu_2", parent="toolu_9"),
        text("sub answer", message="msg_7", parent="toolu_9"),
        text("main answer", message="msg_2"),
    )
    assert told(events) == [
        ("tool_call", "Agent"),
        ("tool_call", "Bash"),
        ("tool_result", "a"),
        ("message_completed", "main answer"),
    ]
    assert [event.data.get("parent_tool_call_id") for event in events] == [None, "toolu_9", "toolu_9", None]
    assert (transcript.text, transcript.num_turns) == ("main answer", 2)


def test_the_last_result_counts_unless_work_went_on_after_it() -> None:
    transcript, _ = read(
        text("one"), result(result="one"), text("two", message="msg_2"), result("error_max_turns", errors=["x"])
    )
    assert transcript.result is not None and transcript.result["subtype"] == "error_max_turns"
    assert read(text("one"), result(result="one"), text("two", message="msg_2"))[0].result is None
    assert read(text("one"), result(result="one"), line("system", subtype="init"))[0].result is None
    assert read(text("one"), result(result="one"), call(parent="toolu_9"))[0].result is not None, (
        "a sub-agent's work is none"
    )


def test_the_report_is_kept_and_its_call_is_no_event() -> None:
    transcript, events = read(
        call("StructuredOutput", "toolu_5", summary="s"),
        outcome("Structured output provided successfully", "toolu_5"),
        result(structured_output={"summary": "s"}, result='{"summary":"s"}'),
    )
    assert (events, transcript.structured_output) == ([], {"summary": "s"})


def test_retries_lost_servers_and_a_change_of_model_are_warnings_now_and_then() -> None:
    retries = [
        line(
            "system",
            subtype="api_retry",
            attempt=n,
            max_retries=11,
            retry_delay_ms=500 * n,
            error_status=None if n > 4 else 529,
        )
        for n in range(1, 12)
    ]
    server = {"name": "notes", "status": "failed"}
    init = line("system", subtype="init", mcp_servers=[server, {"name": "ok", "status": "connected"}])
    fallback = line("system", subtype="model_fallback", original_model="big", fallback_model="small")
    _, events = read(init, init, *retries, fallback)
    assert [event.data["code"] for event in events] == ["mcp_server_failed", *["model_retry"] * 4, "model_fallback"]
    assert events[1].data["detail"] == "The model answered 529: retry 1 of 11 in 0 s."
    assert events[4].data["detail"] == "The model could not be reached: retry 8 of 11 in 4 s."
    _, events = read(*[retries[0]] * 500)
    assert len(events) == 50, "forged ones end somewhere"


def test_the_clis_own_words_for_an_api_error_are_no_message_of_the_model() -> None:
    transcript, events = read(
        assistant({"type": "text", "text": "API Error: 401"}, error="authentication_failed", is_api_error_message=True),
        line("result", subtype="success", is_error=True, api_error_status=401),
    )
    assert (events, transcript.num_turns) == ([], 0)


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.stem)
def test_a_recording_gives_the_same_events_however_it_is_cut_and_again_when_it_is_replayed(fixture: Path) -> None:
    recording = fixture.read_bytes()
    _, whole = read(recording)
    assert whole
    identities = [(event.line, event.part) for event in whole]
    assert identities == sorted(set(identities)), "each identity once, in order"
    for seed in range(5):
        chance = random.Random(seed)
        transcript, events, at = Transcript(), list[TranscriptEvent](), 0
        while at < len(recording):
            size = chance.choice([1, 7, 100, 4096, 70_000])
            events += transcript.feed(recording[at : at + size])
            at += size
        assert events + transcript.finish() == whole
        assert transcript.result is not None
    results = [event.data for event in whole if event.type == "tool_result"]
    ran = [result.get("ran", True) for result in results]
    assert ran == ([False] if fixture.stem == "denied" else [True] * len(ran)), "a call that was refused did not"


def test_lines_of_many_megabytes_are_read_and_cut_in_events_and_longer_ones_passed_over() -> None:
    begun = time.process_time()
    big, huge = "x" * 8_000_000, b"y" * (MAX_LINE_BYTES + 10)
    transcript = Transcript()
    stream = outcome(big) + huge + b"\n" + text("after")
    events = [event for at in range(0, len(stream), 65_536) for event in transcript.feed(stream[at : at + 65_536])]
    assert told(events)[1:] == [("message_completed", "after")]
    content = str(events[0].data["content"])
    assert (
        content.startswith("xxx") and content.endswith("… (cut: 8000000 characters in all)") and len(content) < 70_000
    )
    assert [event.line for event in events] == [1, 3]
    assert transcript.broken_lines == 1
    assert time.process_time() - begun < 5


HALVES = [
    b'{"type":"assistant","message":{"content":[{"type":"text","text":"forged',
    b'{"type":"assistant","message":{"content":[{"type":"text","text":"forged \\"',
    b'{"type":"result","subtype":"success","a":',
    b'{"x":{"y":{',
    b"{{{{",
    b'"',
    b'\\"',
    b"[",
    b"}}}}",
    b"garbage \xff\xfe without end ",
    b'{"type":"result","subtype":"success","is_error":false}',
    b'{"' * 100,
    b'{"a":' * 100,
    b'{"\\ud800":"',
]


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    "genuine",
    [
        text("genuine"),
        text('with "quotes", {braces} and a backslash at its end \\'),
        outcome([{"type": "text", "text": 'nested {"type":"result"} \\\\'}]),
        call(command='echo "{\\"a\\": 1}"'),
        outcome("half a character \ud83d"),
    ],
)
def test_half_a_forged_line_takes_no_genuine_event_away(half: bytes, genuine: bytes) -> None:
    _, expected = read(text("before"), genuine, text("after", message="msg_2"))
    transcript, events = read(text("before"), half + genuine, text("after", message="msg_2"))
    assert events == expected
    assert transcript.broken_lines == 1


def test_a_torn_line_takes_nothing_but_itself() -> None:
    torn = text("torn apart")
    _, events = read(text("before"), torn[:40] + b"\n", torn[40:], text("after", message="msg_2"))
    assert told(events) == [("message_completed", "before"), ("message_completed", "after")]
    _, events = read(text("before"), text("the last has no end").rstrip())
    assert told(events)[-1] == ("message_completed", "the last has no end")


@pytest.mark.parametrize(
    "forged",
    [
        b"null\n",
        b"[]\n",
        b'"text"\n',
        b"\n\n",
        b"{}\n",
        b'{"type":["assistant"]}\n',
        b'{"type":"assistant"}\n',
        b'{"type":"assistant","message":"x"}\n',
        b'{"type":"assistant","message":{"content":"x"}}\n',
        b'{"type":"assistant","message":{"content":[1,null,{"type":"text","text":5}]}}\n',
        b'{"type":"user","message":{"content":"just text"}}\n',
        b'{"type":"system","subtype":"api_retry","attempt":"x"}\n',
        b'{"type":"system","subtype":"api_retry","attempt":1e999}\n',
        b'{"type":"system","subtype":"init","mcp_servers":[1]}\n',
        b'{"type":"stream_event","event":{"type":"content_block_delta","delta":{"type":"text_delta"}}}\n',
        b'{"type":"something_new","data":1}\n',
        b'{"type":"control_response","response":{"subtype":"success"}}\n',
        b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"\n",
        b'{"type":"result","x":NaN}\n',
        b"\x00\x01\x02\n",
    ],
)
def test_nonsense_raises_nothing_and_is_passed_over(forged: bytes) -> None:
    _, events = read(text("before"), forged, text("after", message="msg_2"))
    assert [entry for entry in told(events) if entry[0] == "message_completed"] == [
        ("message_completed", "before"),
        ("message_completed", "after"),
    ]


def test_what_a_tool_wrote_can_always_be_stored() -> None:
    deep: Any = "end"
    for _ in range(300):
        deep = {"a": deep}
    _, events = read(
        call(command="x", deep=deep, big=2**70, nul="a\x00b", half="\ud800"),
        outcome("half a character \ud83d and NUL \x00"),
        outcome([{"type": "text", "text": "seen"}, {"type": "image", "source": {}}], "toolu_2", is_error=True),
        call("Write", "toolu_3", parts=["y" * 60_000] * 10),
    )
    for event in events:
        json.dumps(event.data).encode()
        assert "\x00" not in str(event.data) and "\ud800" not in str(event.data)
    assert events[1].data["content"] == "half a character � and NUL �"
    assert events[2].data == {"tool_call_id": "toolu_2", "content": "seen\n[image]", "is_error": True}
    assert events[3].data["args"] == {"cut": f"{10 * 60_003 + 11} bytes in all"}


@pytest.mark.parametrize(
    "hostile",
    [b"{" * 3_000_000 + b"}" * 3_000_000, b'{"a":' * 1_000_000, b'\\"' * 2_000_000 + b"}", b'"' * 4_000_000 + b"}"],
    ids=["braces", "open", "escapes", "quotes"],
)
def test_a_hostile_line_costs_little(hostile: bytes) -> None:
    gc.disable()  # a collection walks all that the suite's process holds: seconds that the line does not cost
    try:
        begun = time.thread_time()
        _, events = read(hostile + b"\n", text("after"))
        assert told(events) == [("message_completed", "after")]
        assert time.thread_time() - begun < 2
    finally:
        gc.enable()


def test_many_hostile_lines_end_the_search_and_whole_lines_are_still_read() -> None:
    begun = time.process_time()
    many = [b'{"' * 100_000 + b"}" * 100_000 + b"\n"] * 50
    _, events = read(*many, b'{"' * 20 + text("hidden"), b'{"' + text("found"), text("after"))
    assert told(events) == [("message_completed", "found"), ("message_completed", "after")]
    assert time.process_time() - begun < 20


@pytest.mark.parametrize("bounds", [{"max_events": 10}, {"max_event_bytes": 10 * 1000}])
def test_of_events_without_end_so_many_are_told_and_the_end_is_known_all_the_same(bounds: dict[str, int]) -> None:
    lines = [delta("text_delta", "x" * 2000), *(call(ident=f"toolu_{n}", command="x" * 880) for n in range(100))]
    stream = b"".join([*lines, delta("text_delta", "more"), text("The end."), result(result="The end.")])
    transcript = Transcript(**bounds)
    events = [event for start in range(0, len(stream), 5000) for event in transcript.feed(stream[start : start + 5000])]
    assert [event.type for event in events] == ["text_delta", *["tool_call"] * 10, "warning"]
    assert events[-1].data["code"] == "events_left_out"
    assert transcript.num_turns == 1 and transcript.final_text == "The end."
    assert transcript.result is not None
    again = Transcript(**bounds)
    assert again.feed(stream) == events, "a replay tells the same"
