"""Every way in which a run of a workflow ends, seen as a user sees it: the real server, the real CLI, a real sandbox."""

import asyncio
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from executor_house import processes_with, test_image
from git_house import git
from workflow_house import WorkflowHouse, committing, workflow_house, write_workflow

from automagik.claude_code.containers import RUN_LABEL
from automagik.testing.needs import need
from automagik.testing.warm import WarmPython

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(400)]

_TIGHT = {
    "AUTOMAGIK_SANDBOX_MEMORY_BYTES": str(700 * 1024**2),
    "AUTOMAGIK_SANDBOX_TMP_BYTES": str(64 * 1024**2),
    "AUTOMAGIK_SANDBOX_PIDS": "96",
    "AUTOMAGIK_MAX_WORKSPACE_BYTES": str(32 * 1024**2),
}
_AT_ONCE = 3


def use(tool: str, **arguments: Any) -> dict[str, Any]:
    return {"text": "I do it.", "tool_use": [{"name": tool, "input": arguments}]}


def bash(command: str) -> dict[str, Any]:
    return use("Bash", command=command, description="Do it")


def failing(status: int, **more: Any) -> dict[str, Any]:
    """An error of the provider's that is final."""
    return {"error": {"status": status, "headers": {"x-should-retry": "false"}, **more}}


_WRITE = use("Write", file_path="{cwd}/half.txt", content="half\n")
_SAY = {"text": "After: {last_tool_result}"}


@dataclass(frozen=True)
class Case:
    """One run: it writes a file (where `writes`), goes on with `turns`, and ends as `outcome`."""

    name: str
    turns: list[dict[str, Any]]
    outcome: str
    status: str = "failed"
    detail: str = ""
    """A part of the error's text."""
    says: str = ""
    """A part of the run's last words."""
    warns: str = ""
    """The code of a warning among its events."""
    requests: int = 2
    calls: int | None = None
    """How many calls of tools ran; None: it is not certain."""
    writes: bool = True
    body: dict[str, Any] = field(default_factory=dict[str, Any])


_PROVIDER = [
    Case("401", [failing(401)], "model_error", detail="refused the platform's key (401)"),
    Case("403", [failing(403)], "model_error", detail="refused the platform's key (403)"),
    Case("404", [failing(404)], "model_error", detail="does not know the model"),
    Case("429", [failing(429)], "model_error", detail="answered 429, also when asked again"),
    Case("500", [failing(500)], "model_error", detail="answered 500, also when asked again"),
    Case("529", [failing(529)], "model_error", detail="answered 529, also when asked again"),
    Case(
        "too long",
        [failing(400, type="invalid_request_error", message="prompt is too long: 250000 tokens > 200000 maximum")],
        "model_error",
        detail="longer than the model takes",
        requests=1,
        writes=False,  # else the CLI sums up what there is, and goes on
    ),
    Case("refusal", [{"text": "No.", "stop_reason": "refusal"}], "policy", detail="The model refused the task"),
    Case(
        "max_tokens", [{"text": "And", "stop_reason": "max_tokens"}], "invalid_output", detail="longer than one answer"
    ),
    Case("max_turns", [_WRITE] * 5, "max_turns", detail="limit of turns", body={"max_turns": 2}),
]
_SIGNALS = [
    Case("term", [bash("kill -TERM $PPID; perl -e 'sleep 300'")], "sandbox_error", detail="(signal 15)"),
    Case("int", [bash("kill -INT $PPID; perl -e 'sleep 300'")], "interrupted", "cancelled", detail="interrupted"),
    Case(
        "late",
        [bash("perl -e 'sleep 300'")],
        "timed_out",
        detail="used up its time",
        calls=1,
        body={"timeout_seconds": 14},
    ),
]
_FULL = [
    Case(
        "denied",
        [use("WebFetch", url="http://example.org", prompt="x"), {"text": "The end."}],
        "completed",
        "completed",
        says="The end.",
        warns="tools_denied",
        requests=3,
        calls=1,
    ),
    Case(
        "disk",
        [
            bash(
                "for n in 1 2 3 4 5; do dd if=/dev/zero of=/tmp/full$n bs=1M count=20; done 2>&1 | grep -m1 -o 'No space'"
            ),
            _SAY,
        ],
        "completed",
        "completed",
        requests=3,
    ),
    Case(
        "workspace",
        [
            bash(
                "mkdir shut; dd if=/dev/zero of=shut/big bs=1M count=18; chmod 0 shut; "
                "exec 9>gone; rm gone; dd if=/dev/zero bs=1M count=16 >&9; perl -e 'sleep 300'"
            ),
            _SAY,
        ],
        "sandbox_error",
        detail="workspace grew over its limit",
    ),
    Case(
        "sub-agent",
        [
            use(
                "Agent", description="Sub", prompt="sub-case.", subagent_type="general-purpose", run_in_background=True
            ),
            {"text": "I wait."},
        ],
        "completed",
        "completed",
        says="I wait.",
        requests=6,
    ),
]
_SHORT = [
    Case("kill", [bash("kill -KILL $PPID; perl -e 'sleep 300'")], "sandbox_error", detail="(signal 9)"),
    Case(
        "memory",
        [bash("perl -e 'my @x; push @x, q(x) x 10_000_000 while @x < 300; sleep 5'; echo ended $?"), _SAY],
        "completed",
        "completed",
        says="ended 137",
        warns="out_of_memory",
        requests=3,
    ),
    Case(
        "forks",
        [bash("perl -e 'fork while 1' 2>/dev/null; echo ended"), _SAY],
        "sandbox_error",
        detail="its limit of processes",
    ),
    Case(
        "cut",
        [{"text": "Half of it, and the rest", "fault": {"kind": "cut", "after": 3, "times": 2}}],
        "completed",
        "completed",
        says="the rest",
        warns="model_retry",
    ),
]


