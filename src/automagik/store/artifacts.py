"""Artifacts: which bytes are kept in the artefact store, and what uses them."""

import contextlib
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
from sqlalchemy import Row, delete, exists, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from automagik.errors import NotFound
from automagik.store import schema
from automagik.store.repository import Repository, insert_new

__all__ = ["LONGEST_PUT", "REFERENCES", "ArtifactRow", "Artifacts", "digests_in", "run_holder", "session_holder"]

LONGEST_PUT = timedelta(hours=12)
"""How old bytes may be whose row is added. Bytes without a row that are older than twice that are nobody's."""

REFERENCES = '"artifacts":[{"artifact":"'
"""What the payload of a message has at its end where its media are artefacts. Only we write it there: what users, models and
tools say stands deeper, and a reference there is none."""

_artifacts = schema.artifacts
_uses = schema.artifact_uses
_sessions = schema.sessions
_runs = schema.runs

_SESSION = "session:"
_RUN = "run:"
_BATCH = 500


@dataclass(frozen=True, slots=True)
class ArtifactRow:
    """Bytes that are kept under their SHA-256. `created_at` also names the object that has them; `wanted_at` begins retention."""

    digest: str
    size: int
    media_type: str
    created_at: datetime
    wanted_at: datetime


def session_holder(session_id: uuid.UUID) -> str:
    """The `used_by` of a session: its messages hold the artefact."""
    return f"{_SESSION}{session_id}"


def run_holder(run_id: str) -> str:
    """The `used_by` of a run: its input holds the artefact."""
    return f"{_RUN}{run_id}"


def digests_in(payload: str) -> list[str]:
    """The artefacts that a stored message refers to."""
    if REFERENCES not in payload:
        return []
    return [reference["artifact"] for reference in orjson.loads(payload).get("artifacts", ())]


