"""What a run leaves on the disk is measured and removed, however it tries to hide or keep it."""

import os
from pathlib import Path

import pytest

from automagik.claude_code.folders import disk_usage, remove_tree

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


@pytest.mark.parametrize(("depth", "name", "beyond"), [(5, "d" * 200, False), (40, "d" * 200, True), (3000, "d", True)])
def test_what_lies_deeper_than_a_path_reaches_is_over_every_limit_and_removed(
    tmp_path: Path, depth: int, name: str, beyond: bool
) -> None:
    base = tmp_path / "workspace"
    nest(base, depth, name)
    (base / "shut").mkdir(mode=0)
    used = disk_usage(base)
    remove_tree(base)
    assert used > 1024**5 if beyond else MIB < used < 2 * MIB
    assert not base.exists()


def test_a_file_without_content_has_a_size(tmp_path: Path) -> None:
    """A disk has a place for so many files, and no more: who takes them all hurts everybody on it."""
    for number in range(1000):
        (tmp_path / str(number)).touch()
    assert disk_usage(tmp_path) >= 1000 * 4096
