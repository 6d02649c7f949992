"""migrate: brings a database to the schema of this code. At head it costs one query, and Alembic is not imported."""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from automagik.errors import ConfigurationError
from automagik.store.schema import HEAD

__all__ = ["MIGRATIONS", "current_revision", "migrate"]

MIGRATIONS = Path(__file__).parent / "migrations"


def current_revision(connection: Connection) -> str | None:
    """The revision that the database is at, None for an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.scalar(text("SELECT version_num FROM alembic_version"))


def migrate(connection: Connection) -> None:
    """Bring the database to `HEAD`, in the transaction that the caller holds together with the lock.

    Raises: ConfigurationError when the database was written by a newer Automagik.
    """
    current = current_revision(connection)
    if current == HEAD:
        return
    # Imported here: Alembic takes 0.15 s, and a start at head needs nothing of it.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if current is not None and current not in known:
        raise ConfigurationError(
            f"The database is at revision '{current}', which this version of Automagik does not know.",
            hint="A newer Automagik wrote it: install that version again, or restore a backup made before.",
        )
    command.upgrade(config, HEAD)
