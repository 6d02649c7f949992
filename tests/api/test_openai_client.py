"""The official `openai` client, unchanged, against the real server; and curl, where it is installed."""

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import openai
import pytest
from api_house import AGENTS, TOOLED
from openai import OpenAI

from automagik.testing.needs import need
from automagik.testing.servers import RunningServer
from automagik.testing.warm import WarmPython


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, warm: WarmPython) -> Iterator[RunningServer]:
    data_dir: Path = tmp_path_factory.mktemp("server")
    agents = data_dir / "agents"
    agents.mkdir()
    (agents / "echo.py").write_text(AGENTS)
    (agents / "tooled.py").write_text(TOOLED)
    with RunningServer(data_dir, warm=warm) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as made:
        yield made


def test_agents_are_models(client: OpenAI) -> None:
    assert {"echo", "simple", "tooled"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("echo").owned_by == "automagik"


def test_a_chat_completion_answers_in_the_conversation_that_the_client_keeps(client: OpenAI) -> None:
    completion = client.chat.completions.create(
        model="echo",
        messages=[
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "two"},
        ],
        temperature=0.3,
        max_tokens=100,
        user="somebody",
        seed=7,
    )
    assert completion.choices[0].message.content == "2: two / Be plain."
    assert completion.choices[0].finish_reason == "stop"
    assert completion.object == "chat.completion"
    assert completion.usage is not None
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens > 0


def test_a_streamed_chat_completion_gives_its_text_and_usage(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model="echo",
        messages=[{"role": "user", "content": "one two three"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.strip() == "1: one two three / Be plain."
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


def test_texts_before_and_after_a_tool_are_divided(client: OpenAI) -> None:
    stream = client.chat.completions.create(model="tooled", messages=[{"role": "user", "content": "go"}], stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "let me see\n\nit says done well"


def test_a_system_message_takes_the_place_of_the_prompt_where_the_agent_allows_it(client: OpenAI) -> None:
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": "And kind."},
        {"role": "user", "content": "hi"},
    ]
    completion = client.chat.completions.create(model="echo", messages=messages)
    assert completion.choices[0].message.content == "1: hi / Be brief.\n\nAnd kind."


def test_images_audio_and_files_reach_the_agent(client: OpenAI) -> None:
    data = base64.b64encode(b"data").decode()
    parts: Any = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "input_audio", "input_audio": {"data": data, "format": "mp3"}},
        {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{data}", "filename": "a.pdf"}},
    ]
    completion = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": parts}])
    content = completion.choices[0].message.content or ""
    assert content.startswith("1: look [image/png] [audio/mpeg] [application/pdf]")


def test_calls_and_results_of_earlier_turns_are_taken(client: OpenAI) -> None:
    messages: Any = [
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
        {"role": "user", "content": "thanks"},
    ]
    completion = client.chat.completions.create(model="echo", messages=messages)
    assert completion.choices[0].message.content == "2: thanks / Be plain."


def test_a_response_is_kept_and_gone_on_with(client: OpenAI) -> None:
    first = client.responses.create(model="echo", input="my name is Ann", metadata={"a": "b"})
    assert first.output_text == "1: my name is Ann / Be plain."
    assert (first.status, first.metadata) == ("completed", {"a": "b"})
    assert first.usage is not None
    assert first.usage.total_tokens > 0
    second = client.responses.create(
        model="echo", input=[{"role": "user", "content": "and now"}], previous_response_id=first.id
    )
    assert second.output_text == "2: and now / Be plain."
    assert second.previous_response_id == first.id
    assert client.responses.retrieve(first.id).output_text == first.output_text


def test_a_streamed_response_has_every_event_in_its_order(client: OpenAI) -> None:
    events = list(client.responses.create(model="echo", input="one two", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    types = [event.type for event in events]
    assert types[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert types[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    final = events[-1]
    assert final.type == "response.completed"
    assert final.response.output_text == text
    again = client.responses.create(model="echo", input="three", previous_response_id=final.response.id)
    assert again.output_text.startswith("2: three")
    with client.responses.stream(model="echo", input="by the helper") as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text.strip() == "1: by the helper / Be plain."


def test_a_conversation_that_is_not_stored_can_not_be_gone_on_with(client: OpenAI) -> None:
    response = client.responses.create(model="echo", input="hi", store=False, instructions="Be brief.")
    assert response.output_text == "1: hi / Be brief."
    with pytest.raises(openai.BadRequestError, match="was not stored") as refused:
        client.responses.create(model="echo", input="more", previous_response_id=response.id)
    assert refused.value.param == "previous_response_id"


def test_an_unknown_model_is_not_found_with_the_nearest(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="Did you mean 'echo'") as refused:
        client.chat.completions.create(model="ecko", messages=[{"role": "user", "content": "hi"}])
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="ecko", messages=[{"role": "user", "content": "hi"}], stream=True)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("ecko")
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_nothing")
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="echo", input="hi")


def test_a_wrong_key_is_an_authentication_error(server: RunningServer) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="amk_wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            stranger.models.list()
        assert refused.value.code == "invalid_api_key"


TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"n": 2}, "n"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}, "messages"),
        ({"messages": [{"role": "tool", "tool_call_id": "x", "content": "hi"}]}, "messages.0.tool_call_id"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_what_can_not_be_done_is_a_bad_request_that_names_the_parameter(
    client: OpenAI, changes: dict[str, Any], param: str
) -> None:
    body: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "hi"}], **changes}
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/chat/completions", cast_to=object, body=body)
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"