def script_of(cases: list[Case]) -> dict[str, Any]:
    """Each run is known by its task."""
    rules: list[dict[str, Any]] = [
        {"when": {"prompt": "sub-case."}, "turns": [bash("perl -e 'sleep 1'"), {"text": "The sub-agent's words."}]}
    ]
    for case in cases:
        turns = [_WRITE, *case.turns] if case.writes else case.turns
        rules.append({"when": {"first_prompt": f"case {case.name}."}, "turns": turns})
    return {"rules": rules, "default": {"text": "OK"}}


@asynccontextmanager
async def opened(
    script: dict[str, Any], executor: str, warm: WarmPython, **settings: str
) -> AsyncGenerator[tuple[WorkflowHouse, Any]]:
    """A server, and the user's repository as its runs name it."""
    need("claude")
    need("bubblewrap" if executor == "local" else "docker")
    image = {"AUTOMAGIK_SANDBOX_IMAGE": await test_image()} if executor == "docker" else {}
    given = {**_TIGHT, **image, **settings}
    async with workflow_house(script, executor=executor, settings=given, warm=warm) as house:
        bundle = house.folder / "upload.bundle"
        await asyncio.to_thread(git, house.repository, "bundle", "create", "-q", str(bundle), "HEAD")
        sent = await house.client.post(
            "/repositories", content=bundle.read_bytes(), headers={"content-type": "application/x-git-bundle"}
        )
        yield house, {"bundle": sent.json()["bundle"], "name": "mine"}


async def see(house: WorkflowHouse, repository: Any, case: Case) -> None:
    """That this case ends as it should."""
    run_id = await house.begin(f"case {case.name}.", repository=repository, **case.body)
    await check(house, case, run_id)


async def check(house: WorkflowHouse, case: Case, run_id: str, *, seconds: float = 240) -> None:
    """That the run ends as its case says, keeps what it had made, is paid for, and leaves nothing behind."""
    run = await house.ended(run_id, seconds=seconds)
    events = await house.events(run_id)
    said = run["error"]["detail"] if run["error"] else ""
    warned = {event["data"].get("code") for event in events if event["type"] == "warning"}

    assert (run["status"], run["outcome"]) == (case.status, case.outcome), (case.name, run["error"])
    assert case.detail in said, (case.name, said)
    assert case.says in run["output"]["message"], case.name
    assert case.warns in {*warned, ""}, (case.name, warned)
    assert (said == "") == (case.status == "completed"), (case.name, said)

    # Paid for, whatever became of it.
    assert run["usage"]["requests"] >= case.requests, case.name
    assert float(run["usage"]["cost_usd"]) >= 10 * (case.requests - 1), case.name
    assert case.calls in {run["usage"]["tool_calls"], None}, case.name

    # What was not committed is kept, under its name.
    wip = run["workspace"]["wip_commit"]
    assert (wip is not None) == case.writes, case.name
    if case.writes:
        assert "+half" in (await house.client.get(f"/runs/{run_id}/diff", params={"wip": "true"})).text, case.name
        assert wip in await asyncio.to_thread(_refs, house, run_id), case.name

    # Nothing is left of it.
    assert run_id not in house.places(), case.name
    assert await asyncio.to_thread(processes_with, run_id) == [], case.name
    if house.executor == "docker":
        assert await asyncio.to_thread(_of_engine, run_id) == "", case.name


