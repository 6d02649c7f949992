"""Where no sandbox can be made, the check says why and what mends it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from automagik.sandbox.bubblewrap import Bubblewrap
from automagik.sandbox.troubles import explain
from automagik.testing.needs import need

pytestmark = pytest.mark.anyio

HERE = Path(__file__).parents[2]
"""The project, which may stand in `/tmp`."""
CHECK = "import asyncio; from automagik.sandbox.bubblewrap import Bubblewrap; print(asyncio.run(Bubblewrap().check()))"


def checked(*prefix: str) -> str:
    done = subprocess.run(
        [*prefix, sys.executable, "-c", CHECK],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HERE": str(HERE)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_a_program_that_is_missing_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    tried = await Bubblewrap().check()
    assert (tried.works, tried.remedy) == (False, "apt-get install -y bubblewrap")
    assert "bwrap" in str(tried.reason)


async def test_a_failure_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("bubblewrap")
    bubblewrap = Bubblewrap()
    with monkeypatch.context() as without:
        without.setenv("PATH", str(tmp_path))
        assert not (await bubblewrap.check()).works
    assert (await bubblewrap.check()).works


async def test_a_program_that_pretends_is_seen_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Presence proves nothing: what a command inside sees must be what a sandbox is."""
    need("bubblewrap")
    fake = tmp_path / "bwrap"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done; shift 12; exec "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert not (await Bubblewrap().check()).works


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a chroot")
def test_in_a_chroot_it_says_so() -> None:
    need("bubblewrap")
    script = """
root=$(mktemp -d); mount -t tmpfs none "$root"
for d in /*; do
  if [ -L "$d" ]; then cp -a "$d" "$root/"; elif [ -d "$d" ] && [ "$d" != /tmp ]; then mkdir "$root$d"; mount --rbind "$d" "$root$d"; fi
done
mkdir -p "$root/tmp" "$root$HERE"; mount --bind "$HERE" "$root$HERE"
exec /usr/sbin/chroot "$root" "$@"
"""
    said = checked("/usr/bin/unshare", "--mount", "/bin/bash", "-c", script, "x")
    assert "works=False" in said
    assert "in a chroot" in said, said
    assert "AUTOMAGIK_EXECUTOR=docker" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can set that")
def test_where_user_namespaces_are_refused_it_names_the_setting() -> None:
    need("bubblewrap")
    # In a user namespace of the test's own, whose setting it is.
    script = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    said = checked("/usr/bin/unshare", "--user", "--map-root-user", "/bin/bash", "-c", script, "x")
    assert "works=False" in said
    assert "sysctl -w user.max_user_namespaces=" in said


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("bwrap: Unknown option --size", "too old"),
        ("bwrap: Can't find source path /nix: No such file", "Bubblewrap fails: bwrap: Can't find source path /nix"),
        (
            "bwrap: No permissions to create new namespace, likely because the kernel does not allow",
            "namespaces",
        ),
        ("", "Bubblewrap fails"),
    ],
)
def test_other_words_of_bubblewrap_are_told_on(said: str, reason: str) -> None:
    assert reason in str(explain(said, root=True).reason)
