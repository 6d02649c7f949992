"""The scripted Messages API: as a pure function, and as a server that the real anthropic client asks."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import jsonschema
import pytest

import automagik
from automagik.errors import InvalidInput
from automagik.providers.scripted_answer import ScriptedAnswer
from automagik.providers.scripted_messages import DEMO_SCRIPT, Script
from automagik.testing.scripted_messages import ScriptedMessages
from automagik.types import JsonObject

pytestmark = pytest.mark.anyio

TOOLS: list[Any] = [
    {"name": name, "description": name, "input_schema": {"type": "object", "properties": {}}}
    for name in ("Bash", "Write")
]
REPORT: dict[str, Any] = {
    "name": "StructuredOutput",
    "input_schema": {
        "type": "object",
        "required": ["summary", "verdict", "files_changed", "risks", "confidence"],
        "additionalProperties": False,
        "properties": {
            "summary": {"type": "string", "minLength": 1},
            "verdict": {"enum": ["done", "not_done"]},
            "files_changed": {"type": "array", "items": {"type": "string"}},
            "risks": {
                "type": "array",
                "items": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
            },
            "confidence": {"type": "number", "minimum": 0, "maximum": 1},
            "extra": {"type": "string"},
        },
    },
}


def said(text: str) -> JsonObject:
    return {"role": "user", "content": [{"type": "text", "text": text}]}


def request(*messages: JsonObject, **fields: Any) -> JsonObject:
    return {"model": "claude-test-1", "max_tokens": 8000, "messages": list(messages), **fields}


def message_of(answer: ScriptedAnswer) -> dict[str, Any]:
    return json.loads(answer.body)


def text_of(answer: ScriptedAnswer) -> str:
    return "".join(block.get("text", "") for block in message_of(answer)["content"])


def answered(answer: ScriptedAnswer) -> JsonObject:
    return {"role": "assistant", "content": message_of(answer)["content"]}


def outcome_of(answer: ScriptedAnswer, text: str = "ok", *, error: bool = False) -> JsonObject:
    uses = [block for block in message_of(answer)["content"] if block["type"] == "tool_use"]
    results: list[Any] = [
        {"type": "tool_result", "tool_use_id": use["id"], "content": text, "is_error": error} for use in uses
    ]
    return {
        "role": "user",
        "content": [*results, {"type": "text", "text": "<system-reminder>Be good.</system-reminder>"}],
    }


# -- the pure part


def test_the_turn_is_counted_in_the_conversation_so_that_a_resumed_session_goes_on() -> None:
    data: Any = {
        "rules": [
            {"turns": [{"tool_use": [{"name": "Bash", "input": {"command": "ls"}}]}, {"text": "Two"}, {"text": "Last"}]}
        ]
    }
    script = Script.parse(data)
    first = script.answer(request(said("Begin")))
    assert message_of(first)["stop_reason"] == "tool_use"
    after = [said("Begin"), answered(first), outcome_of(first, "a.txt")]
    second = Script.parse(data).answer(request(*after))  # another process
    assert (text_of(second), second.turn) == ("Two", 1)
    third = script.answer(request(*after, answered(second), said("More")))
    assert (message_of(third)["content"][0]["type"], third.turn) == ("tool_use", 0), "a new prompt begins anew"
    many = [
        *after,
        answered(second),
        outcome_of(first),
        answered(second),
        outcome_of(first),
        answered(second),
        outcome_of(first),
    ]
    assert text_of(script.answer(request(*many))) == "Last", "the last turn comes again"


@pytest.mark.parametrize(
    ("when", "fits"),
    [
        ({"model": "claude-*"}, True),
        ({"model": "gpt-*"}, False),
        ({"system": "careful"}, True),
        ({"system": "surroundings"}, True),
        ({"system": "reckless"}, False),
        ({"prompt": "second"}, True),
        ({"prompt": "first"}, False),
        ({"first_prompt": "first"}, True),
        ({"tools": True}, True),
        ({"tools": False}, False),
        ({"has_tool": "Bash"}, True),
        ({"has_tool": "Read"}, False),
        ({"model": "claude-*", "prompt": "third"}, False),
        ({}, True),
    ],
)
def test_a_rule_answers_when_all_that_it_names_fits(when: JsonObject, fits: bool) -> None:
    script = Script.parse(
        {"rules": [{"name": "it", "when": when, "turns": [{"text": "yes"}]}], "default": {"text": "no"}}
    )
    surroundings: JsonObject = {"role": "system", "content": "The surroundings."}
    asked = request(
        said("first"),
        surroundings,
        {"role": "assistant", "content": "Hm"},
        said("second"),
        system="Be careful.",
        tools=TOOLS,
    )
    assert text_of(script.answer(asked)) == ("yes" if fits else "no")


def test_placeholders_are_filled_once_and_nothing_else_is_touched() -> None:
    script = Script.parse({"default": {"text": "{prompt}|{cwd}|{last_tool_result}|{model}|{turn}|{other}|${HOME}"}})
    asked = request(said("say {model}"), system="Primary working directory: /workspace\nPlatform: linux")
    assert text_of(script.answer(asked)) == "say {model}|/workspace||claude-test-1|0|{other}|${HOME}"


WRONG: list[tuple[Any, str]] = [
    ({"rules": [{"turns": [{"text": "a"}, {"text": "b", "delay": -1}]}]}, "rules[0].turns[1].delay"),
    ({"rules": [{"turns": [{"txt": "a"}]}]}, "rules[0].turns[0].txt"),
    ({"rules": [{"turns": [{}]}]}, "rules[0].turns[0]"),
    ({"default": {"error": {"status": 200}}}, "default.error.status"),
    ({"default": {"fault": {"kind": "explode"}}}, "default.fault.kind"),
    ({"rules": {}}, "rules"),
]


@pytest.mark.parametrize(("script", "place"), WRONG)
def test_a_wrong_script_names_the_place(script: Any, place: str) -> None:
    with pytest.raises(InvalidInput, match="The script is wrong at ") as wrong:
        Script.parse(script)
    assert f" {place}:" in wrong.value.detail


def test_the_stream_says_what_the_whole_answer_says_in_the_apis_own_order() -> None:
    script = Script.parse(
        {
            "default": {
                "thinking": "Let me see.",
                "text": "I write it.",
                "tool_use": [{"name": "Write", "input": {"a": "x" * 90}}],
            }
        }
    )
    whole = message_of(script.answer(request(said("Go"))))
    streamed = script.answer(request(said("Go"), stream=True))
    events = [json.loads(chunk.split(b"data: ", 1)[1]) for chunk in streamed.stream()]
    names = [chunk.split(b"\n", 1)[0].removeprefix(b"event: ").decode() for chunk in streamed.stream()]
    assert names == [event["type"] for event in events]
    order = [name for name, before in zip(names, [None, *names], strict=False) if name != before]
    assert order == [
        *("message_start", "content_block_start", "ping", "content_block_delta", "content_block_stop"),
        *("content_block_start", "content_block_delta", "content_block_stop") * 2,
        *("message_delta", "message_stop"),
    ]
    assert events[0]["message"]["usage"]["output_tokens"] == 1
    assert events[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"] > 1
    assert events[-2]["delta"]["stop_reason"] == whole["stop_reason"] == "tool_use"
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta.get("text", "") for delta in deltas) == "I write it."
    assert "".join(delta.get("thinking", "") for delta in deltas) == "Let me see."
    assert json.loads("".join(delta.get("partial_json", "") for delta in deltas)) == {"a": "x" * 90}


def test_usage_is_the_same_for_the_same_request_and_reads_from_the_cache_what_was_there_before() -> None:
    script = Script.parse({"default": {"text": "Hello"}})
    system: Any = [{"type": "text", "text": "s" * 4000, "cache_control": {"type": "ephemeral"}}]
    first = message_of(script.answer(request(said("Hi"), system=system)))["usage"]
    assert first == message_of(script.answer(request(said("Hi"), system=system)))["usage"]
    assert first["cache_creation_input_tokens"] > 1000 and first["cache_read_input_tokens"] == 0
    more = request(said("Hi"), {"role": "assistant", "content": "Hello"}, said("And?"), system=system)
    second = message_of(script.answer(more))["usage"]
    assert second["cache_read_input_tokens"] > 1000 > second["cache_creation_input_tokens"] > 0
    plain = message_of(script.answer(request(said("Hi"), system="s" * 4000)))["usage"]
    assert plain["input_tokens"] > 1000 and plain["cache_creation_input_tokens"] == 0


def test_max_tokens_cuts_the_answer_and_usage_may_be_stated() -> None:
    script = Script.parse({"default": {"text": "word " * 500, "usage": {"input_tokens": 200_000}}})
    whole = message_of(script.answer(request(said("Hi"))))
    assert (whole["stop_reason"], whole["usage"]["input_tokens"]) == ("end_turn", 200_000)
    cut = message_of(script.answer(request(said("Hi"), max_tokens=20)))
    assert cut["stop_reason"] == "max_tokens"
    assert cut["usage"]["output_tokens"] <= 20
    assert len(cut["content"][0]["text"]) < 100


@pytest.mark.parametrize("body", [{}, {"messages": "Hi"}, {"model": "x", "messages": None}])
def test_what_is_no_conversation_is_a_400(body: JsonObject) -> None:
    assert DEMO_SCRIPT.answer(body).status == 400


def test_what_the_client_says_in_a_persons_place_is_no_prompt_and_a_hostile_text_costs_little() -> None:
    script = Script.parse({"rules": [{"turns": [{"text": "One"}, {"text": "Two"}]}]})
    begun: list[JsonObject] = [said("Begin"), {"role": "assistant", "content": "One"}]
    for aside in (
        "<system-reminder>a</system-reminder>\n<system-reminder>b</system-reminder>",
        "[Request interrupted by user for tool use]",
        "[structured-output-enforce] You MUST call the tool.",
        "Output token limit hit. Resume directly.",
        "Your response above was cut off mid-stream. Resume directly from where it stops — no apology, no recap.",
        "Your response above was cut off mid-stream and only your next message is delivered. Write it again.",
        "[Your previous response had no visible output. Please continue and produce a user-visible response.]",
        "Your tool call was malformed and could not be parsed. Please retry.",
        "The previous response failed to produce a valid tool call. Please retry the tool call now.",
    ):
        assert text_of(script.answer(request(*begun, said(aside)))) == "Two", aside
    assert text_of(script.answer(request(*begun, said("Output token limit hit. Resume.\nAnd now this")))) == "One"
    started = time.process_time()
    hostile = "<system-reminder>[Request interrupted by user" * 50_000
    assert text_of(script.answer(request(*begun, said(hostile)))) == "One"
    assert time.process_time() - started < 2


# -- the demo


def demo(tools: list[Any], results: dict[str, tuple[str, bool]], prompt: str = "Add a file") -> list[dict[str, Any]]:
    """The demo's answers until it asks for nothing more, each tool answered by its name."""
    conversation: list[JsonObject] = [said(prompt)]
    answers: list[dict[str, Any]] = []
    for _ in range(12):
        answer = DEMO_SCRIPT.answer(request(*conversation, tools=tools, system="Primary working directory: /workspace"))
        message = message_of(answer)
        answers.append(message)
        uses = [block for block in message["content"] if block["type"] == "tool_use"]
        if not uses or uses[0]["name"] == "StructuredOutput":
            return answers
        outcome: list[Any] = []
        for use in uses:
            step = next((key for key in results if key in json.dumps(use["input"])), use["name"])
            text, error = results.get(step, ("ok", False))
            outcome.append({"type": "tool_result", "tool_use_id": use["id"], "content": text, "is_error": error})
        said_so: list[JsonObject] = [
            {"role": "assistant", "content": message["content"]},
            {"role": "user", "content": outcome},
        ]
        conversation += said_so
    raise AssertionError("the demo does not end")


