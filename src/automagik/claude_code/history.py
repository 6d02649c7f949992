"""What a run made, read from git: its commits, what they changed, and whether they may be kept."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from automagik.claude_code.bundles import BundleRefused
from automagik.claude_code.git import Git, GitFailed
from automagik.errors import TooLarge
from automagik.memory import clean_text
from automagik.types import JsonObject, utc_text

__all__ = ["MAX_OBJECTS", "Commit", "History", "Taken", "too_many_objects"]

_MAX_COMMITS = 1000
MAX_OBJECTS: Final = 500_000
"""How many objects a run may make."""
_MAX_COMMIT_BYTES = 1024 * 1024
_COMPARE_SECONDS = 60.0
_MAX_DIFF_BYTES = 32 * 1024 * 1024
_SUBJECT_CHARS = 500
_FIELDS = 5


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit of a run."""

    commit: str
    subject: str
    author: str
    authored_at: datetime
    files_changed: int
    insertions: int
    deletions: int

    def to_json(self) -> JsonObject:
        """The commit as it stands in a run's `workspace`."""
        return {
            "commit": self.commit,
            "subject": self.subject,
            "author": self.author,
            "authored_at": utc_text(self.authored_at),
            "files_changed": self.files_changed,
            "insertions": self.insertions,
            "deletions": self.deletions,
        }


@dataclass(frozen=True, slots=True)
class Taken:
    """What a run made, as it is in our repository now."""

    base_commit: str
    head_commit: str
    """The tip of the run's branch; where the run left that untouched, what it had checked out; else the base."""
    commits: tuple[Commit, ...]
    """The run's own, the oldest first: those that the base does not have. Of more than a thousand the latest."""
    files_changed: int
    insertions: int
    deletions: int
    descends: bool
    """Whether the head builds on the base; false where the run rewrote history or began another one."""
    wip_commit: str | None
    """A commit of what was not committed, None where everything was."""
    branches: Mapping[str, str]
    """All branches with commits of the run, each with its tip."""
    bundle: Path | None
    """A file with the bytes that were taken, until the next ones are; None: nothing was made."""

    def to_json(self) -> JsonObject:
        """What a run's `workspace` says of it."""
        return {
            "base_commit": self.base_commit,
            "head_commit": self.head_commit,
            "commits": [commit.to_json() for commit in self.commits],
            "files_changed": self.files_changed,
            "insertions": self.insertions,
            "deletions": self.deletions,
            "descends_from_base": self.descends,
            "wip_commit": self.wip_commit,
            "branches": dict(self.branches),
        }


