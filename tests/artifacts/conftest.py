"""An artefact store on each database, in a folder and in a bucket of an S3 server."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast

import pytest
from artifact_house import ArtifactHouse, BucketPlace, FolderPlace, TurnedClock, google_settings
from azure_server import AzureServer

from automagik.artifacts import ArtifactStore
from automagik.store import Store
from automagik.testing.fixtures import dialect, postgres_server
from automagik.testing.postgres import PostgresServer
from automagik.testing.s3 import S3Server
from automagik.testing.stores import fresh_settings

__all__ = ["dialect", "postgres_server"]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture(scope="session")
def azure_server() -> Iterator[AzureServer]:
    with AzureServer() as server:
        yield server


@pytest.fixture(params=["folder", "bucket"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each place of the bytes in turn."""
    return cast("str", request.param)


@pytest.fixture
async def house(
    dialect: Literal["sqlite", "postgresql"],
    kind: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    anyio_backend: str,
) -> AsyncIterator[ArtifactHouse]:
    postgres = cast("PostgresServer", request.getfixturevalue("postgres_server")) if dialect == "postgresql" else None
    clock = TurnedClock(datetime.now(UTC))
    async with fresh_settings(dialect, tmp_path, server=postgres) as settings:
        place: FolderPlace | BucketPlace = FolderPlace(tmp_path / "artifacts")
        if kind in {"bucket", "google"}:
            server = cast("S3Server", request.getfixturevalue("s3_server"))
            place = BucketPlace(server, bucket := server.create_bucket())
            settings = (
                google_settings(server, settings, bucket) if kind == "google" else server.settings(settings, bucket)
            )
        elif kind == "azure":
            azure = cast("AzureServer", request.getfixturevalue("azure_server"))
            place = BucketPlace(azure, bucket := azure.create_bucket())
            settings = azure.settings(settings, bucket)
        store = Store.from_settings(settings, clock)
        artifacts = ArtifactStore(settings, store, clock)
        await store.open()
        await artifacts.open()
        yield ArtifactHouse(settings, store, artifacts, clock, place)
        await artifacts.close()
        await store.close()
