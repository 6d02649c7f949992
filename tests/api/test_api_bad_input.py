"""Bad input: a clear error that names the field, never a 500, nothing lost."""

import asyncio
import base64
import uuid
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from api_house import ApiHouse

pytestmark = pytest.mark.anyio

RUN = "/api/v1/agent/echo/run"
UNKNOWN = "0192f7a0-0000-7000-8000-000000000000"
PNG = base64.b64encode(b"\x89PNG").decode()


def media(**item: Any) -> dict[str, Any]:
    return {"message_content": "look", "media_contents": [item]}


BODIES: list[tuple[str, Any, int, list[Any]]] = [
    ("no message", {}, 422, ["message_content"]),
    ("a message of another type", {"message_content": 5}, 422, ["message_content"]),
    ("an empty message", {"message_content": ""}, 422, ["message_content"]),
    ("a NUL", {"message_content": "a\x00b"}, 422, ["message_content"]),
    (
        "a NUL deep inside",
        {"message_content": "a", "context": {"b": [1, {"c": "\x00"}]}},
        422,
        ["context", "b", 1, "c"],
    ),
    ("a NUL in a key", {"message_content": "a", "context": {"x\x00": 1}}, 422, ["context", "x\x00"]),
    ("no UUID", {"message_content": "a", "session_id": "zz"}, 422, ["session_id"]),
    (
        "session by id and name",
        {"message_content": "a", "session_id": UNKNOWN, "session_name": "b"},
        422,
        ["session_name"],
    ),
    ("a limit below zero", {"message_content": "a", "message_limit": -1}, 422, ["message_limit"]),
    ("a limit as a text", {"message_content": "a", "message_limit": "5"}, 422, ["message_limit"]),
    ("a time limit of nothing", {"message_content": "a", "timeout_seconds": 0}, 422, ["timeout_seconds"]),
    ("a time limit of ages", {"message_content": "a", "timeout_seconds": 1e300}, 422, ["timeout_seconds"]),
    ("labels that are no texts", {"message_content": "a", "labels": {"a": 1}}, 422, ["labels", "a"]),
    (
        "unknown variable",
        {"message_content": "a", "prompt_variables": {"stile": "b"}},
        422,
        ["prompt_variables", "stile"],
    ),
    ("unknown model", {"message_content": "a", "model": "nobody:nothing"}, 422, ["model"]),
    ("a text of 10 MB", {"message_content": "x" * 10_000_000}, 422, ["message_content"]),
    ("a prompt of 10 MB", {"message_content": "x", "system_prompt": "x" * 10_000_000}, 422, ["system_prompt"]),
    ("bad base64", media(mime_type="image/png", data="not base64!"), 422, ["media_contents", 0, "data"]),
    ("base64 cut short", media(mime_type="image/png", data="abc"), 422, ["media_contents", 0, "data"]),
    ("empty medium", media(mime_type="image/png", data=""), 422, ["media_contents", 0, "data"]),
    ("unknown media type", media(mime_type="image/nothing", data=PNG), 422, ["media_contents", 0, "mime_type"]),
    ("no type at all", media(mime_type="nonsense", data=PNG), 422, ["media_contents", 0, "mime_type"]),
    ("neither data nor URL", media(mime_type="image/png"), 422, ["media_contents", 0, "data"]),
    (
        "data and URL",
        media(mime_type="image/png", data=PNG, media_url="http://a.b"),
        422,
        ["media_contents", 0, "data"],
    ),
    ("a text that is none", media(mime_type="text/plain", data="//79"), 422, ["media_contents", 0, "data"]),
    (
        "a file URL",
        media(mime_type="image/png", media_url="file:///etc/passwd"),
        422,
        ["media_contents", 0, "media_url"],
    ),
    ("no URL", media(mime_type="image/png", media_url="http://"), 422, ["media_contents", 0, "media_url"]),
    (
        "metadata of a cloud",
        media(mime_type="image/png", media_url="http://169.254.169.254/"),
        422,
        ["media_contents", 0, "media_url"],
    ),
    ("a list", [], 422, []),
    ("an unknown user", {"message_content": "a", "user_id": UNKNOWN}, 404, []),
]


