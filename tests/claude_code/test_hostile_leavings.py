"""What an agent leaves in its git folder, taken out through each executor: sandboxes of this machine, and containers."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from executor_house import LIMITS, RUN, executor_settings, made, short_folder
from git_house import chunks, git, make_repository, open_repositories, write_bundle

from automagik.claude_code.commits import extract_commits, left_out
from automagik.claude_code.executor import Executor
from automagik.claude_code.history import Taken
from automagik.claude_code.repositories import Repositories
from automagik.claude_code.sources import Source
from automagik.claude_code.workspace import SandboxScript, branch_name, make_workspace

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

BRANCH = branch_name("implement", RUN)

WORK = """
git config user.name Mallory && git config user.email m@example.org
echo three > c.txt && git add c.txt && git commit -qm Made
git branch side/idea
git init -q within && echo w > within/w.txt
echo changed > a.txt && echo new > new.txt
"""

EVERYTHING = """
cat > /workspace/evil.sh <<'END'
#!/bin/sh
touch /workspace/RAN
cat
END
chmod 755 evil.sh
mkdir -p .git/hooks .git/info .git/objects/info .git/refs/replace
for hook in pre-commit post-checkout post-index-change reference-transaction pre-auto-gc fsmonitor-watchman; do
    ln -sf /workspace/evil.sh .git/hooks/$hook
done
for name in core.fsmonitor core.editor core.pager core.sshCommand core.alternateRefsCommand filter.evil.clean filter.evil.process \\
    diff.external gpg.program uploadpack.packObjectsHook; do git config $name /workspace/evil.sh; done
git config core.hooksPath /workspace/.git/hooks
git config filter.evil.required true
printf '* filter=evil diff=evil\\n' > .gitattributes
base=$(git rev-parse HEAD~1)
git replace -f HEAD $base
printf '%s\\n' "$(git rev-parse HEAD)" > .git/info/grafts
printf '%s\\n' "$base" > .git/shallow
head -c 4096 /dev/urandom > .git/objects/info/commit-graph
head -c 4096 /dev/urandom > .git/objects/pack/multi-pack-index
printf '/\\n/etc\\n/var/lib/docker\\n../../../../../../root/.git/objects\\n' > .git/objects/info/alternates
printf '[core]\\n\\tworktree = /etc\\n\\tbare = true\\n[include]\\n\\tpath = /proc/self/environ\\n[broken\\n' >> .git/config
touch .git/index.lock .git/HEAD.lock .git/packed-refs.lock .git/shallow.lock
perl -MPOSIX -e 'mkfifo($_, 0600) for @ARGV' .git/objects/pack/pack-1.idx .git/objects/pack/pack-1.pack .git/refs/heads/pipe \\
    .git/objects/info/packs pipe