def commands(answers: list[dict[str, Any]]) -> list[str]:
    blocks = [block for answer in answers for block in answer["content"] if block["type"] == "tool_use"]
    return [block["input"].get("command", block["name"]) for block in blocks]


def test_the_demo_looks_around_writes_commits_and_reports_and_says_what_it_is() -> None:
    answers = demo([*TOOLS, REPORT], {})
    ran = commands(answers)
    assert ran[:3] == ["ls", "git log --oneline -5", "Write"]
    assert ran[3].startswith("git add -- /workspace/automagik-demo-") and "commit -m" in ran[3]
    report = answers[-1]["content"][-1]["input"]
    assert "no language model" in report["summary"] and "no language model" in answers[0]["content"][0]["text"]
    assert report["verdict"] == "not_done" and report["files_changed"][0].startswith("automagik-demo-")
    assert set(report) == set(REPORT["input_schema"]["required"])
    assert 0 <= report["confidence"] <= 1


def test_the_demo_takes_half_an_answer_for_none() -> None:
    """As the Claude CLI may keep it of a gateway that died: text without its tools, or tools that never ran."""
    begun: list[JsonObject] = [said("Add a file")]
    due: list[list[str]] = []
    for _ in range(5):
        whole = message_of(demo_answer(begun))
        for kept in (whole["content"][:1], whole["content"]):
            half: JsonObject = {"role": "assistant", "content": kept}
            halved = [*begun, half, said("<system-reminder>On.</system-reminder>")]
            assert commands([message_of(demo_answer(halved))]) == commands([whole])
        due.append(commands([whole]))
        outcome: list[Any] = [
            {"type": "tool_result", "tool_use_id": use["id"], "content": "ok", "is_error": False}
            for use in whole["content"]
            if use["type"] == "tool_use"
        ]
        spoken: list[JsonObject] = [
            {"role": "assistant", "content": whole["content"]},
            {"role": "user", "content": outcome},
        ]
        begun += spoken
        if due[-1] == ["StructuredOutput"]:
            break
    assert [words[0].split()[0] for words in due] == ["ls", "Write", "git", "StructuredOutput"]


