"""A workflow that was made through the API can't have the engine fetch an image, whose programs would run outside of the sandbox."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from executor_house import RUN, executor_settings, made, short_folder

from automagik.claude_code.executor import Executor
from automagik.claude_code.workflow import Workflow
from automagik.errors import ConfigurationError

pytestmark = pytest.mark.anyio


@pytest.fixture
async def executor(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Executor]:
    with short_folder() as run:
        async with made(await executor_settings("docker", tmp_path, run)) as opened:
            yield opened


async def test_an_image_that_is_not_there_is_not_fetched_for_it(executor: Executor) -> None:
    unknown = f"registry.invalid/{uuid.uuid4().hex}:1"
    files = {"prompt.md": "Do it.", "workflow.toml": f'image = "{unknown}"'}
    workflow = Workflow.parse("theirs", files, trusted=False)
    assert not workflow.trusted
    assert Workflow.parse("ours", files).trusted
    with pytest.raises(ConfigurationError, match="can have none fetched") as refused:
        await executor.prepare(RUN, image=workflow.image, pull=workflow.trusted)
    assert refused.value.hint == f"An administrator fetches it: docker pull {unknown}"
