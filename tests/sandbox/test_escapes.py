"""What a hostile program tries to get out of a sandbox, each tried for real as root's sandbox and as a user's."""

import ctypes
import errno
import os
import platform
import pty
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rooms import USER, Room

from automagik.sandbox.confinement import AGENT_UID, Mount

NUMBERS = {
    "x86_64": {"ptrace": 101, "process_vm_readv": 310, "pidfd_open": 434, "pidfd_getfd": 438, "unshare": 272, "clone": 56, "clone3": 435,
        "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155, "keyctl": 250, "add_key": 248, "bpf": 321, "perf_event_open": 298,
        "userfaultfd": 323, "io_uring_setup": 425, "open_tree": 428, "fsopen": 430, "mount_setattr": 442, "chroot": 161, "mknodat": 259,
        "init_module": 175, "kexec_load": 246, "reboot": 169, "swapon": 167, "syslog": 103, "ioctl": 16, "capset": 126, "setuid": 105,
        "open_by_handle_at": 304, "fanotify_init": 300, "kcmp": 312, "quotactl": 179, "acct": 163, "sethostname": 170},
    "aarch64": {"ptrace": 117, "process_vm_readv": 270, "pidfd_open": 434, "pidfd_getfd": 438, "unshare": 97, "clone": 220, "clone3": 435,
        "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41, "keyctl": 219, "add_key": 217, "bpf": 280, "perf_event_open": 241,
        "userfaultfd": 282, "io_uring_setup": 425, "open_tree": 428, "fsopen": 430, "mount_setattr": 442, "chroot": 51, "mknodat": 33,
        "init_module": 105, "kexec_load": 104, "reboot": 142, "swapon": 224, "syslog": 116, "ioctl": 29, "capset": 91, "setuid": 146,
        "open_by_handle_at": 265, "fanotify_init": 262, "kcmp": 272, "quotactl": 60, "acct": 89, "sethostname": 161},
}[platform.machine()]  # fmt: skip

RAW = f"""
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
numbers = {NUMBERS!r}
def call(name, *arguments):
    ctypes.set_errno(0)
    done = libc.syscall(ctypes.c_long(numbers[name]), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    return done if done >= 0 else -ctypes.get_errno()
"""


def raw(place: Room, script: str) -> str:
    """What a script that can make any system call prints."""
    ran = place.python(RAW + script)
    assert ran.err == ""
    return ran.out.strip()


@pytest.mark.parametrize(
    "attempt",
    [
        "call('ptrace', 16, os.getppid(), 0, 0)",
        "call('ptrace', 0x4206, child(), 0, 0)",
        "call('ptrace', 0, 0, 0, 0)",
        "call('process_vm_readv', os.getppid(), 0, 0, 0, 0, 0)",
        "call('pidfd_getfd', call('pidfd_open', child(), 0), 0, 0)",
        "call('kcmp', os.getpid(), child(), 0, 0, 0)",
        "call('unshare', 0x10000000)",
        "call('unshare', 0x00020000)",
        "call('unshare', 0x40000000)",
        "call('unshare', 0x80)",
        "call('clone', 0x10000000 | 17, 0, 0, 0, 0)",
        "call('setns', os.open('/proc/self/ns/net', 0), 0)",
        "call('mount', b'none', b'/tmp', b'tmpfs', 0, 0)",
        "call('mount', b'none', b'/', None, 4096 | 32, None)",
        "call('umount2', b'/tmp', 2)",
        "call('pivot_root', b'/tmp', b'/tmp')",
        "call('chroot', b'/tmp')",
        "call('open_tree', -100, b'/', 1)",
        "call('fsopen', b'proc', 0)",
        "call('mount_setattr', -100, b'/', 0, b'', 0)",
        "call('keyctl', 0, -3, 1)",
        "call('add_key', b'user', b'a', b'b', 1, -3)",
        "call('bpf', 0, 0, 0)",
        "call('perf_event_open', 0, 0, -1, -1, 0)",
        "call('userfaultfd', 0)",
        "call('init_module', 0, 0, b'')",
        "call('kexec_load', 0, 0, 0, 0)",
        "call('reboot', 0xfee1dead, 672274793, 0, 0)",
        "call('swapon', b'/tmp', 0)",
        "call('syslog', 3, ctypes.create_string_buffer(9), 9)",
        "call('sethostname', b'a', 1)",
        "call('acct', None)",
        "call('quotactl', 0, None, 0, None)",
        "call('fanotify_init', 0, 0)",
        "call('open_by_handle_at', -100, b'', 0)",
        "call('mknodat', -100, b'/tmp/disk', 0o60666, 0xfe00)",
        "call('ioctl', 0, 0x5412, b'x')",
        "call('ioctl', 0, 0x5412 | 1 << 32, b'x')",
        "call('ioctl', 0, 0x541c, b'x')",
    ],
)
def test_a_system_call_that_leads_out_is_not_permitted(place: Room, attempt: str) -> None:
    child = "import time\ndef child():\n    pid = os.fork()\n    if pid == 0:\n        time.sleep(5)\n        os._exit(0)\n    return pid\n"
    assert raw(place, f"{child}print({attempt}, flush=True); os._exit(0)") == str(-errno.EPERM)


