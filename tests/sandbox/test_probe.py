"""The probe finds nothing in a sandbox, and each hole that was made in one on purpose; what it doesn't say, it has found."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import probe_host
import pytest
from rooms import KINDS, Room, room

from automagik.errors import ConfigurationError
from automagik.sandbox.confinement import AGENT_UID
from automagik.sandbox.probe import (
    ATTEMPTS,
    PROBE,
    ProbeGround,
    ProbeTargets,
    findings,
    probe_command,
    probe_environment,
)
from automagik.sandbox.system import folders_above
from automagik.testing.needs import need

pytestmark = pytest.mark.anyio
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make this hole")

Edit = Callable[[list[str], dict[str, str]], None]


def show(source: str, target: str, *, how: str = "--ro-bind") -> Edit:
    """Mount this, too, where everybody inside gets to it."""
    return insert(*folders_above(target), how, source, target)


def insert(*words: str) -> Edit:
    """Let bubblewrap do this, too, after its own."""

    def edit(argv: list[str], env: dict[str, str]) -> None:
        del env
        at = argv.index("--remount-ro")
        argv[at:at] = words

    return edit


def swap(old: list[str], new: list[str]) -> Edit:
    def edit(argv: list[str], env: dict[str, str]) -> None:
        del env
        at = next(at for at in range(len(argv)) if argv[at : at + len(old)] == old)
        argv[at : at + len(old)] = new

    return edit


def no_filter(argv: list[str], env: dict[str, str]) -> None:
    del argv
    env["SECCOMP"] = struct.pack("<HBBI", 0x06, 0, 0, 0x7FFF0000).hex()


def stay_root(argv: list[str], env: dict[str, str]) -> None:
    swap(
        [str(AGENT_UID), "x86_64" if "x86_64" in argv else "aarch64"],
        ["0", "x86_64" if "x86_64" in argv else "aarch64"],
    )(argv, env)
    swap(["--ro-bind", "/proc/sys", "/proc/sys"], [])(argv, env)


def need_ip() -> None:
    if shutil.which("ip", path="/usr/sbin:/sbin:/usr/bin") is None:
        pytest.skip("iproute2 is missing: apt-get install iproute2")


@dataclass
class Host:
    """A host with things that a sandbox must not reach."""

    room: Room
    targets: ProbeTargets

    def probe(self, *edits: Edit, in_own_network: bool = False) -> dict[str, str]:
        """What the probe finds in a sandbox that was changed so."""
        confinement = self.room.confine(*probe_command(), env=probe_environment(self.targets))
        argv, env = self.room.bubblewrap.argv(confinement), self.room.bubblewrap.environment(confinement)
        for edit in edits:
            edit(argv, env)
        prefix = [*self.room.prefix]
        if in_own_network:
            prefix = ["/usr/bin/unshare", "--net", sys.executable, probe_host.__file__, *prefix]
        done = subprocess.run([*prefix, *argv], env=env, capture_output=True, check=False, timeout=60)
        return {finding.attempt: finding.detail for finding in findings(done.stdout)}


@pytest.fixture
async def host(place: Room) -> Host:
    base = place.folder.parent
    for name in ("data", "run", "home"):
        (base / name).mkdir()
        (base / name).chmod(0o777)
    for name in ("data/secret", "data/other-workspace"):
        (base / name).write_text("the secret")
    (base / "run/other.sock").touch()
    started = int(Path(f"/proc/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[19])
    return Host(
        place,
        ProbeTargets(
            secret="the secret",
            data_file=base / "data/secret",
            workspace_file=base / "data/other-workspace",
            home=base / "home",
            name_servers=(probe_host.NAME_SERVER,),
            gateways=(probe_host.GATEWAY,),
            services=(probe_host.SERVICE,),
            sockets=(base / "run/other.sock",),
            abstract_socket=probe_host.ABSTRACT,
            processes=((os.getpid(), started),),
        ),
    )


async def test_it_finds_nothing_in_a_sandbox(host: Host) -> None:
    assert host.probe() == {}


async def test_it_finds_nothing_where_a_socket_and_a_workspace_are_mounted_as_they_should_be(host: Host) -> None:
    sockets = host.room.folder.parent / "sockets"
    sockets.mkdir()
    assert host.probe(show(str(sockets), "/run/agent")) == {}


@root_only
async def test_it_finds_a_network_that_is_shared(host: Host) -> None:
    need_ip()
    found = host.probe(swap(["--unshare-net"], []), in_own_network=True)
    assert found.keys() == {"network", "dns", "metadata", "gateway", "host_services", "abstract_sockets"}
    assert found["metadata"] == "169.254.169.254 refused"
    assert found["host_services"] == f"{probe_host.SERVICE} connected"


@root_only
async def test_the_host_of_that_test_is_shut_out_by_a_network_of_its_own(host: Host) -> None:
    need_ip()
    assert host.probe(in_own_network=True) == {}


@pytest.mark.parametrize("what", ["data", "run", "home"])
async def test_it_finds_a_folder_of_the_host(host: Host, what: str) -> None:
    folder = str(host.room.folder.parent / what)
    found = host.probe(show(folder, folder))
    assert found.keys() == {"data": {"data_folder", "workspaces"}, "run": {"run_sockets"}, "home": {"home"}}[what]


async def test_it_finds_a_folder_of_the_host_that_can_be_written_to(host: Host) -> None:
    folder = str(host.room.folder.parent / "home")
    found = host.probe(show(folder, folder, how="--bind"))
    assert found.keys() == {"home", "write_outside"}
    assert list(Path(folder).iterdir()) == []


async def test_it_finds_the_whole_of_the_hosts_disk(host: Host) -> None:
    found = host.probe(swap(["--ro-bind", "/usr", "/usr"], ["--bind", "/", "/"]))
    assert found.keys() >= {"data_folder", "workspaces", "home", "run_sockets", "write_outside"}


async def test_it_finds_the_engines_socket(host: Host) -> None:
    fake = host.room.folder.parent / "docker.sock"
    fake.touch()
    assert host.probe(show(str(fake), "/run/docker.sock")).keys() == {"docker_socket"}


async def test_it_finds_the_passwords(host: Host) -> None:
    fake = host.room.folder.parent / "shadow"
    fake.write_text("root:*:1::::::\n")
    assert host.probe(show(str(fake), "/etc/shadow")).keys() == {"shadow"}


async def test_it_finds_a_system_that_can_be_written_to(host: Host) -> None:
    def keep_open(argv: list[str], env: dict[str, str]) -> None:
        swap(["--remount-ro", "/"], [])(argv, env)
        if host.room.bubblewrap.owner:
            insert("--perms", "0777", "--dir", "/srv")(argv, env)

    assert host.probe(keep_open).keys() == {"write_outside"}


async def test_it_finds_processes_of_the_host(host: Host) -> None:
    found = host.probe(swap(["--proc", "/proc"], ["--ro-bind", "/proc", "/proc"]))
    assert "host_processes" in found


async def test_it_finds_disks(host: Host) -> None:
    if not any(path.is_block_device() for path in Path("/dev").iterdir()):
        pytest.skip("there is no disk in /dev here")
    assert "devices" in host.probe(swap(["--dev", "/dev"], ["--dev-bind", "/dev", "/dev"]))


async def test_it_finds_that_no_system_call_is_refused(host: Host) -> None:
    found = host.probe(no_filter)
    assert "ptrace" in found
    # As root the launcher has set the number of further user namespaces to none, besides.
    assert ("namespaces" in found) == (host.room.bubblewrap.owner is None)


@root_only
async def test_it_finds_a_sandbox_that_is_still_root(host: Host) -> None:
    if host.room.bubblewrap.owner is not None:  # a user's sandbox never is
        assert host.probe(stay_root).keys() >= {"user", "kernel_settings"}


@root_only
async def test_without_a_sandbox_it_finds_what_a_process_is_open_to(host: Host) -> None:
    need_ip()
    folder = os.open("/", os.O_RDONLY)
    prefix = [
        "/usr/bin/unshare",
        "--net",
        sys.executable,
        probe_host.__file__,
        "/usr/bin/setpriv",
        "--reuid=10001",
        "--clear-groups",
    ]
    try:
        done = subprocess.run(
            [*prefix, *probe_command()],
            env={**probe_environment(host.targets), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            pass_fds=[folder],
            check=False,
            timeout=60,
        )
    finally:
        os.close(folder)
    found = {finding.attempt for finding in findings(done.stdout)}
    assert found >= {
        *("new_privileges", "descriptors", "network", "dns", "metadata", "gateway", "host_services", "run_sockets"),
        *(
            "abstract_sockets",
            "data_folder",
            "workspaces",
            "home",
            "write_outside",
            "host_processes",
            "ptrace",
            "namespaces",
        ),
    }


# -- what it says is taken strictly


def said(**changed: str) -> bytes:
    lines = {attempt: json.dumps({"attempt": attempt, "result": "blocked", "detail": ""}) for attempt in ATTEMPTS}
    return "\n".join({**lines, **changed}.values()).encode()


def test_a_probe_that_says_all_is_shut_has_found_nothing() -> None:
    assert findings(said()) == ()


def test_a_probe_that_says_nothing_has_found_everything() -> None:
    assert [finding.attempt for finding in findings(b"")] == list(ATTEMPTS)
    assert {finding.result for finding in findings(b"")} == {"unknown"}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_line_that_is_missing_or_wrong_counts_as_open(attempt: str) -> None:
    for line in (
        "",
        "{",
        "[]",
        json.dumps({"attempt": attempt, "result": "fine", "detail": ""}),
        json.dumps({"attempt": attempt, "result": "blocked"}),
        json.dumps({"attempt": attempt, "result": "blocked", "detail": "", "more": 1}),
        json.dumps({"attempt": attempt, "result": "blocked", "detail": None}),
        json.dumps({"attempt": attempt, "result": "reached", "detail": "x"}),
    ):
        assert attempt in {finding.attempt for finding in findings(said(**{attempt: line}))}


def test_a_line_that_comes_twice_or_is_none_of_ours_counts_as_open() -> None:
    line = json.dumps({"attempt": "dns", "result": "blocked", "detail": ""}).encode()
    assert [finding.attempt for finding in findings(said() + b"\n" + line)] == ["output"]
    assert [finding.attempt for finding in findings(said() + b"\nhello")] == ["output"]
    assert [finding.attempt for finding in findings(said() + b"\n\xff")] == ["output"]
    assert [finding.attempt for finding in findings(said() + b" " * 100_000)] == ["output"]


def test_what_cannot_be_tried_counts_as_open(place: Room) -> None:
    """A script whose programs are missing must not look like one that was kept out."""
    ran = place.run("/bin/bash", "-c", f"PATH=/nowhere\n{PROBE}")
    assert len(findings(ran.out.encode())) > 5


@pytest.mark.parametrize(
    "missing", ["bash", "cat", "head", "id", "readlink", "rm", "stat", "timeout", "tr", "uname", "wc"]
)
def test_where_one_program_is_missing_everything_counts_as_open(missing: str) -> None:
    """Without `stat` the home of the host, without `head` its passwords looked shut, as what can't be read does."""
    need("bubblewrap")
    with room(KINDS[-1]) as place:
        folder = place.folder / "bin"
        folder.mkdir()
        for program in ("bash", "cat", "head", "id", "perl", "readlink", "rm", "stat", "timeout", "tr", "uname", "wc"):
            if program != missing:
                (folder / program).symlink_to(f"/usr/bin/{program}")
        ran = place.run("/bin/bash", "-c", f"PATH=/workspace/bin\n{PROBE}")
    assert {finding.attempt for finding in findings(ran.out.encode())} == set(ATTEMPTS)


