"""Rows and transactions on SQLite or PostgreSQL. All SQL of the platform lives here."""

from automagik.store.hot import (
    AcceptedRun,
    BeginRun,
    BegunRun,
    FinishRun,
    NewEvent,
    NewMessage,
    RecoveredRuns,
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
    "NewEvent",
    "NewMessage",
    "Page",
    "RecoveredRuns",
    "StartRun",
    "Store",
    "Transaction",
]
