"""The user's own repository, as the command line reads it and puts a run's commits into it."""

import os
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from automagik.cli.failure import CliError, ExitCode

__all__ = ["bundled", "fetch_bundle", "is_address", "repository_name"]


def is_address(repository: str) -> bool:
    """Whether it is an address, and no folder of this machine."""
    return "://" in repository or (":" in repository.split("/", 1)[0] and not Path(repository).exists())


def repository_name(folder: str) -> str:
    """What the repository is called, for people: its folder's name."""
    return Path(_git(folder, "rev-parse", "--show-toplevel").strip()).name


@contextmanager
def bundled(folder: str, ref: str | None) -> Generator[Path]:
    """A bundle of what the repository's HEAD (or `ref`) has committed, in a file that goes afterwards.

    Raises: CliError for what is no repository, has no commit, or no such ref.
    """
    commit = _git(folder, "rev-parse", "--verify", "--quiet", f"{ref or 'HEAD'}^{{commit}}", missing=ref).strip()
    with tempfile.TemporaryDirectory() as place:
        bundle = Path(place) / "repository.bundle"
        if ref is None:
            _git(folder, "bundle", "create", "--quiet", str(bundle), "HEAD")
            yield bundle
            return
        # A bundle holds refs, not commits: this one stands beside the user's branches for a moment.
        name = f"refs/automagik/upload-{os.getpid()}"
        _git(folder, "update-ref", name, commit)
        try:
            _git(folder, "bundle", "create", "--quiet", str(bundle), name)
        finally:
            _git(folder, "update-ref", "-d", name)
        yield bundle


def fetch_bundle(folder: str, bundle: Path, branch: str, *, force: bool = False) -> str:
    """The commit that `branch` of the repository is now: that of the bundle. Nothing else in the repository changes.

    Raises: CliError where the branch is there already, or the bundle's base commit is not.
    """
    heads = _git(folder, "bundle", "list-heads", str(bundle)).splitlines()
    if not heads:
        raise CliError(
            "The run made no commit.",
            exit_code=ExitCode.FAILED,
            hint="`automagik runs diff RUN --wip` shows what it left.",
        )
    commit, ref = heads[0].split(" ", 1)
    target = f"refs/heads/{branch}"
    if not force and _exists(folder, target):
        raise CliError(
            f"The branch '{branch}' is there already.",
            exit_code=ExitCode.FAILED,
            hint="Choose another with --branch, or use --force.",
        )
    _git(
        folder,
        "fetch",
        "--quiet",
        "--no-tags",
        "--no-write-fetch-head",
        str(bundle),
        f"{'+' if force else ''}{ref}:{target}",
    )
    return commit


def _exists(folder: str, ref: str) -> bool:
    return _run(folder, "show-ref", "--verify", "--quiet", ref).returncode == 0


def _git(folder: str, *args: str, missing: str | None = None) -> str:
    done = _run(folder, *args)
    if done.returncode == 0:
        return done.stdout
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


def _run(folder: str, *args: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(["git", "-C", folder, *args], capture_output=True, text=True, check=False)
    except FileNotFoundError as missing:
        raise CliError("git is not installed.", exit_code=ExitCode.FAILED, hint="apt-get install git") from missing