@pytest.mark.parametrize(("body", "status", "field"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES])
@pytest.mark.parametrize("way", ["", "/stream", "/async"])
async def test_a_bad_body_is_refused_by_the_name_of_its_field(
    shared_house: ApiHouse, way: str, body: Any, status: int, field: list[Any]
) -> None:
    answer = await shared_house.admin.post(f"{RUN}{way}", json=body)
    problem = answer.json()
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    if status == 422:
        assert problem["errors"][0]["loc"] == ["body", *field]
    assert (await shared_house.admin.get("/api/v1/runs")).json()["data"] == []


RAW: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "empty"),
    ("half of it", b'{"message_content": "a"', "unexpected end"),
    ("a lone surrogate", rb'{"message_content": "\ud800"}', "U+D800"),
    ("a lone surrogate deep inside", rb'{"message_content": "a", "context": {"k": ["\udfff"]}}', "U+DFFF"),
    ("a raw newline", b'{"message_content": "a\nb"}', "control character"),
    ("no UTF-8", b'{"message_content": "\xff"}', "UTF-8"),
    ("NaN", b'{"message_content": "a", "timeout_seconds": NaN}', "unexpected character"),
    ("an infinite number", b'{"message_content": "a", "timeout_seconds": 1e999}', "infinity"),
    ("nested a thousand deep", b'{"message_content": "a", "context": ' + b'{"a":' * 1000 + b"1" + b"}" * 1001, "deep"),
    ("nested a hundred deep", b'{"message_content": "a", "context": ' + b'{"a":' * 100 + b"1" + b"}" * 101, "deep"),
    ("brackets without end", b"[" * 100_000, "deep"),
]


@pytest.mark.parametrize(("content", "words"), [row[1:] for row in RAW], ids=[row[0] for row in RAW])
async def test_what_is_no_json_is_refused_with_the_place(shared_house: ApiHouse, content: bytes, words: str) -> None:
    for path in (RUN, "/api/v1/users", "/v1/chat/completions"):
        answer = await shared_house.admin.post(path, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == (400 if path.startswith("/v1") else 422), answer.text[:300]
        assert words in answer.text


async def test_a_body_that_is_not_declared_as_json_is_refused_with_the_header_to_send(shared_house: ApiHouse) -> None:
    answer = await shared_house.admin.post(RUN, data={"message_content": "a"})
    assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, ["header", "content-type"])
    assert "application/json" in answer.json()["hint"]


