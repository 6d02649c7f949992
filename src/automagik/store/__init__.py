"""Rows and transactions on SQLite or PostgreSQL. All SQL of the platform lives here."""

from automagik.store.hot import (
    AcceptedRun,
    BeginRun,
    BegunRun,
    FinishedRun,
    FinishRun,
    Idempotency,
    NewEvent,
    NewMessage,
    NextTurn,
    StartRun,
)
from automagik.store.rows import Page
from automagik.store.store import Store
from automagik.store.transaction import Transaction

__all__ = [
    "AcceptedRun",
    "BeginRun",
    "BegunRun",
    "FinishRun",
    "FinishedRun",
    "Idempotency",
    "NewEvent",
    "NewMessage",
    "NextTurn",
    "Page",
    "StartRun",
    "Store",
    "Transaction",
]
