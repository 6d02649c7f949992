"""Git: the one runner of git on the host, for bare repositories of ours and never in a folder that an agent can write."""

import asyncio
import math
import os
import pwd
import shutil
import signal
import stat
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from automagik.errors import AutomagikError, ConfigurationError, TooLarge

__all__ = ["GIT_COMMIT", "STRICT", "Git", "GitFailed", "Protocol", "config_environment", "is_ref_name"]

Protocol = str
"""What git may speak to: `file`, `https`, `http` or `ssh`."""

GIT_COMMIT: Final = 40
"""How many hexadecimal digits name a commit."""

_PATH = "/usr/local/bin:/usr/bin:/bin"
_STDERR_BYTES = 4096
_SECONDS = 120.0
_OUTPUT_BYTES = 64 * 1024 * 1024
_CHUNK = 256 * 1024

_MEMORY_BYTES = 2 * 1024**3
"""What one process of git may take of its own, or half of what the machine has where that is less: what a hostile pack becomes in
memory has no other bound."""
_ADDRESS_BYTES = 8 * 1024**3
"""With the files that it maps, which take memory only while there is some to spare."""
_FILE_BYTES = 64 * 1024**3
"""The largest file that it may write where a call does not say less."""
_CORES = 2
"""How many cores it may keep busy: `seconds` of each."""
_LIMITED = """\
for limit in "-d $1" "-v $2" "-Ht $(($3 + 5))" "-St $3" "-f $4" "-c 0"; do
    ulimit ${limit% *} "${limit#* }"
done 2> /dev/null
shift 4
exec "$@"
"""
"""POSIX sh: limits that hold from git's first instruction on, and for all that it starts; where this process has less, that."""

_FSCK = {
    **dict.fromkeys(("zeroPaddedFilemode", "badTimezone", "missingSpaceBeforeDate", "missingNameBeforeEmail"), "warn"),
    **dict.fromkeys(("hasDot", "hasDotdot", "hasDotgit", "fullPathname", "nullSha1"), "error"),
}
"""The faults that are warnings are those of tools of long ago, in the history of well-known projects; they can do no harm. Those
that are errors, for git itself only warns of them, are names that lead out of a work tree, or into its git folder."""

STRICT: Final = "--strict=" + ",".join(f"{fault}={level}" for fault, level in _FSCK.items())
"""What `git index-pack` checks the objects of strangers with: git 2.39 checks none that come in a bundle."""

_CONFIG = """\
# Written by Automagik at each start: what git on this host is told, whatever a repository says.
[core]
	hooksPath = /dev/null
	fsmonitor = false
	attributesFile = /dev/null
	excludesFile = /dev/null
	bigFileThreshold = 16m
	packedGitWindowSize = 64m
	packedGitLimit = 1g
[pack]
	threads = @CORES@
	windowMemory = 128m
[safe]
	directory = *
[init]
	defaultBranch = main
	templateDir =
[protocol]
	allow = never
[protocol "file"]
	allow = user
[protocol "https"]
	allow = user
[protocol "http"]
	allow = user
[protocol "ssh"]
	allow = user
[transfer]
	fsckObjects = true
[fetch]
	fsckObjects = true
	recurseSubmodules = false
	writeCommitGraph = false
[fetch "fsck"]
@FSCK@
[submodule]
	recurse = false
[gc]
	auto = 0
[maintenance]
	auto = false
[http]
	followRedirects = false
	lowSpeedLimit = 1000
	lowSpeedTime = 60
"""


class GitFailed(AutomagikError):
    """Git did not do what it was asked; `stderr` is what it said, its last 4 KB."""

    code = "git_failed"
    title = "Git failed"
    status = 502

    def __init__(self, detail: str, *, hint: str | None = None, stderr: str = "") -> None:
        super().__init__(detail, hint=hint)
        self.stderr = stderr


def is_ref_name(name: str) -> bool:
    """Whether `name` can stand after `refs/heads/`: the rules of `git check-ref-format`, and printable ASCII only."""
    if not name or len(name) > 200 or not name.isascii() or not name.isprintable() or name == "@":
        return False
    if any(mark in name for mark in ("..", "//", "@{", " ", "~", "^", ":", "?", "*", "[", "\\")):
        return False
    parts = name.split("/")
    return not name.startswith("-") and not any(
        not part or part.startswith(".") or part.endswith((".", ".lock")) for part in parts
    )


