"""What a command in a sandbox is, sees and may use; how it starts, and how it ends with all that it left behind."""

import errno
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from rooms import Room

from automagik.errors import ConfigurationError
from automagik.sandbox.bubblewrap import Bubblewrap
from automagik.sandbox.confinement import Confinement, Limits, Mount
from automagik.testing.needs import need

pytestmark = pytest.mark.anyio

MIB = 1024**2


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_until_dead(pids: list[int], seconds: float = 2) -> None:
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "still alive"
        time.sleep(0.01)


def inner_pids(name: str) -> list[int]:
    """Host pids of processes with this argument."""
    found: list[int] = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[:2] == [b"sleep", name.encode()]:
                found.append(int(entry))
    return found


async def test_this_machine_can_make_sandboxes_and_says_so() -> None:
    need("bubblewrap")
    available = await Bubblewrap().check()
    assert available.works
    assert available.reason is None


def test_a_command_is_the_agent_and_has_no_right(place: Room) -> None:
    ran = place.sh("id -u; id -g; id -G; grep -E '^(Cap...|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'")
    assert ran.out.split() == [
        *["10001"] * 3,
        *[f"Cap{name}:{'0' * 16}" for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")],
        "NoNewPrivs:1",
        "Seccomp:2",
    ]


def test_a_roots_sandbox_is_not_root_on_the_host(place: Room) -> None:
    place.sh("touch made")
    assert (place.folder / "made").stat().st_uid != 0


def test_it_sees_the_system_and_none_of_the_hosts_people(place: Room) -> None:
    ran = place.sh(
        "ls -A / /home /run /var; cut -d: -f1 /etc/passwd; ls /root /mnt /opt /sys /var/lib 2>/dev/null; cat /etc/shadow"
    )
    assert "No such file" in ran.err
    people = ran.out.split("/var:\n")[1].split()
    assert people == ["run", "tmp", "root", "agent", "nobody"]


def test_only_its_own_processes_and_an_empty_network_are_there(place: Room) -> None:
    ran = place.sh(
        "ls -d /proc/[0-9]* | wc -l; tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '; tail -n +2 /proc/net/route"
    )
    count, *network = ran.out.split()
    assert int(count) < 8
    assert "lo" in network
    assert ran.out.splitlines()[-1].strip() == network[-1], "no route leads anywhere"


def test_its_environment_is_what_it_was_given_and_nothing_of_the_host(place: Room) -> None:
    ran = place.run("/usr/bin/env", "-0", env={"TOKEN": "a b'\"c\n=d", "LANG": "C", "EMPTY": ""})
    assert sorted(ran.out.split("\0")) == [
        "",
        "EMPTY=",
        "HOME=/home/agent",
        "LANG=C",
        "LOGNAME=agent",
        "PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
        "SHELL=/bin/bash",
        "TMPDIR=/tmp",
        "TOKEN=a b'\"c\n=d",
        "USER=agent",
    ]


def test_no_variable_stands_in_a_list_of_processes(place: Room) -> None:
    process = place.start(place.confine("sleep", "1234.5", env={"TOKEN": "s3cret-token"}))
    try:
        deadline = time.monotonic() + 10
        while not inner_pids("1234.5"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        lines = [
            path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.parent.name != str(os.getpid())
        ]
        assert not any(b"s3cret-token" in line for line in lines)
    finally:
        process.kill()
        process.communicate()


def test_what_is_mounted_can_be_used_as_it_says(place: Room, tmp_path_factory: pytest.TempPathFactory) -> None:
    shown = place.folder.parent / "shown"
    shown.mkdir()
    (shown / "file").write_text("seen")
    mounts = [Mount(shown, "/opt/somewhere/deep", writable=False)]
    ran = place.sh("cat /opt/somewhere/deep/file; touch /opt/somewhere/deep/x; touch /workspace/y", mounts=mounts)
    assert ran.out == "seen"
    assert "Read-only file system" in ran.err
    assert (place.folder / "y").exists()
    assert not (shown / "x").exists()


@pytest.mark.parametrize(
    "source",
    [
        path
        for path in (
            "/",
            "/etc",
            "/root",
            "/proc",
            "/proc/1",
            "/dev/shm",
            "/var/run",
            "/home",
            "/run/dbus",
            "/sys/fs/cgroup",
        )
        if Path(path).exists()
    ],
)
def test_the_hosts_own_folders_are_never_mounted(source: str) -> None:
    with pytest.raises(ConfigurationError):
        Mount(Path(source), "/x").checked()


@pytest.mark.parametrize(
    "target", ["/", "/etc", "/etc/x", "/usr/local/bin/claude", "/proc/x", "relative", "/a/../b", "/a/", "//a"]
)
def test_nothing_is_mounted_over_the_sandboxes_own_system(tmp_path: Path, target: str) -> None:
    with pytest.raises(ConfigurationError):
        Mount(tmp_path, target).checked()


def test_a_source_that_is_a_link_counts_as_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(ConfigurationError, match="/etc"):
        Mount(tmp_path / "link", "/x").checked()


@pytest.mark.parametrize("name", ["A=B", "", "A B", "1A", "A\0"])
def test_a_variable_with_a_wrong_name_is_refused(name: str) -> None:
    confinement = Confinement(mounts=(), env={name: "x"}, cwd="/", command=("true",), limits=Limits())
    with pytest.raises(ConfigurationError):
        Bubblewrap().environment(confinement)


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("exit 7", 7),
        ("kill -TERM $$", 128 + signal.SIGTERM),
        ("kill -KILL $$", 128 + signal.SIGKILL),
        ("exit 255", 255),
    ],
)
def test_it_ends_with_the_commands_exit_code(place: Room, script: str, code: int) -> None:
    assert place.sh(script).code == code


