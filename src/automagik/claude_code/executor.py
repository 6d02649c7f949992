"""What a workflow's command runs in: the one interface of all executors, and the values that it speaks of.

It assumes neither a shared file system nor a local process: files go in and out as tar streams, sockets are named by the
executor, and what runs is found again by the run's id alone.
"""

from collections.abc import AsyncIterable, AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from automagik.claude_code.measuring import NO_LIMIT, Size
from automagik.claude_code.progress import Tell
from automagik.sandbox.confinement import HOME, Availability, Limits
from automagik.types import JsonObject

__all__ = [
    "MAX_OUTPUT_BYTES",
    "Area",
    "Execution",
    "ExecutionSpec",
    "Executor",
    "ExitStatus",
    "Inside",
    "Once",
    "Resources",
]

Area = Literal["workspace", "credentials"]
"""What a run keeps: its clone, and the CLI's configuration folder with its sessions."""

MAX_OUTPUT_BYTES = 1024**3
"""How much an execution may write to its standard output, where nothing else is said."""


@dataclass(frozen=True, slots=True)
class Inside:
    """Where a command finds things, in its own eyes. The same for all runs of a sandbox; without one, folders of the run."""

    workspace: str = "/workspace"
    credentials: str = "/credentials"
    """What `CLAUDE_CONFIG_DIR` is."""
    home: str = HOME
    """Empty at every start, and limited in size."""
    tmp: str = "/tmp"  # noqa: S108 - the sandbox's own
    sockets: str = "/run/agent"
    """The folder of the sockets; it can't be written to."""
    toolchain: str = "/toolchain"
    """What was prepared for this repository; writable in `prepare_toolchain` alone."""
    cli: str = "claude"
    """The Claude CLI's program."""

    def socket(self, name: str) -> str:
        """The socket of this name."""
        return f"{self.sockets}/{name}.sock"


@dataclass(frozen=True, slots=True)
class ExecutionSpec:
    """What to start. `WORKSPACE`, `HOME`, `TMPDIR` and `PATH` are set besides `env`, where that does not say otherwise."""

    run_id: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    limits: Limits
    toolchain: str | None = None
    """The digest of a prepared toolchain, which stands read-only at `Inside.toolchain`."""
    sockets: tuple[str, ...] = ("api",)
    """Which of the run's sockets there are; they need not be listened on yet."""
    output_bytes: int = MAX_OUTPUT_BYTES
    """How much it may write to its standard output before it is ended (`ExitStatus.output_full`)."""


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a command ended."""

    code: int | None
    """None: not known, because the host went down with it. 128 and the signal's number where a signal ended it."""
    signal: int | None = None
    oom_killed: bool = False
    """Something in the sandbox was killed for memory; the command itself may have gone on."""
    output_full: bool = False
    """It was ended because it wrote more than it may."""
    stderr: str = ""
    """The end of its standard error, at most 4 KB."""


@dataclass(frozen=True, slots=True)
class Once:
    """What a command in a throw-away sandbox came to. A command that fails is a result, too."""

    exit: ExitStatus
    stdout: bytes = b""
    """Empty where it went to a file."""
    timed_out: bool = False
    """It was killed because its time was over."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What an execution uses now."""

    memory_bytes: int
    pids: int


class Execution(Protocol):
    """A command that runs, or has ended and is not removed yet."""

    @property
    def place(self) -> JsonObject:
        """What people may want to know of where it runs: `find` needs none of it."""
        ...

    def output(self) -> AsyncIterator[bytes]:
        """Its standard output from the beginning, then live until it ends, in pieces of any size.

        The same bytes each time, and again after a restart of this process. Raises: ServiceUnavailable when the engine
        stays away.
        """
        ...

    async def send(self, data: bytes) -> bool:
        """Whether the data went into its standard input. False: there is no way in (any more), as after a restart."""
        ...

    async def close_input(self) -> None:
        """Let it read the end of its standard input: the CLI then ends with its turn."""
        ...

    async def interrupt(self) -> None:
        """Send SIGINT to the command. One that has ended is left alone."""
        ...

    async def kill(self) -> None:
        """Return when the command and all that it started are dead, within 2 seconds.

        Raises: ServiceUnavailable when that can't be seen to.
        """
        ...

    async def wait(self) -> ExitStatus:
        """How it ended, when it has. Any number of callers may wait. Raises: as `output`."""
        ...

    async def usage(self) -> Resources:
        """What it uses now; nothing when it has ended."""
        ...


