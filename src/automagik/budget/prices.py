"""Prices: what a model's tokens cost, from the table of `genai-prices` and from the setting `model_prices`.

Amounts are whole billionths of a US dollar, as in the store.
"""

import asyncio
import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import ROUND_CEILING, Decimal, InvalidOperation
from fnmatch import fnmatchcase
from functools import lru_cache
from urllib.parse import urlsplit

from genai_prices import Usage as PricedUsage
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelPrice, TieredPrices

from automagik.errors import ConfigurationError
from automagik.settings import Settings
from automagik.types import Clock, SystemClock

__all__ = ["FREE", "Price", "Prices", "Tokens", "is_loopback", "nano_of"]

_SETTING = "AUTOMAGIK_MODEL_PRICES"
_NANO = 10**9
_PER_MILLION = _NANO // 10**6
"""Nano-dollars a token for each US dollar a million tokens."""
_FREE_MODELS = frozenset({"demo", "test"})
"""The platform's own model and Pydantic AI's: neither asks anybody."""
_DEAREST = Decimal(1_000_000)
"""US dollars a million tokens: what is above is a slip of the pen."""
_CLAUDE_SURCHARGES = (Decimal("0.25"), Decimal(1))
"""Anthropic's, the same for all of its models: https://platform.claude.com/docs/en/about-claude/pricing"""
_ENDLESS = 10**9
"""How many tokens an amount pays for where they cost nothing."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What one call used. `input` is without what was read from the cache or written to it; `output` has its reasoning in it."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    """How many of `cache_write` are kept for an hour, which is dearer."""

    def __add__(self, other: "Tokens") -> "Tokens":
        """What both used together."""
        return Tokens(
            self.input + other.input,
            self.output + other.output,
            self.cache_read + other.cache_read,
            self.cache_write + other.cache_write,
            self.cache_write_1h + other.cache_write_1h,
        )


@dataclass(frozen=True, slots=True)
class _Rate:
    """Nano-dollars a token, and a dearer rate where the whole input has more tokens than a tier's start."""

    base: Decimal
    tiers: tuple[tuple[int, Decimal], ...] = ()

    def highest(self, input_tokens: int) -> Decimal:
        """The most that a token can cost where the input has at most `input_tokens`."""
        if not self.tiers:
            return self.base
        return max((self.base, *(price for start, price in self.tiers if input_tokens > start)))


@dataclass(frozen=True, slots=True)
class Price:
    """What the tokens of one model cost."""

    inputs: tuple[_Rate, ...]
    outputs: tuple[_Rate, ...]
    request_nano: int = 0
    """What a request costs besides its tokens."""
    table: ModelPrice | None = None
    """The entry of `genai-prices` that it comes from; None: a setting, or it costs nothing."""
    surcharges: tuple[Decimal, Decimal] = (Decimal(0), Decimal(0))
    """Without an entry: what a token that is written to the cache, for minutes or an hour, costs more, as a part of its price."""
    flat: "_Flat | None" = None
    """The same entry's rates, where they don't depend on how much is used."""

    def cost(self, tokens: Tokens) -> int:
        """What a call that used `tokens` cost; cache reads and writes at their own price where it is known."""
        taken = tokens.input + tokens.cache_read + tokens.cache_write
        if self.table is None:
            for_1h = min(tokens.cache_write_1h, tokens.cache_write)
            written = (tokens.cache_write - for_1h) * self.surcharges[0] + for_1h * self.surcharges[1]
            base, output = self.inputs[0].base, self.outputs[0].base
            return _up((taken + written) * base + tokens.output * output) + self.request_nano
        return _up(_table_nano(self.table, tokens) if self.flat is None else self.flat.nano(tokens))

    def ceiling(self, input_tokens: int, max_output_tokens: int) -> int:
        """The most that a call can cost: all of the input in the dearest way (as a cache write for an hour, say)."""
        dearest = _highest(self.inputs, input_tokens) * input_tokens
        return _up(dearest + _highest(self.outputs, input_tokens) * max_output_tokens) + self.request_nano

    def output_tokens_within(self, nano: int, input_tokens: int) -> int:
        """How many tokens a model may answer so that `ceiling` stays within `nano`; 0 where not even the input fits."""
        left = nano - self.ceiling(input_tokens, 0)
        if left < 0:
            return 0
        rate = _highest(self.outputs, input_tokens)
        return int(left / rate) if rate else _ENDLESS