def test_a_program_that_is_not_there_is_127(place: Room) -> None:
    ran = place.run("no-such-program")
    assert ran.code == 127
    assert ran.err == "sandbox: no-such-program: No such file or directory\n"


def test_its_status_tells_the_init_and_the_exit_code(place: Room) -> None:
    reading, writing = os.pipe()
    process = place.start(place.confine("/bin/sh", "-c", "exit 3"), status_fd=writing)
    os.close(writing)
    with os.fdopen(reading) as status:
        said = [json.loads(line) for line in status]
    process.communicate()
    assert {key: value for document in said for key, value in document.items()}.keys() >= {"child-pid", "exit-code"}
    assert said[-1]["exit-code"] == 3


def test_nothing_of_a_command_outlives_it(place: Room) -> None:
    ran = place.sh("setsid sleep 4321.1 >/dev/null 2>&1 & (sleep 4321.1 &) ; disown -a; sleep 0.2")
    assert ran.code == 0
    wait_until_dead(inner_pids("4321.1"))


def test_whoever_kills_what_was_started_kills_all_of_it(place: Room) -> None:
    process = place.start(
        place.confine("/bin/bash", "-c", "trap '' TERM INT HUP; sleep 4321.2 & setsid sleep 4321.2 & wait")
    )
    deadline = time.monotonic() + 10
    while len(inner_pids("4321.2")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pids = inner_pids("4321.2")
    process.kill()
    wait_until_dead(pids)
    process.communicate()


def test_a_command_reads_its_input_and_its_end(place: Room) -> None:
    process = place.start(place.confine("cat"), stdin=-1)
    out, _ = process.communicate("line\n", timeout=20)
    assert out == "line\n"
    assert process.returncode == 0


# -- limits


BOMB = """
import os, signal
made = 0
try:
    while True:
        if os.fork() == 0:
            signal.pause()
        made += 1
except OSError as error:
    print(made, error.errno, flush=True)
    input()
"""


def test_a_fork_bomb_ends_at_the_limit_which_is_each_sandboxes_own(place: Room) -> None:
    limits = Limits(pids=64)
    both = [
        place.start(place.confine("/usr/bin/python3", "-c", BOMB, limits=limits), stdin=subprocess.PIPE)
        for _ in range(2)
    ]
    said: list[str] = []
    for process in both:
        assert process.stdout is not None
        said.append(process.stdout.readline())
    for process in both:
        process.communicate("\n", timeout=30)
    for line in said:
        made, error = map(int, line.split())
        assert error == errno.EAGAIN
        assert 55 <= made <= 64


@pytest.mark.parametrize("folder", ["/tmp", "/home/agent", "/dev/shm"])
def test_what_is_in_memory_is_limited_in_size(place: Room, folder: str) -> None:
    ran = place.sh(
        f"head -c 100M /dev/zero > {folder}/large; stat -c %s {folder}/large", limits=Limits(tmp_bytes=64 * MIB)
    )
    assert "No space left" in ran.err
    assert int(ran.out) <= 64 * MIB


def test_a_file_is_limited_in_size(place: Room) -> None:
    ran = place.sh("head -c 10M /dev/zero > large; stat -c %s large", limits=Limits(file_bytes=MIB))
    assert int(ran.out) == MIB


def test_open_files_are_limited_and_no_core_is_written(place: Room) -> None:
    ran = place.sh("ulimit -Hn; ulimit -Hc; ulimit -n 9999", limits=Limits(open_files=100))
    assert ran.out.split() == ["100", "0"]  # of 1024 bytes
    assert ran.err
    # Of all limits the kernel hands a core to a handler of the host, a program that runs as root there, but of 1 byte.
    ran = place.sh("prlimit --core --noheadings --raw --output SOFT,HARD; (kill -SEGV $BASHPID); echo $?; ls")
    assert ran.out.split() == ["1", "1", "139"]


def test_the_kernel_takes_the_sandbox_first_when_memory_is_short(place: Room) -> None:
    ran = place.sh("cat /proc/self/oom_score_adj; nice")
    score, nice = map(int, ran.out.split())
    assert score >= 500
    assert nice > 0