class Executor(Protocol):
    """Where commands run that are not trusted. Everything raises ServiceUnavailable when the machinery is away."""

    @property
    def name(self) -> str:
        """`local` or `docker`, as stored with an execution."""
        ...

    @property
    def has_images(self) -> bool:
        """Whether a workflow's `image` and Dockerfile mean something here; else commands find the host's own programs."""
        ...

    @property
    def sandboxed(self) -> bool:
        """False: commands run as plain processes, because the settings say so by name."""
        ...

    async def check(self) -> Availability:
        """Whether commands can run here; it is tried. A failure is tried again at the next call."""
        ...

    async def prepare(
        self,
        run_id: str,
        *,
        image: str | None = None,
        dockerfile: str | None = None,
        trusted: bool = True,
        tell: Tell | None = None,
    ) -> None:
        """Make the run's areas and the folder of its sockets; what is there already is kept.

        What the run's commands run on is settled here: the platform's image, or one made of `image` (its name) or of the
        Dockerfile's text and kept for the next run. It may take minutes the first time. `trusted`: whether whoever names the image has
        access to the machine; else it must be one that the settings list, and is not fetched: making ours of it runs its programs
        outside of the sandbox. `tell` hears of an image that has to be fetched or built.

        Raises: ConfigurationError when the machine, the image or the length of a path does not allow it.
        """
        ...

    def socket(self, run_id: str, name: str) -> Path:
        """Where the platform listens for the run. Raises: ConfigurationError when the path is too long for a socket."""
        ...

    async def share(self, run_id: str, name: str) -> None:
        """Let the agent reach the socket that the platform has bound there: to be called after each bind.

        The folder above it lets in nobody but the platform and the run.
        """
        ...

    def inside(self, run_id: str) -> Inside:
        """Where the run's commands find things."""
        ...

    async def put(self, run_id: str, area: Area, tar: AsyncIterable[bytes]) -> None:
        """Unpack an archive into an area. All of it belongs to the agent, whatever owners it names.

        Raises: InvalidInput when the archive can't be unpacked.
        """
        ...

    def get(self, run_id: str, area: Area, path: str = ".") -> AsyncIterator[bytes]:
        """An archive of a file or folder in an area. What is in it is the agent's word: unpack it with care.

        Raises: NotFound when there is no such file.
        """
        ...

    async def start(self, spec: ExecutionSpec) -> Execution:
        """Start a command that outlives this process; its standard input stays open until `close_input`.

        What an earlier execution of this run has left but its areas is dropped.

        Raises: Conflict (`execution_alive`) while an earlier one lives. ConfigurationError when it can't be started.
        """
        ...

    async def find(self, run_id: str) -> Execution | None:
        """The run's execution, alive or ended; None when there is none.

        What this run's throw-away sandboxes of a process that died have left is cleared away.
        """
        ...

    async def once(
        self,
        run_id: str,
        command: tuple[str, ...],
        *,
        timeout_seconds: float,
        stdin: AsyncIterable[bytes] | None = None,
        env: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        writable: bool = False,
        sockets: tuple[str, ...] = (),
        toolchain: str | None = None,
        output: Path | None = None,
        output_bytes: int = 16 * 1024**2,
    ) -> Once:
        """Run a command to its end in a sandbox of its own over the run's areas (read-only unless `writable`).

        Its standard output goes to the file `output` of this host, else into memory; after `output_bytes` it is killed
        (`ExitStatus.output_full`). It ends with this process.

        Raises: NotFound when the run has no areas here. ConfigurationError when it can't be started.
        """
        ...

    async def has_toolchain(self, run_id: str, digest: str) -> bool:
        """Whether a toolchain was prepared that fits what the run's commands run on."""
        ...

    async def prepare_toolchain(
        self,
        run_id: str,
        digest: str,
        command: tuple[str, ...],
        *,
        timeout_seconds: float,
        env: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        sockets: tuple[str, ...] = (),
    ) -> Once:
        """Run setup commands in the run's workspace, and keep what they leave in `Inside.toolchain` under the digest.

        Nothing is kept when they fail. A toolchain that is there is not made again.

        Raises: RunFailed where the workspace and the toolchain together pass the limit of a workspace.
        """
        ...

    async def drop_toolchains(self, *, unused_seconds: float) -> int:
        """How many toolchains were removed, because nothing was started with them for so long."""
        ...

    async def drop_images(self, *, unused_seconds: float) -> int:
        """How many images of the platform were removed, because nothing was started with them for so long; they can be made again."""
        ...

    async def size(self, run_id: str, *, limit: int = NO_LIMIT) -> Size:
        """What the run takes on the disk: its areas, and files without a name that it holds open, as far as they can be seen.

        It takes long where there are many files, a minute at the most; it is not looked further than to the limit.

        Raises: NotFound where the run has no areas here.
        """
        ...

    async def disk_used(self, run_id: str) -> int | None:
        """How much is taken of the disk on which the run's areas are, by anybody; None where that can't be seen. It is had at once."""
        ...

    async def remove(self, run_id: str) -> None:
        """Kill and remove all that the run has here. What is gone already is no failure."""
        ...

    async def places(self) -> list[str]:
        """The runs that have something here, for those to be removed that are over."""
        ...

    async def close(self) -> None:
        """Let go of connections. What runs goes on."""
        ...
