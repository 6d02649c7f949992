"""Why bubblewrap can't make a sandbox here: its own words, and the machine's settings, turned into what to do about it."""

from pathlib import Path

from automagik.sandbox.confinement import Availability

__all__ = ["explain"]

_PERSIST = "write it to /etc/sysctl.d/ to keep it"
_DENIED = ("no permissions", "operation not permitted", "permission denied", "uid map", "user namespace", "namespace")


def explain(said: str, *, root: bool) -> Availability:
    """The reason and the remedy, from what bubblewrap said and how the kernel is set. Reads files of /proc."""
    text = " ".join(said.split())[-400:]
    lowered = text.lower()
    if "unknown option" in lowered:
        return Availability(False, f"This bubblewrap is too old: {text}", "Install bubblewrap 0.7 or newer.")
    for name, wrong, right in (
        ("user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
    ):
        if _read(Path("/proc/sys", name)) == wrong and (not root or name.startswith("user/")):
            setting = right.partition("=")[0]
            return Availability(
                False,
                f"The kernel's setting {setting} is {wrong}, so user namespaces are refused: {text}",
                f"sysctl -w {right}   # as root; {_PERSIST}",
            )
    if not any(word in lowered for word in _DENIED):
        return Availability(False, f"Bubblewrap fails: {text}")
    if _in_chroot() or (root and _refused_without_a_filter()):
        return Availability(
            False,
            f"This process seems to be in a chroot, where Linux makes no user namespaces: {text}",
            "Run the platform outside the chroot, or set AUTOMAGIK_EXECUTOR=docker.",
        )
    if any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")):
        return Availability(
            False,
            f"This container may not make namespaces: {text}",
            "Start it with `--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt "
            "systempaths=unconfined --cap-add SYS_ADMIN`, or set AUTOMAGIK_EXECUTOR=docker.",
        )
    return Availability(
        False,
        f"This machine refuses namespaces: {text}",
        "Allow user namespaces to the platform's user, or set AUTOMAGIK_EXECUTOR=docker.",
    )


def _in_chroot() -> bool:
    """Whether this process's root is no mount point: the root of a mount namespace is one. (A chroot may be one, too.)"""
    mounts = _read(Path("/proc/self/mountinfo")) or ""
    return not any(line.split()[4:5] == ["/"] for line in mounts.splitlines())


def _refused_without_a_filter() -> bool:
    """Whether no filter of system calls can be the reason: then, for root and with the settings as they should be, a chroot is."""
    status = _read(Path("/proc/self/status")) or ""
    return "\nSeccomp:\t0" in status


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
