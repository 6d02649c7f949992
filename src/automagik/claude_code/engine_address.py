"""Where the container engine is: as the settings say, as Docker's own context says, else at its usual socket of this host."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from automagik.settings import Settings

__all__ = ["EngineAddress"]

_USUAL = "unix:///var/run/docker.sock"


@dataclass(frozen=True, slots=True)
class EngineAddress:
    """An engine's address, and who named it."""

    url: str
    """Empty where whoever names it does not say it."""
    said_by: str

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The engine that `docker` would speak to, too, unless AUTOMAGIK_DOCKER_URL names another one."""
        if settings.docker_url:
            return cls(settings.docker_url, "AUTOMAGIK_DOCKER_URL (or DOCKER_HOST)")
        folder = settings.docker_config or Path.home() / ".docker"
        try:
            context = str(json.loads((folder / "config.json").read_bytes()).get("currentContext") or "default")
        except (OSError, ValueError, AttributeError):  # there is none, or none that says so
            context = "default"
        if context == "default":
            return cls(_USUAL, "nobody")
        meta = folder / "contexts" / "meta" / hashlib.sha256(context.encode()).hexdigest() / "meta.json"
        try:
            url = str(json.loads(meta.read_bytes())["Endpoints"]["docker"]["Host"])
        except (OSError, ValueError, KeyError, TypeError):
            url = ""
        return cls(url, f"Docker's context '{context[:80]}'")

    @property
    def socket(self) -> str | None:
        """The path of its socket on this host, None where it is none."""
        path = self.url.removeprefix("unix://")
        return path if path != self.url and path.startswith("/") else None

    @property
    def refusal(self) -> tuple[str, str]:
        """Why one that is no socket can't be used, and the way out."""
        named = f"is {self.url}" if self.url else "names no engine"
        return (
            f"{self.said_by} {named}, and sandboxes reach the platform by unix sockets of its own host: the engine must be there.",
            "Run the server or worker on the engine's host, or name an engine of this one as a unix socket: "
            "AUTOMAGIK_DOCKER_URL=unix:///var/run/docker.sock. AUTOMAGIK_EXECUTOR=local needs none.",
        )