@pytest.mark.parametrize(
    "attempt", ["call('clone3', 0, 0)", "call('io_uring_setup', 8, ctypes.create_string_buffer(120))"]
)
def test_what_no_filter_can_read_is_as_if_it_were_not_there(place: Room, attempt: str) -> None:
    assert raw(place, f"print({attempt})") == str(-errno.ENOSYS)


def test_a_thread_and_a_child_can_be_made_all_the_same(place: Room) -> None:
    script = """
import subprocess, threading
threading.Thread(target=lambda: print("thread", flush=True)).start()
subprocess.run(["/bin/echo", "child"])
os.unshare_files = call("unshare", 0x400)
print(os.unshare_files)
"""
    assert raw(place, script).split() == ["thread", "child", "0"]


@pytest.mark.parametrize(
    ("family", "kind", "protocol"),
    [
        (40, 1, 0),
        (17, 3, 0),
        (38, 5, 0),
        (16, 3, 12),
        (16, 3, 9),
        (16, 3, 15),
        (29, 3, 1),
        (31, 5, 1),
        (44, 3, 0),
        (21, 5, 0),
        (30, 1, 0),
    ],
    ids=["vsock", "packet", "alg", "netfilter", "audit", "uevent", "can", "bluetooth", "xdp", "rds", "tipc"],
)
def test_a_socket_of_another_family_is_refused(place: Room, family: int, kind: int, protocol: int) -> None:
    script = f"""
import socket
try:
    socket.socket({family}, {kind}, {protocol}); print("open")
except OSError as error:
    print(error.errno)
numbers["socket"] = {41 if platform.machine() == "x86_64" else 198}
print(call("socket", {family} | 1 << 32, {kind}, {protocol}))
"""
    assert raw(place, script).split() == [str(errno.EAFNOSUPPORT), str(-errno.EAFNOSUPPORT)]


def test_the_usual_sockets_work(place: Room) -> None:
    script = """
import socket
for family in (1, 2, 10):
    socket.socket(family).close()
print(len(socket.if_nameindex()), socket.getaddrinfo('localhost', 80)[0][4][0])
"""
    assert raw(place, script).split()[1] in ("127.0.0.1", "::1")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="these other numbers are x86_64's")
