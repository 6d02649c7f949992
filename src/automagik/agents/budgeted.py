"""BudgetedModel: a model whose every request is reserved for in the ledger before it is made, and settled after."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, cast

import structlog
from pydantic_ai.exceptions import FallbackExceptionGroup, ModelConnectionError, ModelHTTPError, UserError
from pydantic_ai.messages import (
    BinaryContent,
    FileUrl,
    ImageUrl,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    ToolReturnPart,
    UploadedFile,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestContext, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import RunContext
from pydantic_core import to_json

from automagik.agents.overrun import OutputGuard, overrun
from automagik.budget import USUAL_TOKEN_BYTES, Ledger, ModelCall, Party, Price, Prices, Reservation, Tokens, nano_of
from automagik.errors import BudgetBusy, BudgetExceeded, RunFailed
from automagik.types import Clock, JsonObject

__all__ = ["BudgetedModel"]

_log = structlog.stdlib.get_logger(__name__)

_MOST_OUTPUT = 128_000
"""What a model may answer whose maximum is not known: the largest of any vendor in 2026."""
_LEAST_OUTPUT = 256
"""Below so many tokens an answer is not worth its input: rather refuse it."""
_WIDEST_WINDOW = 1_000_000
_IMAGE_TOKENS = 50_000
"""More than any vendor counts for an image, whatever its bytes."""
_BUSY_SECONDS = 60.0
"""How long a request waits for what other calls have reserved."""
_NOT_SENT = frozenset({"pool", "connect"})


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A model that may answer the request, with its price."""

    model: Model
    price: Price
    input_tokens: int
    output_tokens: int

    def ceiling(self, output_tokens: int | None = None) -> int:
        wanted = self.output_tokens if output_tokens is None else min(output_tokens, self.output_tokens)
        return self.price.ceiling(self.input_tokens, wanted)


@dataclass(frozen=True, slots=True)
class _Call:
    """One request under way."""

    reservation: Reservation
    candidates: Sequence[_Candidate]
    settings: ModelSettings | None
    began: float
    most: int | None
    """What it counts where nobody says what it cost; None: that isn't known."""
    asked: Callable[[], Sequence[_Candidate]] | None = None
    """What tells the models that may answer, where no budget applied when it began."""
    most_output: int | None = None
    """The most tokens that it may be answered with; None: nothing is reserved, so nothing limits it."""


@dataclass(frozen=True, slots=True)
class _Answered:
    """A request that was answered while no budget applied."""

    call: _Call
    get: Callable[[], ModelResponse]
    ended: datetime
    took_ms: int