def test_empty_tools_are_no_tools(client: OpenAI) -> None:
    completion = client.chat.completions.create(
        model="echo", messages=[{"role": "user", "content": "hi"}], tools=[], response_format={"type": "text"}
    )
    assert completion.choices[0].message.content == "1: hi / Be plain."


def test_a_prompt_that_the_agent_does_not_open_is_a_permission_error(server: RunningServer) -> None:
    made = json.loads(server.command("keys", "create", "weak", "--scope", "agents:*:run", "--json"))
    with OpenAI(base_url=f"{server.url}/v1", api_key=made["key"], max_retries=0) as weak:
        messages: Any = [{"role": "system", "content": "Obey."}, {"role": "user", "content": "hi"}]
        with pytest.raises(openai.PermissionDeniedError) as refused:
            weak.chat.completions.create(model="tooled", messages=messages)
        assert refused.value.code == "override_not_allowed"


def test_a_used_up_allowance_is_a_rate_limit_error(server: RunningServer, client: OpenAI) -> None:
    made = cast(
        "dict[str, Any]",
        client.post(
            f"{server.url}/api/v1/keys",
            cast_to=object,
            body={"name": "slow", "scopes": ["agents:*:run"], "rate_limit": "1/hour"},
        ),
    )
    with OpenAI(base_url=f"{server.url}/v1", api_key=made["key"], max_retries=0) as slow:
        slow.models.list()
        with pytest.raises(openai.RateLimitError) as refused:
            slow.models.list()
        assert int(refused.value.response.headers["retry-after"]) > 3000


def test_a_model_that_fails_is_an_error_never_an_answer(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "boom"}])
    assert (failed.value.status_code, failed.value.code) == (502, "model_error")
    stream = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "boom"}], stream=True)
    with pytest.raises(openai.APIError, match="scripted"):
        list(stream)
    events = list(client.responses.create(model="echo", input="boom", stream=True))
    last = events[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert "secret" not in str(last)


def test_curl_asks_and_streams(server: RunningServer) -> None:
    need("curl")

    def run(path: str, *options: str) -> str:
        command = ["curl", "-sS", "-N", "-H", f"x-api-key: {server.key}", f"{server.url}{path}", *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout

    body = ("-H", "content-type: application/json", "-d", '{"message_content": "hello"}')
    answer = json.loads(run("/api/v1/agent/echo/run", *body))
    assert answer["message"] == "1: hello / Be plain."
    stream = run("/api/v1/agent/echo/run/stream", *body)
    assert stream.startswith("id: 1\nevent: run_started\ndata: {")
    assert "event: run_finished" in stream
    refused = run("/api/v1/agent/echo/run", "-d", '{"message_content": "hello"}', "-w", "\n%{http_code}")
    assert refused.endswith("422")
    assert "content-type: application/json" in refused
    assert run("/health", "-o", "/dev/null", "-w", "%{http_code} %header{x-request-id}").startswith("200 req_")
