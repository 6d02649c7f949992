"""What people and agents use runs in a sandbox as it does outside: the real Claude CLI, git, Node, Python, Perl, compilers."""

import asyncio
import shutil
import uuid
from pathlib import Path

import pytest
from rooms import Room

from automagik.claude_code.command import CliSpec, command, environment, user_message
from automagik.claude_code.transcript import Transcript
from automagik.providers.scripted_messages import Script
from automagik.sandbox.confinement import Mount
from automagik.testing.needs import claude_cli, need
from automagik.testing.scripted_messages import ScriptedMessages
from automagik.types import Json, JsonObject

pytestmark = pytest.mark.anyio

CLI = "/opt/automagik/claude"

WORK = """
set -e
git init -q -b main; git config --global user.name A; git config --global user.email a@b
echo hello > file; git add .; git commit -qm First
git clone -q --no-hardlinks . /tmp/clone; cd /tmp/clone; echo more >> file; git commit -qam Second
git bundle create -q /tmp/b --branches; git bundle verify -q /tmp/b; git fsck; git worktree add -q /tmp/tree HEAD~1
git log --oneline | wc -l
"""


def test_git_works(place: Room) -> None:
    ran = place.sh(WORK)
    assert ran.code == 0, ran.err
    assert ran.out.split()[-1] == "2"


@pytest.mark.parametrize(
    ("program", "script", "said"),
    [
        ("node", "const c=require('child_process'); console.log(require('os').networkInterfaces() && c.execSync('echo child')+'')", "child"),
        ("node", "new (require('worker_threads').Worker)('console.log(6*7)', {eval: true})", "42"),
        ("node", "fetch('http://127.0.0.1:8641/').catch(e => console.log(e.cause.code))", "ECONNREFUSED"),
        ("python3", "import multiprocessing as m; print(m.Pool(2).map(abs, [-1, -2]))", "[1, 2]"),
        ("python3", "import asyncio; print(asyncio.run(asyncio.sleep(0, 'ok')))", "ok"),
        ("python3", "import sqlite3; print(sqlite3.connect('/workspace/x.db').execute('select 1').fetchone()[0])", "1"),
        ("python3", "import ssl, socket; print(ssl.create_default_context().cert_store_stats()['x509_ca'] > 50)", "True"),
        ("perl", "print `echo child`", "child"),
    ],
)  # fmt: skip
def test_a_language_works(place: Room, program: str, script: str, said: str) -> None:
    if not Path("/usr/bin", program).exists():
        program = shutil.which(program, path="/usr/local/bin") or pytest.skip(f"there is no {program} in the system")
    ran = place.run(program, "-c" if program.endswith("python3") else "-e", script)
    assert (ran.code, ran.out.strip()) == (0, said), ran.err


def test_a_program_is_compiled_and_debugged_no_further_than_itself(place: Room) -> None:
    if not Path("/usr/bin/cc").exists():
        return
    ran = place.sh("echo '#include <stdio.h>\nint main(){puts(\"ran\");}' > a.c && cc -O2 a.c -o a && ./a")
    assert ran.out == "ran\n", ran.err


async def test_the_real_claude_cli_works_and_commits(place: Room) -> None:
    need("claude")
    sockets, config = place.folder.parent / "sockets", place.folder.parent / "config"
    for folder in (sockets, config):
        folder.mkdir()
        folder.chmod(0o777)
    place.sh(
        "git init -q -b main; git config user.name A; git config user.email a@b; git commit -q --allow-empty -m Begin"
    )
    commit: JsonObject = {"command": "git add -A && git commit -qm Made && id -u", "description": "commit"}
    write: JsonObject = {"file_path": "/workspace/made.txt", "content": "made\n"}
    turns: list[Json] = [
        {"tool_use": [{"name": "Write", "input": write}]},
        {"tool_use": [{"name": "Bash", "input": commit}]},
        {"text": "done"},
    ]
    script = Script.parse({"rules": [{"name": "main", "turns": turns}]})
    spec = CliSpec(session_id=uuid.uuid4(), allowed_tools=("Bash", "Write", "Read"))
    env = environment(
        socket="/run/agent/api.sock",
        token="run-token",
        home="/home/agent",
        config_dir="/credentials",
        tmp="/tmp",
        extra={},
    )
    cli = claude_cli()
    assert cli is not None
    mounts = [Mount(sockets, "/run/agent"), Mount(config, "/credentials", writable=True), Mount(cli, CLI)]
    async with ScriptedMessages(script, socket=sockets / "api.sock") as api:
        (sockets / "api.sock").chmod(0o666)
        confinement = place.confine(*command(spec, cli=CLI), env=env, mounts=mounts)

        def run() -> tuple[str, str, int]:
            with place.start(confinement, stdin=-1) as process:
                out, err = process.communicate(user_message("Make it.").decode(), timeout=60)
            return out, err, process.returncode

        out, err, code = await asyncio.to_thread(run)
        assert code == 0, err
        assert len(api.calls) == 3
    transcript = Transcript()
    transcript.feed(out.encode())
    assert transcript.result is not None
    assert transcript.result["result"] == "done"
    assert "10001" in out
    assert place.sh("git log --format=%s").out.split() == ["Made", "Begin"]