def _refs(house: WorkflowHouse, run_id: str) -> str:
    """What our bare repositories have under the name of the run's uncommitted tree."""
    homes = [
        head.parent
        for head in (house.folder / "data" / "repositories").rglob("HEAD")
        if (head.parent / "objects").is_dir() and "incoming" not in head.parts  # which come and go
    ]
    return "".join(git(home, "for-each-ref", f"refs/runs/{run_id}/wip", "--format=%(objectname)") for home in homes)


def _of_engine(run_id: str) -> str:
    """Containers and volumes of the run."""
    label = f"label={RUN_LABEL}={run_id}"
    lists = (["docker", "ps", "-aq", "--filter", label], ["docker", "volume", "ls", "-q", "--filter", label])
    return "".join(subprocess.run(words, capture_output=True, text=True, check=True).stdout for words in lists)


async def see_all(cases: list[Case], executor: str, warm: WarmPython) -> None:
    """Some at once: each waits for its own server of models most of the time."""
    places = asyncio.Semaphore(_AT_ONCE)
    async with opened(script_of(cases), executor, warm) as (house, repository):

        async def one(case: Case) -> None:
            async with places:
                await see(house, repository, case)

        await asyncio.gather(*map(one, cases))


async def test_a_tool_that_takes_all_of_something_and_a_cli_that_dies_are_told(warm: WarmPython) -> None:
    await see_all(_SHORT, "local", warm)


@pytest.mark.long
@pytest.mark.parametrize("executor", ["local", "docker"])
async def test_each_ending_is_told_paid_for_and_cleared_away(executor: str, warm: WarmPython) -> None:
    more = _SHORT if executor == "docker" else []  # the test above has them
    await see_all([*_PROVIDER, *_SIGNALS, *_FULL, *more], executor, warm)


async def test_each_message_is_read_or_refused_with_the_way_out(warm: WarmPython) -> None:
    async with opened(committing(), "local", warm) as (house, repository):
        for _ in range(4):
            house.api.calls.clear()
            if await _is_refused_while_it_ends(house, repository):
                return
        pytest.fail("the end of each of four runs was missed")


async def _is_refused_while_it_ends(house: WorkflowHouse, repository: Any) -> bool:
    """Say words into a run until they are refused. False where it had ended meanwhile, as where this process was held up."""
    run_id = await house.begin(repository=repository)
    await house.until_event(run_id, "message_completed")
    accepted: list[str] = []
    async with asyncio.timeout(60):
        while True:
            word = f"Word-{len(accepted)}."
            answer = await house.client.post(f"/runs/{run_id}/messages", json={"message_content": word})
            if answer.status_code != 202:
                break
            accepted.append(word)
            await asyncio.sleep(0.4)
    run = await house.ended(run_id)
    late = await house.client.post(f"/runs/{run_id}/messages", json={"message_content": "Still there?"})

    assert (answer.status_code, answer.json()["code"] in {"run_ending", "run_ended"}) == (409, True)
    assert f'"resume_of": "{run_id}"' in answer.json()["hint"]
    assert (late.status_code, late.json()["code"]) == (409, "run_ended")
    assert f'"resume_of": "{run_id}"' in late.json()["hint"]
    assert run["outcome"] == "completed"
    sent = str([call.body["messages"] for call in house.api.calls])
    assert [word for word in accepted if word not in sent] == []
    events = await house.events(run_id)
    assert [event["data"]["text"] for event in events if event["type"] == "guidance"] == accepted
    return answer.json()["code"] == "run_ending"


