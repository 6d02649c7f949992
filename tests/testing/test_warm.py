"""WarmPython: commands that are forked are processes of their own, as those are that Python starts."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from automagik.testing.warm import WarmPython


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "HOME": str(folder),
        "AUTOMAGIK_DATA_DIR": str(folder / "data"),
        "AUTOMAGIK_CONFIG_DIR": str(folder / "config"),
        **more,
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["version", "--json"],
        ["runs", "list", "--url", "http://127.0.0.1:1"],
        ["runs", "list", "--url", "http://127.0.0.1:1", "--json"],
        ["nonsense"],
        ["agents", "create", "ä", "--config", "{"],
        ["secrets", "check"],
        ["run", "--help"],
    ],
    ids=" ".join,
)
def test_a_command_ends_and_says_as_one_that_python_starts(
    arguments: list[str], warm: WarmPython, tmp_path: Path
) -> None:
    started = subprocess.run(
        [sys.executable, "-m", "automagik", *arguments],
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    forked = warm.run(arguments, env=environment(tmp_path))
    assert (forked.returncode, forked.stdout, forked.stderr) == (started.returncode, started.stdout, started.stderr)


def test_commands_know_nothing_of_each_other(warm: WarmPython, tmp_path: Path) -> None:
    one, two = environment(tmp_path / "one"), environment(tmp_path / "two", AUTOMAGIK_PORT="9000")
    for given in (one, two):
        assert warm.run(["keys", "create", "--first"], env=given).returncode == 0
    profiles = [json.loads((tmp_path / name / "config" / "profile.json").read_text()) for name in ("one", "two")]
    assert profiles[0]["key"] != profiles[1]["key"]
    assert [profile["url"][-4:] for profile in profiles] == ["8881", "9000"]


def test_a_command_gets_signals_and_is_a_child_of_nobody_else(warm: WarmPython, tmp_path: Path) -> None:
    with tempfile.TemporaryFile() as out, Path(os.devnull).open() as nothing:
        serving = [
            warm.start(
                ["serve"],
                env=environment(tmp_path / str(n), AUTOMAGIK_PORT="0"),
                stdin=nothing.fileno(),
                stdout=out.fileno(),
                stderr=out.fileno(),
            )
            for n in range(2)
        ]
        assert [server.poll() for server in serving] == [None, None]
        deadline = time.monotonic() + 60
        while not all((tmp_path / str(n) / "data" / "automagik.db").exists() for n in range(2)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with pytest.raises(subprocess.TimeoutExpired):
            serving[0].wait(0.1)
        serving[0].kill()
        assert serving[0].wait(30) == -signal.SIGKILL
        assert serving[1].poll() is None
        serving[1].terminate()
        assert serving[1].wait(30) in {0, -signal.SIGTERM}
        serving[1].kill()  # it has ended: nobody else gets the signal


def test_a_shell_starts_it_in_its_own_folder_with_its_variables_and_streams(warm: WarmPython, tmp_path: Path) -> None:
    warm.script(tmp_path / "automagik")
    (tmp_path / "config.json").write_text("[1]")
    script = "./automagik version && ! ./automagik agents create a --config @config.json 2> said && AUTOMAGIK_PORT=x ./automagik doctor"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout.startswith("automagik 0.")
    assert "--config" in (tmp_path / "said").read_text()
    assert "AUTOMAGIK_PORT" in done.stderr


def test_it_ends_with_the_process_that_started_it_however_that_ends(tmp_path: Path) -> None:
    code = (
        "import os\nfrom automagik.testing.warm import WarmPython\n"
        "with WarmPython() as warm:\n    print(warm.socket, flush=True)\n    os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    folder = Path(done.stdout.strip()).parent
    deadline = time.monotonic() + 20
    while folder.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_environment_that_python_reads_at_its_start_is_refused(warm: WarmPython, tmp_path: Path) -> None:
    for steering in ({"LANG": "de_DE.UTF-8"}, {"PYTHONUTF8": "1"}, {"LC_ALL": "C"}):
        with pytest.raises(ValueError, match="start Python itself"):
            warm.run(["version"], env=environment(tmp_path, **steering))
    with pytest.raises(RuntimeError):
        _ = WarmPython().socket
