"""Call: one request of a run to a model, from the reservation of what it can cost to the row that says what it did."""

import asyncio
import json
from dataclasses import dataclass, replace
from typing import Literal, cast

import structlog

from automagik.budget import FREE, USUAL_TOKEN_BYTES, Ledger, ModelCall, Price, Prices, Reservation, Tokens
from automagik.errors import BudgetBusy, BudgetExceeded
from automagik.gateway.access import RunAccess
from automagik.gateway.answers import KeyLeaked, KeyWatch, answer_headers, forwarded_headers, scrubbed, whole_body
from automagik.gateway.coding import Unpacking
from automagik.gateway.connection import Answer, ClientGone, Exchange
from automagik.gateway.conversations import Bound, Conversations
from automagik.gateway.demo import play
from automagik.gateway.metering import Meter
from automagik.gateway.pool import BrokeOff, Reply, Unreachable
from automagik.gateway.tally import RunTally, UnderWay
from automagik.gateway.upstream import Account, Upstream
from automagik.gateway.wire import Ask, Refusal, Wire, as_object, shown
from automagik.types import Clock, Json, JsonObject, new_id

__all__ = ["Call", "Services"]

_log = structlog.stdlib.get_logger(__name__)

_GRACE_SECONDS = 60.0
"""How much longer than the call itself its reservation lives: its end is to be settled by what it used, not by expiry."""
_UNTOLD_OUTPUT = 131_072
"""The most tokens that models answer with where a request sets no limit."""
_COUNT_SECONDS = 10.0
_COUNT_SLACK = 1_500
_COUNTED = ("model", "messages", "system", "tools", "tool_choice", "thinking")
_MAX_ERROR_BYTES = 1024 * 1024
_SHOWN_FIELDS = 5
_EVENT_ENDS = (b"\n\n", b"\r\n\r\n")
_MAX_OVER_BYTES = 64 * 1024
"""How much of an answer that is cut is still passed on, so that it ends with a whole event."""

Outcome = Literal["completed", "failed", "cut"]


@dataclass(frozen=True, slots=True)
class Services:
    """What all doors share."""

    ledger: Ledger
    prices: Prices
    upstream: Upstream
    clock: Clock
    timeout_seconds: float
    more_fields: frozenset[str] = frozenset()
    """The fields that requests may have under a limit besides those of their wire."""


class _OverReservation(Exception):
    """The provider answers with more than was reserved for."""


@dataclass(frozen=True, slots=True)
class _Held:
    """What was reserved for a call."""

    reservation: Reservation
    bound: Bound | None
    document: JsonObject | None
    """The request as it goes out, where it must be other than it came."""
    most: int
    """The most tokens of output that it can have, over all its answers."""


