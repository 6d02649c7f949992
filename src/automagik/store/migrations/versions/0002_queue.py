"""What durable work needs: turns, the queue, executors, idempotency keys, schedules, webhooks, secrets, artefacts.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

from automagik.store import columns

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_WAITING = sa.text("status = 'queued' AND background AND ready")
_OPEN = sa.text("status IN ('queued', 'running', 'waiting')")


def upgrade() -> None:
    _add_turns()
    _add_queue()
    op.add_column("api_keys", sa.Column("max_concurrent_runs", sa.Integer()))
    op.add_column("api_keys", sa.Column("made_by", columns.Identifier()))
    _create_idempotency_keys()
    _create_executors()
    _create_schedules()
    _create_webhooks()
    _create_deliveries()
    _create_secrets()
    _create_artifacts()
    _create_rate_counters()
    _place_open_runs()


def _add_turns() -> None:
    for name in ("turns", "open_runs"):
        op.add_column("sessions", sa.Column(name, sa.Integer(), nullable=False, server_default=sa.text("0")))


def _add_queue() -> None:
    for name, default in (("background", "false"), ("ready", "true"), ("cancel_requested", "false")):
        op.add_column("runs", sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.text(default)))
    op.add_column("runs", sa.Column("turn", sa.Integer()))
    op.add_column("runs", sa.Column("available_at", columns.UtcTime()))
    op.add_column("runs", sa.Column("queue_until", columns.UtcTime()))
    op.add_column("runs", sa.Column("host", columns.SafeText()))
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("runs", "owner", type_=columns.Identifier())
    _index("ix_runs_queue", "runs", ["priority", "run_id"], _WAITING)
    _index("ix_runs_turn", "runs", ["session_id", "turn"], _OPEN)
    _index("ix_runs_owner", "runs", ["owner"], _OPEN)


def _create_idempotency_keys() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("key_id", columns.Identifier(), nullable=False),
        sa.Column("idempotency_key", columns.SafeText(), nullable=False),
        sa.Column("body_hash", columns.Bytes(), nullable=False),
        sa.Column("run_id", columns.Identifier(), nullable=False),
        sa.Column("created_at", columns.UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "idempotency_key", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])


def _create_executors() -> None:
    op.create_table(
        "executors",
        sa.Column("executor_id", columns.Identifier(), nullable=False),
        sa.Column("host", columns.SafeText(), nullable=False),
        sa.Column("role", columns.SafeText(), nullable=False),
        sa.Column("version", columns.SafeText(), nullable=False),
        sa.Column("started_at", columns.UtcTime(), nullable=False),
        sa.Column("beat_at", columns.UtcTime(), nullable=False),
        sa.Column("lost_at", columns.UtcTime()),
        sa.Column("lost_to", columns.Identifier()),
        sa.PrimaryKeyConstraint("executor_id", name="pk_executors"),
    )
    op.create_index("ix_executors_host", "executors", ["host"])
    _index("ix_executors_living", "executors", ["executor_id"], sa.text("lost_at IS NULL"))


def _create_schedules() -> None:
    op.create_table(
        "schedules",
        sa.Column("schedule_id", columns.Identifier(), nullable=False),
        sa.Column("name", columns.SafeText(), nullable=False),
        sa.Column("agent_name", columns.SafeText(), nullable=False),
        sa.Column("cron", columns.SafeText(), nullable=False),
        sa.Column("time_zone", columns.SafeText(), nullable=False),
        sa.Column("request", columns.JsonValue(), nullable=False),
        sa.Column("missed", columns.SafeText(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("key_id", columns.Identifier()),
        sa.Column("user_id", columns.Uid()),
        sa.Column("next_at", columns.UtcTime()),
        sa.Column("last_at", columns.UtcTime()),
        sa.Column("last_run_id", columns.Identifier()),
        sa.Column("last_error", columns.CleanText()),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("created_at", columns.UtcTime(), nullable=False),
        sa.Column("updated_at", columns.UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("schedule_id", name="pk_schedules"),
        sa.UniqueConstraint("name", name="uq_schedules_name"),
    )
    _index("ix_schedules_due", "schedules", ["next_at"], sa.text("active"))
    op.create_index("ix_schedules_user_id", "schedules", ["user_id"])


def _create_webhooks() -> None:
    op.create_table(
        "webhooks",
        sa.Column("webhook_id", columns.Identifier(), nullable=False),
        sa.Column("url", columns.SafeText(), nullable=False),
        sa.Column("description", columns.SafeText()),
        sa.Column("events", columns.JsonValue(), nullable=False),
        sa.Column("names", columns.JsonValue(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("key_id", columns.Identifier()),
        sa.Column("user_id", columns.Uid()),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("created_at", columns.UtcTime(), nullable=False),
        sa.Column("updated_at", columns.UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("webhook_id", name="pk_webhooks"),
    )
    op.create_index("ix_webhooks_user_id", "webhooks", ["user_id"])


def _create_deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("delivery_id", columns.Identifier(), nullable=False),
        sa.Column("webhook_id", columns.Identifier(), nullable=False),
        sa.Column("run_id", columns.Identifier()),
        sa.Column("event", columns.SafeText(), nullable=False),
        sa.Column("status", columns.SafeText(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_at", columns.UtcTime()),
        sa.Column("delivered_at", columns.UtcTime()),
        sa.Column("created_at", columns.UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("delivery_id", name="pk_deliveries"),
        sa.ForeignKeyConstraint(
            ["webhook_id"], ["webhooks.webhook_id"], name="fk_deliveries_webhook_id", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("webhook_id", "run_id", "event", name="uq_deliveries_webhook_id_run_id_event"),
    )
    _index("ix_deliveries_due", "deliveries", ["next_at"], sa.text("status = 'pending'"))
    op.create_index("ix_deliveries_webhook_id_delivery_id", "deliveries", ["webhook_id", "delivery_id"])
    op.create_table(
        "delivery_attempts",
        sa.Column("delivery_id", columns.Identifier(), nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", columns.UtcTime(), nullable=False),
        sa.Column("milliseconds", sa.Integer(), nullable=False),
        sa.Column("status_code", sa.Integer()),
        sa.Column("error", columns.CleanText()),
        sa.PrimaryKeyConstraint("delivery_id", "attempt", name="pk_delivery_attempts"),
        sa.ForeignKeyConstraint(
            ["delivery_id"], ["deliveries.delivery_id"], name="fk_delivery_attempts_delivery_id", ondelete="CASCADE"
        ),
    )


def _create_secrets() -> None:
    op.create_table(
        "secrets",
        sa.Column("name", columns.SafeText(), nullable=False),
        sa.Column("token", columns.Bytes(), nullable=False),
        sa.Column("created_at", columns.UtcTime(), nullable=False),
        sa.Column("updated_at", columns.UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_secrets"),
    )
    op.create_table(
        "platform",
        sa.Column("name", columns.SafeText(), nullable=False),
        sa.Column("value", columns.JsonValue(), nullable=False),
        sa.Column("updated_at", columns.UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_platform"),
    )


def _create_artifacts() -> None:
    op.create_table(
        "artifacts",
        sa.Column("digest", columns.Identifier(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("media_type", columns.SafeText(), nullable=False),
        sa.Column("created_at", columns.UtcTime(), nullable=False),
        sa.Column("wanted_at", columns.UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_artifacts"),
    )
    op.create_index("ix_artifacts_wanted_at", "artifacts", ["wanted_at"])
    op.create_table(
        "artifact_uses",
        sa.Column("digest", columns.Identifier(), nullable=False),
        sa.Column("used_by", columns.Identifier(), nullable=False),
        sa.Column("created_at", columns.UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("digest", "used_by", name="pk_artifact_uses"),
        sa.ForeignKeyConstraint(["digest"], ["artifacts.digest"], name="fk_artifact_uses_digest", ondelete="CASCADE"),
    )
    op.create_index("ix_artifact_uses_used_by", "artifact_uses", ["used_by"])


def _create_rate_counters() -> None:
    op.create_table(
        "rate_counters",
        sa.Column("name", columns.Identifier(), nullable=False),
        sa.Column("window_start", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("hits", sa.Integer(), nullable=False),
        sa.Column("expires_at", columns.UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", "window_start", name="pk_rate_counters"),
    )
    op.create_index("ix_rate_counters_expires_at", "rate_counters", ["expires_at"])


def _index(name: str, table: str, on: list[str], where: sa.TextClause) -> None:
    op.create_index(name, table, on, sqlite_where=where, postgresql_where=where)


def _place_open_runs() -> None:
    """Give the runs that the earlier version left their place: in the queue, and in the line of their session."""
    op.execute(
        "UPDATE runs SET background = true, owner = NULL WHERE status = 'queued' AND EXISTS (SELECT 1 FROM run_events e"
        " WHERE e.run_id = runs.run_id AND e.seq = 1 AND e.type = 'run_queued'"
        " AND replace(CAST(e.data AS TEXT), ' ', '') = '{\"background\"\\:true}')"
    )
    op.execute(
        "UPDATE runs SET owner = 'unknown' WHERE NOT background AND owner IS NULL"
        " AND status IN ('queued', 'running', 'waiting')"
    )
    op.execute(
        "UPDATE runs SET turn = line.place, ready = (line.place = 1) FROM (SELECT run_id,"
        " row_number() OVER (PARTITION BY session_id ORDER BY status DESC, run_id) AS place"
        " FROM runs WHERE status IN ('queued', 'running', 'waiting')"
        " AND session_id IN (SELECT session_id FROM sessions)) line"
        " WHERE runs.run_id = line.run_id"
    )
    op.execute(
        "UPDATE sessions SET turns = line.places, open_runs = line.places FROM (SELECT session_id, count(*) AS places"
        " FROM runs WHERE session_id IS NOT NULL AND status IN ('queued', 'running', 'waiting') GROUP BY session_id) line"
        " WHERE sessions.session_id = line.session_id"
    )