@dataclass(frozen=True, slots=True)
class _Flat:
    """Nano-dollars a token of each kind, and a request: the library's own reckoning takes longer than all else that is done for
    a call."""

    request: Decimal
    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write: Decimal
    cache_write_1h: Decimal

    def nano(self, tokens: Tokens) -> Decimal:
        """What they cost."""
        for_1h = min(tokens.cache_write_1h, tokens.cache_write)
        return (
            self.request
            + tokens.input * self.input
            + tokens.output * self.output
            + tokens.cache_read * self.cache_read
            + (tokens.cache_write - for_1h) * self.cache_write
            + for_1h * self.cache_write_1h
        )


_NOTHING = (_Rate(Decimal(0)),)

FREE = Price(_NOTHING, _NOTHING)
"""The price of what costs nothing: the demo, and models on loopback."""


class Prices:
    """The prices of all models. `open()` loads the table off the event loop; it may be called again, and costs nothing then."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        """Raises: ConfigurationError for a `model_prices` that is none."""
        self._own = tuple(_parsed(entry) for entry in settings.model_prices)
        self._clock = clock or SystemClock()
        self._longest = timedelta(seconds=settings.model_call_timeout_seconds)
        self._known: dict[int, Price | None] = {}
        self._loaded = False

    async def open(self) -> None:
        """Load the table, which takes a third of a second, in a thread."""
        if not self._loaded:
            await asyncio.to_thread(get_snapshot)
            self._loaded = True

    def of(self, model: str, *, provider: str | None = None, base_url: str | None = None) -> Price | None:
        """The price of a model, or None where none is known.

        The table's comes first, by the address that is asked, then by the provider's name; then the setting's, whose pattern
        may name the model alone or as `provider:model`. The demo costs nothing, nor does what is on loopback, unless the setting
        prices it: a machine of one's own has its cost, too.
        """
        if provider in _FREE_MODELS or (
            provider is None and model in _FREE_MODELS
        ):  # a vendor's may be called like ours
            return FREE
        if base_url is not None and is_loopback(base_url):
            return self._own_price(model, provider) or FREE
        for name, by, url in _references(model, provider, base_url):
            found = self._in_table(name, by, url)
            if found is not None:
                return found
        return self._own_price(model, provider)

    def _own_price(self, model: str, provider: str | None) -> Price | None:
        """What the setting says."""
        names = [model.lower()] if provider is None else [model.lower(), f"{provider}:{model}".lower()]
        price = next((price for glob, price in self._own if any(fnmatchcase(name, glob) for name in names)), None)
        if price is None or not (provider == "anthropic" or "claude" in model.lower()):
            return price
        base = price.inputs[0].base
        dearer = tuple(_Rate(base * (1 + surcharge)) for surcharge in _CLAUDE_SURCHARGES)
        return replace(price, inputs=(*price.inputs, *dearer), surcharges=_CLAUDE_SURCHARGES)

    def _in_table(self, model: str, provider: str | None, base_url: str | None) -> Price | None:
        try:
            _, info = get_snapshot().find_provider_model(model, None, provider, base_url)
        except LookupError:
            return None
        now = self._clock.now()
        table = info.get_prices(now)
        price = self._priced(table)
        if isinstance(info.prices, ModelPrice):
            return price
        # Its price may change while a call is under way, by the day or the time of day: the dearer one holds.
        later = info.get_prices(now + self._longest)
        return price if later is table else _dearer(price, self._priced(later))

    def _priced(self, table: ModelPrice) -> Price | None:
        if id(table) not in self._known:  # the table's entries live as long as the process
            self._known[id(table)] = _from_table(table)
        return self._known[id(table)]


@lru_cache(maxsize=256)
def is_loopback(url: str) -> bool:
    """Whether the address of a URL is this machine's own."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def nano_of(usd: Decimal) -> int:
    """US dollars as whole nano-dollars, rounded up: no call costs less than it does."""
    return _up(usd * _NANO)