def test_a_system_call_by_the_numbers_of_another_machine_ends_the_program(place: Room) -> None:
    script = """
import mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20; int 0x80; ret: getpid as a 32-bit program asks
address = ctypes.addressof(ctypes.c_char.from_buffer(code))
print(call.__name__, flush=True)
print(ctypes.CFUNCTYPE(ctypes.c_int)(address)())
"""
    ran = place.python(RAW + script)
    assert ran.out.split() == ["call"]
    assert ran.code in (128 + signal.SIGSYS, 128 + signal.SIGSEGV)
    assert raw(place, "numbers['x32'] = 0x40000000 | 39; print(call('x32'))") == str(-errno.ENOSYS)


@pytest.fixture
def secret(place: Room) -> Path:
    """A file of the host that everybody may read, beside the workspace."""
    path = place.folder.parent / "secret"
    path.write_text("a secret of the host")
    path.chmod(0o644)
    return path


def test_no_way_through_proc_leads_to_the_host(place: Room, secret: Path) -> None:
    ran = place.sh(
        f"for p in /proc/[0-9]*; do for way in root cwd root/proc/1/root; do cat $p/$way{secret} $p/$way/../../..{secret}; done; "
        f"ls $p/fd/ | while read n; do cat $p/fd/$n{secret} $p/fd/$n/..{secret}; done; done 2>/dev/null; "
        f"for t in /proc/[0-9]*/task/*/root; do cat $t{secret}; done 2>/dev/null; cat /proc/self/map_files/* 2>/dev/null | head -c 0; echo end"
    )
    assert ran.out == "end\n"


def test_links_lead_nowhere_but_inside(place: Room, secret: Path) -> None:
    (place.folder / "planted").symlink_to(secret)
    (place.folder / "up").symlink_to("..")
    ran = place.sh(
        f"ln -s {secret} made; cat planted made up/secret ../secret /workspace/../secret; ln {secret} hard; cat hard"
    )
    assert ran.out == ""


def test_a_link_in_a_mounted_folder_is_not_followed_by_the_mount(place: Room, secret: Path) -> None:
    (place.folder / "tree").mkdir()
    (place.folder / "tree" / "escape").symlink_to(secret.parent, target_is_directory=True)
    ran = place.sh("ls /opt/tree/escape/", mounts=[Mount(place.folder / "tree", "/opt/tree")])
    assert "No such file" in ran.err


def test_a_mount_of_proc_or_a_new_root_can_not_be_made(place: Room) -> None:
    ran = place.sh(
        "mkdir /tmp/p; mount -t proc proc /tmp/p; mount -o remount,rw /; mount --bind /usr /tmp/p; unshare -Ur id; chroot /tmp ls"
    )
    assert ran.out == ""
    assert ran.code != 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can plant a setuid program")
def test_a_setuid_program_of_root_gives_nothing(place: Room) -> None:
    planted = place.folder / "id"
    planted.write_bytes(Path("/usr/bin/id").read_bytes())
    os.chown(planted, 0, 0)
    planted.chmod(0o6755)
    capable = place.folder / "capable"
    capable.write_bytes(Path("/usr/bin/grep").read_bytes())
    capable.chmod(0o755)
    # VFS_CAP_REVISION_2, effective, CAP_SETUID and CAP_SYS_ADMIN permitted
    os.setxattr(capable, "security.capability", bytes.fromhex("0100000280002000" + "0" * 24))
    ran = place.sh(
        "./id -u; ./id -ru; ./capable CapEff /proc/self/status; /usr/bin/su -c id; /usr/bin/mount -t tmpfs t /tmp"
    )
    assert ran.out.split() == ["10001", "10001", "CapEff:", "0" * 16]


def test_a_folder_that_the_platform_left_open_is_not_inherited(place: Room) -> None:
    folder = os.open("/", os.O_RDONLY)
    try:
        said = place.sh("for f in /proc/1/fd/* /proc/self/fd/*; do readlink $f; done", pass_fds=[folder]).out.split()
        kept = place.run("/usr/bin/ls", "-l", "/proc/self/fd", pass_fds=[folder]).out.splitlines()[1:]
    finally:
        os.close(folder)
    assert "/" not in said
    # Its input, output and error, and what it reads this list by.
    assert len(kept) == 4
    assert kept[3].endswith("/fd")


