import json
from datetime import UTC, datetime

import pytest
from memory_house import House
from pydantic_ai import BinaryContent, ImageUrl, ModelMessage
from pydantic_ai.messages import (
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from automagik.errors import Internal
from automagik.memory import MessageHistory, dump_messages, load_messages

pytestmark = pytest.mark.anyio

AT = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)
TURN: list[ModelMessage] = [
    ModelRequest(parts=[UserPromptPart("what is 2+2?", timestamp=AT)], timestamp=AT),
    ModelResponse(
        parts=[ThinkingPart("hm"), TextPart("let me see"), ToolCallPart("add", {"a": 2, "b": 2}, tool_call_id="c1")],
        model_name="test",
        timestamp=AT,
    ),
    ModelRequest(parts=[ToolReturnPart("add", {"sum": 4}, tool_call_id="c1", timestamp=AT)], timestamp=AT),
    ModelResponse(parts=[TextPart("4")], model_name="test", timestamp=AT),
]


def test_messages_survive_without_loss() -> None:
    rows = dump_messages(TURN)
    assert load_messages(row.raw_payload for row in rows) == TURN
    assert [(row.role, row.content) for row in rows] == [
        ("user", "what is 2+2?"),
        ("assistant", "let me see"),
        ("tool", '{"sum":4}'),
        ("assistant", "4"),
    ]


def test_instructions_are_not_stored_with_messages() -> None:
    asked = ModelRequest(
        parts=[UserPromptPart("what is 2+2?", timestamp=AT)], timestamp=AT, instructions="a long prompt"
    )
    (row,) = dump_messages([asked])
    assert "a long prompt" not in row.raw_payload
    assert load_messages([row.raw_payload]) == [TURN[0]]
    assert asked.instructions == "a long prompt"


def test_media_are_kept_and_named_in_the_readable_text() -> None:
    content = ["look", BinaryContent(b"\xff\x00\xfe", media_type="image/png"), ImageUrl("https://example.org/a.png")]
    (row,) = dump_messages([ModelRequest(parts=[UserPromptPart(content)])])
    assert row.content == "look\n[image/png, 3 bytes]\n[image/png]"
    (loaded,) = load_messages([row.raw_payload])
    assert ModelMessagesTypeAdapter.dump_json([loaded]) == f"[{row.raw_payload}]".encode()
    part = loaded.parts[0]
    assert isinstance(part, UserPromptPart)
    picture = part.content[1]
    assert isinstance(picture, BinaryContent)
    assert (picture.data, picture.media_type) == (b"\xff\x00\xfe", "image/png")


@pytest.mark.parametrize(
    ("message", "role"),
    [
        (ModelRequest(parts=[SystemPromptPart("rules")]), "system"),
        (ModelRequest(parts=[SystemPromptPart("rules"), UserPromptPart("hi")]), "user"),
        (ModelRequest(parts=[ToolReturnPart("add", 4, tool_call_id="c"), UserPromptPart("and a file")]), "tool"),
        (ModelResponse(parts=[]), "assistant"),
    ],
)
def test_a_row_has_the_role_of_its_message(message: ModelMessage, role: str) -> None:
    assert dump_messages([message])[0].role == role


def test_lone_surrogates_of_a_model_become_replacement_characters() -> None:
    response = ModelResponse(parts=[TextPart("a\ud83d"), ToolCallPart("add", {"x": "b\udfff"}, tool_call_id="c")])
    (row,) = dump_messages([response])
    assert row.content == "a\ufffd"
    (loaded,) = load_messages([row.raw_payload])
    assert loaded.parts[0] == TextPart("a\ufffd")
    assert loaded.parts[1] == ToolCallPart("add", {"x": "b\ufffd"}, tool_call_id="c")


def test_a_damaged_payload_is_an_internal_error_without_its_text() -> None:
    assert load_messages([]) == []
    with pytest.raises(Internal) as broken:
        load_messages(['{"kind": "secret"}'])
    assert "secret" not in str(broken.value)


async def test_a_session_gives_its_newest_messages_cut_at_a_users_turn(house: House) -> None:
    history = MessageHistory(house.store, house.session_key)
    assert await history.load() == []
    await history.append(TURN)
    await history.append(TURN[:1] + TURN[3:])
    assert await history.load() == [*TURN, TURN[0], TURN[3]]
    assert await history.load(5) == [TURN[0], TURN[3]]
    assert await history.load(0) == []
    count = await house.store.read(lambda tx: tx.sessions.get(house.session_id).message_count)
    assert count == 6


def test_the_payload_of_a_row_is_one_json_object() -> None:
    assert all(isinstance(json.loads(row.raw_payload), dict) for row in dump_messages(TURN))
