"""What all tables share: their metadata, and columns that many have."""

from sqlalchemy import BigInteger, Column, Integer, MetaData

from automagik.store.columns import UtcTime

__all__ = ["HEAD", "KEY", "created_column", "id_column", "metadata", "updated_column"]

HEAD = "0005"
"""The migration that these tables are. A test compares it with the migrations and the tables with what they make."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

KEY = BigInteger().with_variant(Integer, "sqlite")
"""The store's own ids. On SQLite INTEGER makes them the rowid; with AUTOINCREMENT none is given out twice."""


def id_column() -> Column[int]:
    """The store's own key of a row."""
    return Column("id", KEY, primary_key=True)


def created_column() -> Column[object]:
    """When the row was made."""
    return Column("created_at", UtcTime, nullable=False)


def updated_column() -> Column[object]:
    """When the row was last changed."""
    return Column("updated_at", UtcTime, nullable=False)