class BudgetedModel(WrapperModel):
    """A model that asks the ledger first. `tell` takes events of the run: `budget_warning` and `warning`.

    It reserves the most that a request can cost: its bytes as input tokens, which are never more, and `max_tokens`, or the
    model's own maximum. Where only less is left, `max_tokens` is lowered. Where nothing is, the run ends as `budget_exceeded`; so it
    does where a provider answers with more than was reserved for: a stream is cut there, and the call counts what it used.

    Where no budget applies, it does nothing; but should one be set while the run goes on, its requests so far count in it.
    """

    def __init__(
        self,
        wrapped: Model,
        *,
        ledger: Ledger,
        prices: Prices,
        party: Party,
        clock: Clock,
        tell: Callable[[str, JsonObject], None],
    ) -> None:
        super().__init__(wrapped)
        self._ledger = ledger
        self._prices = prices
        self._party = party
        self._clock = clock
        self._tell = tell
        self._before: list[_Answered] = []
        self._asks_nothing = self._asks([], None, ModelRequestParameters())

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """The model's answer. Raises RunFailed (`budget_exceeded`, or `policy` for a model without a price)."""
        call = await self._begin(messages, model_settings, model_request_parameters)
        settings = model_settings if call is None else call.settings
        return await self._settled(call, self.wrapped.request(messages, settings, model_request_parameters))

    async def compact_messages(
        self, request_context: ModelRequestContext, *, instructions: str | None = None
    ) -> ModelResponse:
        """The conversation made shorter by the model, which costs as a request does. Raises as `request`."""
        asked = request_context
        call = await self._begin(asked.messages, asked.model_settings, asked.model_request_parameters)
        return await self._settled(call, self.wrapped.compact_messages(asked, instructions=instructions))

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """The model's answer as it comes. Raises as `request`."""
        call = await self._begin(messages, model_settings, model_request_parameters)
        settings = model_settings if call is None else call.settings
        guard = self._guard(call) if call is not None and call.most_output is not None else None
        try:
            async with self.wrapped.request_stream(messages, settings, model_request_parameters, run_context) as stream:
                if guard is not None:
                    guard.watch(stream)
                yield stream
        except BaseException as error:
            if call is not None and not (guard and guard.has_cut):
                self._broken(call, error)
            raise
        if call is not None and not (guard and guard.has_cut):
            await self._answered(call, stream.get)

    async def _settled(self, call: _Call | None, asking: Awaitable[ModelResponse]) -> ModelResponse:
        try:
            response = await asking
        except BaseException as error:
            if call is not None:
                self._broken(call, error)
            raise
        if call is not None:
            await self._answered(call, lambda: response)
        return response

    async def _begin(
        self, messages: list[ModelMessage], settings: ModelSettings | None, parameters: ModelRequestParameters
    ) -> _Call | None:
        """What is reserved for the request; None where it costs nothing."""
        if not self._ledger.applies(self._party):
            return self._unlimited(messages, settings, parameters)
        await self._prices.open()
        await self._count_before()
        candidates = [*self._candidates(messages, settings, parameters)]
        asked = max(candidate.ceiling() for candidate in candidates)
        if not asked:
            return None
        least = max(candidate.ceiling(_least_output(settings)) for candidate in candidates)
        asks = ("agent", candidates[0].model.model_name)
        reservation = await self._reserve(asked, least, asks)
        granted, most = reservation.granted_nano, max(one.output_tokens for one in candidates)
        if granted < asked:
            most = min(one.price.output_tokens_within(granted, one.input_tokens) for one in candidates)
            settings = self._lowered(settings, most)
        return _Call(reservation, candidates, settings, self._clock.monotonic(), granted, most_output=most)

    def _unlimited(
        self, messages: list[ModelMessage], settings: ModelSettings | None, parameters: ModelRequestParameters
    ) -> _Call:
        """A request that no budget applies to."""
        asked = self._asks(messages, settings, parameters)
        held = self._ledger.begin(
            self._party,
            ("agent", self.wrapped.model_name),
            lambda: max((one.ceiling() for one in asked()), default=None),
            is_recorded=False,
        )
        return _Call(held, (), settings, self._clock.monotonic(), None, asked)

    def _asks(
        self, messages: list[ModelMessage], settings: ModelSettings | None, parameters: ModelRequestParameters
    ) -> Callable[[], Sequence[_Candidate]]:
        """What tells the models that may answer, when that is asked; none where a price isn't known."""

        def asked() -> Sequence[_Candidate]:
            try:
                return [*self._candidates(messages, settings, parameters)]
            except RunFailed:
                return ()

        return asked

    def _late(self, call: _Call) -> _Call:
        """The same with what is known of its cost: a budget was set since it began."""
        if call.asked is None:
            return call
        candidates = call.asked()
        return replace(
            call, candidates=candidates, most=max((one.ceiling() for one in candidates), default=None), asked=None
        )

    async def _count_before(self) -> None:
        """Count what was answered before any budget applied: the run is under way, so no other figure has it."""
        before, self._before = self._before, []
        for one in before:
            late = self._late(one.call)
            if late.most == 0 and late.candidates:
                continue
            again = self._ledger.begin(self._party, ("agent", ""), lambda: None, is_recorded=False)
            call, response = replace(late, reservation=again, most=None), one.get()
            cost = self._cost(call, response)
            record = self._record(call, response, outcome="completed", cost=cost)
            await self._settle(call, cost, replace(record, created_at=one.ended, duration_ms=one.took_ms))

    async def _reserve(self, asked: int, least: int, asks: tuple[str, str]) -> Reservation:
        waits_until = self._clock.monotonic() + _BUSY_SECONDS
        while True:
            try:
                return await self._ledger.reserve(self._party, asked, at_least_nano=least, asks=asks)
            except BudgetExceeded as refused:
                raise RunFailed(refused.detail, outcome="budget_exceeded", hint=refused.hint) from refused
            except BudgetBusy as busy:
                if self._clock.monotonic() >= waits_until:
                    raise RunFailed(busy.detail, outcome="budget_exceeded", hint=busy.hint, retryable=True) from busy
                await asyncio.sleep(busy.retry_after_seconds)

    def _lowered(self, settings: ModelSettings | None, most: int) -> ModelSettings:
        self._tell(
            "warning",
            {
                "code": "max_tokens_lowered",
                "detail": f"The budget has room for an answer of {most} tokens at the most.",
            },
        )
        return cast("ModelSettings", {**_given(settings), "max_tokens": most})

    async def _answered(self, call: _Call, get: Callable[[], ModelResponse]) -> None:
        """Settle by what the response says that was used; by all that was reserved where it was cut, or says nothing.

        Raises RunFailed (`budget_exceeded`) for one of more tokens than were reserved for, once it is settled.
        """
        if call.asked is not None:
            if not self._ledger.applies(self._party):
                self._ledger.settle_later(call.reservation, 0)
                plain = replace(call, asked=self._asks_nothing)
                self._before.append(_Answered(plain, get, self._clock.now(), self._took(call)))
                return
            await self._prices.open()
            call = self._late(call)
            if not call.most and call.candidates:  # it costs nothing
                self._ledger.settle_later(call.reservation, 0)
                return
        response = get()
        cost = self._cost(call, response) if response.state == "complete" else None
        outcome = "cut" if cost is None else "completed"
        await self._settle(call, cost, self._record(call, response, outcome=outcome, cost=cost))
        most = call.most_output
        if most is not None and response.usage.output_tokens > most and cost is not None and cost > (call.most or 0):
            raise overrun(most, is_cut=False)

    def _guard(self, call: _Call) -> OutputGuard:
        """What cuts the answer to a request where it costs more than is reserved for it."""
        assert call.most_output is not None

        def used(so_far: ModelResponse, output: int) -> ModelResponse:
            usage = replace(so_far.usage, output_tokens=output, cost=None, unmeasured_requests=0)
            if not usage.input_tokens:
                usage.input_tokens = min(one.input_tokens for one in call.candidates) // USUAL_TOKEN_BYTES
            return replace(so_far, usage=usage)

        def is_over(so_far: ModelResponse, output: int) -> bool:
            return (self._cost(call, used(so_far, output)) or 0) > call.reservation.granted_nano

        async def settle(so_far: ModelResponse) -> None:
            response = used(so_far, so_far.usage.output_tokens)
            cost = max(self._cost(call, response) or 0, call.reservation.granted_nano)
            await self._settle(call, cost, self._record(call, response, outcome="cut", cost=cost))

        return OutputGuard(call.most_output, is_over, settle)

    async def _settle(self, call: _Call, cost: int | None, record: ModelCall) -> None:
        if record.over_reservation:
            _log.warning("call_above_reservation", run_id=record.run_id, model=record.model, call_id=record.call_id)
        settled = await self._ledger.settle(call.reservation, call.most if cost is None else cost, call=record)
        for warning in settled.warnings:
            self._tell("budget_warning", warning)

    def _broken(self, call: _Call, error: BaseException) -> None:
        """Settle a request that gave no answer: by nothing where no model can have worked for it, else by all that was reserved."""
        if call.asked is not None:
            if not self._ledger.applies(self._party):
                self._ledger.settle_later(call.reservation, 0)
                return
            call = self._late(call)
        cost = 0 if _cost_nothing(error) else call.most
        outcome = "failed" if isinstance(error, Exception) else "cut"
        record = self._record(call, None, outcome=outcome, cost=cost)
        self._ledger.settle_later(call.reservation, cost, call=record)

    def _cost(self, call: _Call, response: ModelResponse) -> int | None:
        usage = response.usage
        if usage.cost is not None:
            return nano_of(usage.cost)
        tokens = _tokens(response)
        if usage.unmeasured_requests or not (usage.input_tokens or usage.output_tokens) or not call.candidates:
            return None
        answered = [one for one in call.candidates if one.model.model_name == response.model_name]
        return max(one.price.cost(tokens) for one in answered or call.candidates)

    def _record(self, call: _Call, response: ModelResponse | None, *, outcome: str, cost: int | None) -> ModelCall:
        tokens = _tokens(response) if response is not None else Tokens()
        named = response.model_name if response is not None else None
        model = call.candidates[0].model if call.candidates else self.wrapped
        return ModelCall(
            call_id=call.reservation.call_id,
            run_id=self._party.run_id,
            key_id=self._party.key_id,
            user_id=self._party.user_id,
            wire="agent",
            model=named or model.model_name,
            status=None,
            outcome=outcome,
            created_at=self._clock.now(),
            duration_ms=self._took(call),
            input_tokens=tokens.input,
            output_tokens=tokens.output,
            cache_read_tokens=tokens.cache_read,
            cache_write_tokens=tokens.cache_write,
            cost_nano=call.most if cost is None else cost,
            reserved_nano=call.reservation.granted_nano,
            agent=self._party.agent,
        )

    def _took(self, call: _Call) -> int:
        return round((self._clock.monotonic() - call.began) * 1000)

    def _candidates(
        self, messages: list[ModelMessage], settings: ModelSettings | None, parameters: ModelRequestParameters
    ) -> Iterator[_Candidate]:
        bound = _input_bound(messages, parameters)
        for model in _leaves(self.wrapped):
            price = self._prices.of(model.model_name, provider=model.system, base_url=_base_url(model))
            if price is None:
                raise RunFailed(
                    f"The price of the model '{model.model_name}' is not known, and a budget limits this run.",
                    outcome="policy",
                    hint="An administrator can give it a price by AUTOMAGIK_MODEL_PRICES, as "
                    f"{model.model_name}=INPUT/OUTPUT in US dollars for a million tokens.",
                )
            window = model.context_window or _WIDEST_WINDOW
            wanted = _given(settings).get("max_tokens") or _given(model.settings).get("max_tokens")
            most = wanted or min(_maximum(model), window)
            yield _Candidate(model, price, window if bound is None else min(bound, window), most)


