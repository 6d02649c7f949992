"""Answers: JSON rendered once, by orjson, from documents that are JSON already."""

import json
from collections.abc import Callable, Mapping
from typing import TypeVar

import orjson
from starlette.responses import Response

from automagik.store import Page
from automagik.types import JsonObject

__all__ = ["JsonResponse", "answer", "created", "no_content", "page_of"]

T = TypeVar("T")


class JsonResponse(Response):
    """A response of JSON bytes."""

    media_type = "application/json"


def answer(document: object, status: int = 200, *, headers: Mapping[str, str] | None = None) -> Response:
    """The document as an answer."""
    try:
        body = orjson.dumps(document)
    except orjson.JSONEncodeError:  # a stored message in which a tool's result is nested more than 250 deep
        body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return JsonResponse(body, status, headers=headers)


def created(document: object, location: str, *, headers: Mapping[str, str] | None = None) -> Response:
    """A 201 that says where the new thing is."""
    return answer(document, 201, headers={"Location": location, **(headers or {})})


def no_content() -> Response:
    """A 204."""
    return Response(status_code=204)


def page_of(page: Page[T], document: Callable[[T], JsonObject]) -> Response:
    """A page as an answer."""
    return answer({"data": [document(item) for item in page.data], "next_cursor": page.next_cursor})
