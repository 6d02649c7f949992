"""The OpenAPI document: what FastAPI finds in the routes, completed."""

from typing import Any, cast

from pydantic.json_schema import models_json_schema

from automagik.api.problems import Problem
from automagik.api.schemas.runs import AgentRunRequest
from automagik.api.schemas.workflow_runs import WorkflowRunRequest

__all__ = ["describe"]

_KEYS: list[dict[str, list[str]]] = [{"ApiKey": []}, {"Bearer": []}]
_SCHEMES = {
    "ApiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "Bearer": {"type": "http", "scheme": "bearer"},
}


def describe(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the ways to send a key, and the schemas of what routes read and render themselves."""
    components = cast("dict[str, Any]", document.setdefault("components", {}))
    components["securitySchemes"] = _SCHEMES
    document["security"] = _KEYS
    _, shared = models_json_schema(
        [(Problem, "serialization"), (AgentRunRequest, "validation"), (WorkflowRunRequest, "validation")],
        ref_template="#/components/schemas/{model}",
    )
    schemas = cast("dict[str, Any]", components.setdefault("schemas", {}))
    schemas.update(shared["$defs"])
    for path, operations in document["paths"].items():
        if path.startswith("/v1/"):  # what is a 422 elsewhere is a 400 there; FastAPI adds it by itself
            for operation in operations.values():
                operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return document
