import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from genai_prices import Usage
from genai_prices.data_snapshot import get_snapshot

from automagik.budget import FREE, Prices, Tokens, parse_usd, usd_text
from automagik.budget.amounts import dollars
from automagik.budget.prices import nano_of
from automagik.errors import ConfigurationError
from automagik.settings import Settings

MILLION = 1_000_000
USD = 10**9


@pytest.fixture
def prices() -> Prices:
    return Prices(Settings(model_prices=["our-*=3/15", "openai:house-model=0.5/1"]))


def test_tokens_of_a_known_model_cost_what_its_table_says(prices: Prices) -> None:
    price = prices.of("claude-sonnet-4-5", provider="anthropic")
    assert price is not None
    assert price.cost(Tokens(input=100_000)) == 300_000_000
    assert price.cost(Tokens(output=MILLION)) == 15 * USD
    assert price.cost(Tokens(cache_read=100_000)) == 30_000_000
    assert price.cost(Tokens(cache_write=100_000)) == 375_000_000
    assert price.cost(Tokens(cache_write=100_000, cache_write_1h=100_000)) == 600_000_000


def test_the_ceiling_takes_the_dearest_way_and_tier(prices: Prices) -> None:
    price = prices.of("claude-sonnet-4-5", provider="anthropic")
    assert price is not None
    assert price.ceiling(100_000, 1000) == 100_000 * 6000 + 1000 * 15_000  # all of it a cache write for an hour
    assert price.ceiling(300_000, 1000) == 300_000 * 12_000 + 1000 * 22_500
    for tokens in (Tokens(1000, 50), Tokens(0, 50, 400, 600, 600), Tokens(0, 50, 0, 1000)):
        assert price.cost(tokens) <= price.ceiling(1000, 50)


