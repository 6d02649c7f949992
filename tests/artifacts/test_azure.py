"""What is told of a container of Azure's that can't be used."""

import base64
import io
from pathlib import Path

import pytest
from azure_server import AzureServer
from pydantic import SecretStr

from automagik.artifacts.objects import Objects
from automagik.errors import ConfigurationError, ServiceUnavailable
from automagik.settings import Settings

pytestmark = pytest.mark.anyio


async def test_a_container_that_is_missing_or_not_named_and_a_wrong_key_are_told(
    tmp_path: Path, azure_server: AzureServer
) -> None:
    settings = azure_server.settings(Settings(data_dir=tmp_path), azure_server.create_bucket())
    wrong = {"artifacts_secret_key": SecretStr(base64.b64encode(b"x" * 64).decode())}
    for faulty, reason in (
        (azure_server.settings(settings, "no-such-container"), "no such bucket"),
        (settings.model_copy(update=wrong), "refuses the keys"),
    ):
        objects = Objects(faulty)
        await objects.open()
        with pytest.raises(ServiceUnavailable, match=reason):
            await objects.check()
    with pytest.raises(ConfigurationError, match="names no container"):
        await Objects(settings.model_copy(update={"artifacts_url": "az://account"})).open()


async def test_what_comes_in_blocks_is_whole(tmp_path: Path, azure_server: AzureServer) -> None:
    objects = Objects(azure_server.settings(Settings(data_dir=tmp_path), container := azure_server.create_bucket()))
    await objects.open()
    data = bytes(range(256)) * 45_000
    await objects.put("ab/large", io.BytesIO(data))
    assert azure_server.containers[container] == {"artifacts/ab/large": data}
    assert [[(found.name, found.size) for found in page] async for page in objects.walk()] == [
        [("ab/large", len(data))]
    ]
