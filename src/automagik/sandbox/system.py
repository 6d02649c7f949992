"""The system that a sandbox sees: the host's programs read-only, an `/etc` without the host's people, nothing of `/var`."""

from pathlib import Path, PurePosixPath

from automagik.sandbox.confinement import AGENT_UID, HOME, Limits

__all__ = ["SYSTEM_FILES", "folders_above", "system_mounts"]

SYSTEM_FILES: tuple[tuple[str, str], ...] = (
    (
        "/etc/passwd",
        "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\n"
        f"agent:x:{AGENT_UID}:{AGENT_UID}:agent:{HOME}:/bin/bash\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    ("/etc/group", f"root:x:0:\nagent:x:{AGENT_UID}:\nnogroup:x:65534:\n"),
    ("/etc/hosts", "127.0.0.1 localhost {hostname}\n::1 localhost\n"),
    ("/etc/hostname", "{hostname}\n"),
    ("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\nservices: files\nprotocols: files\n"),
    ("/etc/resolv.conf", ""),
)
"""Files made up for the sandbox: who lives there, and that no name can be looked up."""

_COPIED_ETC = (
    "ld.so.cache",
    "localtime",
    "mime.types",
    "os-release",
    "protocols",
    "services",
    "ssl/openssl.cnf",
    "timezone",
)
_MOUNTED_ETC = (
    "alternatives",
    "crypto-policies",
    "fonts",
    "pki/ca-trust",
    "pki/java",
    "pki/tls/certs",
    # Not all of `ssl`: its private keys are open to a group that the platform's user may belong to.
    "ssl/certs",
)
_MOUNTED_ETC_PATTERN = "java-*"
"""Of the host's `/etc`: files are copied, for a mount costs bubblewrap a millisecond; folders are mounted."""

_ROOTS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


def system_mounts(*, limits: Limits, owned: bool) -> list[str]:
    """Bubblewrap's arguments for all but the mounts of a confinement. `owned`: what bubblewrap makes is the agent's own."""
    words = ["--ro-bind", "/usr", "/usr"]
    for name in _ROOTS:
        place = Path("/", name)
        if place.is_symlink():
            words += ["--symlink", str(place.readlink()), str(place)]
        elif place.is_dir():
            words += ["--ro-bind", str(place), str(place)]
    words += _etc()
    # Bubblewrap leaves settings open that are the user namespace's own.
    words += ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev"]
    words += ["--dir", "/run", "--dir", "/var", "--symlink", "../run", "/var/run", "--symlink", "../tmp", "/var/tmp"]  # noqa: S108
    size = str(limits.tmp_bytes)
    # Where bubblewrap is root the folder would be root's: only the agent lives here, so it may as well be everybody's.
    home_mode = "0700" if owned else "0777"
    for mode, place in (("1777", "/tmp"), ("1777", "/dev/shm"), (home_mode, HOME)):  # noqa: S108 - inside
        words += ["--perms", mode, "--size", size, "--tmpfs", place]
    return words


def folders_above(target: str) -> list[str]:
    """Arguments that make the folders in which a mount stands open to the agent, which bubblewrap alone would not."""
    parents = [str(parent) for parent in reversed(PurePosixPath(target).parents) if str(parent) != "/"]
    return [word for parent in parents for word in ("--perms", "0755", "--dir", parent)]


def _etc() -> list[str]:
    words: list[str] = []
    etc = Path("/etc")
    for number, (place, _) in enumerate(SYSTEM_FILES):
        words += ["--perms", "0444", "--file", f"@DATA_{number}", place]
    for place in (etc / name for name in _COPIED_ETC):
        if place.is_file():
            words += [*folders_above(str(place)), "--perms", "0444", "--file", f"@{place}", str(place)]
    for place in (*(etc / name for name in _MOUNTED_ETC), *sorted(etc.glob(_MOUNTED_ETC_PATTERN))):
        if place.is_dir():
            words += [*folders_above(str(place)), "--ro-bind", str(place), str(place)]
    return words
