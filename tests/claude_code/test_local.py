"""LocalExecutor: what is its own beside the contract: without a sandbox, found again by its files, as no root."""

import asyncio
import json
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from executor_house import RUN, collect, executor_settings, files_of, made, processes_with, short_folder, spec

from automagik.claude_code.archives import pack
from automagik.claude_code.executor import Executor
from automagik.claude_code.factory import ExecutorFactory
from automagik.claude_code.local import LocalExecutor
from automagik.errors import ConfigurationError, InvalidInput
from automagik.sandbox.bubblewrap import Bubblewrap
from automagik.sandbox.confinement import Availability
from automagik.settings import Settings
from automagik.testing.needs import need
from automagik.testing.stopwatch import Stopwatch

pytestmark = pytest.mark.anyio


class NoBubblewrap(Bubblewrap):
    """A machine on which no sandbox can be made."""

    async def check(self) -> Availability:
        return Availability(False, "Bubblewrap is not there.", "apt-get install -y bubblewrap")


@pytest.fixture
async def settings(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Settings]:
    with short_folder() as run:
        yield await executor_settings("local", tmp_path, run)


@pytest.fixture
async def executor(settings: Settings) -> AsyncIterator[Executor]:
    async with made(settings) as opened:
        await opened.prepare(RUN)
        yield opened


@pytest.fixture
async def plain(settings: Settings) -> AsyncIterator[LocalExecutor]:
    opted_in = settings.model_copy(update={"run_without_sandbox": True})
    executor = LocalExecutor(opted_in, bubblewrap=NoBubblewrap())
    await executor.prepare(RUN)
    yield executor
    await executor.remove(RUN)
    await executor.close()


# -- without a sandbox


async def test_without_bubblewrap_it_refuses_and_says_what_mends_it(settings: Settings) -> None:
    executor = LocalExecutor(settings, bubblewrap=NoBubblewrap())
    assert (await executor.check()).works is False
    with pytest.raises(ConfigurationError, match="Bubblewrap is not there") as refused:
        await executor.prepare(RUN)
    assert refused.value.hint == "apt-get install -y bubblewrap"


async def test_the_opt_in_is_told_to_be_unsafe_and_is_not_used_where_bubblewrap_works(
    settings: Settings, plain: LocalExecutor
) -> None:
    found = await plain.check()
    assert found.works
    assert "AUTOMAGIK_RUN_WITHOUT_SANDBOX" in (found.remedy or "")
    assert not plain.sandboxed
    other = LocalExecutor(settings.model_copy(update={"run_without_sandbox": True}))
    await other.check()
    assert other.sandboxed


async def test_a_plain_process_has_its_own_home_and_environment(plain: LocalExecutor) -> None:
    os.environ["AUTOMAGIK_TEST_SECRET"] = "of the platform"
    try:
        await plain.put(RUN, "workspace", pack({"a.txt": b"one"}))
        execution = await plain.start(
            spec("sh", "-c", "cat a.txt; echo; env; pwd; echo x > $TMPDIR/y; read l; echo $l; exit 5")
        )
        await execution.send(b"word\n")
        said = (await collect(execution.output())).decode()
    finally:
        del os.environ["AUTOMAGIK_TEST_SECRET"]
    inside = plain.inside(RUN)
    assert said.startswith("one\n")
    assert said.endswith(f"{inside.workspace}\nword\n")
    assert f"HOME={inside.home}\n" in said
    assert "of the platform" not in said
    assert (await execution.wait()).code == 5
    assert await files_of(plain.get(RUN, "workspace")) == {"a.txt": b"one"}


async def test_a_plain_process_is_killed_with_its_session_and_what_bears_its_mark(plain: LocalExecutor) -> None:
    mark = f"plain-{uuid.uuid4()}"
    script = f"(setsid setsid bash -c ': {mark}; trap \"\" TERM; sleep 1000' &) ; bash -c ': {mark}; sleep 1000' & echo up; wait"
    execution = await plain.start(spec("bash", "-c", script))
    async for _ in execution.output():
        break
    async with asyncio.timeout(20):
        while len(processes_with(mark)) < 2:
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)
    with Stopwatch() as took:
        await execution.kill()
    assert took.seconds < 2
    assert processes_with(mark) == []
    assert (await execution.wait()).code == 137