def _leaves(model: Model) -> Iterator[Model]:
    """The models that a request may go to in the end."""
    if isinstance(model, FallbackModel):
        for one in model.models:
            yield from _leaves(one)
    elif isinstance(model, WrapperModel):
        yield from _leaves(model.wrapped)
    else:
        yield model


def _base_url(model: Model) -> str | None:
    try:
        return model.base_url
    except (AttributeError, UserError):  # some have none, and say so like this
        return None


def _given(settings: ModelSettings | None) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", settings or {})


def _maximum(model: Model) -> int:
    most: object = model.profile.get("anthropic_max_output_tokens")
    return most if isinstance(most, int) else _MOST_OUTPUT


def _least_output(settings: ModelSettings | None) -> int:
    """The fewest tokens of an answer that is worth its input: with what the model is told to think before."""
    thinking = _given(settings).get("anthropic_thinking")
    budget = cast("dict[str, Any]", thinking).get("budget_tokens") if isinstance(thinking, dict) else None
    return _LEAST_OUTPUT + (budget if isinstance(budget, int) else 0)


def _input_bound(messages: Sequence[ModelMessage], parameters: ModelRequestParameters) -> int | None:
    """How many tokens the request has at the most: no token has less than a byte. None: as many as the model takes."""
    if parameters.native_tools:  # what they bring in is not known before
        return None
    images = 0
    for content in _contents(messages):
        if isinstance(content, ImageUrl) or (isinstance(content, BinaryContent) and content.is_image):
            images += 1
        elif isinstance(content, BinaryContent | FileUrl | UploadedFile):
            return None  # a small document may have a thousand pages
    size = len(ModelMessagesTypeAdapter.dump_json(list(messages)))
    for tool in (*parameters.function_tools, *parameters.output_tools):
        size += len(to_json((tool.name, tool.description, tool.parameters_json_schema)))
    if parameters.output_object is not None:
        size += len(to_json(parameters.output_object.json_schema))
    return size + images * _IMAGE_TOKENS


def _contents(messages: Sequence[ModelMessage]) -> Iterator[object]:
    for message in messages:
        if isinstance(message, ModelRequest):
            for part in message.parts:
                if isinstance(part, UserPromptPart) and not isinstance(part.content, str):
                    yield from part.content
                elif isinstance(part, ToolReturnPart):
                    yield from part.files


def _tokens(response: ModelResponse) -> Tokens:
    usage = response.usage
    read, written = usage.cache_read_tokens, usage.cache_write_tokens
    for_1h = min(usage.cache_write_1h_tokens, written)
    return Tokens(max(0, usage.input_tokens - read - written), usage.output_tokens, read, written, for_1h)


def _cost_nothing(error: BaseException) -> bool:
    """Whether the request certainly cost nothing: it was refused before any answer began, or never sent."""
    if isinstance(error, FallbackExceptionGroup):
        return all(_cost_nothing(one) for one in error.exceptions)
    if isinstance(error, ModelHTTPError):
        return not error.in_stream
    return isinstance(error, ModelConnectionError) and error.phase in _NOT_SENT
