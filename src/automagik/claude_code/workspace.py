"""How a workspace is made inside a sandbox: from a bundle on standard input, on a branch of the run's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from automagik.claude_code.git import is_ref_name

__all__ = ["INSIDE", "SandboxScript", "branch_name", "make_workspace", "script_environment"]

INSIDE: Final = "/workspace"
"""Where the workspace is, seen from inside a sandbox."""

_SHORT_ID = 10


@dataclass(frozen=True, slots=True)
class SandboxScript:
    """What `Executor.once` runs in a throw-away sandbox over a run's workspace."""

    command: tuple[str, ...]
    env: Mapping[str, str]
    writable: bool
    """Whether it writes to the workspace."""


def branch_name(workflow: str, run_id: str) -> str:
    """The branch that the run works on: `automagik/implement/5h2k9q8z7x`."""
    return f"automagik/{workflow}/{run_id[-_SHORT_ID:].lower()}"


def script_environment() -> dict[str, str]:
    """The environment of our scripts: git reads no settings but the repository's own, and asks nobody."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_SYSTEM": "/dev/null",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_PAGER": "cat",
        # The workspace's owner may be another account than the sandbox's.
        "GIT_CONFIG_COUNT": "7",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
        "GIT_CONFIG_KEY_1": "core.hooksPath",
        "GIT_CONFIG_VALUE_1": "/dev/null",
        "GIT_CONFIG_KEY_2": "core.fsmonitor",
        "GIT_CONFIG_VALUE_2": "false",
        "GIT_CONFIG_KEY_3": "gc.auto",
        "GIT_CONFIG_VALUE_3": "0",
        # Files that only tell faster where objects are: a wrong one ends git.
        "GIT_CONFIG_KEY_4": "core.multiPackIndex",
        "GIT_CONFIG_VALUE_4": "false",
        "GIT_CONFIG_KEY_5": "core.commitGraph",
        "GIT_CONFIG_VALUE_5": "false",
        "GIT_CONFIG_KEY_6": "pack.useBitmaps",
        "GIT_CONFIG_VALUE_6": "false",
    }


def make_workspace(
    *,
    branch: str,
    author: str,
    email: str,
    base_commit: str,
    wip_commit: str | None = None,
    branches: Mapping[str, str] | None = None,
    workspace: str = INSIDE,
) -> SandboxScript:
    """Make the workspace from the bytes of `Repositories.base_bundle` on standard input; whatever was in it goes.

    `branch` begins at `base_commit`; the source's default branch is `origin/…`, so that `git diff origin/main` works. With
    `wip_commit` its files lie there uncommitted; `branches` are further branches, each with its commit. It prints the commit.
    Commits are made in the name of `author`.
    """
    further = {name: commit for name, commit in (branches or {}).items() if name != branch}
    assert all(is_ref_name(name) for name in (branch, *further))
    created = "".join(f"create refs/heads/{name} {commit}\n" for name, commit in further.items())
    arguments = (workspace, branch, base_commit, wip_commit or "", author, email, created)
    return SandboxScript(("/bin/sh", "-c", _MAKE, "make_workspace", *arguments), script_environment(), writable=True)


_MAKE = r"""
set -eu
workspace=$1 branch=$2 base=$3 wip=$4 author=$5 email=$6 branches=$7
cd "$workspace"
# Whoever made it before may have been killed in the midst.
find . -mindepth 1 -maxdepth 1 -exec rm -rf -- {} +
git init --quiet --template= .
git symbolic-ref HEAD "refs/heads/$branch"
# The bundle's header: a line a ref, then an empty line; what follows is a pack. `read` takes no byte too many from a pipe.
refs=.git/automagik-refs
: > "$refs"
while IFS= read -r line && [ -n "$line" ]; do
    case $line in
        *" refs/source/heads/"*) printf 'create refs/remotes/origin/%s %s\n' "${line#* refs/source/heads/}" "${line%% *}" >> "$refs" ;;
        *" refs/source/tags/"*) printf 'create refs/tags/%s %s\n' "${line#* refs/source/tags/}" "${line%% *}" >> "$refs" ;;
    esac
done
git index-pack --stdin > .git/automagik-pack
printf 'create refs/heads/%s %s\n' "$branch" "$base" >> "$refs"
printf '%s' "$branches" >> "$refs"
git update-ref --stdin < "$refs"
rm -f "$refs" .git/automagik-pack
git config user.name "$author"
git config user.email "$email"
git config commit.gpgSign false
git config gc.auto 0
git config maintenance.auto false
git config core.fsmonitor false
if [ -n "$wip" ]; then
    git read-tree --reset -u "$wip"
    git read-tree "$base"
else
    git read-tree --reset -u "$base"
fi
git update-index -q --refresh > /dev/null || true
git rev-parse HEAD
"""
"""POSIX sh; its arguments are data, never part of the text."""
