"""Ledger: money is reserved before a model is called, in every budget that the call counts in or in none, and settled after."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from automagik.budget.amounts import dollars, limit_document, period_words, scope_words
from automagik.budget.party import Party
from automagik.errors import AutomagikError, BudgetBusy, BudgetExceeded, ServiceUnavailable
from automagik.store import Store
from automagik.store.budgets import BUDGETS_CHANGED
from automagik.store.calls import ModelCall
from automagik.store.reservations import CallHead, Limit, Reserve, Settle, call_of
from automagik.types import Clock, JsonObject, new_id

__all__ = ["Ledger", "Reservation", "Settled"]

_log = structlog.stdlib.get_logger(__name__)

_LOOK_SECONDS = 5.0
"""How often it is looked at the budgets, and for reservations that nobody settles any more, without a signal."""
_AGAIN_SECONDS = 1.0
"""How soon what could not be settled, because the store was away, is settled again."""
_BATCH = 200
_RETRY_AFTER_SECONDS = 1
_MOST_NANO = 2 * 10**18
"""More than any budget can have, and what both databases can still count with."""
_NOTE_SECONDS = 0.1
"""How long a call that no budget applies to may be under way before it is noted in the store: a short one costs nothing by that."""
_SURE = timedelta(seconds=60)
"""How long before it expires a reservation is certainly still there, whatever the clocks of other hosts say."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """What is reserved for one call. `is_counted` false: no budget applies, so nothing was written."""

    reservation_id: str
    granted_nano: int
    is_counted: bool = True

    @property
    def call_id(self) -> str:
        """The id of the row that tells of the call. It has one row, also where others settled it meanwhile as lost."""
        return call_of(self.reservation_id)


@dataclass(frozen=True, slots=True)
class _Open:
    """A reservation that this process has not settled yet."""

    owner: str
    expires_at: datetime
    amount_nano: int
    counters: Sequence[tuple[str, str]]
    scopes: Sequence[tuple[str, str]]


@dataclass(slots=True)
class _Begun:
    """A call under way that no budget applied to when it began."""

    party: Party
    asks: tuple[str, str]
    most: Callable[[], int | None]
    began: datetime
    seconds: float
    is_recorded: bool
    is_noted: bool = False


@dataclass(frozen=True, slots=True)
class Settled:
    """What came of the end of a call."""

    warnings: Sequence[JsonObject] = ()
    """The budgets whose soft limit was passed by it, once in each period."""


class Ledger:
    """The budgets, as the calls of this process see them. Open it before use, close it after.

    `executor_id` gives by which name this process is known to live; reservations of one that is lost are settled by others.
    """

    def __init__(self, store: Store, clock: Clock, *, executor_id: Callable[[], str]) -> None:
        self._store = store
        self._clock = clock
        self._executor_id = executor_id
        self._limited: frozenset[tuple[str, str]] = frozenset()
        self._given: set[str] = set()
        """The runs that were given a budget by this process, and are not known to have ended."""
        self._held: Counter[str] = Counter()
        """The runs that can make calls through this process, whether or not their rows say that they have ended."""
        self._open: dict[str, _Open] = {}
        self._begun: dict[str, _Begun] = {}
        self._noting: asyncio.TimerHandle | None = None
        self._notes: set[asyncio.Task[None]] = set()
        self._later: dict[str, Settle] = {}
        self._wake = asyncio.Event()
        self._stale = False
        self._task: asyncio.Task[None] | None = None
        self._leave: Sequence[Callable[[], None]] = ()

    async def open(self) -> None:
        """Learn the budgets, and begin to keep them up to date. Raises ServiceUnavailable."""
        await self.refresh()
        signals = self._store.signals
        self._leave = (signals.listen(BUDGETS_CHANGED[0], self._hear), signals.on_gap(self._expire))
        self._task = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Settle what is left, as far as the store is there, and stop."""
        for leave in self._leave:
            leave()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        if self._noting is not None:
            self._noting.cancel()
            self._noting = None
        if self._notes:
            await asyncio.wait(self._notes)
        await self._settle_later()

    async def refresh(self) -> None:
        """Learn who is limited, as it is now; settle what the dead have left behind. Raises ServiceUnavailable."""
        self._stale = False
        given, held = frozenset(self._given), frozenset(self._held)
        limited, ended, left = await self._store.read(
            lambda tx: (tx.budgets.limited(given | held), tx.budgets.ended(given), tx.budgets.left_behind(_BATCH))
        )
        new = self._given - given  # which may have been given one since it was read
        self._given.difference_update(ended)
        over = {("run", run_id) for run_id in ended if run_id not in self._held}
        self._limited = (frozenset(limited) - over) | {("run", run_id) for run_id in new}
        if self._limited and any(not one.is_recorded for one in self._begun.values()):
            self._note_now()
        while left:
            await self._store.settle(left)
            _log.warning("reservations_left_behind", count=len(left))
            left = await self._store.read(lambda tx: tx.budgets.left_behind(_BATCH)) if len(left) == _BATCH else []

    def applies(self, party: Party) -> bool:
        """Whether any budget limits the party: without one, nothing is reserved."""
        limited = self._limited
        return bool(limited) and not limited.isdisjoint(party.scopes)

    def begin(
        self,
        party: Party,
        asks: tuple[str, str],
        most: Callable[[], int | None],
        *,
        seconds: float = 900,
        is_recorded: bool = True,
    ) -> Reservation:
        """What a call is settled by that no budget applies to, at no cost in time: it is settled into those that were set meanwhile.

        `asks` is the wire and the model. One that takes longer is noted soon, so that it leaves a row where this process dies;
        only then `most` is asked, for the most that it can cost (None: that is not known). With `is_recorded` false, it is noted
        only if a budget is set meanwhile.
        """
        reservation_id = new_id("resv")
        self._begun[reservation_id] = _Begun(party, asks, most, self._clock.now(), seconds, is_recorded)
        if is_recorded and self._noting is None:
            self._noting = asyncio.get_running_loop().call_later(_NOTE_SECONDS, self._note_now)
        return Reservation(reservation_id, 0, is_counted=False)

    async def reserve(
        self,
        party: Party,
        amount_nano: int,
        *,
        at_least_nano: int | None = None,
        seconds: float = 900,
        asks: tuple[str, str] = ("unknown", "unknown"),
    ) -> Reservation:
        """`amount_nano` reserved in every budget of the party at once; or what is left, where that is `at_least_nano` and
        nobody else has anything reserved there; or an error, and nothing is.

        It must be settled or released within `seconds`; after that it counts as spent in full. `asks` is the wire and the model.

        Raises:
            BudgetBusy: it does not fit now, but for what calls under way have reserved.
            BudgetExceeded: it does not fit, and waiting does not help. The text names whom the budget limits and what is spent.
            ServiceUnavailable: the store is away.
        """
        amount_nano = min(amount_nano, _MOST_NANO)
        if not self.applies(party):
            return self._beside(party, asks, amount_nano, seconds)
        reservation_id, now = new_id("resv"), self._clock.now()
        least = amount_nano if at_least_nano is None else min(at_least_nano, amount_nano)
        asked = Reserve(
            reservation_id,
            self._executor_id(),
            amount_nano,
            least,
            party.scopes,
            now,
            now + timedelta(seconds=seconds),
            party.run_id,
            _head(party, asks),
        )
        try:
            reserved = await self._store.reserve(asked)
        except (asyncio.CancelledError, ServiceUnavailable):
            # It may be stored all the same, now or soon, but before it is settled: the store keeps that order.
            self.settle_later(Reservation(reservation_id, 0), 0)
            raise
        if reserved.granted_nano is None:
            raise _refusal(amount_nano, least, reserved.limits)
        if not reserved.limits:
            return self._beside(party, asks, amount_nano, seconds)
        counters = [(limit.budget_id, limit.period_start) for limit in reserved.limits]
        self._open[reservation_id] = _Open(asked.owner, asked.expires_at, reserved.granted_nano, counters, asked.scopes)
        return Reservation(reservation_id, reserved.granted_nano)

    async def settle(
        self, reservation: Reservation, cost_nano: int | None, *, call: ModelCall | None = None
    ) -> Settled:
        """What came of a call that cost `cost_nano` (None: all that was reserved). `call` is recorded in the same transaction.

        A reservation is settled once: what comes later, or after it expired, counts nothing. Where the store is away, it is
        settled when it is back, and nothing is raised: what was answered must not be lost for that.
        """
        if not reservation.is_counted and call is None:
            return await self._drop(reservation)
        settle = self._end_of(reservation, cost_nano, call)
        try:
            settled = await self._store.settle([settle])
        except ServiceUnavailable:
            self._later[settle.reservation_id] = _again(settle)
            return Settled()
        return Settled([limit_document(limit) for limit in settled[0].passed])

    async def release(self, reservation: Reservation) -> None:
        """Give back what is reserved: the call was not made, or failed without a cost."""
        await self.settle(reservation, 0)

    def settle_later(self, reservation: Reservation, cost_nano: int | None, *, call: ModelCall | None = None) -> None:
        """Settle soon, for one who can't wait: who is being cancelled."""
        if reservation.is_counted or call is not None:
            self._later[reservation.reservation_id] = self._end_of(reservation, cost_nano, call)
            self._wake.set()
        elif (begun := self._begun.pop(reservation.reservation_id, None)) is not None and begun.is_noted:
            self._later[reservation.reservation_id] = Settle(reservation.reservation_id, 0)
            self._wake.set()

    async def limit_run(self, run_id: str, limit_nano: int) -> None:
        """Give a run a budget of its own, in all; one that it has already stays as it is. Raises ServiceUnavailable."""
        await self._store.write(lambda tx: tx.budgets.add_for_run(run_id, limit_nano))
        self._given.add(run_id)
        self._limited |= {("run", run_id)}

    async def hold(self, run_id: str) -> None:
        """Keep the run's budget in force until `let_go`, also when its row says that it has ended: as long as it can make calls.

        What the dead left behind is settled then. Raises ServiceUnavailable.
        """
        self._held[run_id] += 1
        try:
            await self.refresh()
        except BaseException:
            self.let_go(run_id)
            raise

    def let_go(self, run_id: str) -> None:
        """The run can make no call any more."""
        self._held[run_id] -= 1
        if not self._held[run_id]:
            del self._held[run_id]

    # -- keeping

    def _hear(self, changed: str) -> None:
        if changed == BUDGETS_CHANGED[1]:
            self._expire()

    def _expire(self) -> None:
        self._stale = True
        self._wake.set()

    async def _keep(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_AGAIN_SECONDS if self._later else _LOOK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                self._stale = True
            self._wake.clear()
            try:
                await self._settle_later()
                if self._stale:
                    await self.refresh()
                    self._forget_expired()
            except AutomagikError as error:
                self._stale = True
                _log.warning("ledger_not_kept", reason=error.detail)
                await asyncio.sleep(_AGAIN_SECONDS)

    async def _settle_later(self) -> None:
        while self._later:
            batch = list(self._later.values())[:_BATCH]
            try:
                await self._store.settle(batch)
            except BaseException:
                # It may be stored all the same, also where who waited for it was cancelled.
                self._later |= {one.reservation_id: _again(one) for one in batch}
                raise
            for settle in batch:
                del self._later[settle.reservation_id]

    def _end_of(self, reservation: Reservation, cost_nano: int | None, call: ModelCall | None) -> Settle:
        """What the store is told. It must find the reservation where this is its first end, and nobody can have taken it."""
        reservation_id, now = reservation.reservation_id, self._clock.now()
        row = call.to_row() if call is not None else None
        begun = self._begun.pop(reservation_id, None)
        if begun is not None:
            at = call.created_at if call is not None else now
            return Settle(reservation_id, cost_nano, row, (), 0, begun.party.scopes, at)
        opened = self._open.pop(reservation_id, None)
        if opened is None:
            return Settle(reservation_id, cost_nano, row)
        if opened.owner != self._executor_id() or now > opened.expires_at - _SURE:
            return Settle(reservation_id, cost_nano, row, scopes=opened.scopes, at=now)
        return Settle(reservation_id, cost_nano, row, opened.counters, opened.amount_nano, opened.scopes, now)

    def _beside(self, party: Party, asks: tuple[str, str], amount_nano: int, seconds: float) -> Reservation:
        """What is granted where no budget applies after all."""
        begun = self.begin(party, asks, lambda: amount_nano, seconds=seconds, is_recorded=False)
        return replace(begun, granted_nano=amount_nano)

    async def _drop(self, reservation: Reservation) -> Settled:
        """Forget a call that is not recorded."""
        begun = self._begun.pop(reservation.reservation_id, None)
        if begun is not None and begun.is_noted:
            await self._store.settle([Settle(reservation.reservation_id, 0)])
        return Settled()

    # -- noting what no budget applied to

    def _note_now(self) -> None:
        self._noting = None
        task = asyncio.get_running_loop().create_task(self._note())
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    async def _note(self) -> None:
        """Keep a row of each call under way, so that it leaves one where this process dies."""
        due = {
            name: one
            for name, one in self._begun.items()
            if not one.is_noted and (one.is_recorded or self.applies(one.party))
        }
        if not due:
            return
        for one in due.values():
            one.is_noted = True
        rows = [self._noted(name, one) for name, one in due.items()]
        try:
            await self._store.write(lambda tx: tx.budgets.note(rows))
            ended = [Settle(name, 0) for name in due if name not in self._begun]
            if ended:  # perhaps before its row was there
                await self._store.settle(ended)
        except AutomagikError as error:
            _log.warning("calls_not_noted", reason=error.detail)
            for one in due.values():
                one.is_noted = False
            if self._noting is None and self._task is not None:
                self._noting = asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self._note_now)

    def _noted(self, reservation_id: str, begun: _Begun) -> Reserve:
        most, party = begun.most(), begun.party
        return Reserve(
            reservation_id,
            self._executor_id(),
            min(most or 0, _MOST_NANO),
            0,
            party.scopes,
            begun.began,
            begun.began + timedelta(seconds=begun.seconds),
            party.run_id,
            _head(party, begun.asks),
            is_priced=most is not None,
        )

    def _forget_expired(self) -> None:
        now = self._clock.now()
        self._open = {name: opened for name, opened in self._open.items() if opened.expires_at > now}
        over = [name for name, one in self._begun.items() if one.began + timedelta(seconds=one.seconds) < now]
        for name in over:
            del self._begun[name]


