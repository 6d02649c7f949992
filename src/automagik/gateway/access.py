"""RunAccess: what one run may do through its door."""

import hashlib
import hmac
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from automagik.budget import Party

__all__ = ["RunAccess"]


@dataclass(frozen=True, slots=True)
class RunAccess:
    """Which run it is, whom its calls belong to, and what they may ask for."""

    run_id: str
    party: Party
    token_hash: bytes
    """SHA-256 of the run's token; the token itself is kept in the sandbox only, and in memory by a door that it has opened."""
    models: tuple[str, ...] = ()
    """Patterns (`claude-*`) of the models that it may call; empty: all."""
    upstream: Literal["provider", "demo"] = "provider"
    """Who answers: the providers, or the labelled demo script, which costs nothing and needs no key."""
    provider_tools: bool = False
    """Whether it may have the provider reach out for it (web search, remote MCP servers, addresses of images): a way out of
    a sandbox without a network, so it is closed unless a workflow opens it."""

    def opens_with(self, token: bytes) -> bool:
        """Whether this is the run's token; how long the answer takes says nothing about it."""
        return hmac.compare_digest(hashlib.sha256(token).digest(), self.token_hash)

    def allows(self, model: str) -> bool:
        """Whether the run may call this model."""
        return not self.models or any(fnmatchcase(model, pattern) for pattern in self.models)
