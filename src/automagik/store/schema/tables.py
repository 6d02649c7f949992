"""The tables: those of the user's document with its columns, and what runs, keys, queue, webhooks and artefacts need besides."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    String,
    Table,
    UniqueConstraint,
    cast,
    func,
    text,
)

from automagik.store.columns import (
    Bytes,
    CleanText,
    Identifier,
    JsonText,
    JsonValue,
    Money,
    SafeText,
    Uid,
    UtcTime,
)
from automagik.store.schema.base import KEY, created_column, id_column, metadata, updated_column

__all__ = [
    "ACTIVE_RUNS",
    "OPEN_RUNS",
    "WAITING_RUNS",
    "agents",
    "api_keys",
    "artifact_uses",
    "artifacts",
    "audit",
    "deliveries",
    "delivery_attempts",
    "executors",
    "idempotency_keys",
    "memories",
    "messages",
    "platform",
    "prompts",
    "rate_counters",
    "run_events",
    "runs",
    "schedules",
    "secrets",
    "sessions",
    "users",
    "webhooks",
]

agents = Table(
    "agents",
    metadata,
    id_column(),
    Column("name", SafeText, nullable=False, unique=True),
    Column("type", SafeText, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("description", SafeText),
    Column("source", SafeText, nullable=False),
    Column("config", JsonValue, nullable=False),
    Column("revision", Integer, nullable=False),
    created_column(),
    updated_column(),
    sqlite_autoincrement=True,
)

users = Table(
    "users",
    metadata,
    Column("id", Uid, primary_key=True),
    Column("email", SafeText, unique=True),
    Column("phone_number", SafeText, unique=True),
    Column("user_data", JsonValue, nullable=False),
    created_column(),
    updated_column(),
    Index(None, "created_at", "id"),
)

sessions = Table(
    "sessions",
    metadata,
    id_column(),
    Column("session_id", Uid, nullable=False, unique=True),
    Column("agent_id", KEY, ForeignKey("agents.id", ondelete="SET NULL")),
    Column("user_id", Uid, ForeignKey("users.id", ondelete="CASCADE")),
    Column("session_name", SafeText),
    Column("status", SafeText, nullable=False),
    Column("session_origin", SafeText, nullable=False),
    Column("metadata", JsonValue, nullable=False),
    Column("message_count", Integer, nullable=False),
    # How many runs it has accepted, and how many of them have not ended: whoever changes them holds the row.
    Column("turns", Integer, nullable=False, server_default=text("0")),
    Column("open_runs", Integer, nullable=False, server_default=text("0")),
    created_column(),
    updated_column(),
    # A name is unique among one user's sessions, and among those of no user.
    UniqueConstraint("user_id", "session_name"),
    Index(
        "uq_sessions_session_name_unowned",
        "session_name",
        unique=True,
        sqlite_where=text("user_id IS NULL"),
        postgresql_where=text("user_id IS NULL"),
    ),
    Index(None, "agent_id", "id"),
    sqlite_autoincrement=True,
)

messages = Table(
    "messages",
    metadata,
    id_column(),
    Column("message_id", Uid, nullable=False, unique=True),
    Column("session_id", KEY, ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    Column("run_id", Identifier),
    Column("role", SafeText, nullable=False),
    Column("content", CleanText, nullable=False),
    Column("raw_payload", JsonText, nullable=False),
    created_column(),
    Index(None, "session_id", "id"),
)

memories = Table(
    "memories",
    metadata,
    id_column(),
    Column("memory_id", Uid, nullable=False, unique=True),
    Column("agent_id", KEY, ForeignKey("agents.id", ondelete="CASCADE")),
    Column("user_id", Uid, ForeignKey("users.id", ondelete="CASCADE")),
    Column("session_id", KEY, ForeignKey("sessions.id", ondelete="CASCADE")),
    Column("name", SafeText, nullable=False),
    Column("content", CleanText, nullable=False),
    Column("description", SafeText),
    Column("memory_type", SafeText, nullable=False),
    Column("read_mode", SafeText),
    Column("access", SafeText),
    Column("metadata", JsonValue, nullable=False),
    Column("active", Boolean, nullable=False),
    created_column(),
    updated_column(),
    Index(None, "session_id", "name"),
    Index(None, "user_id", "name"),
    Index(None, "agent_id", "user_id", "name"),
    sqlite_autoincrement=True,
)
Index(
    "uq_memories_scope_name",
    memories.c.name,
    func.coalesce(memories.c.agent_id, text("0")),
    func.coalesce(cast(memories.c.user_id, String), text("''")),
    func.coalesce(memories.c.session_id, text("0")),
    unique=True,
)

prompts = Table(
    "prompts",
    metadata,
    id_column(),
    Column("prompt_id", Uid, nullable=False, unique=True),
    Column("agent_id", KEY, ForeignKey("agents.id", ondelete="CASCADE"), nullable=False),
    Column("status_key", SafeText, nullable=False),
    Column("name", SafeText),
    Column("template", SafeText, nullable=False),
    Column("version", Integer, nullable=False),
    Column("is_active", Boolean, nullable=False),
    Column("is_default_from_code", Boolean, nullable=False),
    created_column(),
    updated_column(),
    UniqueConstraint("agent_id", "status_key", "version"),
    Index(
        "uq_prompts_agent_id_status_key_active",
        "agent_id",
        "status_key",
        unique=True,
        sqlite_where=text("is_active"),
        postgresql_where=text("is_active"),
    ),
    sqlite_autoincrement=True,
)

ACTIVE_RUNS = "status <> 'completed'"
"""What an index over the statuses covers: those that are few. Completed runs are found newest first without one."""

OPEN_RUNS = "status IN ('queued', 'running', 'waiting')"
"""What an index over the runs that have not ended covers."""

WAITING_RUNS = "status = 'queued' AND background AND ready"
"""What an index over the runs that a worker may take covers."""

runs = Table(
    "runs",
    metadata,
    Column("run_id", Identifier, primary_key=True),
    Column("kind", SafeText, nullable=False),
    Column("name", SafeText, nullable=False),
    # A run is a record: who and where stay written when the agent, session, user or key goes, so none is a foreign key.
    Column("agent_id", KEY),
    Column("session_id", Uid),
    Column("user_id", Uid),
    Column("key_id", Identifier),
    Column("parent_id", Identifier),
    Column("requeue_of", Identifier),
    Column("labels", JsonValue, nullable=False),
    Column("status", SafeText, nullable=False),
    Column("outcome", SafeText),
    Column("attempt", SmallInteger, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("input", JsonValue),
    Column("output", JsonValue),
    Column("error", JsonValue),
    Column("waiting_for", JsonValue),
    # What a workflow's run tells besides: its workspace, turns and executor.
    Column("details", JsonValue),
    Column("requests", Integer, nullable=False),
    Column("tool_calls", Integer, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cache_read_tokens", BigInteger, nullable=False),
    Column("cache_write_tokens", BigInteger, nullable=False),
    Column("cost_usd", Money),
    Column("instructions", CleanText),
    Column("model", SafeText),
    Column("owner", Identifier),
    # Whether it waits in the queue for a worker, instead of for the process that accepted it.
    Column("background", Boolean, nullable=False, server_default=text("false")),
    # Whether no earlier run of its session is open; always so where it has no session. `turn` is its place there.
    Column("ready", Boolean, nullable=False, server_default=text("true")),
    Column("turn", Integer),
    Column("available_at", UtcTime),
    Column("queue_until", UtcTime),
    Column("host", SafeText),
    Column("cancel_requested", Boolean, nullable=False, server_default=text("false")),
    created_column(),
    Column("started_at", UtcTime),
    Column("finished_at", UtcTime),
    Column("deadline_at", UtcTime),
    Index(None, "name", "run_id"),
    Index(None, "session_id", "run_id"),
    Index(None, "key_id", "run_id"),
    Index(
        None,
        "user_id",
        "run_id",
        sqlite_where=text("user_id IS NOT NULL"),
        postgresql_where=text("user_id IS NOT NULL"),
    ),
    Index(
        None,
        "parent_id",
        "run_id",
        sqlite_where=text("parent_id IS NOT NULL"),
        postgresql_where=text("parent_id IS NOT NULL"),
    ),
    Index(None, "status", "run_id", sqlite_where=text(ACTIVE_RUNS), postgresql_where=text(ACTIVE_RUNS)),
    Index("ix_runs_queue", "priority", "run_id", sqlite_where=text(WAITING_RUNS), postgresql_where=text(WAITING_RUNS)),
    Index("ix_runs_turn", "session_id", "turn", sqlite_where=text(OPEN_RUNS), postgresql_where=text(OPEN_RUNS)),
    Index("ix_runs_owner", "owner", sqlite_where=text(OPEN_RUNS), postgresql_where=text(OPEN_RUNS)),
)

run_events = Table(
    "run_events",
    metadata,
    Column("run_id", Identifier, primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("type", SafeText, nullable=False),
    Column("at", UtcTime, nullable=False),
    Column("data", JsonValue, nullable=False),
    sqlite_with_rowid=False,
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", Identifier, primary_key=True),
    Column("name", SafeText, nullable=False),
    Column("prefix", SafeText, nullable=False),
    Column("key_hash", Bytes, nullable=False, unique=True),
    Column("scopes", JsonValue, nullable=False),
    # Not a foreign key: a key whose user is gone stays, revoked; it must never become one that is bound to nobody.
    Column("user_id", Uid),
    Column("rate_limit", SafeText),
    Column("max_concurrent_runs", Integer),
    # The key that made it, where that one or one that it descends from has a rate limit, which then counts for both.
    Column("made_by", Identifier),
    Column("expires_at", UtcTime),
    Column("last_used_at", UtcTime),
    Column("revoked_at", UtcTime),
    created_column(),
    Index(None, "user_id"),
)

audit = Table(
    "audit",
    metadata,
    id_column(),
    Column("at", UtcTime, nullable=False),
    Column("key_id", Identifier),
    Column("action", SafeText, nullable=False),
    Column("target", CleanText, nullable=False),
    Column("details", JsonValue, nullable=False),
    Column("request_id", CleanText),
    Index(None, "action", "id"),
    Index(None, "target", "id"),
    sqlite_autoincrement=True,
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    # The API key that sent it, empty for the platform itself.
    Column("key_id", Identifier, primary_key=True),
    Column("idempotency_key", SafeText, primary_key=True),
    Column("body_hash", Bytes, nullable=False),
    Column("run_id", Identifier, nullable=False),
    created_column(),
    Index(None, "created_at"),
)

executors = Table(
    "executors",
    metadata,
    Column("executor_id", Identifier, primary_key=True),
    Column("host", SafeText, nullable=False),
    Column("role", SafeText, nullable=False),
    Column("version", SafeText, nullable=False),
    Column("started_at", UtcTime, nullable=False),
    # The database's clock, moved on by the process itself as long as it lives.
    Column("beat_at", UtcTime, nullable=False),
    # When it was declared dead or had ended, and by whom (itself: it ended in peace). Then it never writes again.
    Column("lost_at", UtcTime),
    Column("lost_to", Identifier),
    # Why it takes no queued work; null where it does, or takes none by its role.
    Column("fault", CleanText),
    Index(None, "host"),
    Index(
        "ix_executors_living",
        "executor_id",
        sqlite_where=text("lost_at IS NULL"),
        postgresql_where=text("lost_at IS NULL"),
    ),
)

schedules = Table(
    "schedules",
    metadata,
    Column("schedule_id", Identifier, primary_key=True),
    Column("name", SafeText, nullable=False, unique=True),
    Column("agent_name", SafeText, nullable=False),
    Column("cron", SafeText, nullable=False),
    Column("time_zone", SafeText, nullable=False),
    # The body of the run that each firing submits.
    Column("request", JsonValue, nullable=False),
    Column("missed", SafeText, nullable=False),
    Column("active", Boolean, nullable=False),
    # In whose name it fires; not a foreign key, for a schedule whose key is gone must stop visibly.
    Column("key_id", Identifier),
    Column("user_id", Uid),
    Column("next_at", UtcTime),
    Column("last_at", UtcTime),
    Column("last_run_id", Identifier),
    Column("last_error", CleanText),
    Column("revision", Integer, nullable=False),
    created_column(),
    updated_column(),
    Index("ix_schedules_due", "next_at", sqlite_where=text("active"), postgresql_where=text("active")),
    Index(None, "user_id"),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("webhook_id", Identifier, primary_key=True),
    Column("url", SafeText, nullable=False),
    Column("description", SafeText),
    # Types of events (`run.completed`, `run.failed`, `run.cancelled`, `run.waiting`); and names of agents, empty: all.
    Column("events", JsonValue, nullable=False),
    Column("names", JsonValue, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("key_id", Identifier),
    Column("user_id", Uid),
    Column("revision", Integer, nullable=False),
    created_column(),
    updated_column(),
    Index(None, "user_id"),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("delivery_id", Identifier, primary_key=True),
    Column("webhook_id", Identifier, ForeignKey("webhooks.webhook_id", ondelete="CASCADE"), nullable=False),
    Column("run_id", Identifier),  # NULL: a ping, which tells of no run
    Column("event", SafeText, nullable=False),
    Column("status", SafeText, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_at", UtcTime),  # when it is tried next; moved on before each attempt, so that it is a lease too
    Column("delivered_at", UtcTime),
    created_column(),
    UniqueConstraint("webhook_id", "run_id", "event"),
    Index(
        "ix_deliveries_due",
        "next_at",
        sqlite_where=text("status = 'pending'"),
        postgresql_where=text("status = 'pending'"),
    ),
    Index(None, "webhook_id", "delivery_id"),
)

delivery_attempts = Table(
    "delivery_attempts",
    metadata,
    Column("delivery_id", Identifier, ForeignKey("deliveries.delivery_id", ondelete="CASCADE"), primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("at", UtcTime, nullable=False),
    Column("milliseconds", Integer, nullable=False),
    Column("status_code", Integer),
    Column("error", CleanText),
)

secrets = Table(
    "secrets",
    metadata,
    Column("name", SafeText, primary_key=True),
    Column("token", Bytes, nullable=False),
    created_column(),
    updated_column(),
)

platform = Table(
    "platform",
    metadata,
    Column("name", SafeText, primary_key=True),
    Column("value", JsonValue, nullable=False),
    updated_column(),
)

artifacts = Table(
    "artifacts",
    metadata,
    # SHA-256 of the bytes, in hexadecimal: equal bytes are kept once.
    Column("digest", Identifier, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("media_type", SafeText, nullable=False),
    created_column(),
    # When bytes and row were last known to be wanted: retention begins here.
    Column("wanted_at", UtcTime, nullable=False),
    Index(None, "wanted_at"),
)

artifact_uses = Table(
    "artifact_uses",
    metadata,
    Column("digest", Identifier, ForeignKey("artifacts.digest", ondelete="CASCADE"), primary_key=True),
    # What holds it: `session:UUID`, `run:run_…`.
    Column("used_by", Identifier, primary_key=True),
    created_column(),
    Index(None, "used_by"),
)

rate_counters = Table(
    "rate_counters",
    metadata,
    Column("name", Identifier, primary_key=True),
    Column("window_start", BigInteger, primary_key=True, autoincrement=False),
    Column("hits", Integer, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Index(None, "expires_at"),
)
