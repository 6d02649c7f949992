"""What holds for every executor: this suite runs over bubblewrap and over Docker."""

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from executor_house import (
    LIMITS,
    RUN,
    collect,
    executor_settings,
    files_of,
    made,
    processes_with,
    run_once,
    short_folder,
    spec,
)

from automagik.claude_code.archives import file_in, pack
from automagik.claude_code.command import CliSpec, command, environment, user_message
from automagik.claude_code.executor import Execution, Executor
from automagik.claude_code.factory import ExecutorFactory
from automagik.claude_code.transcript import Transcript
from automagik.errors import Conflict, InvalidInput, NotFound, RunFailed
from automagik.settings import Settings
from automagik.testing.scripted_messages import ScriptedMessages
from automagik.testing.stopwatch import Stopwatch
from automagik.types import Json, JsonObject

pytestmark = pytest.mark.anyio

MIB = 1024**2
FORKS = "for i in $(seq 500); do sleep 5 2>/dev/null & done; wait"


@pytest.fixture(params=["local", "docker"])
async def settings(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> AsyncIterator[Settings]:
    with short_folder() as run:
        yield await executor_settings(request.param, tmp_path, run)


@pytest.fixture
async def executor(settings: Settings) -> AsyncIterator[Executor]:
    async with made(settings) as opened:
        await opened.prepare(RUN)
        yield opened


async def said_so_far(execution: Execution, until: bytes) -> bytes:
    """What it has written when that stands in it."""
    said = b""
    async for chunk in execution.output():
        said += chunk
        if until in said:
            return said
    raise AssertionError(f"it ended with {said!r}")


# -- files


async def test_files_go_in_and_out_and_belong_to_the_agent(executor: Executor) -> None:
    await executor.put(RUN, "workspace", pack({"src/deep/a.txt": b"one", "b.bin": bytes(range(256)) * 4000}))
    await executor.put(RUN, "credentials", pack({"settings.json": b"{}"}))
    told = await run_once(executor, "sh", "-c", "stat -c %u:%g . src src/deep/a.txt b.bin $CREDENTIALS/settings.json")
    assert told.stdout.split() == [b"10001:10001"] * 5
    assert await files_of(executor.get(RUN, "workspace", "src")) == {"src/deep/a.txt": b"one"}
    assert await file_in(executor.get(RUN, "workspace", "b.bin"), max_bytes=2_000_000) == bytes(range(256)) * 4000
    assert "settings.json" in await files_of(executor.get(RUN, "credentials"))


async def test_a_file_that_is_not_there_is_told_so(executor: Executor) -> None:
    with pytest.raises(NotFound):
        await collect(executor.get(RUN, "workspace", "missing.txt"))


async def test_what_is_no_archive_is_refused(executor: Executor) -> None:
    async def nonsense() -> AsyncIterator[bytes]:
        yield b"this is no archive" * 100

    with pytest.raises(InvalidInput):
        await executor.put(RUN, "workspace", nonsense())


async def test_an_archive_does_not_follow_a_link_out_of_the_area(executor: Executor, tmp_path: Path) -> None:
    target = tmp_path / "outside"
    target.mkdir(mode=0o777)
    await run_once(executor, "ln", "-s", str(target), "out", writable=True)
    with contextlib.suppress(InvalidInput):
        await executor.put(RUN, "workspace", pack({"out/escaped.txt": b"x"}))
    assert list(target.iterdir()) == []


async def test_the_size_of_a_workspace_is_told_whatever_hides_it(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders that nobody may look into, folders deeper than a path, files without content, files without a name."""
    before = (await executor.size(RUN)).bytes
    script = r"""
    set -e
    mkdir -p a/b && dd if=/dev/zero of=a/b/big bs=1M count=8 status=none && ln a/b/big again && chmod 0 a/b a
    perl -e 'for (1 .. 100) { mkdir "d" x 200 and chdir "d" x 200 or die } open F, ">", "x"; print F "x" x 1048576'
    mkdir empty && cd empty && perl -e 'for (1 .. 1000) { open F, ">", $_ }' && chmod 400 .
    """
    await run_once(executor, "sh", "-c", script, writable=True)
    await run_once(executor, "sync")
    size = await executor.size(RUN)
    made = size.bytes - before - (8 + 1) * MIB - (2 + 100 + 1 + 1000) * 4096
    assert size.unknown is None and 0 <= made < MIB
    at_once = await executor.size(RUN, limit=2 * MIB)
    assert at_once.is_over(2 * MIB) and at_once.bytes < size.bytes
    assert (await executor.disk_used(RUN) or 0) > size.bytes
    with monkeypatch.context() as patched:  # as for a user who sees nothing of the engine's files
        patched.setattr(os, "access", Mock(return_value=False))
        assert await executor.size(RUN) == size
        assert (await executor.size(RUN, limit=2 * MIB)).bytes < size.bytes

    held = r"""$| = 1; open F, "+>", "f"; unlink "f"; print F "x" x 8388608; F->flush; print "ready"; sleep 60"""
    execution = await executor.start(spec("perl", "-MIO::Handle", "-e", held))
    await said_so_far(execution, b"ready")
    async with asyncio.timeout(20):
        while (await executor.size(RUN)).bytes < size.bytes + 8 * MIB:
            await asyncio.sleep(0.3)
    await execution.kill()
    assert (await executor.size(RUN)).bytes < size.bytes + MIB


# -- output and input


async def test_output_comes_byte_for_byte_whatever_its_lines_are(executor: Executor) -> None:
    script = r"""
    binmode STDOUT; $| = 1;
    print "x", "\xc3\xa9" x 200000, "\n";          # one line, a character on every border
    print map { chr(int(rand 256)) } 1 .. 300000;   # no text at all
    print "no end of line";
    """
    execution = await executor.start(spec("perl", "-e", f"srand(7); {script}"))
    live = await collect(execution.output())
    assert live.startswith(b"x" + "é".encode() * 200000 + b"\n")
    assert live.endswith(b"no end of line")
    assert len(live) == 1 + 400000 + 1 + 300000 + 14
    again = await collect(execution.output())
    assert hashlib.sha256(again).digest() == hashlib.sha256(live).digest()
    assert (await execution.wait()).code == 0


async def test_output_is_seen_as_it_is_written(executor: Executor) -> None:
    execution = await executor.start(spec("sh", "-c", "echo ready; read line; date +%s%N; exec sleep 60"))
    assert await said_so_far(execution, b"ready\n") == b"ready\n"
    said = b""
    with Stopwatch() as took:
        await execution.send(b"now\n")
        async for chunk in execution.output():
            said += chunk
            if said.count(b"\n") == 2:
                break
        seen = time.time()
    assert seen - int(said.split()[1]) / 1e9 - took.paused < 1
    await execution.kill()


async def test_messages_go_in_while_it_runs_and_the_end_of_input_is_seen(executor: Executor) -> None:
    script = 'while read -r line; do echo "got ${#line}"; done; echo end'
    execution = await executor.start(spec("bash", "-c", script))
    assert await execution.send(b"hello\n")
    await said_so_far(execution, b"got 5\n")
    assert await execution.send(b"x" * 300_000 + b"\n")  # more than a pipe holds
    await execution.close_input()
    assert await collect(execution.output()) == b"got 5\ngot 300000\nend\n"
    assert (await execution.wait()).code == 0
    assert not await execution.send(b"too late\n")


@pytest.mark.parametrize(
    ("script", "code", "number"),
    [
        ("exit 0", 0, None),
        ("exit 7", 7, None),
        ("kill -9 $$", 137, 9),
        ("kill -TERM $$", 143, 15),
        ("exec /no/such", 127, None),
    ],
)
async def test_the_exit_code_is_told(executor: Executor, script: str, code: int, number: int | None) -> None:
    execution = await executor.start(spec("bash", "-c", script))
    first, second = await asyncio.gather(execution.wait(), execution.wait())
    assert (first.code, first.signal) == (code, number)
    assert second == first
    assert not first.oom_killed


async def test_the_end_of_standard_error_is_kept(executor: Executor) -> None:
    execution = await executor.start(spec("sh", "-c", "seq 5000 >&2; echo 'the reason' >&2; exit 2"))
    status = await execution.wait()
    assert status.stderr.endswith("5000\nthe reason\n")
    assert len(status.stderr) <= 4096


async def test_a_program_that_is_not_there_is_told(executor: Executor) -> None:
    execution = await executor.start(spec("/no/such/program"))
    status = await execution.wait()
    assert status.code in {1, 126, 127}
    assert "/no/such/program" in status.stderr


async def test_who_writes_too_much_is_ended(executor: Executor) -> None:
    execution = await executor.start(spec("yes", output_bytes=3_000_000))
    async with asyncio.timeout(20):
        await collect(execution.output())
        status = await execution.wait()
    assert status.output_full
    assert status.code == 137


# -- the end


async def test_a_stubborn_tree_of_processes_is_dead_within_two_seconds(executor: Executor) -> None:
    mark = f"stubborn-{uuid.uuid4()}"
    stubborn = f"trap '' TERM INT HUP; : {mark}; while :; do sleep 1; done"
    script = f"""
    trap '' TERM INT HUP
    setsid bash -c "{stubborn}" {mark} &
    (setsid setsid bash -c "{stubborn}" {mark} &)
    nohup bash -c "{stubborn}" {mark} >/dev/null 2>&1 &
    echo up; sleep 1000
    """
    execution = await executor.start(spec("bash", "-c", script))
    await said_so_far(execution, b"up\n")
    async with asyncio.timeout(20):
        while len(processes_with(mark)) < 3:
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)
    with Stopwatch() as took:
        await execution.kill()
    assert took.seconds < 2
    assert processes_with(mark) == []
    status = await execution.wait()
    assert (status.code, status.signal) == (137, 9)
    await execution.kill()  # once more is no failure


async def test_what_a_command_leaves_behind_ends_with_it(executor: Executor) -> None:
    mark = f"left-{uuid.uuid4()}"
    execution = await executor.start(spec("bash", "-c", f"setsid bash -c ': {mark}; sleep 1000' & sleep 0.3; exit 4"))
    async with asyncio.timeout(10):
        assert (await execution.wait()).code == 4
    assert processes_with(mark) == []


async def test_an_interrupt_reaches_the_command(executor: Executor) -> None:
    script = "$SIG{INT} = sub { print qq(interrupted\\n); exit 5 }; $| = 1; print qq(up\\n); sleep 60"
    execution = await executor.start(spec("perl", "-e", script))
    await said_so_far(execution, b"up\n")
    await execution.interrupt()
    async with asyncio.timeout(30):
        assert (await execution.wait()).code == 5
    assert await collect(execution.output()) == b"up\ninterrupted\n"
    await execution.interrupt()


async def test_what_it_uses_is_told(executor: Executor) -> None:
    execution = await executor.start(spec("perl", "-e", "my $x = 'x' x 100_000_000; $| = 1; print qq(up\\n); sleep 60"))
    await said_so_far(execution, b"up\n")
    used = await execution.usage()
    assert 95_000_000 < used.memory_bytes < 400_000_000
    assert 1 <= used.pids < 10
    await execution.kill()
    assert (await execution.usage()).memory_bytes == 0


# -- found again


async def test_it_is_found_when_all_objects_are_gone(executor: Executor, settings: Settings) -> None:
    execution = await executor.start(
        spec("bash", "-c", "echo one; while read -r line; do echo $line; done; sleep 0.5; exit 9")
    )
    await said_so_far(execution, b"one\n")
    await executor.close()  # as a platform does that stops; its end of the input is closed
    factory = ExecutorFactory(settings)
    try:
        found = await (await factory.executor()).find(RUN)
        assert found is not None
        assert not await found.send(b"more\n")
        assert await collect(found.output()) == b"one\n"
        assert (await found.wait()).code == 9
        assert found.place
    finally:
        await factory.close()


async def test_one_that_has_ended_is_found_until_it_is_removed(executor: Executor, settings: Settings) -> None:
    execution = await executor.start(spec("sh", "-c", "echo done; echo why >&2; exit 3"))
    await execution.wait()
    async with made(settings) as other:
        found = await other.find(RUN)
        assert found is not None
        assert await collect(found.output()) == b"done\n"
        status = await found.wait()
        assert (status.code, status.stderr) == (3, "why\n")
        await other.remove(RUN)
        assert await other.find(RUN) is None
        assert await other.places() == []
        await other.remove(RUN)


async def test_a_run_has_one_execution_at_a_time_and_keeps_its_areas(executor: Executor) -> None:
    first = await executor.start(spec("sh", "-c", "echo kept > file; echo up; sleep 60"))
    await said_so_far(first, b"up\n")
    with pytest.raises(Conflict) as refused:
        await executor.start(spec("true"))
    assert refused.value.code == "execution_alive"
    await first.kill()
    second = await executor.start(spec("cat", "file"))
    assert await collect(second.output()) == b"kept\n"
    assert (await second.wait()).code == 0


async def test_nothing_is_found_of_a_run_that_never_was(executor: Executor) -> None:
    assert await executor.find("run_unknown") is None
    assert await executor.places() == [RUN]
    with pytest.raises(NotFound):
        await run_once(executor, "true", run_id="run_unknown")


async def test_removing_a_run_that_works_leaves_nothing(executor: Executor) -> None:
    mark = f"removed-{uuid.uuid4()}"
    await executor.start(spec("bash", "-c", f"mkdir -p d/e; touch d/e/f; chmod 0 d/e d; : {mark}; sleep 1000", mark))
    await asyncio.sleep(0.3)
    await executor.remove(RUN)
    assert await executor.places() == []
    assert processes_with(mark) == []
    assert not executor.socket(RUN, "api").parent.exists()


# -- what is inside


async def test_a_socket_of_the_platform_is_reached_and_nothing_else(executor: Executor) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello from outside\n")
        writer.close()

    outside = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = outside.sockets[0].getsockname()[1]
    door = await asyncio.start_unix_server(greet, executor.socket(RUN, "api"))
    await executor.share(RUN, "api")
    inside = executor.inside(RUN).socket("api")
    script = f"""
    use IO::Socket::UNIX; use IO::Socket::INET; $| = 1;
    my $s = IO::Socket::UNIX->new(Peer => "{inside}") or die "socket: $!"; print <$s>;
    print IO::Socket::INET->new(PeerAddr => "127.0.0.1:{port}", Timeout => 2) ? "reached" : "closed", "\\n";
    print unlink("{inside}") ? "removed" : "kept", "\\n";
    open(my $f, ">", "{inside}.mine") and print "written\\n";
    opendir(my $d, "/sys/class/net"); print join(",", sort grep {{ !/^\\./ }} readdir $d), "\\n";
    """
    async with outside, door:
        execution = await executor.start(spec("perl", "-e", script))
        said = (await collect(execution.output())).decode().splitlines()
    assert said[:3] == ["hello from outside", "closed", "kept"]
    assert "written" not in said
    assert said[-1] in {"", "lo"}


async def test_a_socket_that_is_bound_again_is_reached_again(executor: Executor) -> None:
    path = executor.socket(RUN, "api")
    script = """
    use IO::Socket::UNIX; $| = 1;
    for my $n (1 .. 2) { <STDIN>; my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die "socket: $!"; print scalar <$s> }
    """
    execution = await executor.start(spec("perl", "-e", script, executor.inside(RUN).socket("api")))
    for name in (b"first\n", b"second\n"):

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: bytes = name) -> None:
            writer.write(name)
            writer.close()

        path.unlink(missing_ok=True)
        async with await asyncio.start_unix_server(answer, path):
            await executor.share(RUN, "api")
            await execution.send(b"\n")
            await said_so_far(execution, name)
    assert (await execution.wait()).code == 0


async def test_the_system_is_closed(executor: Executor) -> None:
    await executor.prepare("run_neighbour")
    await executor.put("run_neighbour", "workspace", pack({"secret-of-a-neighbour": b"theirs"}))
    script = """
    id -u; grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -s '\\t' ' '
    for place in /usr/x /etc/x /x /run/x; do touch $place 2>/dev/null && echo "wrote $place"; done
    find / -name secret-of-a-neighbour -not -path '/proc/*' 2>/dev/null
    ls /var/run/docker.sock /root/* 2>/dev/null
    ls /proc | grep -c '^[0-9]'
    """
    execution = await executor.start(spec("bash", "-c", script))
    said = (await collect(execution.output())).decode().splitlines()
    assert said[0] == "10001"
    assert "CapEff: 0000000000000000" in said
    assert "CapBnd: 0000000000000000" in said
    assert "NoNewPrivs: 1" in said
    assert "Seccomp: 2" in said
    assert len(said) == 6, said
    assert int(said[-1]) < 12


async def test_the_environment_is_what_was_given(executor: Executor) -> None:
    os.environ["AUTOMAGIK_TEST_SECRET"] = "of the platform"
    try:
        execution = await executor.start(spec("env", env={"TOKEN": "of the run"}))
        said = (await collect(execution.output())).decode()
    finally:
        del os.environ["AUTOMAGIK_TEST_SECRET"]
    inside = executor.inside(RUN)
    assert "TOKEN=of the run\n" in said
    assert f"WORKSPACE={inside.workspace}\n" in said
    assert f"HOME={inside.home}\n" in said
    assert "of the platform" not in said
    assert processes_with("of the run") == []


# -- limits


async def test_a_fork_bomb_stops_at_the_limit_of_processes(executor: Executor) -> None:
    execution = await executor.start(spec("bash", "-c", f"({FORKS}) 2>/dev/null; echo alive"))
    await asyncio.sleep(1.5)
    assert (await execution.usage()).pids <= LIMITS.pids + 2
    async with asyncio.timeout(20):
        await execution.wait()


async def test_a_tool_that_takes_all_memory_is_killed_and_the_command_lives(executor: Executor) -> None:
    hog = "my @x; push @x, 'x' x 10_000_000 while @x < 300; sleep 5"
    execution = await executor.start(spec("bash", "-c", f'perl -e "{hog}"; echo tool ended $?'))
    async with asyncio.timeout(30):
        assert await collect(execution.output()) == b"tool ended 137\n"
        status = await execution.wait()
    assert status.code == 0
    assert status.oom_killed


@pytest.mark.parametrize("place", ["$TMPDIR", "$HOME", "/dev/shm"])
async def test_memory_disks_are_limited_and_a_full_one_harms_nobody(executor: Executor, place: str) -> None:
    fill = f"dd if=/dev/zero of={place}/full bs=1M count=100 status=none; stat -c %s {place}/full; echo alive"
    execution = await executor.start(spec("sh", "-c", fill))
    size, alive = (await collect(execution.output())).split()
    assert int(size) <= LIMITS.tmp_bytes
    assert alive == b"alive"
    assert "No space left" in (await execution.wait()).stderr


async def test_one_file_and_open_files_are_limited(executor: Executor) -> None:
    limits = replace(LIMITS, file_bytes=5_000_000, open_files=64)
    script = "ulimit -n; dd if=/dev/zero of=big bs=1M count=20 status=none 2>/dev/null; stat -c %s big"
    execution = await executor.start(spec("sh", "-c", script, limits=limits))
    assert (await collect(execution.output())).split() == [b"64", b"5000000"]


# -- throw-away sandboxes


async def test_once_feeds_and_reads_and_sees_the_same_workspace_while_an_execution_runs(executor: Executor) -> None:
    execution = await executor.start(spec("sh", "-c", "echo mine > made; echo up; sleep 60"))
    await said_so_far(execution, b"up\n")

    async def given() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"y" * 50_000

    done = await executor.once(
        RUN,
        ("sh", "-c", "cat made; wc -c; touch x || echo closed; echo why >&2; exit 6"),
        timeout_seconds=20,
        stdin=given(),
    )
    assert done.stdout == b"mine\n2000000\nclosed\n"
    assert (done.exit.code, done.timed_out) == (6, False)
    assert done.exit.stderr.endswith("why\n")
    await execution.kill()


async def test_once_writes_to_a_file_and_stops_at_its_limit(executor: Executor, tmp_path: Path) -> None:
    file = tmp_path / "out"
    script = "binmode STDOUT; print chr($_ % 256) x 1000 for 0 .. 2999"
    done = await executor.once(RUN, ("perl", "-e", script), timeout_seconds=20, output=file)
    assert done.stdout == b""
    assert file.read_bytes() == b"".join(bytes([n % 256]) * 1000 for n in range(3000))
    stopped = await executor.once(RUN, ("yes",), timeout_seconds=20, output_bytes=100_000)
    assert stopped.exit.output_full
    assert len(stopped.stdout) == 100_000


async def test_once_ends_with_its_time_and_leaves_nothing(executor: Executor) -> None:
    mark = f"once-{uuid.uuid4()}"
    script = f"trap '' TERM; setsid bash -c ': {mark}; sleep 1000' & echo up; sleep 1000"
    for seconds in (1, 4, 16):  # a host that is slow may not have begun by then
        done = await executor.once(RUN, ("bash", "-c", script), timeout_seconds=seconds)
        assert done.timed_out
        assert processes_with(mark) == []
        if done.stdout:
            break
    assert done.stdout == b"up\n"
    quick = await executor.once(RUN, ("bash", "-c", f"sleep 1000 & : {mark}; echo done"), timeout_seconds=20)
    assert (quick.stdout, quick.timed_out) == (b"done\n", False)
    assert processes_with(mark) == []


async def test_an_input_that_fails_is_the_callers_own_error(executor: Executor) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"some"
        raise InvalidInput("It broke.", field=("bundle",))

    with pytest.raises(InvalidInput, match="It broke"):
        await executor.once(RUN, ("cat",), timeout_seconds=20, stdin=broken())


async def test_a_cancelled_once_leaves_nothing(executor: Executor) -> None:
    mark = f"cancelled-{uuid.uuid4()}"
    work = asyncio.create_task(executor.once(RUN, ("bash", "-c", f": {mark}; sleep 1000"), timeout_seconds=60))
    async with asyncio.timeout(10):
        while not processes_with(mark):
            await asyncio.sleep(0.05)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert [pid for pid in processes_with(mark) if pid != os.getpid()] == []


# -- the toolchain


async def test_a_toolchain_is_prepared_once_and_read_by_all(executor: Executor) -> None:
    digest = hashlib.sha256(b"lock file").hexdigest()
    setup = 'mkdir -p "$TOOLCHAIN/bin" && printf "#!/bin/sh\\necho tool\\n" > "$TOOLCHAIN/bin/our-tool" && chmod +x "$TOOLCHAIN/bin/our-tool"'
    assert not await executor.has_toolchain(RUN, digest)
    failed = await executor.prepare_toolchain(RUN, digest, ("sh", "-c", "echo no >&2; exit 3"), timeout_seconds=20)
    assert failed.exit.code == 3
    assert not await executor.has_toolchain(RUN, digest)
    large = 'dd if=/dev/zero of="$TOOLCHAIN/large" bs=1M count=6 status=none; dd if=/dev/zero of=large bs=1M count=6; sleep 300'
    tight = replace(LIMITS, workspace_bytes=10 * MIB)
    with pytest.raises(RunFailed, match="the workspace with it grew over its limit"):
        await executor.prepare_toolchain(RUN, digest, ("sh", "-c", large), timeout_seconds=60, limits=tight)
    assert not await executor.has_toolchain(RUN, digest)
    done = await executor.prepare_toolchain(RUN, digest, ("sh", "-c", setup), timeout_seconds=20)
    assert done.exit.code == 0, done
    assert await executor.has_toolchain(RUN, digest)
    again = await executor.prepare_toolchain(RUN, digest, ("sh", "-c", "exit 1"), timeout_seconds=20)
    assert again.exit.code == 0
    execution = await executor.start(spec("sh", "-c", "our-tool; touch $TOOLCHAIN/x || echo closed", toolchain=digest))
    assert await collect(execution.output()) == b"tool\nclosed\n"
    await execution.wait()
    await executor.remove(RUN)
    assert await executor.drop_toolchains(unused_seconds=60) == 0
    assert await executor.drop_toolchains(unused_seconds=0) == 1


# -- the real thing


async def test_the_real_cli_makes_a_commit_through_its_socket(executor: Executor) -> None:
    inside = executor.inside(RUN)
    write: JsonObject = {"name": "Write", "input": {"file_path": f"{inside.workspace}/hello.txt", "content": "hello\n"}}
    commit: JsonObject = {
        "name": "Bash",
        "input": {"command": "git add -A && git commit -qm 'Say hello'", "description": "commit"},
    }
    turns: list[Json] = [{"tool_use": [write]}, {"tool_use": [commit]}, {"text": "It is done."}]
    init = "git init -q . && git config user.name A && git config user.email a@example.org"
    assert (await run_once(executor, "sh", "-c", init, writable=True)).exit.code == 0
    argv = command(CliSpec(session_id=uuid.uuid4(), allowed_tools=("Write", "Bash(git *)")), cli=inside.cli)
    env = environment(
        socket=inside.socket("api"), token="run-token", home=inside.home, config_dir=inside.credentials, tmp=inside.tmp
    )
    limits = replace(LIMITS, memory_bytes=2 * 1024**3, pids=256, tmp_bytes=256 * 1024**2)
    transcript = Transcript()
    async with ScriptedMessages(
        {"rules": [{"name": "main", "turns": turns}]}, socket=executor.socket(RUN, "api")
    ) as api:
        await executor.share(RUN, "api")
        execution = await executor.start(spec(*argv, env=env, limits=limits))
        assert await execution.send(user_message("Say hello."))
        await execution.close_input()
        async with asyncio.timeout(60):
            async for chunk in execution.output():
                transcript.feed(chunk)
            status = await execution.wait()
        calls = len(api.calls)
    assert status.code == 0, status
    assert transcript.result is not None
    assert transcript.result["result"] == "It is done."
    assert calls == 3
    log = await run_once(executor, "git", "-c", "safe.directory=*", "log", "--format=%s", "--stat=80")
    assert b"Say hello" in log.stdout
    assert b"hello.txt" in log.stdout


# -- the platform is killed


HOST = """
import asyncio, sys
from pathlib import Path
from automagik.claude_code.executor import ExecutionSpec
from automagik.claude_code.factory import ExecutorFactory
from automagik.sandbox.confinement import Limits
from automagik.settings import Settings

async def main():
    settings = Settings.model_validate_json(sys.argv[1])
    executor = await ExecutorFactory(settings).executor()
    script = "for i in $(seq 40); do echo $i; sleep 0.1; done; cat; echo end; exit 8"
    execution = await executor.start(ExecutionSpec(sys.argv[2], ("bash", "-c", script), {}, Limits()))
    await execution.send(b"words\\n")
    asyncio.create_task(executor.once(sys.argv[2], ("bash", "-c", f": {sys.argv[3]}; exec sleep 1000"), timeout_seconds=500))
    async for chunk in execution.output():
        sys.stdout.write(chunk.decode()); sys.stdout.flush()

asyncio.run(main())
"""


@pytest.mark.long
async def test_a_platform_that_is_killed_finds_its_execution_again(executor: Executor, settings: Settings) -> None:
    mark = f"stray-{uuid.uuid4()}"
    host = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOST, settings.model_dump_json(), RUN, mark, stdout=asyncio.subprocess.PIPE
    )
    assert host.stdout is not None
    async with asyncio.timeout(30):
        while await host.stdout.readline() != b"12\n":
            continue
        while not processes_with(f": {mark}"):
            await asyncio.sleep(0.05)
    host.send_signal(signal.SIGKILL)
    await host.wait()
    found = await executor.find(RUN)
    assert found is not None
    assert [
        pid for pid in processes_with(f": {mark}") if pid != os.getpid()
    ] == []  # its throw-away sandbox is cleared away
    async with asyncio.timeout(30):
        said = await collect(found.output())
        status = await found.wait()
    assert said.decode().split() == [*map(str, range(1, 41)), "words", "end"]
    assert status.code == 8


async def test_the_path_of_a_socket_fits(executor: Executor) -> None:
    path = executor.socket(RUN, "egress")
    assert len(os.fsencode(path)) <= 107
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
    assert path.parent.parent.stat().st_mode & 0o077 == 0  # only the platform gets there
