"""The system calls that nothing in a sandbox may make, as the filter that the kernel reads, built without a compiler.

What is refused: looking into other processes (ptrace, process_vm_*, pidfd_getfd, kcmp), keyrings, BPF, performance
counters, userfaultfd, io_uring (whose operations no filter sees), mounts and every new namespace, sockets other than
unix, IPv4, IPv6 and the routing table's (vsock leads to the hypervisor), typing into a terminal (TIOCSTI), and what only
a machine's administrator does. 32-bit and x32 calls, whose numbers are others, end the process or are unknown.

Sources: numbers from the kernel's `arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h`;
the filter's form from `Documentation/userspace-api/seccomp_filter.rst` and `include/uapi/linux/{bpf_common,seccomp,audit}.h`;
flags of clone from `include/uapi/linux/sched.h`; requests of ioctl from `include/uapi/asm-generic/ioctls.h`.
"""

import platform
import struct
from errno import EAFNOSUPPORT, ENOSYS, EPERM

from automagik.types import JsonObject

__all__ = ["MACHINES", "REFUSED", "docker_profile", "filter_program"]

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""The machines that there is a filter for, and what the kernel calls them (`AUDIT_ARCH_*`)."""

REFUSED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    # the kernel's own stores and machines
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "lookup_dcookie": (212, 18),
    "syslog": (103, 116),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "fanotify_init": (300, 262),
    # the machine
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
}
"""Refused as not permitted: the numbers on x86_64 and aarch64."""

_UNKNOWN: dict[str, tuple[int, int]] = {
    # As if the kernel had none, so that programs take the older way, where the filter can read what is asked.
    "clone3": (435, 435),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
}
_CLONE = (56, 220)
_UNSHARE = (272, 97)
_SOCKET = (41, 198)
_IOCTL = (16, 29)

_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
_NEW_TIME = 0x80  # CLONE_NEWTIME; of clone's flags these bits are the signal
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
_AF_NETLINK = 16
_MOST_FAMILIES = 64  # AF_MAX is 46
_MOST_PROTOCOLS = 32  # MAX_LINKS of netlink
_NETLINK_ROUTE = 0
_TERMINAL_REQUESTS = (0x5412, 0x541C, 0x5423)  # TIOCSTI, TIOCLINUX, TIOCSETD
_X32_BIT = 0x40000000

_ALLOW = 0x7FFF0000
_KILL = 0x80000000
_ERRNO = 0x00050000

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_ANY_OF = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K

_NR, _ARCH = 0, 4  # offsets in struct seccomp_data; both machines are little-endian, so an argument's low half is first


def filter_program(machine: str | None = None) -> bytes | None:
    """The filter for a machine (this one, where none is named), None where there is none for it."""
    machine = machine or platform.machine()
    if machine not in MACHINES:
        return None
    column = list(MACHINES).index(machine)
    lines = [_line(_LOAD, _ARCH), _line(_EQUAL, MACHINES[machine], 1, 0), _line(_RETURN, _KILL), _line(_LOAD, _NR)]
    if machine == "x86_64":
        lines += [_line(_AT_LEAST, _X32_BIT, 0, 1), _line(_RETURN, _ERRNO | ENOSYS)]
    for numbers in REFUSED.values():
        number = numbers[column]
        if number is not None:
            lines += _refuse(number, EPERM)
    for numbers in _UNKNOWN.values():
        lines += _refuse(numbers[column], ENOSYS)
    lines += _when(_CLONE[column], _argument(0), [_line(_ANY_OF, _NEW_NAMESPACES, 0, 1), _error(EPERM)])
    lines += _when(_UNSHARE[column], _argument(0), [_line(_ANY_OF, _NEW_NAMESPACES | _NEW_TIME, 0, 1), _error(EPERM)])
    lines += _when(_SOCKET[column], _argument(0), _families())
    lines += _when(
        _IOCTL[column], _argument(1), [line for request in _TERMINAL_REQUESTS for line in _refuse(request, EPERM)]
    )
    lines.append(_line(_RETURN, _ALLOW))
    return b"".join(lines)


def docker_profile() -> JsonObject:
    """The same rules, as a container engine takes them (`--security-opt seccomp=`)."""
    rules: list[JsonObject] = [
        {"names": list(REFUSED), "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM},
        {"names": list(_UNKNOWN), "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS},
    ]
    rules += [_rule("clone", EPERM, _has(0, flag)) for flag in _bits(_NEW_NAMESPACES)]
    rules += [_rule("unshare", EPERM, _has(0, flag)) for flag in _bits(_NEW_NAMESPACES | _NEW_TIME)]
    refused = [family for family in range(_MOST_FAMILIES) if family not in (*_FAMILIES, _AF_NETLINK)]
    rules += [_rule("socket", EAFNOSUPPORT, _is(0, family)) for family in refused]
    protocols = [protocol for protocol in range(_MOST_PROTOCOLS) if protocol != _NETLINK_ROUTE]
    rules += [_rule("socket", EAFNOSUPPORT, _is(0, _AF_NETLINK), _is(2, protocol)) for protocol in protocols]
    rules += [_rule("ioctl", EPERM, _is(1, request)) for request in _TERMINAL_REQUESTS]
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
        "syscalls": list(rules),
    }


def _rule(name: str, error: int, *tests: JsonObject) -> JsonObject:
    return {"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": error, "args": list(tests)}


def _has(index: int, flag: int) -> JsonObject:
    return {"index": index, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ"}


def _is(index: int, value: int) -> JsonObject:
    """The argument's low half is this value: the kernel looks at no more, so bits above it must not hide it."""
    return {"index": index, "value": 0xFFFFFFFF, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}


def _bits(mask: int) -> list[int]:
    return [1 << bit for bit in range(32) if mask >> bit & 1]


def _families() -> list[bytes]:
    """The accumulator holds the family: the usual ones pass, of netlink only the routing table."""
    lines: list[bytes] = []
    for family in _FAMILIES:
        lines += [_line(_EQUAL, family, 0, 1), _line(_RETURN, _ALLOW)]
    return [
        *lines,
        _line(_EQUAL, _AF_NETLINK, 0, 3),
        _argument(2),
        _line(_EQUAL, _NETLINK_ROUTE, 0, 1),
        _line(_RETURN, _ALLOW),
        _error(EAFNOSUPPORT),
    ]


def _when(number: int, load: bytes, body: list[bytes]) -> list[bytes]:
    """If the call is this one: load an argument, look at it, and allow what the body lets through."""
    return [_line(_EQUAL, number, 0, len(body) + 2), load, *body, _line(_RETURN, _ALLOW)]


def _refuse(value: int, error: int) -> list[bytes]:
    return [_line(_EQUAL, value, 0, 1), _error(error)]


def _error(number: int) -> bytes:
    return _line(_RETURN, _ERRNO | number)


def _argument(index: int) -> bytes:
    return _line(_LOAD, 16 + 8 * index)


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)
