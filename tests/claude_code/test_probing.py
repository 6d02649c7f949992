"""The trial of a sandbox, where it can't even begin."""

from typing import cast

import pytest
from executor_house import short_folder

from automagik.claude_code.executor import Executor, ExitStatus, Once
from automagik.claude_code.probing import probe_executor
from automagik.settings import Settings

pytestmark = pytest.mark.anyio


class Closed:
    """An executor whose sandbox starts nothing."""

    def __init__(self) -> None:
        self.places: list[str] = []

    async def prepare(self, run_id: str) -> None:
        self.places.append(run_id)

    async def once(self, run_id: str, command: object, **more: object) -> Once:
        return Once(ExitStatus(1, stderr="bwrap: Can't make\n a namespace"))

    async def remove(self, run_id: str) -> None:
        self.places.remove(run_id)


async def test_a_probe_that_did_not_run_says_why_and_is_no_proof() -> None:
    executor = Closed()
    with short_folder() as folder:
        (folder / "data").mkdir()
        settings = Settings.model_validate({"data_dir": folder / "data", "runtime_dir": folder / "run"})
        [found] = await probe_executor(settings, cast("Executor", executor))
    assert str(found) == "output: the probe said nothing (exit code 1): bwrap: Can't make a namespace"
    assert executor.places == []
