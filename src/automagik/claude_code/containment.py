"""How a container of a workflow is closed: its whole configuration, as the engine takes it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from automagik.claude_code.executor import Inside
from automagik.claude_code.image_facts import ImageFacts
from automagik.sandbox.confinement import AGENT_UID, Limits
from automagik.sandbox.seccomp import docker_profile

__all__ = ["Containment", "container_config"]

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Containment:
    """A command in a container, and what it gets to see."""

    image: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    limits: Limits
    workspace: str
    """The names of the volumes."""
    credentials: str
    writable: bool
    sockets: Path | None
    """A folder of the engine's host."""
    toolchain: str | None = None
    toolchain_writable: bool = False
    open_input: bool = False
    kept_log: bool = False
    """Whether the engine keeps what the command writes; else it goes to whoever is attached."""
    facts: ImageFacts = field(default_factory=ImageFacts)
    """What the image says of itself."""


def container_config(closed: Containment, inside: Inside) -> dict[str, Any]:
    """The configuration: no network, no capability, no way to a new one, nothing writable but volumes and memory."""
    limits = closed.limits
    return {
        "Image": closed.image,
        "Entrypoint": [closed.command[0]],
        "Cmd": list(closed.command[1:]),
        "Env": _variables(closed, inside),
        "WorkingDir": inside.workspace,
        "User": f"{AGENT_UID}:{AGENT_UID}",
        "Hostname": "sandbox",
        "Healthcheck": {"Test": ["NONE"]},
        "NetworkDisabled": True,
        "OpenStdin": closed.open_input,
        "StdinOnce": closed.open_input,
        "HostConfig": {
            "NetworkMode": "none",
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges", f"seccomp={json.dumps(docker_profile())}"],
            "ReadonlyRootfs": True,
            "Init": True,
            "IpcMode": "private",
            "PidsLimit": limits.pids,
            "Memory": limits.memory_bytes,
            "MemorySwap": limits.memory_bytes,  # the two together: no swap
            "NanoCpus": int(limits.cpus * 1e9),
            "ShmSize": limits.tmp_bytes,
            "OomScoreAdj": 500,
            "Ulimits": [
                _ulimit("nofile", limits.open_files),
                _ulimit("fsize", limits.file_bytes),
                _ulimit("core", 0),
            ],
            # Docker's own default for a tmpfs has noexec, but builds run what they put into /tmp.
            "Tmpfs": {
                inside.tmp: f"rw,exec,nosuid,nodev,mode=1777,size={limits.tmp_bytes}",
                inside.home: f"rw,exec,nosuid,nodev,mode=0700,uid={AGENT_UID},gid={AGENT_UID},size={limits.tmp_bytes}",
            },
            "Mounts": _mounts(closed, inside),
            "RestartPolicy": {"Name": "no"},
            # Never rotated: after a restart of the platform the log is read from its beginning.
            "LogConfig": {"Type": "json-file" if closed.kept_log else "none", "Config": {}},
        },
    }


def _variables(closed: Containment, inside: Inside) -> list[str]:
    env = _environment(closed, inside)
    # A name without a value takes the image's own variable away.
    taken = [name for name in closed.facts.steering if name not in env]
    return [*(f"{name}={value}" for name, value in env.items()), *taken]


def _environment(closed: Containment, inside: Inside) -> dict[str, str]:
    env = {
        "HOME": inside.home,
        "TMPDIR": inside.tmp,
        "LANG": "C.UTF-8",
        "WORKSPACE": inside.workspace,
        "CREDENTIALS": inside.credentials,
        **closed.env,
    }
    # An image's own folders come first: they are why a workflow names it.
    folders = list(closed.facts.path)
    folders += [folder for folder in env.get("PATH", _DEFAULT_PATH).split(":") if folder not in folders]
    if closed.toolchain is not None:
        env["TOOLCHAIN"] = inside.toolchain
        folders.insert(0, f"{inside.toolchain}/bin")
    return {**env, "PATH": ":".join(folders)}


def _mounts(closed: Containment, inside: Inside) -> list[dict[str, Any]]:
    mounts = [
        _volume(closed.workspace, inside.workspace, writable=closed.writable),
        _volume(closed.credentials, inside.credentials, writable=closed.writable),
    ]
    if closed.sockets is not None:
        mounts.append({"Type": "bind", "Source": str(closed.sockets), "Target": inside.sockets, "ReadOnly": True})
    if closed.toolchain is not None:
        mounts.append(_volume(closed.toolchain, inside.toolchain, writable=closed.toolchain_writable))
    # What an image declares as a volume would be one of the engine's, without a bound: it is memory, as the other folders are.
    taken = {inside.tmp, inside.home, *(str(mount["Target"]) for mount in mounts)}
    size = {"SizeBytes": closed.limits.tmp_bytes, "Mode": 0o1777}
    mounts += [
        {"Type": "tmpfs", "Target": path, "TmpfsOptions": size} for path in closed.facts.volumes if path not in taken
    ]
    return mounts


def _volume(name: str, target: str, *, writable: bool) -> dict[str, Any]:
    return {"Type": "volume", "Source": name, "Target": target, "ReadOnly": not writable}


def _ulimit(name: str, value: int) -> dict[str, Any]:
    return {"Name": name, "Soft": value, "Hard": value}
