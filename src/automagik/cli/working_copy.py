"""The user's own repository, as the command line reads it and puts a run's commits into it."""

import os
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from automagik.cli.failure import CliError, ExitCode

__all__ = ["bundled", "fetch_bundle", "is_address", "repository_name", "uncommitted"]

_HEAD = "refs/automagik/HEAD"
"""What the run had checked out, where no branch of its has that."""

_ELSEWHERE = (
    "DIR",
    "WORK_TREE",
    "INDEX_FILE",
    "COMMON_DIR",
    "OBJECT_DIRECTORY",
    "ALTERNATE_OBJECT_DIRECTORIES",
    "PREFIX",
)
"""Variables by which git, called within a hook of one repository, would look there and not in the folder that was named."""

_NO_MORE = (
    *("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "-c", "protocol.ext.allow=never"),
    *("-c", "gc.auto=0", "-c", "maintenance.auto=false"),
)
"""What a repository's own settings would have git do besides: run hooks and other programs, tidy up."""

_NO_PROGRAM = 127
_CLEAN = ("env", *(part for name in _ELSEWHERE for part in ("-u", f"GIT_{name}"))) if os.name == "posix" else ()


def is_address(repository: str) -> bool:
    """Whether it is an address, and no folder of this machine."""
    return "://" in repository or (":" in repository.split("/", 1)[0] and not Path(repository).exists())


def repository_name(folder: str) -> str:
    """What the repository is called, for people: its folder's name."""
    return Path(_git(folder, "rev-parse", "--show-toplevel").strip()).name


def uncommitted(folder: str) -> int:
    """How many files of the repository differ from what is committed; new ones count, ignored ones don't."""
    return len(_git(folder, "--no-optional-locks", "status", "--porcelain", "--untracked-files=normal").splitlines())


@contextmanager
def bundled(folder: str, ref: str | None) -> Generator[Path]:
    """A bundle of what the repository's HEAD (or `ref`) has committed, in a file that goes afterwards.

    Raises: CliError for what is no repository, is a shallow one, has no commit, or no such ref.
    """
    if ref is not None and ref.startswith("-"):
        raise CliError(f"There is no commit '{ref}'.", exit_code=ExitCode.USAGE, hint="Name another --ref.")
    commit = _git(folder, "rev-parse", "--verify", "--quiet", f"{ref or 'HEAD'}^{{commit}}", missing=ref).strip()
    if _git(folder, "rev-parse", "--is-shallow-repository").strip() == "true":
        raise CliError(
            f"{folder} is a shallow clone: it lacks the history that a bundle needs.",
            exit_code=ExitCode.USAGE,
            hint="git fetch --unshallow",
        )
    with tempfile.TemporaryDirectory() as place:
        bundle = Path(place) / "repository.bundle"
        if ref is None:
            _git(folder, "bundle", "create", "--quiet", str(bundle), "HEAD")
            yield bundle
            return
        # A bundle that git makes holds refs, not commits; and no ref is made in the user's repository for this.
        with bundle.open("wb") as file:
            file.write(f"# v2 git bundle\n{commit} HEAD\n\n".encode())
            file.flush()
            _pack(folder, commit, file)
        yield bundle


def fetch_bundle(
    folder: str, bundle: Path, branch: str, *, made_on: str, head: str | None = None, force: bool = False
) -> str:
    """The commit that `branch` of the repository is now: the head of what the run made. Nothing else in the repository changes.

    A run's bundle holds all that it made: branches that it made besides, and what it had not committed. `made_on` names its own
    branch, which alone counts, or else what it had checked out. `head`: the commit that the server shows as the run's.

    Raises: CliError where the run made no commit, the bundle has not what the server shows, the branch is there already, or the
    bundle's base commit is not.
    """
    listed = [line.split(" ", 1) for line in _git(folder, "bundle", "list-heads", str(bundle)).splitlines()]
    found = {name: commit for commit, name in listed}
    ref = next((name for name in (f"refs/heads/{made_on}", _HEAD) if name in found), None)
    if ref is None:
        raise CliError(
            "The run made no commit.",
            exit_code=ExitCode.FAILED,
            hint="`automagik runs diff RUN --wip` shows what it left.",
        )
    commit = found[ref]
    if head is not None and commit != head:
        raise CliError(
            f"The bundle's commit {commit[:12]} is not the run's, {head[:12]}; nothing was fetched.",
            exit_code=ExitCode.FAILED,
            hint="Is the run still at work? Try again.",
        )
    target = f"refs/heads/{branch}"
    there = _commit_of(folder, target)
    if there == commit:  # it was applied before
        return commit
    if there is not None and not force:
        raise CliError(
            f"The branch '{branch}' is there already, at {there[:12]}.",
            exit_code=ExitCode.FAILED,
            hint="Choose another with --branch, or use --force.",
        )
    _git(
        folder,
        *("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", "--recurse-submodules=no"),
        str(bundle),
        f"{'+' if force else ''}{ref}:{target}",
    )
    return commit


def _commit_of(folder: str, ref: str) -> str | None:
    done = _run(folder, "show-ref", "--verify", "--hash", ref)
    return done.stdout.strip() if done.returncode == 0 else None


def _git(folder: str, *args: str, missing: str | None = None) -> str:
    done = _run(folder, *args)
    if done.returncode == 0:
        return done.stdout
    if not Path(folder).is_dir():
        raise CliError(
            f"There is no folder '{folder}'.",
            exit_code=ExitCode.USAGE,
            hint="Name a repository's folder, or an address that the server may clone.",
        )
    said = " ".join(done.stderr.split())
    if "not a git repository" in said:
        raise CliError(
            f"{folder} is no git repository.",
            exit_code=ExitCode.USAGE,
            hint="Name one with --repo, or `git init` and commit.",
        )
    if args[0] == "rev-parse":
        detail = f"There is no commit '{missing}'." if missing else "The repository has no commit yet."
        raise CliError(detail, exit_code=ExitCode.USAGE, hint="Commit something first, or name another --ref.")
    raise CliError(f"git {args[0]} failed: {said[:500]}", exit_code=ExitCode.FAILED)


def _pack(folder: str, commit: str, file: IO[bytes]) -> None:
    """Write a pack of the commit with its whole history after what is in the file."""
    done = subprocess.run(
        [
            *_CLEAN,
            "git",
            *_NO_MORE,
            "-C",
            folder,
            "pack-objects",
            "--quiet",
            "--revs",
            "--delta-base-offset",
            "--stdout",
        ],
        input=f"{commit}\n".encode(),
        stdout=file,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode != 0:
        said = " ".join(done.stderr.decode("utf-8", "replace").split())
        raise CliError(f"git pack-objects failed: {said[:500]}", exit_code=ExitCode.FAILED)


def _run(folder: str, *args: str) -> "subprocess.CompletedProcess[str]":
    done: subprocess.CompletedProcess[str] | None = None
    with suppress(FileNotFoundError):
        done = subprocess.run(
            [*_CLEAN, "git", *_NO_MORE, "-C", folder, *args],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    if done is None or done.returncode == _NO_PROGRAM:
        raise CliError("git is not installed.", exit_code=ExitCode.FAILED, hint="apt-get install git")
    return done
