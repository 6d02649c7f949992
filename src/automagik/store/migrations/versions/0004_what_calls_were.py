"""What a reservation is for, so that the row of a call whose process died says it; what calls were beyond their reservation.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

from automagik.store import columns

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("reservations", sa.Column("key_id", columns.Identifier()))
    op.add_column("reservations", sa.Column("user_id", columns.Uid()))
    op.add_column("reservations", sa.Column("wire", columns.SafeText()))
    op.add_column("reservations", sa.Column("model", columns.SafeText()))
    op.add_column("reservations", sa.Column("agent", columns.SafeText()))
    op.add_column("reservations", sa.Column("scopes", columns.JsonValue()))
    op.add_column("reservations", sa.Column("priced", sa.Boolean()))
    op.add_column("model_calls", sa.Column("agent", columns.SafeText()))
    op.add_column("model_calls", sa.Column("over_reservation", sa.Boolean()))