def test_abstract_sockets_of_the_host_are_not_there(place: Room) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0automagik-test-abstract")
        listener.listen()
        script = "import socket; print(socket.socket(socket.AF_UNIX).connect_ex('\\0automagik-test-abstract'))"
        assert raw(place, script) == str(errno.ECONNREFUSED)


def test_what_listens_on_the_host_can_not_be_reached(place: Room) -> None:
    path = place.folder.parent / "host.sock"
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        unix.bind(str(path))
        unix.listen()
        path.chmod(0o777)
        script = f"""
import socket
print(socket.socket().connect_ex(("127.0.0.1", {tcp.getsockname()[1]})))
print(socket.socket(socket.AF_UNIX).connect_ex({str(path)!r}))
print(socket.socket(socket.AF_UNIX).connect_ex("/workspace/../host.sock"))
print(socket.socket().connect_ex(("192.0.2.1", 80)))
print(socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect_ex(("192.0.2.1", 53)))
"""
        said = [int(word) for word in raw(place, script).split()]
    assert said == [errno.ECONNREFUSED, errno.ENOENT, errno.ENOENT, errno.ENETUNREACH, errno.ENETUNREACH]


def test_a_folder_sent_through_a_socket_that_is_mounted_is_the_platforms_own_doing_only(place: Room) -> None:
    """A socket that is mounted can be connected to, and nothing but it: the mount can't be written to, nor left upwards."""
    sockets = place.folder.parent / "sockets"
    sockets.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(sockets / "api.sock"))
        (sockets / "api.sock").chmod(0o666)
        listener.listen()
        script = """
import socket
print(socket.socket(socket.AF_UNIX).connect_ex("/run/agent/api.sock"))
for attempt in (lambda: os.unlink("/run/agent/api.sock"), lambda: os.mkdir("/run/agent/x"), lambda: os.chmod("/run/agent/api.sock", 0)):
    try:
        attempt()
        print("done")
    except OSError as error:
        print(error.errno)
print(os.listdir("/run/agent/.."))
"""
        ran = place.python(RAW + script, mounts=[Mount(sockets, "/run/agent")])
    assert ran.out.split() == ["0", *[str(errno.EROFS)] * 3, "['agent']"]


def test_nothing_can_be_typed_into_the_platforms_terminal(place: Room) -> None:
    ours, theirs = pty.openpty()
    try:
        with place.start(
            place.confine(
                "/usr/bin/python3",
                "-c",
                "import fcntl, sys\ntry: fcntl.ioctl(0, 0x5412, b'x')\nexcept OSError as error: print(error.errno)\n"
                "try: open('/dev/tty')\nexcept OSError as error: print(error.errno)",
            ),
            stdin=theirs,
        ) as process:
            out, _ = process.communicate(timeout=20)
    finally:
        os.close(ours)
        os.close(theirs)
    assert out.split() == [str(errno.EPERM), str(errno.ENXIO)]


def test_no_setting_of_the_kernel_can_be_written(place: Room) -> None:
    ran = place.sh(
        "for f in $(find /proc/sys /proc/irq /proc/bus /proc/sysrq-trigger -type f -writable 2>/dev/null); do "
        "( : >> $f ) 2>/dev/null && echo $f; done; "
        "for f in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sysrq-trigger /proc/1/oom_score_adj /proc/sys/kernel/ns_last_pid "
        "/proc/sys/net/ipv4/ip_forward /proc/sys/fs/binfmt_misc/register /proc/1/mem /proc/kcore /proc/kmsg; "
        "do ( : >> $f ) 2>/dev/null && echo $f; done; ls /sys /sys/fs/cgroup 2>/dev/null; true"
    )
    # What is its own first process's is the agent's: that is under the same filter, and has no right, either.
    assert set(ran.out.split()) <= {"/proc/1/oom_score_adj", "/proc/1/mem"}
    first = place.sh("grep -E '^(CapInh|CapPrm|CapEff|NoNewPrivs|Seccomp):' /proc/1/status").out.split()
    assert first == ["CapInh:", "0" * 16, "CapPrm:", "0" * 16, "CapEff:", "0" * 16, "NoNewPrivs:", "1", "Seccomp:", "2"]