class Call:
    """One request on one wire."""

    def __init__(
        self,
        services: Services,
        access: RunAccess,
        tally: RunTally,
        conversations: Conversations,
        wire: Wire,
        exchange: Exchange,
    ) -> None:
        self._services = services
        self._access = access
        self._tally = tally
        self._conversations = conversations
        self._wire = wire
        self._exchange = exchange
        self._under_way = UnderWay()
        self._began = services.clock.monotonic()
        self._first_byte: float | None = None
        self._outcome: Outcome = "failed"
        self._may_cost = False
        """Whether the provider may have answered, so that what isn't known must be counted in full."""
        self._meter: Meter | None = None
        self._over: Tokens | None = None
        """What was used when the answer was cut for being more than was reserved."""
        self._over_bytes, self._over_tail = 0, b""

    async def carry_out(self, ask: Ask) -> None:
        """Answer the request.

        Raises: Refusal for what is answered by the gateway itself.
        """
        if self._access.upstream == "demo":
            await self._play(ask)
            return
        account = await self._services.upstream.account(self._wire.vendor)
        price = self._services.prices.of(ask.model, provider=self._wire.vendor, base_url=account.base_url)
        extra = self._wire.costs_extra(ask.document)
        if extra is None and self._access.provider_tools:  # else it was refused at the door
            extra = self._wire.reaches_out(ask.document)
        repeats = self._wire.repeats(ask.document)
        held = await self._reserve(ask, price, extra or repeats, account)
        self._under_way.price = price if extra is None else None
        self._tally.begin(self._under_way)
        try:
            await self._forward(ask, held, account)
        finally:
            await self._settle(ask, held)

    async def _play(self, ask: Ask) -> None:
        """The demo script's answer, which costs nothing."""
        held = _Held(Reservation(new_id("resv"), 0, is_counted=False), None, None, ask.max_output or 0)
        self._under_way.price = FREE
        self._tally.begin(self._under_way)
        try:
            self._meter = await play(self._exchange, ask.document)
            self._may_cost, self._outcome = True, "completed"
        except ClientGone:
            self._outcome = "cut"
        finally:
            await self._settle(ask, held)

    # -- before

    async def _reserve(self, ask: Ask, price: Price | None, extra: str | None, account: Account) -> _Held:
        ledger, party = self._services.ledger, self._access.party
        plain = self._wire.prepared(ask)
        most = (ask.max_output or _UNTOLD_OUTPUT) * ask.answers
        if not ledger.applies(party):
            begun = ledger.begin(party, self._asks(ask), lambda: self._at_most(ask, most), seconds=self._seconds)
            return _Held(begun, None, plain, most)
        if extra is not None:
            raise Refusal(
                403,
                f"Under a budget this can't be asked for, as its cost isn't known beforehand: {extra}.",
                code="policy",
            )
        if price is not FREE:
            self._check_fields(ask)
        if price is None:
            raise Refusal(
                403,
                f"A budget limits this run, and the model '{ask.model}' has no price: an administrator sets one with "
                f"AUTOMAGIK_MODEL_PRICES, as `{ask.model}=3/15`.",
                code="policy",
            )
        bound = self._conversations.bound(self._wire, ask)
        try:
            return await self._reserve_within(ask, price, bound, plain, most)
        except (BudgetBusy, BudgetExceeded) as refused:
            # By its bytes it doesn't fit. The provider's own count, which is free, is a quarter of that.
            counted = await self._counted(ask, account)
            if counted is None or counted >= bound.tokens:
                raise self._over_budget(refused) from None
            bound = Bound(counted, bound.mark, bound.head)
        try:
            return await self._reserve_within(ask, price, bound, plain, most)
        except (BudgetBusy, BudgetExceeded) as refused:
            raise self._over_budget(refused) from None

    def _check_fields(self, ask: Ask) -> None:
        """Nothing, where each field of the request is known to cost no more than is reserved. Raises Refusal (400)."""
        known, more = self._wire.fields, self._services.more_fields
        unknown = [name for name in ask.document if name not in known and name not in more]
        if unknown:
            named = ", ".join(f"`{shown(name)}`" for name in unknown[:_SHOWN_FIELDS])
            raise Refusal(
                400,
                f"Under a budget these fields can't be asked for, as nothing is known of what they cost: {named}. Leave them "
                "out; an administrator can allow them with AUTOMAGIK_GATEWAY_FIELDS.",
            )

    async def _reserve_within(self, ask: Ask, price: Price, bound: Bound, plain: JsonObject | None, most: int) -> _Held:
        """Reserve for the whole output, or for less of it. Raises BudgetBusy, BudgetExceeded."""
        amount = price.ceiling(bound.tokens, most)
        least = price.ceiling(bound.tokens, self._wire.least(ask) * ask.answers)
        reservation = await self._services.ledger.reserve(
            self._access.party,
            amount,
            at_least_nano=min(least, amount),
            seconds=self._seconds,
            asks=self._asks(ask),
        )
        granted = reservation.granted_nano
        if granted >= amount:
            return _Held(reservation, bound, plain, most)
        tokens = max(1, min(most, price.output_tokens_within(granted, bound.tokens)) // ask.answers)
        self._tally.warn("The budget is nearly used up: answers are kept shorter than was asked for.")
        document = self._wire.with_max_output(ask, tokens)
        return _Held(reservation, bound, document, tokens * ask.answers)

    def _asks(self, ask: Ask) -> tuple[str, str]:
        return self._wire.vendor, ask.model

    def _at_most(self, ask: Ask, most: int) -> int | None:
        """The most that a call costs which no budget limits; None where that isn't known."""
        price = self._under_way.price
        if price is None:
            return None
        try:
            return price.ceiling(self._conversations.bound(self._wire, ask).tokens, most)
        except RecursionError:  # what could be read can still be too deep to be written
            return None

    @property
    def _seconds(self) -> float:
        return self._services.timeout_seconds + _GRACE_SECONDS

    def _over_budget(self, refused: BudgetBusy | BudgetExceeded) -> Refusal:
        text = refused.detail if refused.hint is None else f"{refused.detail} {refused.hint}"
        if isinstance(refused, BudgetBusy):
            self._tally.retry_refusals += 1
            return Refusal(429, text, retry_after=refused.retry_after_seconds, code="budget_exceeded")
        return Refusal(403, text, may_retry=False, code="budget_exceeded")

    async def _counted(self, ask: Ask, account: Account) -> int | None:
        """What the provider counts the input as, with a margin; None where it doesn't say."""
        if self._wire.vendor != "anthropic":
            return None
        wanted = {name: ask.document[name] for name in _COUNTED if name in ask.document}
        headers = forwarded_headers(self._exchange.head)
        try:
            async with asyncio.timeout(_COUNT_SECONDS):
                body = json.dumps(wanted).encode()
                reply = await self._services.upstream.send(
                    "POST", account, f"{self._wire.path}/count_tokens", headers, body
                )
                try:
                    content = await whole_body(reply, _MAX_ERROR_BYTES)
                finally:
                    await reply.close()
            told = cast("Json", json.loads(content)) if reply.status == 200 else None
        except (TimeoutError, Unreachable, BrokeOff, ValueError):
            return None
        tokens = as_object(told).get("input_tokens")
        return tokens + tokens // 20 + _COUNT_SLACK if isinstance(tokens, int) and tokens > 0 else None

    # -- the call itself

    async def _forward(self, ask: Ask, held: _Held, account: Account) -> None:
        exchange = self._exchange
        body = exchange.body if held.document is None else json.dumps(held.document, separators=(",", ":")).encode()
        exchange.body = b""
        try:
            async with exchange.while_present(), asyncio.timeout(self._services.timeout_seconds):
                await self._ask(account, body, held)
        except _OverReservation:
            self._outcome = "cut"
            self._tally.refused = "budget_exceeded"
            self._tally.warn("The model's API did not keep to the limit of its answer, which was cut.")
        except ClientGone:
            self._outcome = "cut"
        except TimeoutError:
            self._outcome = "cut"
            self._fail(504, f"The model did not answer in full within {self._services.timeout_seconds:g} seconds.")
        except Unreachable as error:
            self._may_cost = False
            _log.warning("model_unreachable", run_id=self._access.run_id, reason=str(error))
            self._fail(502, "The model's API can't be reached.")
        except KeyLeaked:
            self._outcome = "cut"
            _log.error("key_in_answer", run_id=self._access.run_id)
            self._tally.warn(
                "The model's API repeated the platform's key in an answer, which was cut: is its address right?"
            )
            self._fail(502, "The model's API gave an answer that can't be passed on.", may_retry=False)
        except BrokeOff as error:
            self._outcome = "cut"
            _log.warning("model_broke_off", run_id=self._access.run_id, reason=str(error))
            self._fail(502, "The model's API broke off.")

    async def _ask(self, account: Account, body: bytes, held: _Held) -> None:
        self._may_cost = True
        reply = await self._services.upstream.send(
            "POST", account, self._path(), forwarded_headers(self._exchange.head), body
        )
        try:
            if reply.status // 100 == 2:
                await self._pass_on(reply, account.secret, held)
            else:
                self._may_cost = False
                await self._pass_error(reply, account)
        finally:
            await reply.close()

    def _path(self) -> str:
        # Of the query only what the CLI is known to send: nothing else is meant for the provider.
        return self._wire.path + ("?beta=true" if self._exchange.head.query == "beta=true" else "")

    async def _pass_on(self, reply: Reply, secret: str, held: _Held) -> None:
        """The answer's bytes as they come, read beside it."""
        exchange, clock = self._exchange, self._services.clock
        headers, length = answer_headers(reply, secret)
        watch = inner = KeyWatch(secret)
        meter = self._meter = self._wire.meter(reply.value(b"content-type"))
        packed: Unpacking | None = None
        if (coding := reply.value(b"content-encoding")) not in {b"", b"identity"}:
            packed, inner = Unpacking(coding), KeyWatch(secret)
        exchange.start(reply.status, headers, length=length, follows=lambda: reply.has_piece)
        async for piece in reply.pieces():
            if self._first_byte is None:
                self._first_byte = clock.monotonic()
            if packed is not None:
                self._unpack(meter, packed, piece, inner)
            if reply.complete:  # it is sent before it is read: nothing that is in it changes what becomes of it
                try:
                    exchange.write_last(watch.passed(piece) + watch.rest())
                finally:
                    if packed is None:
                        self._read(meter, piece)
                await exchange.drained()
                continue
            if packed is None:
                self._read(meter, piece)
            passed = watch.passed(piece)
            if meter.is_beyond(held.most) and self._is_over(held, meter):
                await self._cut_over(passed, held, can_tell=length is None, is_plain=packed is None)
            await exchange.write(passed)
        await exchange.write(watch.rest())
        meter.finish()
        self._outcome = "completed"
        self._under_way.tokens = meter.reported or Tokens()
        exchange.end()

    def _read(self, meter: Meter, piece: bytes) -> None:
        """Count what is told in this piece."""
        meter.feed(piece)
        if meter.reported is not None:
            self._under_way.tokens = meter.reported

    def _unpack(self, meter: Meter, packed: Unpacking, piece: bytes, watch: KeyWatch) -> None:
        """Count what is told in this piece of a compressed answer. Raises KeyLeaked, before any of it is passed on."""
        for part in packed.parts(piece):
            watch.passed(part)
            self._read(meter, part)
        if packed.is_lost and not meter.complete:
            self._meter = None  # so that the whole reservation counts

    def _is_over(self, held: _Held, meter: Meter) -> bool:
        """Whether the answer so far costs more than was reserved. One that has come to its end counts as it is."""
        if held.bound is None or self._under_way.price is None or meter.complete or self._meter is None:
            return False
        used = self._used_so_far(held.bound, meter, meter.output_so_far())
        return self._under_way.price.cost(used) > held.reservation.granted_nano

    def _used_so_far(self, bound: Bound, meter: Meter, output: int) -> Tokens:
        told = meter.reported
        if told is None or not told.input + told.cache_read + told.cache_write:
            return Tokens(bound.tokens // USUAL_TOKEN_BYTES, output)
        return replace(told, output=output)

    async def _cut_over(self, piece: bytes, held: _Held, *, can_tell: bool, is_plain: bool) -> None:
        """End the answer after the last whole event of this piece; return where there is none in it, so that it is passed on. One that
        is compressed ends at once.

        Raises: _OverReservation.
        """
        meter, bound = self._meter, held.bound
        assert meter is not None
        assert bound is not None
        # To its client an event that is not whole would be one that can't be read.
        seen = self._over_tail + piece
        ends = max((seen.rfind(end) + len(end) for end in _EVENT_ENDS if end in seen), default=0) - len(self._over_tail)
        self._over_tail = seen[-3:]
        self._over_bytes += len(piece)
        if is_plain and ends <= 0 and self._over_bytes < _MAX_OVER_BYTES:
            return
        self._over = self._used_so_far(bound, meter, meter.usual_output_so_far())
        if is_plain and ends > 0 and can_tell:
            text = (
                "The model's API answers with more than was reserved for this call, whose answer may have "
                f"{held.most} tokens: it was cut."
            )
            refusal = Refusal(403, text, code="budget_exceeded")
            await self._exchange.write(piece[:ends] + self._wire.broken(refusal))
            self._exchange.end()
        else:
            self._exchange.cut()
        raise _OverReservation

    async def _pass_error(self, reply: Reply, account: Account) -> None:
        """The provider's refusal, without what it may say of the platform's key."""
        status = reply.status
        if status == 401:
            text = "The model's API refuses the platform's key: an administrator must set a valid one."
            self._tally.warn(text)
            return self._fail(401, text, may_retry=False)
        if status // 100 not in {4, 5}:  # a redirect is not followed: it could lead the key elsewhere
            return self._fail(
                502, f"The model's API answers with status {status}; is its address right?", may_retry=False
            )
        content = scrubbed(await whole_body(reply, _MAX_ERROR_BYTES), account.secret)
        headers, _ = answer_headers(reply, account.secret)
        self._exchange.answer(Answer(status, content, headers))
        return None

    def _fail(self, status: int, text: str, *, may_retry: bool | None = None) -> None:
        """Say so where nothing was said yet; else break off, so that the client sees that it isn't all."""
        if self._exchange.status is None:
            self._exchange.answer(self._wire.refused(Refusal(status, text, may_retry=may_retry)))
        else:
            self._exchange.cut()

    # -- after

    async def _settle(self, ask: Ask, held: _Held) -> None:
        """Count what it cost, once, and keep the row that tells of it."""
        tokens, cost = self._spent(ask, held)
        self._tally.end(self._under_way, tokens, cost)
        if self._outcome == "completed":
            self._tally.refused = None
        if held.bound is not None and self._meter is not None and self._meter.reported is not None:
            self._conversations.remember(held.bound, self._meter.reported)
        row = self._row(ask, held.reservation, tokens, cost)
        # A cost that isn't known is all that was reserved.
        if cost is not None and held.bound is not None and cost > held.reservation.granted_nano:
            _log.warning("call_above_reservation", run_id=self._access.run_id, model=ask.model, call_id=row.call_id)
        settled = await self._services.ledger.settle(held.reservation, cost, call=row)
        self._tally.budgets_passed(settled.warnings)

    def _spent(self, ask: Ask, held: _Held) -> tuple[Tokens, int | None]:
        """The tokens and nano-dollars that it counts: what was reported; the most that it can be, where it was cut."""
        price, meter = self._under_way.price, self._meter
        if not self._may_cost:
            return Tokens(), 0
        if self._over is not None and price is not None:
            return self._over, max(price.cost(self._over), held.reservation.granted_nano)
        known = meter.at_most(held.most) if meter is not None else None
        if known is not None:
            return known, price.cost(known) if price is not None else None
        if held.bound is not None:
            return Tokens(), held.reservation.granted_nano
        if price is None:
            return Tokens(), None
        return Tokens(), self._at_most(ask, held.most)

    def _row(self, ask: Ask, reservation: Reservation, tokens: Tokens, cost: int | None) -> ModelCall:
        clock, party = self._services.clock, self._access.party
        return ModelCall(
            call_id=reservation.call_id,
            run_id=self._access.run_id,
            key_id=party.key_id,
            user_id=party.user_id,
            wire=self._wire.vendor,
            model=ask.model,
            status=self._exchange.status,
            outcome=self._outcome,
            created_at=clock.now(),
            duration_ms=round((clock.monotonic() - self._began) * 1000),
            input_tokens=tokens.input,
            output_tokens=tokens.output,
            cache_read_tokens=tokens.cache_read,
            cache_write_tokens=tokens.cache_write,
            cost_nano=cost,
            reserved_nano=reservation.granted_nano,
            first_byte_ms=round((self._first_byte - self._began) * 1000) if self._first_byte is not None else None,
            agent=party.agent,
        )
