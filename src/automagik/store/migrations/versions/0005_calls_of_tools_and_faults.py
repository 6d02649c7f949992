"""How many tools were called on a day whose runs are not kept any more; why a worker takes no work.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

from automagik.store import columns

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("usage_days", sa.Column("tool_calls", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
    op.add_column("executors", sa.Column("fault", columns.CleanText()))