class Artifacts(Repository):
    """The tables of artefacts. Whoever wants one writes its row, so that none is deleted between a look and a use."""

    __slots__ = ()

    def find(self, digest: str) -> ArtifactRow | None:
        """The artefact, or None."""
        record = self._connection.execute(select(_artifacts).where(_artifacts.c.digest == digest)).one_or_none()
        return None if record is None else _row(record)

    def newest(self) -> ArtifactRow | None:
        """The artefact that was wanted last, None where there is none."""
        wanted = select(_artifacts).order_by(_artifacts.c.wanted_at.desc()).limit(1)
        record = self._connection.execute(wanted).one_or_none()
        return None if record is None else _row(record)

    def want(self, digest: str, *, used_by: str | None = None) -> ArtifactRow | None:
        """The artefact, kept from now for as long as retention says, and as long as `used_by` holds it; None: it is not there."""
        record = self._connection.execute(
            update(_artifacts).where(_artifacts.c.digest == digest).values(wanted_at=self._now).returning(_artifacts)
        ).one_or_none()
        if record is None:
            return None
        if used_by is not None:
            self._hold(digest, used_by)
        return _row(record)

    def get_wanted(self, digest: str, *, used_by: str) -> ArtifactRow:
        """As `want`. Raises NotFound."""
        found = self.want(digest, used_by=used_by)
        if found is None:
            raise NotFound("artifact", digest, hint="Store the bytes again.")
        return found

    def add(
        self, digest: str, *, size: int, media_type: str, made_at: datetime, used_by: str | None = None
    ) -> ArtifactRow | None:
        """The artefact whose bytes were stored at `made_at`; where somebody else was first, theirs.

        None where that was too long ago: the bytes may have been swept meanwhile and must be stored again.
        """
        if self._now - made_at > LONGEST_PUT:
            return None
        values = {
            "digest": digest,
            "size": size,
            "media_type": media_type,
            "created_at": made_at,
            "wanted_at": self._now,
        }
        insert_new(self._connection, _artifacts, values)
        return self.want(digest, used_by=used_by)

    def holders(self, digest: str) -> list[str]:
        """What holds the artefact."""
        return [
            *self._connection.scalars(select(_uses.c.used_by).where(_uses.c.digest == digest).order_by(_uses.c.used_by))
        ]

    def release(self, holders: Sequence[str], *, before: datetime | None = None) -> int:
        """Let `holders` (those that held it before `before`) hold nothing any more; how many uses ended.

        What nobody holds now is kept for as long as retention says.
        """
        ended = 0
        for part in _parts(holders):
            held = _uses.c.used_by.in_(part)
            if before is not None:
                held &= _uses.c.created_at < before
            # In one order, so that two who let go of the same artefacts can't wait for each other.
            digests = self._connection.scalars(
                select(_artifacts.c.digest)
                .where(_artifacts.c.digest.in_(select(_uses.c.digest).where(held)))
                .order_by(_artifacts.c.digest)
                .with_for_update()
            ).all()
            for some in _parts(digests):
                self._connection.execute(
                    update(_artifacts).where(_artifacts.c.digest.in_(some)).values(wanted_at=self._now)
                )
            if digests:
                ended += self._connection.execute(delete(_uses).where(held)).rowcount
        return ended

    def discard(self, run_id: str, since: datetime) -> list[ArtifactRow]:
        """Those artefacts, deleted, that were stored since `since` for a run that is not there, and that nobody else has wanted. Their
        bytes are the caller's to remove. What else the run held it holds no more."""
        if self._connection.scalar(select(exists().where(_runs.c.run_id == run_id))):
            return []
        holder = run_holder(run_id)
        held = self._connection.execute(
            select(_artifacts.c.digest, _uses.c.created_at)
            .join(_uses, _uses.c.digest == _artifacts.c.digest)
            .where(_uses.c.used_by == holder)
            .order_by(_artifacts.c.digest)
            .with_for_update(of=_artifacts)
        ).all()
        self._connection.execute(delete(_uses).where(_uses.c.used_by == holder))
        deleted: list[ArtifactRow] = []
        for digest, used_at in held:
            # Whoever wants one renews `wanted_at`; to hold it is to want it, so it was this run alone where both are one moment.
            alone = delete(_artifacts).where(
                _artifacts.c.digest == digest,
                _artifacts.c.created_at >= since,
                _artifacts.c.wanted_at == used_at,
                ~exists().where(_uses.c.digest == digest),
            )
            deleted += [_row(record) for record in self._connection.execute(alone.returning(_artifacts))]
        return deleted

    def release_digests(self, digests: Sequence[str], holder: str) -> None:
        """Let `holder` hold these no more."""
        for digest in sorted(set(digests)):
            self._connection.execute(
                update(_artifacts).where(_artifacts.c.digest == digest).values(wanted_at=self._now)
            )
            self._connection.execute(delete(_uses).where(_uses.c.digest == digest, _uses.c.used_by == holder))

    def release_user(self, user_id: uuid.UUID) -> None:
        """Let all sessions of a user hold nothing any more."""
        sessions = self._connection.scalars(select(_sessions.c.session_id).where(_sessions.c.user_id == user_id)).all()
        self.release([session_holder(session_id) for session_id in sessions])

    def is_visible(self, digest: str, *, user_id: uuid.UUID | None, in_sessions: bool, in_runs: bool) -> bool:
        """Whether a session or run (of the user; None: of anybody) that one may look into holds the artefact."""
        return (in_sessions and self._is_held(digest, _SESSION, user_id)) or (
            in_runs and self._is_held(digest, _RUN, user_id)
        )

    # -- retention

    def count_unused(self, before: datetime) -> tuple[int, int]:
        """How many artefacts nobody has wanted since `before`, and their size."""
        record = self._connection.execute(
            select(func.count(), func.coalesce(func.sum(_artifacts.c.size), 0)).where(*_unused(before))
        ).one()
        return record[0], int(record[1])

    def delete_unused(self, before: datetime, *, limit: int) -> list[ArtifactRow]:
        """Artefacts that nobody has wanted since `before`, `limit` at most, deleted. Their bytes are the caller's to remove."""
        found = self._connection.scalars(
            select(_artifacts.c.digest)
            .where(*_unused(before))
            .order_by(_artifacts.c.wanted_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        ).all()
        if not found:
            return []
        # Asked again now that the rows are held: a use that came in between is seen here.
        deleted = delete(_artifacts).where(_artifacts.c.digest.in_(found), *_unused(before)).returning(_artifacts)
        return [_row(record) for record in self._connection.execute(deleted)]

    def made_at(self, digests: Iterable[str]) -> dict[str, datetime]:
        """When the bytes of each of these were stored; those that are not there are left out."""
        wanted = select(_artifacts.c.digest, _artifacts.c.created_at).where(_artifacts.c.digest.in_(list(digests)))
        return {record.digest: record.created_at for record in self._connection.execute(wanted)}

    def lost_holders(self, before: datetime, *, after: str, limit: int) -> tuple[list[str], str | None]:
        """Of the next `limit` sessions and runs by name after `after` that hold something since before `before`: those that are gone.

        And the name to go on after, None at the end.
        """
        names = self._connection.scalars(
            select(_uses.c.used_by)
            .where(_uses.c.used_by > after, _uses.c.created_at < before)
            .distinct()
            .order_by(_uses.c.used_by)
            .limit(limit)
        ).all()
        lost = [*self._gone(names, _SESSION), *self._gone(names, _RUN)]
        return lost, names[-1] if len(names) == limit else None

    def _gone(self, names: Sequence[str], kind: str) -> list[str]:
        gone = {name for name in names if name.startswith(kind)}
        for part in _parts(sorted(gone)):
            gone.difference_update(f"{kind}{name}" for name in self._living(part, kind, None))
        return sorted(gone)

    def _is_held(self, digest: str, kind: str, user_id: uuid.UUID | None) -> bool:
        after = kind
        while True:
            names = self._connection.scalars(
                select(_uses.c.used_by)
                .where(_uses.c.digest == digest, _uses.c.used_by > after, _uses.c.used_by < f"{kind[:-1]};")
                .order_by(_uses.c.used_by)
                .limit(_BATCH)
            ).all()
            if not names:
                return False
            if next(iter(self._living(names, kind, user_id)), None) is not None:
                return True
            after = names[-1]

    def _living(self, names: Sequence[str], kind: str, user_id: uuid.UUID | None) -> Iterable[str]:
        """The identifiers of those sessions or runs that are there, and the user's."""
        table, column = (_sessions, _sessions.c.session_id) if kind == _SESSION else (_runs, _runs.c.run_id)
        keys = [name.removeprefix(kind) for name in names]
        wanted = select(column).where(column.in_([*_uuids(keys)] if kind == _SESSION else keys))
        if user_id is not None:
            wanted = wanted.where(table.c.user_id == user_id)
        return (str(key) for key in self._connection.scalars(wanted))

    def _hold(self, digest: str, used_by: str) -> None:
        dialect = postgresql if self._connection.dialect.name == "postgresql" else sqlite
        # The moment is renewed, so that a holder that was lost and is there again does not lose what it holds.
        self._connection.execute(
            dialect.insert(_uses)
            .values(digest=digest, used_by=used_by, created_at=self._now)
            .on_conflict_do_update(index_elements=["digest", "used_by"], set_={"created_at": self._now})
        )


def _uuids(texts: Iterable[str]) -> Iterable[uuid.UUID]:
    for text in texts:
        with contextlib.suppress(ValueError):  # a name that no session can have
            yield uuid.UUID(text)


def _unused(before: datetime) -> tuple[Any, Any]:
    return _artifacts.c.wanted_at < before, ~exists().where(_uses.c.digest == _artifacts.c.digest)


def _parts(names: Sequence[str]) -> Iterable[Sequence[str]]:
    """Pieces that fit into one statement."""
    return (names[start : start + _BATCH] for start in range(0, len(names), _BATCH))


def _row(record: Row[Any]) -> ArtifactRow:
    return ArtifactRow(
        digest=record.digest,
        size=record.size,
        media_type=record.media_type,
        created_at=record.created_at,
        wanted_at=record.wanted_at,
    )
