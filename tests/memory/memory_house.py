"""What the tests of this folder stand in."""

import uuid
from dataclasses import dataclass

from automagik.store import Store

__all__ = ["House"]


@dataclass(frozen=True)
class House:
    """What the tests of this folder stand in."""

    store: Store
    agent_id: int
    other_agent_id: int
    ann: uuid.UUID
    bob: uuid.UUID
    session_id: uuid.UUID
    session_key: int
