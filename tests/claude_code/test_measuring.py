"""What a run leaves on the disk is measured and removed, however it tries to hide it, to keep it, or to lead elsewhere."""

import asyncio
import errno
import os
import resource
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from executor_house import processes_with

from automagik.claude_code.folders import remove_tree
from automagik.claude_code.measuring import Size, disk_used, measure, measure_command, size_said

pytestmark = pytest.mark.anyio

MIB = 1024**2


def nest(base: Path, depth: int, name: str) -> None:
    """Folders within folders, with a file of 1 MiB in the last: no path needs to be that long to make them."""
    base.mkdir()
    here = os.open(base, os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        inner = os.open(name, os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = inner
    file = os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here)
    os.write(file, bytes(MIB))
    os.fsync(file)
    os.close(file)
    os.close(here)


@contextmanager
def few_descriptors() -> Generator[None]:
    """No program that is started now may have more files open than this process has, and some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 64, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def agent(script: str, folder: Path) -> Generator[None]:
    """A program in Perl that does this over and over in a folder, from its first round on."""
    code = f'use strict; chdir shift; $| = 1; my $n = 0; while (1) {{ {script}; print "." unless $n++ }}'
    with subprocess.Popen(["perl", "-e", code, folder], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None and process.stdout.read(1) == b"."
            yield
        finally:
            process.kill()


@pytest.mark.parametrize(("depth", "name"), [(5, "d" * 200), (40, "d" * 200), (3000, "d")])
async def test_what_lies_deeper_than_a_path_reaches_is_measured_and_removed(
    tmp_path: Path, depth: int, name: str
) -> None:
    base = tmp_path / "workspace"
    nest(base, depth, name)
    (base / "shut").mkdir(mode=0)
    with few_descriptors():
        used = await measure([base])
        await remove_tree(base)
    assert MIB <= used.bytes - (depth + 1) * 4096 < 1.1 * MIB and used.unknown is None
    assert not base.exists()


async def test_each_file_counts_once_for_its_blocks_and_at_least_for_its_place(tmp_path: Path) -> None:
    """A disk has a place for so many files, and no more: who takes them all hurts everybody on it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "big").write_bytes(bytes(8 * MIB))
    base = tmp_path / "workspace"
    (base / "a/b").mkdir(parents=True)
    (base / "a/b/file").write_bytes(bytes(MIB))
    for number in range(10):
        os.link(base / "a/b/file", base / f"again{number}")
    for name in (b"\xff\xfe", b"line\nline", b"0 over\n", b" "):
        os.close(os.open(os.path.join(os.fsencode(base), name), os.O_CREAT))
    (base / "loop").symlink_to(base)
    (base / "out").symlink_to(outside)
    with (base / "sparse").open("wb") as sparse:
        sparse.truncate(1024 * MIB)
    os.sync()
    used = await measure([base, tmp_path / "missing"])
    assert used == Size(MIB + (2 + 4 + 2 + 1) * 4096)
    assert await measure([base / "out"]) == Size(0), "a link is no folder"


async def test_it_is_looked_no_further_than_to_the_limit(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / str(number)).touch()
    assert await measure([tmp_path], limit=10 * 4096) == Size(11 * 4096)
    assert (await measure([tmp_path], limit=10 * 4096)).is_over(10 * 4096)
    assert not (await measure([tmp_path], limit=100 * 4096)).is_over(100 * 4096)


async def test_a_folder_that_becomes_a_link_leads_nowhere(tmp_path: Path) -> None:
    outside, base = tmp_path / "outside", tmp_path / "workspace"
    base.mkdir()
    outside.mkdir()
    (outside / "big").write_bytes(bytes(8 * MIB))
    outside.chmod(0o500)
    os.sync()
    swapping = (
        'mkdir "x$_" for 1 .. 20; rmdir "x$_" && symlink("../outside", "x$_") for 1 .. 20; unlink "x$_" for 1 .. 20'
    )
    with agent(swapping, base):
        found = [await measure([base]) for _ in range(25)]
    assert max(size.bytes for size in found) <= 20 * 4096
    assert {size.unknown for size in found} == {None}
    assert outside.stat().st_mode & 0o777 == 0o500


