"""The filter's numbers are the kernel's own, and a container engine gets the same rules."""

import json
import re
import struct
from pathlib import Path

import pytest

from automagik.sandbox.seccomp import MACHINES, REFUSED, docker_profile, filter_program

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
NEWER = {"open_tree_attr"}
"""Calls that the headers of an older distribution don't have yet."""


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    if not HEADERS[machine].exists():
        return  # the headers are a package of their own
    column = list(MACHINES).index(machine)
    known = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text()))
    wrong = {
        name: numbers[column]
        for name, numbers in REFUSED.items()
        if numbers[column] is not None and name not in NEWER and int(known.get(name, -1)) != numbers[column]
    }
    assert wrong == {}


@pytest.mark.parametrize("machine", MACHINES)
def test_every_jump_of_the_program_stays_in_it_and_every_path_returns(machine: str) -> None:
    program = filter_program(machine)
    assert program is not None
    lines = [struct.unpack("<HBBI", program[at : at + 8]) for at in range(0, len(program), 8)]
    assert len(lines) < 4096  # BPF_MAXINSNS
    for at, (code, if_true, if_false, _) in enumerate(lines):
        if code & 0x07 == 0x05:
            assert at + 1 + max(if_true, if_false) < len(lines)
        assert code in (0x20, 0x15, 0x35, 0x45, 0x06)
    assert lines[-1][0] == 0x06


def test_a_machine_that_is_not_known_has_no_filter() -> None:
    assert filter_program("riscv64") is None


def test_an_engines_profile_is_json_with_the_same_calls() -> None:
    profile = json.loads(json.dumps(docker_profile()))
    names = {name for rule in profile["syscalls"] for name in rule["names"]}
    assert names >= {*REFUSED, "clone", "clone3", "unshare", "socket", "ioctl", "io_uring_setup"}
    assert profile["defaultAction"] == "SCMP_ACT_ALLOW"