async def test_once_without_a_sandbox_leaves_the_execution_alone(plain: LocalExecutor) -> None:
    mark = f"beside-{uuid.uuid4()}"
    execution = await plain.start(spec("bash", "-c", f": {mark}; echo up; sleep 1000"))
    async for _ in execution.output():
        break
    done = await plain.once(RUN, ("sh", "-c", "sleep 1000 & echo done"), timeout_seconds=60)
    assert (done.stdout, done.exit.code, done.timed_out) == (b"done\n", 0, False), (
        "whoever holds its pipes is not waited for"
    )
    assert execution.alive
    await execution.kill()


async def test_a_plain_process_is_found_again(settings: Settings, plain: LocalExecutor) -> None:
    await plain.start(spec("bash", "-c", "echo one; cat; sleep 0.5; exit 6"))
    await plain.close()
    other = LocalExecutor(settings.model_copy(update={"run_without_sandbox": True}), bubblewrap=NoBubblewrap())
    found = await other.find(RUN)
    assert found is not None
    assert await collect(found.output()) == b"one\n"
    assert (await found.wait()).code == 6
    await other.close()


# -- found by files


async def test_another_process_of_the_same_pid_is_neither_taken_for_it_nor_killed(
    executor: LocalExecutor, settings: Settings
) -> None:
    execution = await executor.start(spec("sh", "-c", "echo said; sleep 1000"))
    async for _ in execution.output():
        break
    await execution.kill()
    await executor.close()
    with subprocess.Popen(
        ["sleep", "1000"]
    ) as other:  # the pid was given to somebody else, as after a restart of the host
        file = settings.data_dir / "executions" / RUN / "pid"
        kept = json.loads(file.read_text())
        kept["init"]["pid"] = kept["monitor"]["pid"] = other.pid
        file.write_text(json.dumps(kept))
        found = await executor.find(RUN)
        assert found is not None
        assert await collect(found.output()) == b"said\n"
        await found.kill()
        assert other.poll() is None
        other.kill()


async def test_the_end_of_an_execution_whose_host_went_down_is_not_known(
    executor: LocalExecutor, settings: Settings
) -> None:
    execution = await executor.start(spec("sh", "-c", "echo half; sleep 1000"))
    async for _ in execution.output():
        break
    await execution.kill()
    await executor.close()
    folder = settings.data_dir / "executions" / RUN
    first = (folder / "status.json").read_text().splitlines()[0]
    (folder / "status.json").chmod(0o600)
    (folder / "status.json").write_text(first + "\n")  # as a host leaves it that lost its power
    (folder / "remarks.json").unlink()
    found = await executor.find(RUN)
    assert found is not None
    assert await collect(found.output()) == b"half\n"
    status = await found.wait()
    assert (status.code, status.signal) == (None, None)


async def test_an_execution_that_was_not_written_down_is_killed_and_forgotten(
    executor: LocalExecutor, settings: Settings
) -> None:
    mark = f"unwritten-{uuid.uuid4()}"
    execution = await executor.start(spec("bash", "-c", f": {mark}; echo up; sleep 1000"))
    async for _ in execution.output():
        break
    (settings.data_dir / "executions" / RUN / "pid").unlink()
    async with made(settings) as other:
        assert await other.find(RUN) is None
        async with asyncio.timeout(20):
            while [pid for pid in processes_with(mark) if pid != os.getpid()]:
                await asyncio.sleep(0.02)


