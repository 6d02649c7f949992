"""What a command in a sandbox sees and may use: the values that every kind of sandbox is given."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from automagik.errors import ConfigurationError
from automagik.settings import Settings

__all__ = ["AGENT_UID", "HOME", "Availability", "Confinement", "Limits", "Mount"]

AGENT_UID = 10001
"""Who a command is, user and group, as seen from inside."""

HOME = "/home/agent"
"""The home inside: empty at every start, limited in size, gone at the end."""

_NEVER_SOURCES = frozenset(
    {"/", "/boot", "/dev", "/etc", "/home", "/mnt", "/media", "/proc", "/root", "/run", "/srv", "/sys", "/tmp", "/var"}  # noqa: S108
)
"""Folders that are never mounted as a whole: what is in them belongs to the host or to other people."""

_NEVER_BELOW = (
    "/proc",
    "/sys",
    "/dev",
    "/run/docker.sock",
    "/run/containerd",
    "/run/podman",
    "/run/dbus",
    "/run/systemd",
)
_OWN_TARGETS = ("/proc", "/sys", "/dev", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or folder of the host, and where it stands inside."""

    source: Path
    target: str
    writable: bool = False

    def checked(self) -> "Mount":
        """The same with its real source, where such a mount opens nothing that is not the sandbox's. Looks at the disk.

        Raises: ConfigurationError.
        """
        try:
            source = self.source.resolve(strict=True)
        except (OSError, RuntimeError) as error:
            raise ConfigurationError(f"The sandbox can't mount {self.source}: {error}") from error
        a_home = str(source.parent) in ("/home", "/run/user")
        if a_home or str(source) in _NEVER_SOURCES or any(source.is_relative_to(path) for path in _NEVER_BELOW):
            raise ConfigurationError(
                f"The sandbox does not mount {source}: it is the host's own.", hint="Name a folder below it."
            )
        target = PurePosixPath(self.target)
        if target.root != "/" or ".." in target.parts or str(target) != self.target or self.target == "/":
            raise ConfigurationError(f"'{self.target}' is no place inside a sandbox.", hint="Give an absolute path.")
        if any(target.is_relative_to(path) for path in _OWN_TARGETS):
            raise ConfigurationError(f"'{self.target}' belongs to the sandbox's own system, nothing is mounted there.")
        return Mount(source, self.target, self.writable)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a sandbox may use. Which of them the kernel holds, and which are watched, differs: see `docs/how-to/sandbox.md`."""

    memory_bytes: int = 4 * 1024**3
    cpus: float = 2
    pids: int = 512
    """Processes and threads together."""
    file_bytes: int = 4 * 1024**3
    """How large one file may grow."""
    open_files: int = 4096
    """Open files of one process."""
    tmp_bytes: int = 1024**3
    """How large `/tmp`, the home and shared memory may grow, each."""
    workspace_bytes: int = 10 * 1024**3

    @classmethod
    def from_settings(cls, settings: Settings) -> "Limits":
        """What an administrator allows each sandbox."""
        return cls(
            memory_bytes=settings.sandbox_memory_bytes,
            cpus=settings.sandbox_cpus,
            pids=settings.sandbox_pids,
            file_bytes=min(4 * 1024**3, settings.max_workspace_bytes),
            tmp_bytes=settings.sandbox_tmp_bytes,
            workspace_bytes=settings.max_workspace_bytes,
        )


@dataclass(frozen=True, slots=True)
class Confinement:
    """One command, and all that it gets to see."""

    mounts: tuple[Mount, ...]
    env: Mapping[str, str]
    """Besides `HOME`, `USER`, `LOGNAME`, `PATH`, `LANG` and `TMPDIR`, which it may replace."""
    cwd: str
    command: tuple[str, ...]
    limits: Limits
    hostname: str = "sandbox"


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether something works on this machine; if not, why, and the command or setting that mends it."""

    works: bool
    reason: str | None = None
    remedy: str | None = None
