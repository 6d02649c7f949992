"""The real Claude CLI through a door: it works by the run's token alone, and lives through a restart of the platform."""

import asyncio
import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from gateway_house import KEY, MODEL, TOKEN, House, OpenHouse

from automagik.testing.needs import claude_cli, need
from automagik.testing.scripted_messages import ScriptedMessages

pytestmark = pytest.mark.anyio

WRITES: Any = {
    "rules": [
        {
            "when": {"prompt": "Write it"},
            "turns": [
                {
                    "text": "I write it.",
                    "tool_use": [{"name": "Bash", "input": {"command": "env > env.txt; echo done"}}],
                },
                {"text": "It is {last_tool_result}"},
            ],
        }
    ]
}


async def run_cli(house: House, folder: Path, *, retries: int = 3) -> asyncio.subprocess.Process:
    """The CLI at work in `folder`, with nothing but the socket and the token."""
    need("claude")
    cli = claude_cli()
    assert cli is not None
    command: Sequence[str] = [
        str(cli), "-p", "--output-format", "stream-json", "--verbose", "--setting-sources=user", "--strict-mcp-config",
        "--permission-mode", "dontAsk", "--allowedTools", "Bash", "--model", MODEL, "--session-id", str(uuid.uuid4()),
    ]  # fmt: skip
    (folder / "config").mkdir(parents=True)
    (folder / "tmp").mkdir()
    (folder / "work").mkdir()
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder / "work",
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "ANTHROPIC_UNIX_SOCKET": str(house.socket()),
            "ANTHROPIC_BASE_URL": "http://localhost",
            "ANTHROPIC_AUTH_TOKEN": TOKEN,
            "CLAUDE_CONFIG_DIR": str(folder / "config"),
            "CLAUDE_CODE_TMPDIR": str(folder / "tmp"),
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1",
            "DISABLE_AUTOUPDATER": "1",
            "CLAUDE_CODE_MAX_RETRIES": str(retries),
        },
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(b"Write it")
    process.stdin.close()
    return process


async def ended(process: asyncio.subprocess.Process, *, seconds: float = 60) -> dict[str, Any]:
    """The CLI's result."""
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    results = [event for line in out.splitlines() if (event := json.loads(line)).get("type") == "result"]
    assert results, err.decode()
    return results[-1]


async def test_the_cli_works_through_the_door(house: House, api: ScriptedMessages, tmp_path: Path) -> None:
    api.script = WRITES
    await house.limit(5)
    door = await house.door(models=("claude-sonnet-*",))
    result = await ended(await run_cli(house, tmp_path / "cli"))
    assert (result["subtype"], result["is_error"]) == ("success", False)
    assert result["result"].startswith("It is done")
    calls = await house.until_calls(len(api.calls))
    assert {(call.outcome, call.status) for call in calls} == {("completed", 200)}
    assert door.usage.requests == len(calls) >= 2
    spent, reserved = await house.budget()
    assert (spent, reserved) == (sum(call.cost_nano or 0 for call in calls), 0)
    seen = (tmp_path / "cli" / "work" / "env.txt").read_text()
    assert TOKEN in seen
    assert KEY not in seen


@pytest.mark.parametrize("budget", [0.001, None])
async def test_a_refusal_ends_the_cli_at_once(
    house: House, api: ScriptedMessages, tmp_path: Path, budget: float | None
) -> None:
    api.script = WRITES
    if budget is not None:
        await house.limit(budget)
    door = await house.door(models=() if budget is not None else ("claude-haiku-*",))
    result = await ended(await run_cli(house, tmp_path / "cli"))
    assert (result["is_error"], result["api_error_status"]) == (True, 403)
    assert door.refused == ("budget_exceeded" if budget is not None else "policy")
    assert api.calls == []


async def test_without_a_key_the_cli_says_which_setting_is_missing_at_once(
    open_house: OpenHouse, tmp_path: Path
) -> None:
    house = await open_house(anthropic_api_key=None, anthropic_base_url="https://api.anthropic.invalid")
    await house.door()
    result = await ended(await run_cli(house, tmp_path / "cli"), seconds=20)
    assert result["is_error"]
    assert "ANTHROPIC_API_KEY" in str(result)


async def test_the_cli_lives_through_a_restart_in_the_midst_of_an_answer(
    open_house: OpenHouse, api: ScriptedMessages, tmp_path: Path
) -> None:
    await outlive(open_house, api, tmp_path, seconds=2)


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_the_cli_lives_through_an_outage_of_two_minutes(
    open_house: OpenHouse, api: ScriptedMessages, tmp_path: Path
) -> None:
    await outlive(open_house, api, tmp_path, seconds=120)


async def outlive(open_house: OpenHouse, api: ScriptedMessages, tmp_path: Path, *, seconds: float) -> None:
    slow: Any = {
        "rules": [{**WRITES["rules"][0], "turns": [{**turn, "delay": 1.5} for turn in WRITES["rules"][0]["turns"]]}]
    }
    api.script = slow
    first = await open_house(anthropic_base_url=api.base_url)
    await first.limit(5)
    await first.door()
    process = await run_cli(first, tmp_path / "cli", retries=10)
    await api.wait_for(1)
    await first.gateway.close()  # in the midst of the first answer
    await asyncio.sleep(seconds)
    second = await open_house(anthropic_base_url=api.base_url)
    door = await second.door()
    result = await ended(process, seconds=200)
    assert not result["is_error"]
    assert result["result"].startswith("It is done")
    calls = await second.until_calls(3)
    assert [call.outcome for call in calls] == ["cut", "completed", "completed"]
    assert calls[0].cost_nano == calls[0].reserved_nano > 0
    assert door.usage.requests == 3
