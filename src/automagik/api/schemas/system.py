"""How the platform is, on the wire."""

from datetime import datetime
from typing import Literal

from automagik.api.schemas.common import Resource

__all__ = ["HealthResource", "HomeResource", "ReadyCheck", "ReadyResource"]


class HomeResource(Resource):
    """What answers here."""

    status: Literal["online"]
    name: str
    description: str
    version: str
    docs: str


class HealthResource(Resource):
    """The process is alive."""

    status: Literal["healthy"]
    timestamp: datetime
    version: str


class ReadyCheck(Resource):
    """How one dependency is; `detail` is told to administrators."""

    name: str
    status: Literal["ok", "degraded", "failed"]
    detail: str | None


class ReadyResource(Resource):
    """Whether the platform can serve: `failed` comes with a 503."""

    status: Literal["ok", "degraded", "failed"]
    checks: list[ReadyCheck]
