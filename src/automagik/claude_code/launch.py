"""How a command of a run is started on this host: in bubblewrap, or as a plain process where the settings allow that by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from automagik.claude_code.executor import Inside
from automagik.sandbox.bubblewrap import Bubblewrap
from automagik.sandbox.confinement import Confinement, Limits, Mount

__all__ = ["Command", "Launcher", "PlainLauncher", "SandboxLauncher"]

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CLI_TARGET = "/opt/automagik/claude"

_WRAPPER = """\
status=/proc/$$/fd/$1; cd "$2" || exit 1; shift 2
printf '{"child-pid": %s}\\n' "$$" >> "$status"
"$@"; code=$?
printf '{"exit-code": %s}\\n' "$code" >> "$status"
exit "$code"
"""
"""Says in descriptor $1 what bubblewrap says there: its pid, then the command's exit code."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a run, with what it gets to see."""

    marker: str
    """A `NAME=value` for its environment, by which its processes are found where no namespace holds them together."""
    argv: tuple[str, ...]
    env: Mapping[str, str]
    limits: Limits
    workspace: Path
    credentials: Path
    home: Path
    """Without a sandbox: a folder for its home and temporary files."""
    writable: bool
    sockets: Path | None = None
    toolchain: Path | None = None
    toolchain_writable: bool = False
    cli: Path | None = None


class Launcher(Protocol):
    """What turns a command into a process of this host."""

    @property
    def sandboxed(self) -> bool:
        """Whether all that the command starts dies with it."""
        ...

    @property
    def owner(self) -> tuple[int, int] | None:
        """The user and group that the areas must belong to; None: to the platform's own."""
        ...

    def inside(self, command: Command) -> Inside:
        """Where the command finds things."""
        ...

    def start(self, command: Command, *, status_fd: int) -> tuple[list[str], dict[str, str]]:
        """What to start, and its whole environment. It writes its status to the descriptor as bubblewrap does."""
        ...


class SandboxLauncher:
    """Commands in bubblewrap."""

    sandboxed = True

    def __init__(self, bubblewrap: Bubblewrap) -> None:
        self._bubblewrap = bubblewrap

    @property
    def owner(self) -> tuple[int, int] | None:
        return self._bubblewrap.owner

    def inside(self, command: Command) -> Inside:
        del command
        return Inside(cli=_CLI_TARGET)

    def start(self, command: Command, *, status_fd: int) -> tuple[list[str], dict[str, str]]:
        inside = self.inside(command)
        mounts = [
            Mount(command.workspace, inside.workspace, writable=command.writable),
            Mount(command.credentials, inside.credentials, writable=command.writable),
        ]
        if command.sockets is not None:
            mounts.append(Mount(command.sockets, inside.sockets))
        if command.toolchain is not None:
            mounts.append(Mount(command.toolchain, inside.toolchain, writable=command.toolchain_writable))
        if command.cli is not None:
            mounts.append(Mount(command.cli, inside.cli))
        confinement = Confinement(
            mounts=tuple(mounts),
            env=_environment(command, inside),
            cwd=inside.workspace,
            command=command.argv,
            limits=command.limits,
        )
        argv = self._bubblewrap.argv(confinement, status_fd=status_fd)
        return argv, self._bubblewrap.environment(confinement)


class PlainLauncher:
    """Commands as plain processes: nothing holds them but their own home and environment."""

    sandboxed = False
    owner = None

    def inside(self, command: Command) -> Inside:
        nothing = command.home / "nothing"
        return Inside(
            workspace=str(command.workspace),
            credentials=str(command.credentials),
            home=str(command.home),
            tmp=str(command.home / "tmp"),
            sockets=str(command.sockets or nothing),
            toolchain=str(command.toolchain or nothing),
            cli=str(command.cli or "claude"),
        )

    def start(self, command: Command, *, status_fd: int) -> tuple[list[str], dict[str, str]]:
        inside = self.inside(command)
        (command.home / "tmp").mkdir(mode=0o700, parents=True, exist_ok=True)
        argv = ["/bin/sh", "-c", _WRAPPER, "sh", str(status_fd), inside.workspace, *command.argv]
        name, _, value = command.marker.partition("=")
        base = {"PATH": _DEFAULT_PATH, "LANG": "C.UTF-8", "HOME": inside.home, "TMPDIR": inside.tmp}
        return argv, {**base, **_environment(command, inside), name: value}


def _environment(command: Command, inside: Inside) -> dict[str, str]:
    given = {"WORKSPACE": inside.workspace, "CREDENTIALS": inside.credentials, **command.env}
    if command.toolchain is not None:
        given["TOOLCHAIN"] = inside.toolchain
        given["PATH"] = f"{inside.toolchain}/bin:{given.get('PATH', _DEFAULT_PATH)}"
    return given