def config_environment(entries: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Settings for one call of git, given by its environment: a command line can be read by everybody on the machine."""
    env = {"GIT_CONFIG_COUNT": str(len(entries))}
    for index, (name, value) in enumerate(entries):
        env[f"GIT_CONFIG_KEY_{index}"] = name
        env[f"GIT_CONFIG_VALUE_{index}"] = value
    return env


@dataclass(frozen=True, slots=True)
class _Done:
    code: int
    stdout: bytes
    stderr: str


class Git:
    """Runs git: with our own settings and no others, no hooks, no submodules, an explicit environment, limits of time and size."""

    def __init__(self, home: Path) -> None:
        """`home` is a folder of ours: git's settings are written there."""
        self._home = home
        self._config = home / "gitconfig"
        self._program: str | None = None

    async def open(self) -> None:
        """Make ready. Raises: ConfigurationError where git is missing."""
        self._program = await asyncio.to_thread(shutil.which, "git")
        if self._program is None:
            raise ConfigurationError(
                "Workflows need git, which this host does not have.", hint="Install it: apt-get install git"
            )
        await asyncio.to_thread(self._write_config)

    async def run(
        self,
        *arguments: str,
        repository: Path | None = None,
        stdin: bytes | tuple[Path, int] | None = None,
        env: Mapping[str, str] | None = None,
        allow: Sequence[Protocol] = (),
        host_home: bool = False,
        seconds: float = _SECONDS,
        max_bytes: int = _OUTPUT_BYTES,
        file_bytes: int = _FILE_BYTES,
    ) -> bytes:
        """What git printed.

        `repository` is a bare repository of ours; `stdin` may be a file, read from an offset on; `allow` says what git may speak
        to; `host_home` gives it the home of this process's account, where ssh and helpers find the host's credentials. It writes
        no file of over `file_bytes`, and takes 2 GB of memory at most, and of processor time twice `seconds`.

        Raises:
            GitFailed: it ended with an error, or came to a limit.
            TooLarge: it printed over `max_bytes`.
        """
        done = await self._call(
            arguments, repository, stdin, env or {}, allow, host_home, seconds, max_bytes, file_bytes
        )
        if done.code != 0:
            raise GitFailed(f"`git {_verb(arguments)}` failed: {_why(done)}.", stderr=done.stderr)
        return done.stdout

    async def ask(self, *arguments: str, repository: Path) -> bool:
        """Whether git answers yes (0) and not no (1). Raises GitFailed for any other end."""
        done = await self._call(arguments, repository, None, {}, (), False, _SECONDS, _OUTPUT_BYTES)
        if done.code not in {0, 1}:
            raise GitFailed(f"`git {_verb(arguments)}` failed: {_why(done)}.", stderr=done.stderr)
        return done.code == 0

    async def line(self, *arguments: str, repository: Path) -> str | None:
        """The one line that git printed, None where it found nothing (it ended with an error, or printed nothing)."""
        done = await self._call(arguments, repository, None, {}, (), False, _SECONDS, _OUTPUT_BYTES)
        text = done.stdout.decode("utf-8", "replace").strip()
        return text.splitlines()[0] if done.code == 0 and text else None

    async def host_credentials(self) -> list[tuple[str, str]]:
        """What this account's own git settings say about credentials and HTTP (helpers, proxy), and nothing else of them."""
        done = await self._call(
            ("config", "--global", "--null", "--get-regexp", r"^(credential|http)\."),
            None,
            None,
            {"GIT_CONFIG_GLOBAL": str(_account_home() / ".gitconfig")},
            (),
            True,
            10,
            _OUTPUT_BYTES,
        )
        entries: list[tuple[str, str]] = []
        for entry in done.stdout.decode("utf-8", "replace").split("\0"):
            name, _, value = entry.partition("\n")
            if name and name.lower() != "http.followredirects":
                entries.append((name, value))
        return entries

    # -- inside

    def _write_config(self) -> None:
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self._home / f"gitconfig.{os.getpid()}"
        levels = "\n".join(f"\t{fault} = {level}" for fault, level in _FSCK.items())
        written = _CONFIG.replace("@FSCK@", levels).replace("@CORES@", str(_CORES))
        fresh.write_text(written, encoding="utf-8")
        fresh.chmod(stat.S_IRUSR)
        fresh.replace(self._config)

    def _environment(self, allow: Sequence[Protocol], *, host_home: bool) -> dict[str, str]:
        return {
            "PATH": _PATH,
            "HOME": str(_account_home() if host_home else self._home),
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(self._config),
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "/bin/false",
            "SSH_ASKPASS": "/bin/false",
            "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oStrictHostKeyChecking=yes",
            "GIT_SSH_VARIANT": "ssh",
            "GIT_ALLOW_PROTOCOL": ":".join(allow),
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_PAGER": "cat",
            "GIT_EDITOR": "/bin/false",
            "GIT_AUTHOR_NAME": "Automagik",
            "GIT_AUTHOR_EMAIL": "automagik@localhost",
            "GIT_COMMITTER_NAME": "Automagik",
            "GIT_COMMITTER_EMAIL": "automagik@localhost",
        }

    async def _call(
        self,
        arguments: Sequence[str],
        repository: Path | None,
        stdin: bytes | tuple[Path, int] | None,
        env: Mapping[str, str],
        allow: Sequence[Protocol],
        host_home: bool,
        seconds: float,
        max_bytes: int,
        file_bytes: int = _FILE_BYTES,
    ) -> _Done:
        assert self._program is not None, "Git is not open"
        where = [] if repository is None else [f"--git-dir={repository}"]
        opened = await asyncio.to_thread(_open_at, *stdin) if isinstance(stdin, tuple) else None
        try:
            process = await asyncio.create_subprocess_exec(
                *_limited(seconds, file_bytes),
                self._program,
                *where,
                *arguments,
                stdin=opened if opened is not None else DEVNULL if stdin is None else PIPE,
                stdout=PIPE,
                stderr=PIPE,
                cwd=self._home,
                env={**self._environment(allow, host_home=host_home), **env},
                start_new_session=True,
            )
        finally:
            if opened is not None:
                os.close(opened)
        try:
            async with asyncio.timeout(seconds):
                _, stdout, stderr = await asyncio.gather(
                    _feed(process, stdin if isinstance(stdin, bytes) else None),
                    _read(process, max_bytes),
                    _tail(process),
                )
                code = await process.wait()
        except TimeoutError:
            raise GitFailed(
                f"`git {_verb(arguments)}` did not end within {seconds:g} seconds.",
                hint="Is the repository very large, or its server slow? Try again.",
            ) from None
        finally:
            await _end(process)
        return _Done(code, stdout, stderr)


def _account_home() -> Path:
    return Path(pwd.getpwuid(os.getuid()).pw_dir)


def _open_at(path: Path, offset: int) -> int:
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    os.lseek(opened, offset, os.SEEK_SET)
    return opened


def _limited(seconds: float, file_bytes: int) -> tuple[str, ...]:
    """What stands before a command to limit it. Limits are in KiB, seconds and blocks of 512 bytes, as `ulimit` has them."""
    numbers = (_memory_bytes() // 1024, _ADDRESS_BYTES // 1024, math.ceil(seconds * _CORES), file_bytes // 512)
    return ("/bin/sh", "-c", _LIMITED, "sh", *map(str, numbers))


async def _feed(process: Process, stdin: bytes | None) -> None:
    if stdin is None or process.stdin is None:
        return
    try:
        process.stdin.write(stdin)
        await process.stdin.drain()
    except (BrokenPipeError, ConnectionResetError):  # it ended early, and its end says why
        pass
    finally:
        process.stdin.close()


async def _read(process: Process, max_bytes: int) -> bytes:
    assert process.stdout is not None
    found = bytearray()
    while chunk := await process.stdout.read(_CHUNK):
        found += chunk
        if len(found) > max_bytes:
            raise TooLarge(f"Git's answer is over {max_bytes} bytes.", hint="Ask for less, or fetch the bundle.")
    return bytes(found)


async def _tail(process: Process) -> str:
    assert process.stderr is not None
    kept = b""
    while chunk := await process.stderr.read(_CHUNK):
        kept = (kept + chunk)[-_STDERR_BYTES:]
    return kept.decode("utf-8", "replace")


async def _end(process: Process) -> None:
    """End the process with all that it started, and be sure that it is dead."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _verb(arguments: Sequence[str]) -> str:
    return next((argument for argument in arguments if not argument.startswith("-")), "")


def _memory_bytes() -> int:
    return min(_MEMORY_BYTES, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)


def _why(done: _Done) -> str:
    """Why git ended as it did, in words; what it said itself, else."""
    told = _last_line(done.stderr)
    if "out of memory" in told.lower() or "unable to create thread" in told.lower():
        return f"it would take more than {_memory_bytes() // 1024**2} MB of memory ({told})"
    number = done.code - 128 if done.code > 128 else -done.code
    match number:
        case signal.SIGXCPU:
            return "it would take more processor time than it may"
        case signal.SIGXFSZ:
            return "it would write a file that is larger than it may"
        case signal.SIGSEGV:
            return "it came to the end of its stack: something is nested too deep"
        case _:
            return told or f"it ended with {done.code}"


def _last_line(stderr: str) -> str:
    """What git says went wrong: its last `fatal:` or `error:` line, else its last line; never over 300 characters."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("fatal:", "error:"))] or lines
    if len(told) > 1 and told[-1].startswith("fatal: fsck error"):  # which one, the line before it says
        told.pop()
    return told[-1][:300].rstrip(".") if told else ""
