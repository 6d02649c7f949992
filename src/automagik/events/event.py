"""RunEvent: one thing that happened in a run."""

from dataclasses import dataclass
from datetime import datetime

from automagik.types import JsonObject

__all__ = ["TRANSIENT", "RunEvent"]

TRANSIENT = frozenset({"text_delta", "thinking_delta", "text_snapshot"})
"""The types that are only for those who look on: never stored, without a `seq`."""


@dataclass(frozen=True, slots=True)
class RunEvent:
    """One thing that happened. Stored events have a `seq` (from 1, without a gap in a run), live deltas have None."""

    run_id: str
    seq: int | None
    type: str
    at: datetime
    data: JsonObject
