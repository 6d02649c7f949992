"""What a failure of the database means to a caller: never a driver's own error."""

import sqlite3

from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from automagik.errors import AutomagikError, Conflict, Internal, ServiceUnavailable

__all__ = ["translated", "translated_state", "unavailable"]

_OWN_FAULT = frozenset({sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE})
"""SQLite's codes for a statement that is wrong; every other (busy, full, I/O) is the machine's state."""

_PASSING = frozenset({"08", "40", "53", "55", "57", "58"})
"""PostgreSQL's classes for what passes: connection, rollback by the server, resources, locks, operator, system."""


def unavailable() -> ServiceUnavailable:
    """The database can't be reached, or can't write, now."""
    return ServiceUnavailable(
        "The database can't be used now.",
        hint="Retry. If it lasts: is the database server running, is the disk full, does another process hold the data?",
    )


def translated(error: BaseException) -> BaseException:
    """`error` itself, or what it means where it is a database's."""
    if isinstance(error, StatementError) and isinstance(error.orig, AutomagikError):
        return error.orig  # raised by a column type for a value that can't be stored
    if isinstance(error, IntegrityError | sqlite3.IntegrityError):
        return _caused(_contradiction(), error)
    if isinstance(error, PoolTimeout) or (isinstance(error, DBAPIError) and error.connection_invalidated):
        return _caused(unavailable(), error)
    if isinstance(error, DBAPIError):
        cause = error.orig
        meaning = _sqlite_meaning(cause) if isinstance(cause, sqlite3.Error) else _state_meaning(cause)
        return _caused(meaning, error)
    if isinstance(error, sqlite3.Error):
        return _caused(_sqlite_meaning(error), error)
    return error


def translated_state(error: Exception) -> AutomagikError:
    """What an error of a PostgreSQL driver means, by the `sqlstate` that the server gave it."""
    return _caused(_state_meaning(error), error)


def _contradiction() -> AutomagikError:
    return Conflict("What is asked contradicts what is stored.", hint="Look at what there is, and try again.")


def _sqlite_meaning(error: sqlite3.Error) -> AutomagikError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    return _refused() if code in _OWN_FAULT else unavailable()


def _state_meaning(error: BaseException | None) -> AutomagikError:
    state = str(getattr(error, "sqlstate", None) or "")
    if state[:2] == "23":
        return _contradiction()
    return unavailable() if state[:2] in _PASSING else _refused()


def _refused() -> AutomagikError:
    return Internal("The database refused a statement.", hint="The server's log has the cause.")


def _caused(meaning: AutomagikError, cause: BaseException) -> AutomagikError:
    meaning.__cause__ = cause
    return meaning