def test_nothing_outside_its_own_places_can_be_written(place: Room) -> None:
    ran = place.sh(
        "find / -xdev -writable ! -type l 2>/dev/null; echo --; for d in / /usr /usr/bin /etc /dev /run /var /home /opt /proc /lib /bin; do "
        "touch $d/x 2>/dev/null && echo $d; done; findmnt -rno TARGET,OPTIONS | grep -E ' rw[, ]' | cut -d' ' -f1 | sort | tr '\\n' ' '"
    )
    before, after = ran.out.split("--\n")
    assert set(before.split()) == {"/home/agent", "/tmp", "/workspace"}
    writable = {path for path in after.split() if not path.startswith(("/dev/", "/proc"))}
    assert writable == {"/home/agent", "/tmp", "/workspace"}


def test_killing_everything_kills_no_process_of_the_host(place: Room) -> None:
    twin = AGENT_UID if not place.prefix else USER
    with subprocess.Popen(["sleep", "60"], user=twin if os.geteuid() == 0 else None) as same_user:
        place.sh("kill -9 -1; kill -STOP -1; for p in $(seq 2 400); do kill -9 $p; done 2>/dev/null")
        time.sleep(0.1)
        assert same_user.poll() is None
        same_user.kill()


def test_the_first_process_can_not_be_killed_or_looked_into(place: Room) -> None:
    ran = place.sh(
        "kill -9 1; kill -STOP 1; kill -TERM 1; sleep 0.1; cat /proc/1/environ | tr '\\0' '\\n'; ls -l /proc/1/fd 2>&1 | grep -c ' -> '; echo lives"
    )
    assert ran.out.split()[-1] == "lives"
    assert "SECCOMP" not in ran.out


def test_a_variable_for_the_loader_touches_only_the_command(place: Room) -> None:
    """`LD_PRELOAD` from a workflow would otherwise run an agent's code in the programs that make the sandbox."""
    loader = "/workspace/evil.so"
    ran = place.sh(
        "true",
        env={"LD_PRELOAD": loader, "LD_LIBRARY_PATH": "/workspace", "PERL5OPT": "-Mevil", "PERL5LIB": "/workspace"},
    )
    assert ran.code == 0
    # The loader complains once for each program that it is asked to load it into: here bash, which needs no other program.
    assert ran.err.count(loader) == 1


def test_the_workspaces_devices_and_pipes_are_no_devices(place: Room) -> None:
    if os.geteuid() == 0:
        os.mknod(place.folder / "disk", 0o60666, os.makedev(254, 0))
        (place.folder / "disk").chmod(0o666)
        assert "Permission denied" in place.sh("head -c 1 disk").err
    assert place.sh("ls -l /dev | grep -E '^b' ; ls /dev").out.split() == [
        "core", "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero",
    ]  # fmt: skip


def test_a_file_that_is_written_can_not_be_owned_by_root_on_the_host(place: Room) -> None:
    place.sh("touch plain; chmod 6777 plain; chown 0:0 plain; cp /usr/bin/id suid; chmod 4755 suid")
    for name in ("plain", "suid"):
        seen = (place.folder / name).stat()
        assert seen.st_uid in (AGENT_UID, USER, os.geteuid() or AGENT_UID)


def test_the_c_library_of_the_test_knows_the_numbers() -> None:
    assert ctypes.CDLL(None).syscall(ctypes.c_long(39 if platform.machine() == "x86_64" else 172)) == os.getpid()
    assert sys.platform == "linux"
