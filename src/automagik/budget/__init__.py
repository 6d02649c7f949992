"""Money: what may be spent, what is reserved, what was used."""

from automagik.budget.amounts import dollars, limit_document, parse_usd, usd_text
from automagik.budget.budgets import Budgets
from automagik.budget.ledger import Ledger, Reservation, Settled
from automagik.budget.output import USUAL_TOKEN_BYTES, OutputCount
from automagik.budget.party import Party
from automagik.budget.prices import FREE, Price, Prices, Tokens, is_loopback, nano_of
from automagik.budget.usage import UsageReport, Used
from automagik.store.calls import ModelCall

__all__ = [
    "FREE",
    "USUAL_TOKEN_BYTES",
    "Budgets",
    "Ledger",
    "ModelCall",
    "OutputCount",
    "Party",
    "Price",
    "Prices",
    "Reservation",
    "Settled",
    "Tokens",
    "UsageReport",
    "Used",
    "dollars",
    "is_loopback",
    "limit_document",
    "nano_of",
    "parse_usd",
    "usd_text",
]