class History:
    """Reads commits and differences of bare repositories of ours."""

    def __init__(self, git: Git) -> None:
        self._git = git

    async def taken(
        self,
        path: Path,
        base: str,
        *,
        head: str,
        wip: str | None,
        branches: Mapping[str, str],
        bundle: Path | None,
        others: Sequence[str],
    ) -> Taken:
        """All that is told of what was taken. `others` are tips of the source: what the run merged of them is not its own.

        Raises: BundleRefused for what git can't go through within its limits: a few trees, each full of the next, are billions of
        files.
        """
        commits: tuple[Commit, ...] = ()
        changed, descends = (0, 0, 0), True
        if head != base:
            try:
                # What changed in all goes first: where that is too much, git need not begin with each commit.
                descends, stat = await asyncio.gather(
                    self._git.ask("merge-base", "--is-ancestor", base, head, repository=path),
                    self._git.run(
                        *("diff", "--shortstat", "--no-ext-diff", base, head, "--"),
                        repository=path,
                        seconds=_COMPARE_SECONDS,
                    ),
                )
                commits = await self._commits(path, [base, *others], head)
            except (GitFailed, TooLarge) as failed:
                raise BundleRefused(
                    f"What the run committed is too much to be read: {failed.detail}", field=("bundle",)
                ) from failed
            changed = _counts(stat.decode())
        return Taken(base, head, commits, *changed, descends, wip, dict(branches), bundle)

    async def diff(self, path: Path, base: str, head: str) -> bytes:
        """The patch from one commit to another. Raises TooLarge."""
        return await self._git.run(
            *("diff", "--no-ext-diff", "--no-textconv", "--no-color", "--binary", "--full-index", base, head, "--"),
            repository=path,
            max_bytes=_MAX_DIFF_BYTES,
        )

    async def check_objects(self, path: Path, base: str, tips: Sequence[str], *, max_file_bytes: int) -> None:
        """Refuse tips that are no commits, that hang on what is not there, or add more than can be kept.

        Raises: BundleRefused.
        """
        try:
            listed = await self._git.run(
                *("rev-list", "--objects", "--no-object-names", "--stdin"),
                repository=path,
                stdin="\n".join([*tips, f"^{base}", ""]).encode(),
            )
            if listed.count(b"\n") > MAX_OBJECTS:
                raise too_many_objects()
            sizes = await self._git.run(
                *("cat-file", "--batch-check=%(objecttype) %(objectsize)", "--buffer"),
                repository=path,
                stdin="".join(f"{tip}\n" for tip in tips).encode() + listed,
            )
        except GitFailed as failed:
            detail = f"The bundle lacks objects, or they can't be read: {failed.detail}"
            raise BundleRefused(detail, field=("bundle",)) from failed
        except TooLarge as failed:
            raise too_many_objects() from failed
        for number, line in enumerate(sizes.decode().splitlines()):
            kind, _, size = line.partition(" ")
            if size == "missing" or (number < len(tips) and kind != "commit"):
                raise BundleRefused("The bundle lacks objects, or its branches are no commits.", field=("bundle",))
            if kind == "commit" and int(size) > _MAX_COMMIT_BYTES:
                raise BundleRefused(
                    f"The run made a commit whose message is of {size} bytes; the limit is {_MAX_COMMIT_BYTES}.",
                    field=("bundle",),
                )
            if int(size) > max_file_bytes:
                raise BundleRefused(
                    f"The run committed a file of {size} bytes; the limit is {max_file_bytes}.",
                    field=("bundle",),
                    hint="Large files belong into an artefact store, not into a repository.",
                )

    async def _commits(self, path: Path, bases: Sequence[str], head: str) -> tuple[Commit, ...]:
        window = (f"--max-count={_MAX_COMMITS}", "--topo-order", "--reverse", "--stdin")
        stdin = "\n".join([head, *(f"^{base}" for base in dict.fromkeys(bases)), ""]).encode()
        # Numbers by a question of their own, without texts of the run in the answer that could be taken for them.
        told, counted = await asyncio.gather(
            self._git.run(
                *("log", "-z", "--format=%H%x00%an%x00%ae%x00%at%x00%s"),
                *window,
                repository=path,
                stdin=stdin,
                seconds=_COMPARE_SECONDS,
            ),
            self._git.run(
                *("log", "--no-ext-diff", "--shortstat", "--format=commit %H"),
                *window,
                repository=path,
                stdin=stdin,
                seconds=_COMPARE_SECONDS,
            ),
        )
        stats: dict[str, tuple[int, int, int]] = {}
        current = ""
        for line in counted.decode().splitlines():
            if line.startswith("commit "):
                current = line.removeprefix("commit ")
            elif line.strip():
                stats[current] = _counts(line)
        fields = told.decode("utf-8", "replace").removesuffix("\0").split("\0") if told else []
        commits: list[Commit] = []
        for start in range(0, len(fields) - _FIELDS + 1, _FIELDS):
            commit, name, email, seconds, subject = fields[start : start + _FIELDS]
            commits.append(
                Commit(
                    commit,
                    clean_text(subject)[:_SUBJECT_CHARS],
                    clean_text(f"{name} <{email}>")[:_SUBJECT_CHARS],
                    _moment(seconds),
                    *stats.get(commit, (0, 0, 0)),
                )
            )
        return tuple(commits)


def too_many_objects() -> BundleRefused:
    """What is said of a run that made too many objects."""
    return BundleRefused(
        f"The run made over {MAX_OBJECTS} objects (files, folders and commits).",
        field=("bundle",),
        hint="What a build makes belongs into `.gitignore`.",
    )


def _moment(seconds: str) -> datetime:
    """The time that the commit claims; what no calendar has becomes 1970."""
    try:
        return datetime.fromtimestamp(int(seconds), UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)


def _counts(stat: str) -> tuple[int, int, int]:
    """Files changed, insertions and deletions of a line like ` 2 files changed, 3 insertions(+), 1 deletion(-)`."""
    found = {"file": 0, "insertion": 0, "deletion": 0}
    for part in stat.strip().split(", "):
        number, _, what = part.partition(" ")
        for name in found:
            if what.startswith(name) and number.isdecimal():
                found[name] = int(number)
    return found["file"], found["insertion"], found["deletion"]
