"""Transaction: all tables at one moment; what is written becomes durable when the work returns, or not at all."""

from datetime import datetime

from sqlalchemy import Connection

from automagik.store.agents import Agents
from automagik.store.artifacts import Artifacts
from automagik.store.audit import AuditLog
from automagik.store.budgets import Budgets
from automagik.store.calls import ModelCalls
from automagik.store.events import Events
from automagik.store.executors import Executors
from automagik.store.keys import Keys
from automagik.store.memories import Memories
from automagik.store.messages import Messages
from automagik.store.prompts import Prompts
from automagik.store.queue import Queue
from automagik.store.rates import RateCounters
from automagik.store.retention import Retention
from automagik.store.runs import Runs
from automagik.store.schedules import Schedules
from automagik.store.secrets import Secrets
from automagik.store.sessions import Sessions
from automagik.store.usage import UsageRecords
from automagik.store.users import Users
from automagik.store.webhooks import Webhooks
from automagik.store.workflows import Executions, Words, Workflows

__all__ = ["Transaction"]


class Transaction:
    """One transaction. `now` is the moment that all its rows carry."""

    __slots__ = (
        "agents",
        "artifacts",
        "audit",
        "budgets",
        "calls",
        "connection",
        "events",
        "executions",
        "executors",
        "keys",
        "memories",
        "messages",
        "now",
        "prompts",
        "queue",
        "rates",
        "retention",
        "runs",
        "schedules",
        "secrets",
        "sessions",
        "usage",
        "users",
        "webhooks",
        "words",
        "workflows",
    )

    def __init__(self, connection: Connection, now: datetime) -> None:
        self.connection = connection
        self.now = now
        self.agents = Agents(connection, now)
        self.users = Users(connection, now)
        self.sessions = Sessions(connection, now)
        self.messages = Messages(connection, now)
        self.memories = Memories(connection, now)
        self.prompts = Prompts(connection, now)
        self.keys = Keys(connection, now)
        self.runs = Runs(connection, now)
        self.schedules = Schedules(connection, now)
        self.queue = Queue(connection, now)
        self.events = Events(connection, now)
        self.audit = AuditLog(connection, now)
        self.executors = Executors(connection, now)
        self.secrets = Secrets(connection, now)
        self.webhooks = Webhooks(connection, now)
        self.artifacts = Artifacts(connection, now)
        self.retention = Retention(connection, now)
        self.rates = RateCounters(connection, now)
        self.workflows = Workflows(connection, now)
        self.executions = Executions(connection, now)
        self.words = Words(connection, now)
        self.budgets = Budgets(connection, now)
        self.calls = ModelCalls(connection, now)
        self.usage = UsageRecords(connection, now)
