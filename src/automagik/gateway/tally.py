"""RunTally: what a run used through its door, how its last call ended, and what its owner is told."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Literal

from automagik.budget import Price, Tokens
from automagik.types import JsonObject, Usage

__all__ = ["RefusalCode", "RunTally", "UnderWay"]

RefusalCode = Literal["budget_exceeded", "policy"]

_MAX_WARNINGS = 50


class UnderWay:
    """A call that is being answered: its tokens count as they are reported."""

    def __init__(self) -> None:
        self.tokens = Tokens()
        self.price: Price | None = None

    def usage(self) -> Usage:
        """What is known of it so far, as one request."""
        return _usage_of(self.tokens, self.price.cost(self.tokens) if self.price is not None else None)


class RunTally:
    """One run's figures. They begin with what the run used `before`, through a door that another process had open."""

    def __init__(self, tell: Callable[[str, JsonObject], None], before: Usage) -> None:
        self._tell = tell
        self._settled = before
        self._unpriced = before.requests > 0 and before.cost_usd is None
        self._under_way: set[UnderWay] = set()
        self._told: set[str] = set()
        self.refused: RefusalCode | None = None
        """Why the run's last call was refused; None where it was not."""
        self.retry_refusals = 0
        """How often a call was put off because others had reserved what the budget leaves."""

    @property
    def usage(self) -> Usage:
        """All that the run used, with what is known of the calls under way. Its cost is None where a call's price is unknown."""
        whole = self._settled
        for call in self._under_way:
            whole += call.usage()
        return replace(whole, cost_usd=None) if self._unpriced else whole

    def begin(self, call: UnderWay) -> None:
        """A call is being answered."""
        self._under_way.add(call)

    def end(self, call: UnderWay, tokens: Tokens, cost_nano: int | None) -> None:
        """The call was answered, or cut, and this is what it counts."""
        self._under_way.discard(call)
        self._settled += _usage_of(tokens, cost_nano)
        self._unpriced = self._unpriced or cost_nano is None

    def warn(self, detail: str) -> None:
        """Tell who owns the run, once of each."""
        if detail not in self._told and len(self._told) < _MAX_WARNINGS:
            self._told.add(detail)
            self._tell("warning", {"detail": detail})

    def budgets_passed(self, budgets: Sequence[JsonObject]) -> None:
        """Tell that soft limits were passed."""
        for budget in budgets:
            self._tell("budget_warning", budget)


def _usage_of(tokens: Tokens, cost_nano: int | None) -> Usage:
    """One request in the words of a run's usage, whose input has the cache's tokens in it."""
    return Usage(
        requests=1,
        input_tokens=tokens.input + tokens.cache_read + tokens.cache_write,
        output_tokens=tokens.output,
        cache_read_tokens=tokens.cache_read,
        cache_write_tokens=tokens.cache_write,
        cost_usd=Decimal(cost_nano).scaleb(-9) if cost_nano is not None else None,
    )