@pytest.mark.parametrize("left", [0, 600_000_000, 600_015_000, 600_029_999, 700_000_000])
def test_so_many_output_tokens_as_fit_are_told(prices: Prices, left: int) -> None:
    price = prices.of("claude-sonnet-4-5", provider="anthropic")
    assert price is not None
    most = price.output_tokens_within(left, 100_000)
    assert most == max(0, (left - 600_000_000) // 15_000)
    assert most == 0 or price.ceiling(100_000, most) <= left < price.ceiling(100_000, most + 1)


@pytest.mark.parametrize(
    ("model", "provider", "base_url"),
    [
        ("demo", None, None),
        ("anything", "demo", None),
        ("llama-9", "openai", "http://127.0.0.1:11434/v1"),
        ("llama-9", None, "http://localhost:8080"),
        ("llama-9", None, "http://[::1]:8080"),
    ],
)
def test_the_demo_and_loopback_cost_nothing(
    prices: Prices, model: str, provider: str | None, base_url: str | None
) -> None:
    assert prices.of(model, provider=provider, base_url=base_url) == FREE
    assert FREE.ceiling(10**9, 10**9) == 0 and FREE.output_tokens_within(0, 5) > 10**6


def test_a_model_is_known_by_its_provider_its_address_or_its_name(prices: Prices) -> None:
    by_name = prices.of("claude-sonnet-4-5")
    assert by_name is not None and by_name == prices.of("anthropic:claude-sonnet-4-5")
    assert by_name == prices.of("claude-sonnet-4-5", base_url="https://api.anthropic.com")
    assert by_name == prices.of("claude-sonnet-4-5", provider="anthropic", base_url="https://proxy.example/v1")
    assert prices.of("gpt-of-nobody", provider="openai") is None
    assert prices.of("claude-sonnet-4-5", base_url="https://proxy.example/v1") is None


def test_a_setting_prices_what_has_no_price(prices: Prices) -> None:
    own = prices.of("our-best", provider="openai", base_url="https://models.example/v1")
    assert own is not None
    assert own.cost(Tokens(input=MILLION, output=MILLION, cache_read=MILLION)) == 21 * USD
    assert own.ceiling(1000, 100) == 1000 * 3000 + 100 * 15_000
    assert prices.of("House-Model", provider="openai") is not None
    assert prices.of("house-model") is None


@pytest.mark.parametrize(
    "entry", ["our-model", "our-model=3", "our-model=a/b", "our-model=-1/2", "=1/2", "m=1/nan", "m=1/2/3"]
)
def test_a_setting_that_is_no_price_is_refused_by_its_name(entry: str) -> None:
    with pytest.raises(ConfigurationError, match="AUTOMAGIK_MODEL_PRICES"):
        Prices(Settings(model_prices=[entry]))


@pytest.mark.parametrize(
    ("nano", "text"),
    [(0, "0.000000"), (1, "0.000000001"), (25 * USD, "25.000000"), (1_234_500_000, "1.234500"), (-5, "-0.000000005")],
)
def test_money_is_written_whole(nano: int, text: str) -> None:
    assert usd_text(nano) == text
    assert Decimal(text).scaleb(9) == nano


@pytest.mark.parametrize(("text", "nano"), [("25", 25 * USD), ("0.5", USD // 2), ("0.000000001", 1), ("0", 0)])
def test_money_is_read(text: str, nano: int) -> None:
    assert parse_usd(text) == nano


@pytest.mark.parametrize("text", ["", "1e3", "-1", "1.", ".5", "0.0000000001", "1000000000", "NaN", "1,5", "\u0661"])
def test_what_is_no_money_is_not(text: str) -> None:
    assert parse_usd(text) is None


@pytest.mark.parametrize(
    ("nano", "text"),
    [(0, "$0.00"), (10 * USD, "$10.00"), (120_000_000, "$0.12"), (1_234_000, "$0.0012"), (2100, "$0.0000021")],
)
def test_sentences_have_money_to_the_cent_or_its_first_digits(nano: int, text: str) -> None:
    assert dollars(nano) == text


def test_a_price_without_tiers_is_what_the_library_says_for_any_tokens(prices: Prices) -> None:
    dice = random.Random(5)
    flat = 0
    for provider in get_snapshot().providers:
        for model in provider.models[:4]:
            table = model.get_prices(datetime.now(UTC))
            price = prices.of(model.id, provider=provider.id)
            if price is None or price.table is not table:
                continue
            flat += price.flat is not None
            for _ in range(3):
                read, write, fresh, out = (dice.randrange(0, 300_000) for _ in range(4))
                tokens = Tokens(fresh, out, read, write, dice.randrange(0, write + 1))
                used = Usage(
                    input_tokens=fresh + read + write,
                    output_tokens=out,
                    cache_read_tokens=read,
                    cache_write_tokens=write,
                    cache_write_1h_tokens=tokens.cache_write_1h,
                )
                assert price.cost(tokens) == nano_of(table.calc_price(used)["total_price"]), model.id
    assert flat > 20


def test_a_price_of_the_setting_knows_what_a_vendor_takes_for_its_cache(prices: Prices) -> None:
    elsewhere, claude = prices.of("our-model", provider="openai"), prices.of("our-model", provider="anthropic")
    assert elsewhere is not None and claude is not None
    written = Tokens(input=1000, cache_read=1000, cache_write=3000, cache_write_1h=1000)
    assert elsewhere.cost(written) == 5000 * 3000
    assert claude.cost(written) == 5000 * 3000 + 2000 * 750 + 1000 * 3000
    assert elsewhere.ceiling(5000, 0) == 5000 * 3000
    assert claude.ceiling(5000, 0) == 5000 * 6000


class Standing:
    """A clock that stands still."""

    def __init__(self, moment: datetime) -> None:
        self._moment = moment

    def now(self) -> datetime:
        return self._moment

    def monotonic(self) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("provider", "model", "before", "at"),
    [
        (
            "google",
            "gemini-3.6-flash",
            datetime(2026, 12, 31, 12, tzinfo=UTC),
            datetime(2026, 12, 31, 23, 55, tzinfo=UTC),
        ),
        ("deepseek", "deepseek-chat", datetime(2025, 3, 1, 22, tzinfo=UTC), datetime(2025, 3, 2, 0, 25, tzinfo=UTC)),
        ("deepseek", "deepseek-chat", datetime(2025, 3, 1, 12, tzinfo=UTC), datetime(2025, 3, 1, 16, 25, tzinfo=UTC)),
    ],
)
def test_where_a_price_changes_while_a_call_may_be_under_way_the_dearer_one_holds(
    provider: str, model: str, before: datetime, at: datetime
) -> None:
    _, info = get_snapshot().find_provider_model(model, None, provider, None)
    soon = at + timedelta(minutes=15)
    tables = [info.get_prices(moment) for moment in (before, at, soon)]
    assert tables[0] is tables[1] is not tables[2]
    used = Usage(input_tokens=1000, output_tokens=100)
    dearest = max(nano_of(table.calc_price(used)["total_price"]) for table in tables)
    for clock, expected in ((before, tables[0]), (at, None), (soon, tables[2])):
        price = Prices(Settings(), clock=Standing(clock)).of(model, provider=provider)
        assert price is not None
        cost = dearest if expected is None else nano_of(expected.calc_price(used)["total_price"])
        assert price.cost(Tokens(1000, 100)) == cost


def test_no_call_can_cost_more_than_its_ceiling_whatever_the_table_says(prices: Prices) -> None:
    dice = random.Random(7)
    looked_at = 0
    for provider in get_snapshot().providers:
        for model in provider.models[::3]:
            price = prices.of(model.id, provider=provider.id)
            if price is None:
                continue
            read, write, fresh, out = (dice.randrange(0, 150_000) for _ in range(4))
            tokens = Tokens(fresh, out, read, write, dice.randrange(0, write + 1))
            assert price.cost(tokens) <= price.ceiling(fresh + read + write, out), model.id
            looked_at += 1
    assert looked_at > 300
