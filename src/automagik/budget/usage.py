"""UsageReport: tokens and money over time, told apart by key, user, agent, workflow and day."""

from collections.abc import Sequence
from dataclasses import dataclass

from automagik.store import Page, Store
from automagik.store.usage import Dimension, UsageFilter, UsageRow

__all__ = ["UsageReport", "Used"]


@dataclass(frozen=True, slots=True)
class Used:
    """What was used: a page of groups, and all together."""

    groups: Page[UsageRow]
    total: UsageRow


class UsageReport:
    """What was used. Runs under way count by the calls that were recorded of them, those that ended by their own row."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def used(
        self, which: UsageFilter, by: Sequence[Dimension], *, limit: int = 50, cursor: str | None = None
    ) -> Used:
        """What was used, for each combination of `by`, in descending order of these; and in all."""
        return await self._store.browse(
            lambda tx: Used(tx.usage.groups(which, by, limit=limit, cursor=cursor), tx.usage.total(which))
        )
