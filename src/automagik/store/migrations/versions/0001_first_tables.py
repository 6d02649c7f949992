"""The first tables.

Revision ID: 0001
Revises: nothing
"""

import sqlalchemy as sa
from alembic import op

from automagik.store import columns

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_key = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _create_agents()
    _create_api_keys()
    _create_audit()
    _create_run_events()
    _create_runs()
    _index_runs()
    _create_users()
    _create_prompts()
    _create_sessions()
    _create_memories()
    _create_messages()


def _create_agents() -> None:
    op.create_table(
        "agents",
        sa.Column("id", _key, nullable=False),
        sa.Column("name", columns.SafeText(), nullable=False),
        sa.Column("type", columns.SafeText(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("description", columns.SafeText()),
        sa.Column("source", columns.SafeText(), nullable=False),
        sa.Column("config", columns.JsonValue(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("created_at", columns.UtcTime(), nullable=False),
        sa.Column("updated_at", columns.UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_agents"),
        sa.UniqueConstraint("name", name="uq_agents_name"),
        sqlite_autoincrement=True,
    )


def _create_api_keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("key_id", columns.Identifier(), nullable=False),
        sa.Column("name", columns.SafeText(), nullable=False),
        sa.Column("prefix", columns.SafeText(), nullable=False),
        sa.Column("key_hash", columns.Bytes(), nullable=False),
        sa.Column("scopes", columns.JsonValue(), nullable=False),
        sa.Column("user_id", columns.Uid()),
        sa.Column("rate_limit", columns.SafeText()),
        sa.Column("expires_at", columns.UtcTime()),
        sa.Column("last_used_at", columns.UtcTime()),
        sa.Column("revoked_at", columns.UtcTime()),
        sa.Column("created_at", columns.UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", name="pk_api_keys"),
        sa.UniqueConstraint("key_hash", name="uq_api_keys_key_hash"),
    )
    op.create_index("ix_api_keys_user_id", "api_keys", ["user_id"])


def _create_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", _key, nullable=False),
        sa.Column("at", columns.UtcTime(), nullable=False),
        sa.Column("key_id", columns.Identifier()),
        sa.Column("action", columns.SafeText(), nullable=False),
        sa.Column("target", columns.CleanText(), nullable=False),
        sa.Column("details", columns.JsonValue(), nullable=False),
        sa.Column("request_id", columns.CleanText()),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_action_id", "audit", ["action", "id"])
    op.create_index("ix_audit_target_id", "audit", ["target", "id"])


def _create_run_events() -> None:
    op.create_table(
        "run_events",
        sa.Column("run_id", columns.Identifier(), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("type", columns.SafeText(), nullable=False),
        sa.Column("at", columns.UtcTime(), nullable=False),
        sa.Column("data", columns.JsonValue(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "seq", name="pk_run_events"),
        sqlite_with_rowid=False,
    )


def _create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("run_id", columns.Identifier(), nullable=False),
        sa.Column("kind", columns.SafeText(), nullable=False),
        sa.Column("name", columns.SafeText(), nullable=False),
        sa.Column("agent_id", _key),
        sa.Column("session_id", columns.Uid()),
        sa.Column("user_id", columns.Uid()),
        sa.Column("key_id", columns.Identifier()),
        sa.Column("parent_id", columns.Identifier()),
        sa.Column("requeue_of", columns.Identifier()),
        sa.Column("labels", columns.JsonValue(), nullable=False),
        sa.Column("status", columns.SafeText(), nullable=False),
        sa.Column("outcome", columns.SafeText()),
        sa.Column("attempt", sa.SmallInteger(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("input", columns.JsonValue()),
        sa.Column("output", columns.JsonValue()),
        sa.Column("error", columns.JsonValue()),
        sa.Column("waiting_for", columns.JsonValue()),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.Column("tool_calls", sa.Integer(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cache_read_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cache_write_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_usd", columns.Money()),
        sa.Column("instructions", columns.CleanText()),
        sa.Column("model", columns.SafeText()),
        sa.Column("owner", columns.SafeText()),
        sa.Column("created_at", columns.UtcTime(), nullable=False),
        sa.Column("started_at", columns.UtcTime()),
        sa.Column("finished_at", columns.UtcTime()),
        sa.Column("deadline_at", columns.UtcTime()),
        sa.PrimaryKeyConstraint("run_id", name="pk_runs"),
    )


def _index_runs() -> None:
    op.create_index("ix_runs_key_id_run_id", "runs", ["key_id", "run_id"])
    op.create_index("ix_runs_name_run_id", "runs", ["name", "run_id"])
    op.create_index(
        "ix_runs_parent_id_run_id",
        "runs",
        ["parent_id", "run_id"],
        sqlite_where=sa.text("parent_id IS NOT NULL"),
        postgresql_where=sa.text("parent_id IS NOT NULL"),
    )
    op.create_index("ix_runs_session_id_run_id", "runs", ["session_id", "run_id"])
    op.create_index(
        "ix_runs_status_run_id",
        "runs",
        ["status", "run_id"],
        sqlite_where=sa.text("status <> 'completed'"),
        postgresql_where=sa.text("status <> 'completed'"),
    )
    op.create_index(
        "ix_runs_user_id_run_id",
        "runs",
        ["user_id", "run_id"],
        sqlite_where=sa.text("user_id IS NOT NULL"),
        postgresql_where=sa.text("user_id IS NOT NULL"),
    )


def _create_users() -> None:
    op.create_table(
        "users",
        sa.Column("id", columns.Uid(), nullable=False),
        sa.Column("email", columns.SafeText()),
        sa.Column("phone_number", columns.SafeText()),
        sa.Column("user_data", columns.JsonValue(), nullable=False),
        sa.Column("created_at", columns.UtcTime(), nullable=False),
        sa.Column("updated_at", columns.UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("email", name="uq_users_email"),
        sa.UniqueConstraint("phone_number", name="uq_users_phone_number"),
    )
    op.create_index("ix_users_created_at_id", "users", ["created_at", "id"])


def _create_prompts() -> None:
    op.create_table(
        "prompts",
        sa.Column("id", _key, nullable=False),
        sa.Column("prompt_id", columns.Uid(), nullable=False),
        sa.Column("agent_id", _key, nullable=False),
        sa.Column("status_key", columns.SafeText(), nullable=False),
        sa.Column("name", columns.SafeText()),
        sa.Column("template", columns.SafeText(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("is_default_from_code", sa.Boolean(), nullable=False),
        sa.Column("created_at", columns.UtcTime(), nullable=False),
        sa.Column("updated_at", columns.UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name="fk_prompts_agent_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_prompts"),
        sa.UniqueConstraint("agent_id", "status_key", "version", name="uq_prompts_agent_id_status_key_version"),
        sa.UniqueConstraint("prompt_id", name="uq_prompts_prompt_id"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "uq_prompts_agent_id_status_key_active",
        "prompts",
        ["agent_id", "status_key"],
        unique=True,
        sqlite_where=sa.text("is_active"),
        postgresql_where=sa.text("is_active"),
    )


def _create_sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("id", _key, nullable=False),
        sa.Column("session_id", columns.Uid(), nullable=False),
        sa.Column("agent_id", _key),
        sa.Column("user_id", columns.Uid()),
        sa.Column("session_name", columns.SafeText()),
        sa.Column("status", columns.SafeText(), nullable=False),
        sa.Column("session_origin", columns.SafeText(), nullable=False),
        sa.Column("metadata", columns.JsonValue(), nullable=False),
        sa.Column("message_count", sa.Integer(), nullable=False),
        sa.Column("created_at", columns.UtcTime(), nullable=False),
        sa.Column("updated_at", columns.UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name="fk_sessions_agent_id", ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_sessions_user_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_sessions"),
        sa.UniqueConstraint("session_id", name="uq_sessions_session_id"),
        sa.UniqueConstraint("user_id", "session_name", name="uq_sessions_user_id_session_name"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_sessions_agent_id_id", "sessions", ["agent_id", "id"])
    op.create_index(
        "uq_sessions_session_name_unowned",
        "sessions",
        ["session_name"],
        unique=True,
        sqlite_where=sa.text("user_id IS NULL"),
        postgresql_where=sa.text("user_id IS NULL"),
    )


def _create_memories() -> None:
    op.create_table(
        "memories",
        sa.Column("id", _key, nullable=False),
        sa.Column("memory_id", columns.Uid(), nullable=False),
        sa.Column("agent_id", _key),
        sa.Column("user_id", columns.Uid()),
        sa.Column("session_id", _key),
        sa.Column("name", columns.SafeText(), nullable=False),
        sa.Column("content", columns.CleanText(), nullable=False),
        sa.Column("description", columns.SafeText()),
        sa.Column("memory_type", columns.SafeText(), nullable=False),
        sa.Column("read_mode", columns.SafeText()),
        sa.Column("access", columns.SafeText()),
        sa.Column("metadata", columns.JsonValue(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("created_at", columns.UtcTime(), nullable=False),
        sa.Column("updated_at", columns.UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], name="fk_memories_agent_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], name="fk_memories_session_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_memories_user_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_memories"),
        sa.UniqueConstraint("memory_id", name="uq_memories_memory_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_memories_agent_id_user_id_name", "memories", ["agent_id", "user_id", "name"])
    op.create_index("ix_memories_session_id_name", "memories", ["session_id", "name"])
    op.create_index("ix_memories_user_id_name", "memories", ["user_id", "name"])
    op.create_index(
        "uq_memories_scope_name",
        "memories",
        [
            "name",
            sa.text("coalesce(agent_id, 0)"),
            sa.text("coalesce(CAST(user_id AS VARCHAR), '')"),
            sa.text("coalesce(session_id, 0)"),
        ],
        unique=True,
    )


def _create_messages() -> None:
    op.create_table(
        "messages",
        sa.Column("id", _key, nullable=False),
        sa.Column("message_id", columns.Uid(), nullable=False),
        sa.Column("session_id", _key, nullable=False),
        sa.Column("run_id", columns.Identifier()),
        sa.Column("role", columns.SafeText(), nullable=False),
        sa.Column("content", columns.CleanText(), nullable=False),
        sa.Column("raw_payload", columns.JsonText(), nullable=False),
        sa.Column("created_at", columns.UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], name="fk_messages_session_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_messages"),
        sa.UniqueConstraint("message_id", name="uq_messages_message_id"),
    )
    op.create_index("ix_messages_session_id_id", "messages", ["session_id", "id"])