async def test_the_model_is_the_requests_the_workflows_the_settings_or_the_clis(warm: WarmPython) -> None:
    def asked(house: WorkflowHouse, task: str) -> set[str]:
        calls = [call.body for call in house.api.calls if task in str(call.body["messages"])]
        return {str(body["model"]) for body in calls}

    script = {"default": {"text": "Done."}}
    async with opened(script, "local", warm, AUTOMAGIK_MODEL="anthropic:claude-usual") as (house, repository):
        folder = house.folder / "data" / "workflows"
        write_workflow(folder / "own", toml='model = "anthropic:claude-own"\nmodels = ["claude-o*"]')
        write_workflow(folder / "narrow", toml='models = ["claude-other"]')
        async with asyncio.timeout(20):
            while (await house.client.get("/workflows/narrow")).status_code != 200:
                await asyncio.sleep(0.2)
        runs = {
            "usual": await house.begin("Task-usual", repository=repository, executor="auto"),
            "own": await house.begin("Task-own", workflow="own", repository=repository),
            "request": await house.begin(
                "Task-request", workflow="own", repository=repository, model="anthropic:claude-asked"
            ),
            "narrow": await house.begin("Task-narrow", workflow="narrow", repository=repository),
        }
        ended = {name: await house.ended(run_id) for name, run_id in runs.items()}

        assert {name: run["outcome"] for name, run in ended.items()} == {
            "usual": "completed",
            "own": "completed",
            "request": "completed",
            "narrow": "policy",  # neither the setting's model nor the CLI's own is one that it lists
        }
        assert ended["usual"]["executor"] == "local"  # as the setting says, whatever else works here
        assert asked(house, "Task-usual") == {"claude-usual"}
        assert asked(house, "Task-own") == {"claude-own"}
        assert asked(house, "Task-request") == {"claude-asked"}
        assert asked(house, "Task-narrow") == set()
        assert "This run may not use the model" in ended["narrow"]["error"]["detail"]
        assert "claude-usual" not in ended["narrow"]["error"]["detail"]


@pytest.mark.long
async def test_a_gateway_and_a_provider_that_stay_away_end_a_run_with_what_it_had_done(warm: WarmPython) -> None:
    """Both last as long as the CLI asks again: over three minutes."""
    waits = bash("perl -e 'sleep 5'")
    away = Case("away", [waits, _SAY], "model_error", detail="The model's API can't be reached", warns="model_retry")
    detail = "gateway could not be reached"
    # Without a budget nothing is known of a call that was cut with its process.
    dead = Case("dead", [waits, _SAY], "model_error", detail=detail, warns="model_retry", requests=1)

    async def without_provider() -> None:
        async with opened(script_of([away]), "local", warm) as (house, repository):
            run_id = await house.begin("case away.", repository=repository)
            await house.api.wait_for(2, timeout_seconds=60)
            await house.api.refuse()
            await check(house, away, run_id, seconds=330)

    async def without_gateway() -> None:
        async with opened(script_of([dead]), "local", warm) as (house, repository):
            run_id = await house.begin("case dead.", repository=repository)
            await house.api.wait_for(2, timeout_seconds=60)
            house.server.kill()
            async with asyncio.timeout(330):
                while await asyncio.to_thread(processes_with, run_id):
                    await asyncio.sleep(0.5)
            await asyncio.to_thread(house.server.start)
            await check(house, dead, run_id)

    await asyncio.gather(without_provider(), without_gateway())


@pytest.mark.long
async def test_demos_whose_gateway_dies_in_the_middle_of_an_answer_still_commit(warm: WarmPython) -> None:
    async with opened({"default": {"text": "OK"}}, "local", warm) as (house, repository):
        runs: list[str] = []
        for _ in range(3):  # each is at another step when the gateway dies
            runs.append(await house.begin("Add a note", repository=repository, demo=True))
            await asyncio.sleep(0.4)
        await house.until_event(runs[0], "tool_result")
        await asyncio.to_thread(house.server.kill)
        await asyncio.to_thread(house.server.start)
        for run_id in runs:
            run = await house.ended(run_id, seconds=120)
            assert (run["outcome"], run["attempt"]) == ("completed", 1), run["error"]
            assert len(run["workspace"]["commits"]) == 1, run_id
            assert float(run["usage"]["cost_usd"]) == 0
        assert house.api.count == 0
