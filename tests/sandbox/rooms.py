"""Sandboxes of bubblewrap for tests: as the machine's root, and as one of its users."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, Unpack

from automagik.sandbox.bubblewrap import Bubblewrap
from automagik.sandbox.confinement import Confinement, Limits, Mount

__all__ = ["KINDS", "USER", "Options", "Ran", "Room", "room"]

USER = 1000
KINDS = ("root", "user") if os.geteuid() == 0 else ("user",)
"""Whose sandboxes are tried: a test that is root can be a user, too."""


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str


class Options(TypedDict, total=False):
    """What a run may be given besides its command."""

    env: Mapping[str, str]
    limits: Limits
    mounts: Sequence[Mount]
    pass_fds: Sequence[int]
    seconds: float


@dataclass
class Room:
    """A folder of the host, mounted at `/workspace`, and sandboxes over it."""

    folder: Path
    bubblewrap: Bubblewrap
    prefix: Sequence[str] = ()

    def confine(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        mounts: Sequence[Mount] = (),
    ) -> Confinement:
        return Confinement(
            mounts=(Mount(self.folder, "/workspace", writable=True), *mounts),
            env=dict(env or {}),
            cwd="/workspace",
            command=command,
            limits=limits or Limits(),
        )

    def start(
        self,
        confinement: Confinement,
        *,
        stdin: int = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
        status_fd: int | None = None,
    ) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*self.prefix, *self.bubblewrap.argv(confinement, status_fd=status_fd)],
            env=self.bubblewrap.environment(confinement),
            text=True,
            pass_fds=tuple(pass_fds) if status_fd is None else (*pass_fds, status_fd),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *command: str, **options: Unpack[Options]) -> Ran:
        pass_fds, seconds = options.pop("pass_fds", ()), options.pop("seconds", 60)
        confinement = self.confine(
            *command, env=options.get("env"), limits=options.get("limits"), mounts=options.get("mounts", ())
        )
        with self.start(confinement, pass_fds=pass_fds) as process:
            out, err = process.communicate(timeout=seconds)
        return Ran(process.returncode, out, err)

    def sh(self, script: str, **options: Unpack[Options]) -> Ran:
        return self.run("/bin/bash", "-c", script, **options)

    def python(self, script: str, **options: Unpack[Options]) -> Ran:
        return self.run("/usr/bin/python3", "-c", script, **options)


@contextmanager
def room(kind: str) -> Generator[Room]:
    """A room of the machine's root, or of a user."""
    base = Path(tempfile.mkdtemp(prefix="room-"))
    base.chmod(0o755)
    folder = base / "workspace"
    folder.mkdir()
    as_root = kind == "root"
    bubblewrap = Bubblewrap(root=as_root)
    prefix: list[str] = []
    if as_root:
        assert bubblewrap.owner is not None
        os.chown(folder, *bubblewrap.owner)
    elif os.geteuid() == 0:
        os.chown(folder, USER, USER)
        prefix = ["/usr/bin/setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--"]
    try:
        yield Room(folder, bubblewrap, prefix)
    finally:
        shutil.rmtree(base)
