"""The tables: those of the user's document with its columns, and users, runs, run_events, api_keys and audit besides."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
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

__all__ = [
    "ACTIVE_RUNS",
    "HEAD",
    "agents",
    "api_keys",
    "audit",
    "memories",
    "messages",
    "metadata",
    "prompts",
    "run_events",
    "runs",
    "sessions",
    "users",
]

HEAD = "0001"
"""The migration that these tables are. A test compares it with the migrations and the tables with what they make."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_key = BigInteger().with_variant(Integer, "sqlite")
"""The store's own ids. On SQLite INTEGER makes them the rowid; with AUTOINCREMENT none is given out twice."""


def _id() -> Column[int]:
    return Column("id", _key, primary_key=True)


def _created() -> Column[object]:
    return Column("created_at", UtcTime, nullable=False)


def _updated() -> Column[object]:
    return Column("updated_at", UtcTime, nullable=False)


agents = Table(
    "agents",
    metadata,
    _id(),
    Column("name", SafeText, nullable=False, unique=True),
    Column("type", SafeText, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("description", SafeText),
    Column("source", SafeText, nullable=False),
    Column("config", JsonValue, nullable=False),
    Column("revision", Integer, nullable=False),
    _created(),
    _updated(),
    sqlite_autoincrement=True,
)

users = Table(
    "users",
    metadata,
    Column("id", Uid, primary_key=True),
    Column("email", SafeText, unique=True),
    Column("phone_number", SafeText, unique=True),
    Column("user_data", JsonValue, nullable=False),
    _created(),
    _updated(),
    Index(None, "created_at", "id"),
)

sessions = Table(
    "sessions",
    metadata,
    _id(),
    Column("session_id", Uid, nullable=False, unique=True),
    Column("agent_id", _key, ForeignKey("agents.id", ondelete="SET NULL")),
    Column("user_id", Uid, ForeignKey("users.id", ondelete="CASCADE")),
    Column("session_name", SafeText),
    Column("status", SafeText, nullable=False),
    Column("session_origin", SafeText, nullable=False),
    Column("metadata", JsonValue, nullable=False),
    Column("message_count", Integer, nullable=False),
    _created(),
    _updated(),
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
    _id(),
    Column("message_id", Uid, nullable=False, unique=True),
    Column("session_id", _key, ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    Column("run_id", Identifier),
    Column("role", SafeText, nullable=False),
    Column("content", CleanText, nullable=False),
    Column("raw_payload", JsonText, nullable=False),
    _created(),
    Index(None, "session_id", "id"),
)

memories = Table(
    "memories",
    metadata,
    _id(),
    Column("memory_id", Uid, nullable=False, unique=True),
    Column("agent_id", _key, ForeignKey("agents.id", ondelete="CASCADE")),
    Column("user_id", Uid, ForeignKey("users.id", ondelete="CASCADE")),
    Column("session_id", _key, ForeignKey("sessions.id", ondelete="CASCADE")),
    Column("name", SafeText, nullable=False),
    Column("content", CleanText, nullable=False),
    Column("description", SafeText),
    Column("memory_type", SafeText, nullable=False),
    Column("read_mode", SafeText),
    Column("access", SafeText),
    Column("metadata", JsonValue, nullable=False),
    Column("active", Boolean, nullable=False),
    _created(),
    _updated(),
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
    _id(),
    Column("prompt_id", Uid, nullable=False, unique=True),
    Column("agent_id", _key, ForeignKey("agents.id", ondelete="CASCADE"), nullable=False),
    Column("status_key", SafeText, nullable=False),
    Column("name", SafeText),
    Column("template", SafeText, nullable=False),
    Column("version", Integer, nullable=False),
    Column("is_active", Boolean, nullable=False),
    Column("is_default_from_code", Boolean, nullable=False),
    _created(),
    _updated(),
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

runs = Table(
    "runs",
    metadata,
    Column("run_id", Identifier, primary_key=True),
    Column("kind", SafeText, nullable=False),
    Column("name", SafeText, nullable=False),
    # A run is a record: who and where stay written when the agent, session, user or key goes, so none is a foreign key.
    Column("agent_id", _key),
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
    Column("requests", Integer, nullable=False),
    Column("tool_calls", Integer, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cache_read_tokens", BigInteger, nullable=False),
    Column("cache_write_tokens", BigInteger, nullable=False),
    Column("cost_usd", Money),
    Column("instructions", CleanText),
    Column("model", SafeText),
    Column("owner", SafeText),
    _created(),
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
    Column("expires_at", UtcTime),
    Column("last_used_at", UtcTime),
    Column("revoked_at", UtcTime),
    _created(),
    Index(None, "user_id"),
)

audit = Table(
    "audit",
    metadata,
    _id(),
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
