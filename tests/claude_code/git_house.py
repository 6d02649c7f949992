"""Real repositories, real git, and the scripts of a sandbox run as they are: in a child with their own environment, without one."""

import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automagik.claude_code.commits import extract_commits
from automagik.claude_code.history import Taken
from automagik.claude_code.repositories import Repositories
from automagik.claude_code.sources import Source
from automagik.claude_code.workspace import SandboxScript, branch_name, make_workspace
from automagik.settings import Settings
from automagik.types import SystemClock, new_id

__all__ = ["Ran", "RunHouse", "chunks", "git", "make_repository", "open_repositories", "run_script", "write_bundle"]

_ENV = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "Ann",
    "GIT_AUTHOR_EMAIL": "ann@example.org",
    "GIT_COMMITTER_NAME": "Ann",
    "GIT_COMMITTER_EMAIL": "ann@example.org",
}


def git(folder: Path, *arguments: str, stdin: bytes | None = None, check: bool = True) -> str:
    """What git says, as a person in that folder would run it."""
    done = subprocess.run(["git", *arguments], cwd=folder, env=_ENV, input=stdin, capture_output=True, check=False)
    assert done.returncode == 0 or not check, done.stderr.decode()
    return done.stdout.decode("utf-8", "replace").strip()


def make_repository(folder: Path, files: dict[str, str] | None = None, *, branch: str = "main") -> Path:
    """A repository with one commit."""
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "-q", "-b", branch)
    for name, text in (files or {"a.txt": "one\n", "src/b.txt": "two\n"}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "First")
    return folder


def write_bundle(repository: Path, file: Path, *arguments: str) -> Path:
    git(repository, "bundle", "create", "-q", str(file), *(arguments or ("--all",)))
    return file


@dataclass(frozen=True)
class Ran:
    """How a script ended."""

    code: int
    stdout: bytes
    stderr: str


def run_script(script: SandboxScript, *, stdin: bytes = b"", env: dict[str, str] | None = None) -> Ran:
    done = subprocess.run(
        script.command, env={**script.env, **(env or {})}, input=stdin, capture_output=True, check=False, timeout=60
    )
    return Ran(done.returncode, done.stdout, done.stderr.decode("utf-8", "replace"))


async def chunks(data: bytes, size: int = 65_536) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def open_repositories(folder: Path, **settings: Any) -> Repositories:
    repositories = Repositories(Settings.model_validate({"data_dir": folder, **settings}), SystemClock())
    await repositories.open()
    return repositories


@dataclass
class RunHouse:
    """A run that has a workspace, from which commits are taken."""

    repositories: Repositories
    source: Source
    workspace: Path
    run_id: str
    branch: str

    @classmethod
    async def begin(cls, repositories: Repositories, source: Source, workspace: Path) -> "RunHouse":
        run_id = new_id("run")
        house = cls(repositories, source, workspace, run_id, branch_name("implement", run_id))
        workspace.mkdir(parents=True, exist_ok=True)
        base = await repositories.base_bundle(source)
        made = run_script(house.making(), stdin=base.read_bytes())
        assert made.code == 0, made.stderr
        return house

    def making(self, **options: Any) -> SandboxScript:
        return make_workspace(
            branch=self.branch,
            author="Automagik (implement)",
            email="agent@automagik.invalid",
            base_commit=self.source.base_commit,
            workspace=str(self.workspace),
            **options,
        )

    def git(self, *arguments: str, check: bool = True) -> str:
        """What the agent's git says."""
        return git(self.workspace, *arguments, check=check)

    def commit(self, name: str, text: str, message: str) -> str:
        path = self.workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)
        return self.git("rev-parse", "HEAD")

    def extract(self, **options: Any) -> Ran:
        return run_script(
            extract_commits(base_commit=self.source.base_commit, workspace=str(self.workspace), **options)
        )

    async def take(self, data: bytes | None = None) -> Taken:
        if data is None:
            ran = self.extract()
            assert ran.code == 0, ran.stderr
            data = ran.stdout
        return await self.repositories.take(
            self.run_id, self.source.repository, self.source.base_commit, chunks(data), branch=self.branch
        )

    def ours(self, *arguments: str) -> str:
        """What our bare repository of the run says."""
        return git(self.repositories.run_path(self.source.repository, self.run_id), *arguments)

    def files_of(self, commit: str) -> set[str]:
        return set(self.ours("ls-tree", "-r", "--name-only", commit).splitlines())