async def test_a_killed_monitor_ends_the_execution(executor: LocalExecutor) -> None:
    mark = f"monitor-{uuid.uuid4()}"
    execution = await executor.start(spec("bash", "-c", f": {mark}; echo up; sleep 1000"))
    async for _ in execution.output():
        break
    init = int(str(execution.place["pid"]))
    parent = int(Path(f"/proc/{init}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent, 9)
    async with asyncio.timeout(20):
        status = await execution.wait()
    assert status.code in {None, 137}
    assert processes_with(mark) == []


# -- this host


async def test_a_path_that_is_too_long_for_a_socket_is_refused_with_the_way_out(tmp_path: Path) -> None:
    settings = Settings.model_validate({"data_dir": tmp_path / ("x" * 100)})
    with pytest.raises(ConfigurationError, match="too long for a unix socket") as refused:
        LocalExecutor(settings).socket(RUN, "api")
    assert "AUTOMAGIK_RUNTIME_DIR" in (refused.value.hint or "")


@pytest.mark.parametrize("run_id", ["../escape", "a/b", "", "."])
async def test_a_runs_id_is_no_path(executor: Executor, run_id: str) -> None:
    with pytest.raises(InvalidInput):
        await executor.find(run_id)
    with pytest.raises(InvalidInput):
        await executor.has_toolchain(RUN, run_id)


async def test_the_cli_is_missing_with_the_command_that_brings_it(settings: Settings, tmp_path: Path) -> None:
    async with made(settings.model_copy(update={"claude_cli": tmp_path / "none"})) as executor:
        found = await executor.check()
        assert not found.works and "names no program" in (found.reason or "")
        assert "pip install" in (found.remedy or "")
        await executor.prepare(RUN)
        with pytest.raises(ConfigurationError, match="AUTOMAGIK_CLAUDE_CLI names no program") as refused:
            await executor.start(spec("true"))
    assert "pip install" in (refused.value.hint or "")


async def test_local_is_what_auto_means_where_docker_is_away(settings: Settings, tmp_path: Path) -> None:
    factory = ExecutorFactory(
        settings.model_copy(update={"executor": "auto", "docker_url": f"unix://{tmp_path}/none.sock"})
    )
    try:
        assert (await factory.executor()).name == "local"
        assert await factory.executor("local") is factory.named("local")
        with pytest.raises(ConfigurationError, match="The executor 'docker' does not work here"):
            await factory.executor("docker")
        with pytest.raises(InvalidInput):
            factory.named("kubernetes")
    finally:
        await factory.close()


AS_A_USER = """
import asyncio, sys
from pathlib import Path
from automagik.claude_code.archives import pack
from automagik.claude_code.executor import ExecutionSpec
from automagik.claude_code.local import LocalExecutor
from automagik.sandbox.confinement import Limits
from automagik.settings import Settings

async def main():
    settings = Settings.model_validate({"data_dir": sys.argv[1] + "/data", "runtime_dir": sys.argv[1] + "/run"})
    executor = LocalExecutor(settings)
    await executor.prepare("run_a")
    await executor.put("run_a", "workspace", pack({"a.txt": b"one"}))
    server = await asyncio.start_unix_server(lambda r, w: (w.write(b"hello"), w.close()), executor.socket("run_a", "api"))
    await executor.share("run_a", "api")
    script = "id -u; cat a.txt; echo two > b; perl -MIO::Socket::UNIX -e '" \
        "print IO::Socket::UNIX->new(Peer => q(/run/agent/api.sock))->getline'; " \
        "for d in d d/d e; do mkdir $d; dd if=/dev/zero of=$d/x bs=1M count=3 status=none; done; chmod 0 d/d d; chmod 400 e; exit 3"
    execution = await executor.start(ExecutionSpec("run_a", ("sh", "-c", script), {}, Limits()))
    print(b"".join([c async for c in execution.output()]), (await execution.wait()).code, (await executor.size("run_a")).bytes >> 20)
    await executor.remove("run_a")
    print(list(Path(sys.argv[1], "data", "executions").iterdir()))
    server.close()
    await executor.close()

asyncio.run(main())
"""


async def test_it_works_for_a_user_who_is_not_root(settings: Settings) -> None:
    del settings
    if os.geteuid() == 0:
        need("bubblewrap")
    with short_folder() as folder:
        command = [sys.executable, "-c", AS_A_USER, str(folder)]
        if os.geteuid() == 0:
            os.chown(folder, 12345, 12345)
            command = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "--", *command]
        tried = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=60, check=False
        )
        if "Permission denied" in tried.stderr and "executable" in tried.stderr:
            pytest.skip("another user can't run this Python")
        assert tried.stdout == "b'10001\\nonehello' 3 9\n[]\n", tried.stderr