def demo_answer(conversation: list[JsonObject]) -> ScriptedAnswer:
    return DEMO_SCRIPT.answer(
        request(*conversation, tools=[*TOOLS, REPORT], system="Primary working directory: /workspace")
    )


def test_the_demo_ends_well_where_it_may_not_write_or_has_no_tools() -> None:
    denied = demo([*TOOLS, REPORT], {"Write": ("You may not.", True)})
    assert commands(denied) == ["ls", "git log --oneline -5", "Write", "StructuredOutput"]
    assert "You may not." in denied[-1]["content"][-1]["input"]["summary"]
    assert commands(demo([{"name": "Read", "input_schema": {}}, REPORT], {})) == ["StructuredOutput"]
    [text] = demo([], {})
    assert "no language model" in text["content"][0]["text"]


WORKFLOWS = Path(automagik.__file__).parent / "claude_code" / "workflows"


@pytest.mark.parametrize("file", sorted(WORKFLOWS.glob("*/report.schema.json")), ids=lambda file: file.parent.name)
def test_the_demos_report_fits_each_workflow_and_claims_nothing(file: Path) -> None:
    schema = json.loads(file.read_text())
    report = demo([*TOOLS, {"name": "StructuredOutput", "input_schema": schema}], {})[-1]["content"][-1]["input"]
    jsonschema.validate(report, schema)
    assert "no language model" in report["summary"]
    assert not any(value is True for value in report.values()), "neither complete nor ready"
    assert report.get("verdict") != "approve"