def _references(model: str, provider: str | None, base_url: str | None) -> Iterator[tuple[str, str | None, str | None]]:
    """What to look for in the table, the most exact first."""
    if base_url is not None:
        yield model, None, base_url
    if provider is not None:
        yield model, provider, None
    elif base_url is None:
        yield model, None, None
        vendor, separator, name = model.partition(":")
        if separator and vendor and name:
            yield name, vendor, None


def _dearer(one: Price | None, other: Price | None) -> Price | None:
    """The price of a usual call is the measure: a page in, a paragraph out; None, which is refused under a limit, where one is."""
    if one is None or other is None:
        return None
    return max(one, other, key=lambda price: price.ceiling(1000, 100))


def _from_table(table: ModelPrice) -> Price | None:
    """An entry of the table; None where it prices something else than tokens, so that no ceiling can be told."""
    inputs: list[_Rate] = []
    outputs: list[_Rate] = []
    request = 0
    for name, price in vars(table).items():
        if name.endswith("_mtok") and isinstance(price, Decimal | TieredPrices):
            (outputs if name.startswith("output_") else inputs).append(_rate(price))
        elif name == "requests_kcount" and isinstance(price, Decimal):
            request = _up(price * _NANO / 1000)
    if not inputs:
        return None
    tiered = any(rate.tiers for rate in (*inputs, *outputs))
    return Price(tuple(inputs), tuple(outputs or _NOTHING), request, table, flat=None if tiered else _flat(table))


def _flat(table: ModelPrice) -> _Flat:
    """The rates of an entry without tiers, as the library reckons them."""
    request = _table_nano(table, Tokens())
    million = 10**6
    kinds = (
        Tokens(input=million),
        Tokens(output=million),
        Tokens(cache_read=million),
        Tokens(cache_write=million),
        Tokens(cache_write=million, cache_write_1h=million),
    )
    return _Flat(request, *((_table_nano(table, tokens) - request) / million for tokens in kinds))


def _table_nano(table: ModelPrice, tokens: Tokens) -> Decimal:
    """What the library says that they cost, in nano-dollars."""
    used = PricedUsage(
        input_tokens=tokens.input + tokens.cache_read + tokens.cache_write,
        output_tokens=tokens.output,
        cache_read_tokens=tokens.cache_read,
        cache_write_tokens=tokens.cache_write,
        cache_write_1h_tokens=min(tokens.cache_write_1h, tokens.cache_write),
    )
    return table.calc_price(used)["total_price"] * _NANO


def _rate(price: Decimal | TieredPrices) -> _Rate:
    if isinstance(price, Decimal):
        return _Rate(price * _PER_MILLION)
    return _Rate(price.base * _PER_MILLION, tuple((tier.start, tier.price * _PER_MILLION) for tier in price.tiers))


def _highest(rates: Sequence[_Rate], input_tokens: int) -> Decimal:
    return max(rate.highest(input_tokens) for rate in rates)


def _up(nano: Decimal) -> int:
    return int(nano.to_integral_value(ROUND_CEILING))


def _parsed(entry: str) -> tuple[str, Price]:
    glob, _, amounts = entry.rpartition("=")
    parts = amounts.split("/")
    if not glob.strip() or len(parts) != 2:
        raise _not_a_price(entry)
    rates = [_Rate(_amount(part, entry) * _PER_MILLION) for part in parts]
    return glob.strip().lower(), Price((rates[0],), (rates[1],))


def _amount(text: str, entry: str) -> Decimal:
    try:
        amount = Decimal(text.strip())
    except InvalidOperation:
        raise _not_a_price(entry) from None
    if not amount.is_finite() or not 0 <= amount <= _DEAREST:
        raise _not_a_price(entry)
    return amount


def _not_a_price(entry: str) -> ConfigurationError:
    return ConfigurationError(
        f"{_SETTING} has an entry that is no price: '{entry[:100]}'.",
        hint="Write GLOB=INPUT/OUTPUT in US dollars for a million tokens, as `our-model*=3/15`; separate several by commas.",
    )
