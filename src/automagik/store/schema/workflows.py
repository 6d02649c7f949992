"""The tables of workflows: those made through the API, repositories, executions in a sandbox, words for a running one."""

from sqlalchemy import Boolean, Column, Index, Integer, Table

from automagik.store.columns import Bytes, CleanText, Identifier, JsonValue, SafeText, Uid, UtcTime
from automagik.store.schema.base import KEY, created_column, metadata, updated_column

__all__ = ["executions", "run_words", "workflows"]

workflows = Table(
    "workflows",
    metadata,
    Column("name", SafeText, primary_key=True),
    # The files of its folder, each by its name.
    Column("files", JsonValue, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("key_id", Identifier),
    Column("revision", Integer, nullable=False),
    created_column(),
    updated_column(),
)

executions = Table(
    "executions",
    metadata,
    Column("run_id", Identifier, primary_key=True),
    Column("executor", SafeText, nullable=False),  # local or docker
    Column("host", SafeText, nullable=False),
    # preparing, running, collecting or ended: what whoever takes the run over goes on with.
    Column("stage", SafeText, nullable=False),
    # The id that the CLI keeps its conversation under.
    Column("cli_session_id", Uid, nullable=False),
    # SHA-256 of what opens the run's sockets; the token itself is in the sandbox only.
    Column("token_hash", Bytes, nullable=False),
    Column("base_commit", Identifier),
    Column("branch", SafeText),
    Column("head_commit", Identifier),
    # Artefacts, by their digest: the commits so far with the uncommitted tree, and the CLI's conversation.
    Column("bundle", Identifier),
    Column("conversation", Identifier),
    # What the executor needs to find its place again.
    Column("place", JsonValue, nullable=False),
    created_column(),
    updated_column(),
    Index(None, "host"),
)

run_words = Table(
    "run_words",
    metadata,
    # What somebody said into a running session: a message, or that the turn under way should stop.
    Column("id", KEY, primary_key=True),
    Column("run_id", Identifier, nullable=False),
    Column("kind", SafeText, nullable=False),  # message or interrupt
    Column("text", CleanText, nullable=False),
    Column("key_id", Identifier),
    created_column(),
    Column("taken_at", UtcTime),
    Index(None, "run_id", "id"),
    sqlite_autoincrement=True,
)