ODD: list[Any] = [
    {
        "type": "object",
        "required": ["a", "b", "c", "d", "e", "f"],
        "properties": {
            "a": {"type": ["string", "null"]},
            "b": {"type": "string", "minLength": 3},
            "c": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "d": {"type": "number", "exclusiveMinimum": 2},
            "e": {"$ref": "#/$defs/x"},
            "f": {"type": "string", "format": "date"},
        },
        "$defs": {"x": {"type": "array", "minItems": 2, "items": {"const": 1}}},
    },
    {
        "type": "object",
        "required": ["a"],
        "properties": {"a": {"$ref": "#/$defs/a"}},
        "$defs": {"a": {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#/$defs/a"}}}},
    },
    {"type": "object", "required": 5},
    {"type": "object", "required": ["a"], "properties": {"a": True}},
    {"type": "object", "required": ["a"], "properties": [], "$defs": 5},
    {
        "$ref": "#/$defs/a",
        "$defs": {
            "a": {
                "type": "object",
                "required": list("abcdefgh"),
                "properties": {key: {"$ref": "#/$defs/a"} for key in "abcdefgh"},
            }
        },
    },
    {"type": "array", "minItems": 10**9, "items": {"type": "array", "minItems": 10**9}},
    {"anyOf": [1]},
    {"enum": 3},
]


@pytest.mark.parametrize("schema", ODD)
def test_the_demo_ends_whatever_schema_it_is_given(schema: Any) -> None:
    report = demo([{"name": "StructuredOutput", "input_schema": schema}], {})[-1]["content"][-1]["input"]
    if schema is ODD[0]:
        jsonschema.validate(report, schema)


def test_the_demo_names_itself_where_git_knows_no_author_and_gives_up_after_that() -> None:
    answers = demo(TOOLS, {"commit -m": ("Please tell me who you are.", True)})
    ran = commands(answers)
    assert [("user.email" in run) for run in ran if "commit" in run] == [False, True]
    assert answers[-1]["stop_reason"] == "end_turn"


# -- the server


def client(api: ScriptedMessages, retries: int = 0) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=api.base_url, api_key="sk-test", max_retries=retries)


async def ask(api: ScriptedMessages, text: str = "Hi", retries: int = 0) -> str:
    async with client(api, retries) as asked:
        message = await asked.messages.create(
            model="claude-test-1", max_tokens=100, messages=[{"role": "user", "content": text}]
        )
    return "".join(block.text for block in message.content if block.type == "text")


async def stream(api: ScriptedMessages, text: str = "Hi") -> str:
    async with (
        client(api) as asked,
        asked.messages.stream(
            model="claude-test-1", max_tokens=100, messages=[{"role": "user", "content": text}]
        ) as events,
    ):
        return "".join([piece async for piece in events.text_stream])


async def test_the_real_client_reads_it_whole_and_streamed_and_it_remembers(tmp_path: Path) -> None:
    async with ScriptedMessages({"default": {"text": "You said {prompt}"}}, record=tmp_path / "calls.jsonl") as api:
        assert await ask(api, "one") == "You said one"
        assert await stream(api, "two") == "You said two"
        calls = await api.wait_for(2)
        async with client(api) as asked:
            counted = await asked.messages.count_tokens(model="m", messages=[{"role": "user", "content": "x" * 400}])
    assert counted.input_tokens >= 100
    assert [call.body["messages"] for call in calls] == [[{"role": "user", "content": text}] for text in ("one", "two")]
    assert calls[0].headers["authorization"] == "Bearer sk-test"
    lines = (tmp_path / "calls.jsonl").read_text().splitlines()
    assert len(lines) == 2 and "sk-test" not in lines[0]


async def test_errors_have_the_apis_shape_and_headers_and_end_after_their_times() -> None:
    error: JsonObject = {"status": 429, "retry_after": 0, "times": 2, "headers": {"x-mine": "1"}}
    async with ScriptedMessages({"default": {"text": "At last", "error": error}}) as api:
        with pytest.raises(anthropic.RateLimitError) as limited:
            await ask(api)
        assert limited.value.response.headers["retry-after"] == "0"
        assert limited.value.response.headers["x-mine"] == "1"
        assert await ask(api, retries=2) == "At last"
        assert [call.attempt for call in api.calls] == [0, 1, 2]
        api.script = {"default": {"error": {"status": 529}}}
        with pytest.raises(anthropic.APIStatusError, match="overloaded_error"):
            await ask(api)


async def test_streams_break_where_the_script_says_so() -> None:
    async with ScriptedMessages({}) as api:
        api.script = {"default": {"text": "a b c", "fault": {"kind": "cut", "after": 4}}}
        with pytest.raises(httpx2.RemoteProtocolError, match="incomplete"):
            await stream(api)
        api.script = {"default": {"text": "a b c", "fault": {"kind": "error", "after": 4}}}
        with pytest.raises(anthropic.APIStatusError, match="overloaded"):
            await stream(api)
        api.script = {"default": {"text": "a", "fault": {"kind": "refuse"}}}
        with pytest.raises(anthropic.APIConnectionError):
            await ask(api)
        api.script = {"default": {"text": "a", "fault": {"kind": "hang", "times": 1}}}
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(api), 0.3)
        assert await ask(api) == "a"