mkdir -p .git/objects/aa && ln -s /dev/zero .git/objects/aa/00000000000000000000000000000000000000
ln -s / .git/refs/heads/everything
ln -s /etc/shadow shadow && ln -s /dev/zero zero && ln -s / root
perl -MSocket -e 'socket(S, PF_UNIX, SOCK_STREAM, 0); bind(S, pack_sockaddr_un("socket"))'
printf '#!/bin/sh\nkill -9 -1\n' > evil.sh  # run while work is taken out, it ends that
rm -f RAN
"""

ODD_INDEX = """
rm .git/index && ln -s /dev/zero .git/index
rm -f .git/packed-refs && ln -s /dev/zero .git/packed-refs
mkdir -p .git/info && rm -f .git/info/exclude && perl -MPOSIX -e 'mkfifo($_, 0600) for @ARGV' .git/info/exclude
"""

GIT_AS_FILE = "mv .git elsewhere && printf 'gitdir: /workspace/elsewhere\\n' > .git"
GIT_AS_LINK = "mv .git elsewhere && ln -s /workspace/elsewhere .git"
OBJECTS_AS_LINK = "rm -rf .git/objects && ln -s / .git/objects"


@dataclass
class House:
    """A run in its executor, whose agent is a script of ours."""

    executor: Executor
    repositories: Repositories
    source: Source
    base: Path

    async def once(self, script: SandboxScript, *, stdin: bytes | None = None) -> tuple[bytes, str]:
        done = await self.executor.once(
            RUN,
            script.command,
            stdin=None if stdin is None else chunks(stdin),
            env=script.env,
            writable=script.writable,
            timeout_seconds=60,
            limits=LIMITS,
        )
        assert done.exit.code == 0, done.exit
        return done.stdout, done.exit.stderr

    async def agent(self, commands: str) -> None:
        """A workspace made anew, in which the agent does this."""
        inside = self.executor.inside(RUN)
        making = make_workspace(
            branch=BRANCH,
            author="Mallory",
            email="m@example.org",
            base_commit=self.source.base_commit,
            workspace=inside.workspace,
        )
        await self.once(making, stdin=self.base.read_bytes())
        env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent"}
        text = f"set -e; cd {inside.workspace}; {WORK}\n{commands.replace('/workspace', inside.workspace)}"
        await self.once(SandboxScript(("/bin/sh", "-c", text), env, writable=True))

    async def take(self) -> tuple[Taken, list[str]]:
        script = extract_commits(
            base_commit=self.source.base_commit, workspace=self.executor.inside(RUN).workspace, tree_seconds=10
        )
        bundle, said = await self.once(script)
        taken = await self.repositories.take(
            RUN, self.source.repository, self.source.base_commit, chunks(bundle), branch=BRANCH
        )
        return taken, left_out(said)

    def ours(self, *arguments: str) -> str:
        return git(self.repositories.run_path(self.source.repository, RUN), *arguments)


@pytest.fixture(params=["local", "docker"])
async def house(request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str) -> AsyncIterator[House]:
    repositories = await open_repositories(tmp_path / "data")
    bundle = write_bundle(make_repository(tmp_path / "mine"), tmp_path / "upload.bundle")
    source = await repositories.import_bundle(bundle)
    base = await repositories.base_bundle(source)
    with short_folder() as run:
        async with made(await executor_settings(request.param, tmp_path / "executor", run)) as executor:
            await executor.prepare(RUN)
            yield House(executor, repositories, source, base)


async def test_commits_and_changes_come_out_whatever_the_agent_left_and_nothing_of_it_runs(house: House) -> None:
    for leavings in (EVERYTHING, ODD_INDEX):
        await house.agent(leavings)
        taken, said = await house.take()
        assert taken.descends, said
        assert [commit.subject for commit in taken.commits] == ["Made"], said
        assert dict(taken.branches) == {BRANCH: taken.head_commit, "side/idea": taken.head_commit}, said
        assert taken.wip_commit is not None, said
        names = set(house.ours("ls-tree", "-r", "--name-only", taken.wip_commit).splitlines())
        assert {"a.txt", "src/b.txt", "c.txt", "new.txt", "within/w.txt"} <= names
        assert not names & {"pipe", "socket"}
        assert house.ours("show", f"{taken.wip_commit}:a.txt") == "changed"
        for link, target in (("shadow", "/etc/shadow"), ("root", "/")):
            if link in names:
                assert house.ours("cat-file", "-p", f"{taken.wip_commit}:{link}") == target


async def test_where_the_git_folder_is_not_one_the_files_come_out(house: House) -> None:
    for leavings in (GIT_AS_FILE, GIT_AS_LINK, OBJECTS_AS_LINK):
        await house.agent(leavings)
        taken, said = await house.take()
        assert said, leavings
        assert taken.head_commit == house.source.base_commit
        assert taken.wip_commit is not None, said
        names = set(house.ours("ls-tree", "-r", "--name-only", taken.wip_commit).splitlines())
        assert {"a.txt", "src/b.txt", "c.txt", "new.txt"} <= names
