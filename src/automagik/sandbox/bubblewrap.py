"""Sandboxes of bubblewrap: the command line that makes one, and whether this machine lets one be made.

Inside there is no network but a loopback of its own, a read-only system, no user of the host, a `/tmp` and a home that
are limited in size and gone at the end, and what is mounted by name. As root and as a user; a process inside is user
10001 in its own eyes, has no capability, can gain none, and is never the machine's root.
"""

import asyncio
import contextlib
import os
import platform
import re
import resource
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from automagik.errors import ConfigurationError
from automagik.sandbox.confinement import AGENT_UID, HOME, Availability, Confinement, Limits
from automagik.sandbox.launch import ENTRY, LAUNCH
from automagik.sandbox.seccomp import MACHINES, filter_program
from automagik.sandbox.system import SYSTEM_FILES, folders_above, system_mounts
from automagik.sandbox.troubles import explain

__all__ = ["Availability", "Bubblewrap", "environment_inside"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOSTNAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_LONGEST = 96 * 1024  # Linux takes 128 KiB in one argument or variable
_NICE = 5
_END_SECONDS = 2.0
_TRY_SECONDS = 15.0
_TRY = "id -u; id -g; grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; ls /sys 2>/dev/null; true"
_TRIED: Final = re.compile(
    rf"{AGENT_UID}\n{AGENT_UID}\nCapEff:\s+0+\nCapBnd:\s+[0-9a-f]+\nNoNewPrivs:\s+1\nSeccomp:\s+2\n"
)


class Bubblewrap:
    """Makes the command lines of sandboxes. `root`: whether the platform is the machine's root (asked, where not said)."""

    def __init__(self, *, root: bool | None = None) -> None:
        self._root = os.geteuid() == 0 if root is None else root
        self._works: Availability | None = None

    @property
    def owner(self) -> tuple[int, int] | None:
        """The user and group that writable mounts and sockets must belong to on the host; None: to the platform's own."""
        return (AGENT_UID, AGENT_UID) if self._root else None

    async def check(self) -> Availability:
        """Whether a sandbox can be made here, seen by making one. Success is remembered, a failure tried again."""
        if self._works is None:
            tried = await self._try()
            if not tried.works:
                return tried
            self._works = tried
        return self._works

    def argv(self, confinement: Confinement, *, status_fd: int | None = None) -> list[str]:
        """The command line of a sandbox. It is to be started with `environment(confinement)` as its whole environment.

        The process that it starts ends with the command's exit code (128 and the signal's number), and so does everything
        inside when the command ends or the process is killed. `status_fd`, which must be inherited, gets JSON objects:
        `child-pid`, the sandbox's init in the host's eyes, and `exit-code` at the end. Looks at the disk.

        Raises: ConfigurationError.
        """
        machine = platform.machine()
        if machine not in MACHINES:
            raise ConfigurationError(f"There is no sandbox for machines of the kind {machine}.")
        if not _HOSTNAME.fullmatch(confinement.hostname):
            raise ConfigurationError(f"'{confinement.hostname}' is no host name.")
        status = "-" if status_fd is None else str(status_fd)
        argv = [_program("perl"), "-e", LAUNCH, "1" if self._root else "0", machine, str(_NICE)]
        argv += [status, _program("bwrap"), *self._apart(confinement)]
        argv += system_mounts(limits=confinement.limits, owned=not self._root)
        for mount in confinement.mounts:
            checked = mount.checked()
            argv += [
                *folders_above(checked.target),
                "--bind" if checked.writable else "--ro-bind",
                str(checked.source),
                checked.target,
            ]
        argv += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", confinement.cwd]
        if status_fd is not None:
            argv += ["--json-status-fd", status]
        argv += ["--", *self._entry(confinement.limits), *confinement.command]
        if any(len(word.encode()) > _LONGEST or "\0" in word for word in argv):
            raise ConfigurationError("A word of the sandbox's command is too long, or has a NUL in it.")
        return argv

    def environment(self, confinement: Confinement) -> dict[str, str]:
        """The environment to start `argv` with: holds what must not stand in a list of processes, and nothing of the host.

        Raises: ConfigurationError.
        """
        program = filter_program()
        if program is None:
            raise ConfigurationError(f"There is no system call filter for machines of the kind {platform.machine()}.")
        environment = {"SECCOMP": program.hex()}
        for number, (_, text) in enumerate(SYSTEM_FILES):
            environment[f"DATA_{number}"] = text.replace("{hostname}", confinement.hostname)
        for name, value in environment_inside(confinement.env).items():
            if not _NAME.fullmatch(name) or "\0" in value or len(value.encode()) > _LONGEST:
                raise ConfigurationError(f"The variable '{name[:100]}' can't be given to a sandbox.")
            environment[f"ENV_{name}"] = value
        return environment

    def _apart(self, confinement: Confinement) -> list[str]:
        """What is the sandbox's own."""
        apart = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
        apart += [
            "--new-session",
            "--die-with-parent",
            "--as-pid-1",
            "--hostname",
            confinement.hostname,
            "--cap-drop",
            "ALL",
        ]
        if self._root:
            # Given away by what becomes the agent, before the command begins.
            return [*apart, "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"]
        return [*apart, "--unshare-user", "--uid", str(AGENT_UID), "--gid", str(AGENT_UID)]

    def _entry(self, limits: Limits) -> list[str]:
        """The first process inside, which starts the command once it has no right any more and the limits are on it."""
        words = ["/usr/bin/perl", "-e", ENTRY, str(AGENT_UID if self._root else 0), platform.machine(), "@ENV"]
        for kind, wanted in (
            (resource.RLIMIT_NPROC, limits.pids),
            (resource.RLIMIT_FSIZE, limits.file_bytes),
            (resource.RLIMIT_NOFILE, limits.open_files),
        ):
            most = resource.getrlimit(kind)[1]
            words.append(str(wanted if most == resource.RLIM_INFINITY else min(wanted, most)))
        return words

    async def _try(self) -> Availability:
        if sys.platform != "linux":
            return Availability(
                False, "Sandboxes need Linux.", "Run the platform on Linux, or in a Linux virtual machine."
            )
        if platform.machine() not in MACHINES:
            return Availability(False, f"There is no system call filter for machines of the kind {platform.machine()}.")
        for name, package in (("bwrap", "bubblewrap"), ("perl", "perl"), ("bash", "bash")):
            if shutil.which(name) is None:
                return Availability(False, f"The program {name} is missing.", f"apt-get install -y {package}")
        trial = Confinement(mounts=(), env={}, cwd="/", command=("/bin/sh", "-c", _TRY), limits=Limits())
        process = await asyncio.create_subprocess_exec(
            *await asyncio.to_thread(self.argv, trial),
            env=self.environment(trial),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(_TRY_SECONDS):
                output, errors = await process.communicate()
        except TimeoutError:
            return Availability(False, f"A sandbox did not start within {_TRY_SECONDS:g} seconds.")
        finally:
            if process.returncode is None:  # also where who asked is cancelled
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                with contextlib.suppress(TimeoutError):  # whoever still holds its output is not waited for
                    await asyncio.wait_for(process.communicate(), _END_SECONDS)
        if process.returncode != 0:
            return await asyncio.to_thread(explain, errors.decode(errors="replace"), root=self._root)
        if not _TRIED.fullmatch(output.decode(errors="replace")):
            return Availability(
                False, f"A sandbox started, but is not closed: {output.decode(errors='replace')[:300]!r}"
            )
        return Availability(True)


def environment_inside(env: Mapping[str, str]) -> dict[str, str]:
    """All variables of a command inside, with the defaults that `env` does not replace."""
    return {
        "HOME": HOME,
        "USER": "agent",
        "LOGNAME": "agent",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",  # noqa: S108 - the sandbox's own
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
        **env,
    }


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise ConfigurationError(f"The program {name} is missing.", hint="See `automagik doctor`.")
    return str(Path(found).resolve())