async def test_it_goes_away_and_comes_back_on_the_same_socket_and_port(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    async with ScriptedMessages(socket=path, port=0) as api:
        port = api.port
        assert await ask(api) == "OK"
        await api.refuse()
        assert not path.exists()
        with pytest.raises(anthropic.APIConnectionError):
            await ask(api)
        await api.accept()
        assert (api.port, path.is_socket()) == (port, True)
        assert await ask(api) == "OK"
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"HEAD / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
        writer.close()
        with pytest.raises(TimeoutError, match="There were 2 calls"):
            await api.wait_for(3, timeout_seconds=0.05)


async def test_a_paced_stream_comes_piece_by_piece() -> None:
    async with ScriptedMessages({"default": {"text": "a b c d", "chunk_delay": 0.02, "delay": 0.05}}) as api:
        start = asyncio.get_running_loop().time()
        assert await stream(api) == "a b c d"
        assert asyncio.get_running_loop().time() - start >= 0.05 + 4 * 0.02


async def test_as_a_process_it_prints_its_port_and_takes_a_new_script(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text('{"default": {"text": "From a file"}}')
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "automagik.testing.scripted_messages", "--script", str(script)), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    port = int(await process.stdout.readline())
    asked = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        assert (await http.post("/v1/messages", json=asked)).json()["content"][0]["text"] == "From a file"
        wrong = await http.put("/__script__", json={"rules": [{"name": "x"}]})
        assert (wrong.status_code, "rules[0].turns" in wrong.text) == (400, True)
        assert (await http.put("/__script__", json={"default": {"text": "Changed"}})).status_code == 200
        assert (await http.post("/v1/messages", json=asked)).json()["content"][0]["text"] == "Changed"
        assert (await http.get("/__calls__")).json()["calls"] == 2
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0