def _head(party: Party, asks: tuple[str, str]) -> CallHead:
    return CallHead(*asks, party.agent, party.key_id, party.user_id)


def _again(settle: Settle) -> Settle:
    """The same once more, where the first may have been stored all the same: a call's row then says so, else nothing does."""
    return settle if settle.call is not None else replace(settle, counters=None)


def _refusal(amount_nano: int, least_nano: int, limits: Sequence[Limit]) -> BudgetBusy | BudgetExceeded:
    full = [limit for limit in limits if limit.room_nano < amount_nano]
    spent = [limit for limit in full if limit.limit_nano - limit.spent_nano < least_nano]
    if full and not spent and any(limit.reserved_nano for limit in full):
        return BudgetBusy(
            f"{_budget_of(full[0])} has room for this call only when calls under way are settled: "
            f"{dollars(full[0].reserved_nano)} is reserved for them.",
            retry_after_seconds=_RETRY_AFTER_SECONDS,
            hint="Retry later.",
        )
    limit = (spent or full or limits)[0]
    return BudgetExceeded(
        f"{_budget_of(limit)} has no room for this call: {dollars(limit.spent_nano)} of {dollars(limit.limit_nano)} is spent "
        f"{period_words(limit.period)}, and the call may cost {dollars(least_nano)} or more.",
        hint=f"Raise the limit: {_command(limit)}.",
    )


def _budget_of(limit: Limit) -> str:
    return f"The budget of {scope_words(limit.scope, limit.scope_id)} ({limit.period}, {dollars(limit.limit_nano)})"


def _command(limit: Limit) -> str:
    whom = limit.scope if limit.scope == "organisation" else f"{limit.scope} {limit.scope_id}"
    return f"`automagik budgets set {whom} --period {limit.period} --limit USD`"