async def test_a_body_over_the_limit_is_a_413_whether_it_says_so_or_not(shared_house: ApiHouse) -> None:
    limit = shared_house.platform.settings.max_body_bytes

    async def pieces() -> AsyncGenerator[bytes]:
        for _ in range(limit // 1_000_000 + 2):
            yield b"x" * 1_000_000

    declared = await shared_house.admin.post(RUN, content=b"x" * (limit + 1))
    streamed = await shared_house.admin.post(RUN, content=pieces())
    for answer in (declared, streamed):
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        assert str(limit) in answer.json()["detail"]


async def test_a_medium_over_the_limit_is_a_413_that_names_it(shared_house: ApiHouse) -> None:
    data = base64.b64encode(b"x" * (shared_house.platform.settings.max_media_bytes + 1)).decode()
    answer = await shared_house.admin.post(RUN, json=media(mime_type="image/png", data=data))
    assert answer.status_code == 413
    assert "body.media_contents.0.data" in answer.json()["detail"]


PATHS: list[tuple[str, str, int, str]] = [
    ("unknown agent", "POST /api/v1/agent/ecko/run", 404, "Did you mean 'echo'?"),
    ("unknown run", "GET /api/v1/runs/run_nothing", 404, "run"),
    ("unknown session", f"GET /api/v1/sessions/{UNKNOWN}", 404, "session"),
    ("unknown user", f"GET /api/v1/users/{UNKNOWN}", 404, "user"),
    ("unknown memory", f"GET /api/v1/memories/{UNKNOWN}", 404, "memory"),
    ("unknown prompt", f"GET /api/v1/prompts/{UNKNOWN}", 404, "prompt"),
    ("unknown key", "GET /api/v1/keys/key_nothing", 404, "key"),
    ("unknown message", f"GET /api/v1/messages/{UNKNOWN}", 404, "message"),
    ("unknown path", "GET /api/v1/nothing", 404, "/openapi.json"),
    ("unknown method", "PUT /api/v1/agents/echo", 405, "DELETE"),
    ("memory that is no UUID", "GET /api/v1/memories/zz", 422, "path.memory_id"),
    ("a NUL in the path", "GET /api/v1/runs/a%00b", 422, "run_id"),
    ("a NUL in the query", "GET /api/v1/sessions?session_name=%00", 422, "session_name"),
    ("unknown filter", "GET /api/v1/runs?outcom=failed", 422, "Did you mean 'outcome'?"),
    ("a status that is none", "GET /api/v1/runs?status=done", 422, "query.status"),
    ("a limit of nothing", "GET /api/v1/runs?limit=0", 422, "query.limit"),
    ("a cursor that is none", "GET /api/v1/runs?cursor=zz", 422, "cursor"),
    ("a cursor of agents that is none", "GET /api/v1/agents?cursor=%C3%A9", 422, "cursor"),
    ("an after that is none", "GET /api/v1/runs/run_x/events?after=-1", 422, "query.after"),
]


@pytest.mark.parametrize(("ask", "status", "words"), [row[1:] for row in PATHS], ids=[row[0] for row in PATHS])
async def test_a_bad_path_or_query_is_refused_with_a_way_out(
    shared_house: ApiHouse, ask: str, status: int, words: str
) -> None:
    method, path = ask.split(" ")
    answer = await shared_house.admin.request(method, path, json={"message_content": "a"} if method == "POST" else None)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.text
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


async def test_an_event_id_that_is_none_is_refused(house: ApiHouse) -> None:
    run_id = (await house.admin.post(RUN, json={"message_content": "a"})).json()["run_id"]
    answer = await house.admin.get(f"/api/v1/runs/{run_id}/events", headers={"last-event-id": "x"})
    assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, ["header", "last-event-id"])


