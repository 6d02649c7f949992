"""What the API says of itself: the OpenAPI document and the page that shows it."""

import re

import orjson
import pytest
from api_house import ApiHouse

pytestmark = pytest.mark.anyio


async def test_every_operation_says_how_it_is_asked_and_what_it_answers(shared_house: ApiHouse) -> None:
    document = (await (await shared_house.keyless()).get("/openapi.json")).json()
    assert document["security"] == [{"ApiKey": []}, {"Bearer": []}]
    names: set[str] = set()
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["summary"], path
            assert operation["operationId"] not in names
            names.add(operation["operationId"])
            open_to_all = operation.get("security") == []
            assert ("401" in operation["responses"]) is not open_to_all, path
            assert "503" in operation["responses"], path
            problem = operation["responses"]["503"]["content"]
            assert set(problem) <= {"application/problem+json", "application/json"}
            for parameter in operation.get("parameters", []):
                assert parameter["name"] != "x-api-key"


async def test_every_reference_of_the_document_leads_somewhere(shared_house: ApiHouse) -> None:
    document = shared_house.app.openapi()

    for name in re.findall(r'"\$ref":"#/components/schemas/([^"]+)"', orjson.dumps(document).decode()):
        assert name in document["components"]["schemas"], name


async def test_the_page_needs_nothing_from_elsewhere(shared_house: ApiHouse) -> None:
    client = await shared_house.keyless()
    page = await client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for part in ("docs.js", "docs.css"):
        assert f"/docs/{part}" in page.text
        answer = await client.get(f"/docs/{part}")
        assert answer.status_code == 200
        assert "http://" not in answer.text
        assert "https://" not in answer.text
    assert (await client.get("/docs/..%2fdocs.html")).status_code == 404


async def test_home_and_health_need_no_key(shared_house: ApiHouse) -> None:
    client = await shared_house.keyless()
    assert (await client.get("/")).json()["docs"] == "/docs"
    assert (await client.get("/health")).json()["status"] == "healthy"
    assert (await client.get("/ready")).json()["status"] == "ok"