async def test_what_comes_and_goes_meanwhile_is_no_trouble(tmp_path: Path) -> None:
    base = tmp_path / "workspace"
    nest(base, 40, "d")
    coming = 'mkdir "t"; for my $d (1 .. 5) { mkdir "t/$d"; for (1 .. 20) { open my $f, ">", "t/$d/$_" } } system "rm", "-rf", "t"'
    with agent(coming, base):
        found = [await measure([base]) for _ in range(15)]
    assert {size.unknown for size in found} == {None}
    assert all(MIB < size.bytes < 3 * MIB for size in found)


@pytest.mark.parametrize("others", [b"", b"x", b"12 nonsense", b"12 time", b"0 device\n"])
def test_a_measuring_that_does_not_say_a_size_is_over_every_limit(others: bytes) -> None:
    assert size_said(others).is_over(2**62) and size_said(others).why
    assert size_said(b"12 \n") == Size(12)


async def test_what_holds_another_file_system_is_over_every_limit() -> None:
    """A subvolume is one that a user may make."""
    if os.stat("/dev").st_dev == os.stat("/dev/pts").st_dev:
        pytest.skip("/dev holds no other file system here")
    assert (await measure([Path("/dev")])).unknown == "device"


async def test_more_folders_at_once_than_can_be_remembered_are_over_every_limit(tmp_path: Path) -> None:
    """A quarter of a million of them; here the program's own bound is made small."""
    program = [*measure_command([str(tmp_path)], limit=2**60, seconds=60)]
    program[2] = program[2].replace("64 * 1024 * 1024", "3000")
    assert "> 3000;" in program[2]
    for number in range(10):
        (tmp_path / f"{number}{'x' * 250}").mkdir()
    done = await asyncio.to_thread(subprocess.run, program, capture_output=True, check=True)
    assert size_said(done.stdout).unknown == "many"


async def test_a_measuring_ends_with_its_time_and_leaves_nothing(tmp_path: Path) -> None:
    """It is stopped as by a disk that does not answer: for a while, then for good."""
    base = tmp_path / "workspace"
    nest(base, 2000, "d")
    try:
        late, pid = await stopped(base, seconds=1)
        await asyncio.sleep(1.1)
        os.kill(pid, signal.SIGCONT)
        assert (await late).unknown == "time"

        dead, _ = await stopped(base, seconds=0)
        assert (await dead).unknown == "time"

        cancelled, _ = await stopped(base, seconds=60)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        left = processes_with(str(base))
    finally:
        await remove_tree(base)
    assert left == []


async def stopped(base: Path, *, seconds: float) -> tuple[asyncio.Task[Size], int]:
    """A measuring whose program stands still in the middle of its walk, and that program's pid."""
    while True:
        measuring = asyncio.create_task(measure([base], seconds=seconds))
        while not measuring.done():
            for pid in processes_with(str(base)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    if is_deep(pid, base):
                        return measuring, pid
                    os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(0)


def is_deep(pid: int, base: Path) -> bool:
    """Whether a process is somewhere below the folder."""
    try:
        return os.readlink(f"/proc/{pid}/cwd").startswith(f"{base}/")
    except FileNotFoundError:
        return False
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG


def test_how_full_a_disk_is_grows_with_what_is_written(tmp_path: Path) -> None:
    before = disk_used(tmp_path)
    (tmp_path / "big").write_bytes(bytes(64 * MIB))
    os.sync()
    after = disk_used(tmp_path)
    assert before is not None and after is not None and after - before > 32 * MIB, "others may have removed some"
    assert disk_used(tmp_path / "missing") is None