CREATIONS: list[tuple[str, str, Any, int, str]] = [
    ("unknown field", "/users", {"mail": "a@b.c"}, 422, "There is no field 'mail'."),
    ("data that is no object", "/users", {"user_data": [1]}, 422, "user_data"),
    ("memory of nobody", "/memories", {"name": "a", "content": "b"}, 422, "agent_name"),
    ("memory without a name", "/memories", {"name": "a b", "content": "b", "agent_name": "echo"}, 422, "name"),
    ("memory of an unknown agent", "/memories", {"name": "a", "content": "b", "agent_name": "ecko"}, 404, "'echo'"),
    ("memory of an unknown user", "/memories", {"name": "a", "content": "b", "user_id": UNKNOWN}, 404, UNKNOWN),
    ("a batch of nothing", "/memories/batch", [], 422, "body"),
    (
        "a template with an unclosed brace",
        "/prompts",
        {"agent_name": "echo", "prompt_text": "a {{b"},
        422,
        "line 1, column 3",
    ),
    ("a template with an unknown name", "/prompts", {"agent_name": "echo", "prompt_text": "{{stile}}"}, 422, "'style'"),
    ("a prompt of an unknown agent", "/prompts", {"agent_name": "ecko", "prompt_text": "a"}, 404, "'echo'"),
    ("an unknown scope", "/keys", {"name": "a", "scopes": ["runs:raed"]}, 422, "Did you mean 'runs:read'?"),
    ("no scope", "/keys", {"name": "a", "scopes": []}, 422, "scopes"),
    (
        "a time that has passed",
        "/keys",
        {"name": "a", "scopes": ["admin"], "expires_at": "2001-01-01T00:00:00Z"},
        422,
        "expires_at",
    ),
    (
        "a time without its zone",
        "/keys",
        {"name": "a", "scopes": ["admin"], "expires_at": "2099-01-01T00:00:00"},
        422,
        "expires_at",
    ),
    (
        "a time at the end of time",
        "/keys",
        {"name": "a", "scopes": ["admin"], "expires_at": "9999-12-31T23:59:59-23:00"},
        422,
        "expires_at",
    ),
    ("a rate that is none", "/keys", {"name": "a", "scopes": ["admin"], "rate_limit": "fast"}, 422, "rate_limit"),
    (
        "a key that may do nothing at once",
        "/keys",
        {"name": "a", "scopes": ["admin"], "max_concurrent_runs": 0},
        422,
        "max_concurrent_runs",
    ),
    ("a bad agent name", "/agents", {"name": "A B"}, 422, "name"),
    ("an agent's name that is taken", "/agents", {"name": "echo"}, 409, "echo"),
    ("an agent with an unknown key", "/agents", {"name": "a", "config": {"instruction": "b"}}, 422, "'instructions'"),
    ("an agent with an unknown tool", "/agents", {"name": "a", "config": {"tools": ["memori"]}}, 422, "'memory'"),
    (
        "an agent with an unclosed brace",
        "/agents",
        {"name": "a", "config": {"instructions": "{{"}},
        422,
        "instructions",
    ),
    ("a session of an unknown user", "/sessions", {"user_id": UNKNOWN}, 404, UNKNOWN),
    ("a session of an unknown agent", "/sessions", {"agent_name": "ecko"}, 404, "'echo'"),
]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"), [row[1:] for row in CREATIONS], ids=[row[0] for row in CREATIONS]
)
async def test_what_can_not_be_made_is_refused(
    shared_house: ApiHouse, path: str, body: Any, status: int, words: str
) -> None:
    answer = await shared_house.admin.post(f"/api/v1{path}", json=body)
    assert answer.status_code == status, answer.text
    assert words in answer.text


async def test_two_requests_that_make_one_session_name_at_once_end_in_one_session(each_house: ApiHouse) -> None:
    bodies = [{"session_name": "same"}] * 2
    made = await asyncio.gather(*(each_house.admin.post("/api/v1/sessions", json=body) for body in bodies))
    assert sorted(answer.status_code for answer in made) == [201, 409]
    asked = [{"message_content": f"{n}", "session_name": "shared"} for n in range(4)]
    runs = await asyncio.gather(*(each_house.admin.post(RUN, json=body) for body in asked))
    assert [answer.status_code for answer in runs] == [200] * 4
    assert len({answer.json()["session_id"] for answer in runs}) == 1


async def test_a_batch_is_stored_as_a_whole_or_not_at_all(each_house: ApiHouse) -> None:
    good = {"name": "a", "content": "b", "agent_name": "echo"}
    bad = {"name": "c", "content": "d", "user_id": str(uuid.uuid4())}
    answer = await each_house.admin.post("/api/v1/memories/batch", json=[good, bad])
    assert (answer.status_code, answer.json()["errors"][0]["loc"][:2]) == (422, ["body", 1])
    assert (await each_house.admin.get("/api/v1/memories")).json()["data"] == []
    stored = await each_house.admin.post(
        "/api/v1/memories/batch", json=[good, {**bad, "user_id": None, "agent_name": "echo"}]
    )
    assert [memory["name"] for memory in stored.json()["data"]] == ["a", "c"]
