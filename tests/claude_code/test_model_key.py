"""Workflows where the platform has no key for their models: refused, or ended, before anything is prepared for them."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from executor_house import short_folder
from pydantic import SecretStr

from automagik.app import Platform
from automagik.claude_code.work import RepositorySource, Work
from automagik.claude_code.workspaces import BUNDLE_TYPE
from automagik.errors import Conflict
from automagik.runs import RunRequest
from automagik.runs.request import WORKFLOW_AGENT
from automagik.settings import Settings
from automagik.store.rows import RunRow
from automagik.testing.engines import DirectEngine
from automagik.testing.needs import need
from automagik.testing.postgres import PostgresServer
from automagik.types import SYSTEM, TERMINAL, RunStatus

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def opened(**settings: object) -> AsyncGenerator[Platform]:
    with short_folder() as folder:
        given = Settings(data_dir=folder, executor="local").model_copy(
            update={"anthropic_api_key": None, "anthropic_auth_token": None, **settings}
        )
        async with Platform.open(given, make_engine=DirectEngine) as platform:
            yield platform


async def asked(platform: Platform, *, demo: bool = False) -> RunRow:
    bundle = await platform.artifacts.put(b"not looked at yet", media_type=BUNDLE_TYPE)
    work = Work("review", RepositorySource(bundle=bundle.digest), demo=demo)
    return await platform.runs.submit(RunRequest(WORKFLOW_AGENT, "Look", work=work.to_json()), SYSTEM)


async def test_a_platform_without_a_key_refuses_a_workflow_until_one_is_stored() -> None:
    async with opened(min_free_disk_bytes=1 << 60) as platform:  # nothing is taken
        with pytest.raises(Conflict, match="ANTHROPIC_API_KEY") as refused:
            await asked(platform)
        assert refused.value.code == "no_model_key"
        assert "automagik secrets set anthropic_api_key" in (refused.value.hint or "")
        assert (await platform.runs.list(SYSTEM)).data == []
        assert (await asked(platform, demo=True)).status == "queued"

        await platform.secrets.set("anthropic_api_key", SecretStr("sk-test"))
        assert (await asked(platform)).status == "queued", "what was not there is looked for again at once"


async def test_where_another_host_may_have_the_key_the_worker_looks_before_it_prepares(
    postgres_server: PostgresServer,
) -> None:
    need("bubblewrap")
    need("claude")
    url = postgres_server.create_database()
    try:
        async with opened(database_url=SecretStr(url)) as platform:
            row = await asked(platform)
            async with asyncio.timeout(30):
                while RunStatus(row.status) not in TERMINAL:
                    await asyncio.sleep(0.1)
                    row = await platform.runs.get(row.run_id, SYSTEM)
            assert (row.outcome, row.host) == ("model_error", None)
            assert "ANTHROPIC_API_KEY" in str((row.error or {})["detail"])
            assert await platform.store.read(lambda tx: tx.executions.find(row.run_id)) is None
    finally:
        postgres_server.drop_database(url)
