"""What workflows need: money (limits, reservations, calls, past usage), workflows of the API, executions, words for a run.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

from automagik.store import columns

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("details", columns.JsonValue()))
    _create_budgets()
    _create_budget_counters()
    _create_reservations()
    _create_model_calls()
    _create_usage_days()
    _create_workflows()
    _create_executions()
    _create_run_words()


def _create_budgets() -> None:
    op.create_table(
        "budgets",
        sa.Column("budget_id", columns.Identifier(), nullable=False),
        sa.Column("scope", columns.SafeText(), nullable=False),
        sa.Column("scope_id", columns.Identifier(), nullable=False),
        sa.Column("period", columns.SafeText(), nullable=False),
        sa.Column("limit_nano", sa.BigInteger(), nullable=False),
        sa.Column("soft_limit_nano", sa.BigInteger()),
        sa.Column("key_id", columns.Identifier()),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("created_at", columns.UtcTime(), nullable=False),
        sa.Column("updated_at", columns.UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("budget_id", name="pk_budgets"),
        sa.UniqueConstraint("scope", "scope_id", "period", name="uq_budgets_scope_scope_id_period"),
    )


def _create_budget_counters() -> None:
    op.create_table(
        "budget_counters",
        sa.Column("budget_id", columns.Identifier(), nullable=False),
        sa.Column("period_start", columns.Identifier(), nullable=False),
        sa.Column("spent_nano", sa.BigInteger(), nullable=False),
        sa.Column("reserved_nano", sa.BigInteger(), nullable=False),
        sa.Column("warned", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["budget_id"], ["budgets.budget_id"], name="fk_budget_counters_budget_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("budget_id", "period_start", name="pk_budget_counters"),
    )


def _create_reservations() -> None:
    op.create_table(
        "reservations",
        sa.Column("reservation_id", columns.Identifier(), nullable=False),
        sa.Column("run_id", columns.Identifier()),
        sa.Column("owner", columns.Identifier(), nullable=False),
        sa.Column("amount_nano", sa.BigInteger(), nullable=False),
        sa.Column("counters", columns.JsonValue(), nullable=False),
        sa.Column("created_at", columns.UtcTime(), nullable=False),
        sa.Column("expires_at", columns.UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("reservation_id", name="pk_reservations"),
    )
    op.create_index("ix_reservations_expires_at", "reservations", ["expires_at"])
    op.create_index("ix_reservations_owner", "reservations", ["owner"])
    op.create_index("ix_reservations_run_id", "reservations", ["run_id"])


def _create_model_calls() -> None:
    op.create_table(
        "model_calls",
        sa.Column("call_id", columns.Identifier(), nullable=False),
        sa.Column("run_id", columns.Identifier()),
        sa.Column("key_id", columns.Identifier()),
        sa.Column("user_id", columns.Uid()),
        sa.Column("wire", columns.SafeText(), nullable=False),
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("status", sa.Integer()),
        sa.Column("outcome", columns.SafeText(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cache_read_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cache_write_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_nano", sa.BigInteger()),
        sa.Column("reserved_nano", sa.BigInteger(), nullable=False),
        sa.Column("first_byte_ms", sa.Integer()),
        sa.Column("duration_ms", sa.Integer(), nullable=False),
        sa.Column("created_at", columns.UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("call_id", name="pk_model_calls"),
    )
    op.create_index("ix_model_calls_run_id_call_id", "model_calls", ["run_id", "call_id"])


def _create_usage_days() -> None:
    op.create_table(
        "usage_days",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("key_id", columns.Identifier(), server_default=sa.text("''"), nullable=False),
        sa.Column("user_id", columns.Identifier(), server_default=sa.text("''"), nullable=False),
        sa.Column("kind", columns.SafeText(), nullable=False),
        sa.Column("name", columns.SafeText(), nullable=False),
        sa.Column("runs", sa.Integer(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cache_read_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cache_write_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_nano", sa.BigInteger(), nullable=False),
        sa.Column("unpriced_runs", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("day", "key_id", "user_id", "kind", "name", name="pk_usage_days"),
    )


def _create_workflows() -> None:
    op.create_table(
        "workflows",
        sa.Column("name", columns.SafeText(), nullable=False),
        sa.Column("files", columns.JsonValue(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("key_id", columns.Identifier()),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("created_at", columns.UtcTime(), nullable=False),
        sa.Column("updated_at", columns.UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_workflows"),
    )


def _create_executions() -> None:
    op.create_table(
        "executions",
        sa.Column("run_id", columns.Identifier(), nullable=False),
        sa.Column("executor", columns.SafeText(), nullable=False),
        sa.Column("host", columns.SafeText(), nullable=False),
        sa.Column("stage", columns.SafeText(), nullable=False),
        sa.Column("cli_session_id", columns.Uid(), nullable=False),
        sa.Column("token_hash", columns.Bytes(), nullable=False),
        sa.Column("base_commit", columns.Identifier()),
        sa.Column("branch", columns.SafeText()),
        sa.Column("head_commit", columns.Identifier()),
        sa.Column("bundle", columns.Identifier()),
        sa.Column("conversation", columns.Identifier()),
        sa.Column("place", columns.JsonValue(), nullable=False),
        sa.Column("created_at", columns.UtcTime(), nullable=False),
        sa.Column("updated_at", columns.UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", name="pk_executions"),
    )
    op.create_index("ix_executions_host", "executions", ["host"])


def _create_run_words() -> None:
    op.create_table(
        "run_words",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("run_id", columns.Identifier(), nullable=False),
        sa.Column("kind", columns.SafeText(), nullable=False),
        sa.Column("text", columns.CleanText(), nullable=False),
        sa.Column("key_id", columns.Identifier()),
        sa.Column("created_at", columns.UtcTime(), nullable=False),
        sa.Column("taken_at", columns.UtcTime()),
        sa.PrimaryKeyConstraint("id", name="pk_run_words"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_run_words_run_id_id", "run_words", ["run_id", "id"])