@pytest.mark.parametrize(("stalls", "open_ones"), [(2, set[str]()), (3, {"metadata"})])
async def test_what_a_machine_that_stood_still_kept_from_ending_is_tried_again_twice(
    host: Host, stalls: int, open_ones: set[str]
) -> None:
    """A refused run, and an audit row of a sandbox that does not hold, may not come of a pause of the machine."""
    standing_still = f"""
timeout() {{
  case "$*" in "3 bash"*tcp*) echo >> /workspace/stalls; [ "$(wc -l < /workspace/stalls)" -gt {stalls} ] || return 124 ;; esac
  command timeout "$@"
}}
"""
    ran = host.room.run("/bin/bash", "-c", standing_still + PROBE, env=probe_environment(host.targets))
    assert {finding.attempt for finding in findings(ran.out.encode())} == open_ones
    assert (host.room.folder / "stalls").read_text().count("\n") > stalls


# -- the ground


async def test_the_ground_is_laid_out_on_this_host_and_cleared_away(place: Room) -> None:
    base = place.folder.parent
    ground = ProbeGround(base / "platform", base / "platform/run", home=base, engines=("/run/docker.sock",))
    async with ground as targets:
        assert targets.data_file.read_text() == targets.secret
        assert targets.workspace_file.read_text() == targets.secret
        assert all(path.is_socket() for path in targets.sockets)
        assert targets.services
        ran = place.run(*probe_command(), env=probe_environment(replace(targets, home=base)))
        assert findings(ran.out.encode()) == ()
    assert [path for path in (base / "platform").rglob("*") if not path.is_dir()] == []


async def test_a_ground_that_cannot_be_laid_out_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="probe"):
        async with ProbeGround(tmp_path, tmp_path / ("x" * 120)):
            pass
