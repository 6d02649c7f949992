"""What the tests of this folder stand in."""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pydantic import SecretStr

from automagik.artifacts import ArtifactStore
from automagik.settings import Settings
from automagik.store import Store

__all__ = ["ArtifactHouse", "BucketPlace", "BucketServer", "FolderPlace", "TurnedClock", "google_settings"]


class BucketServer(Protocol):
    """A server with buckets, or what it calls so."""

    url: str

    def create_bucket(self) -> str: ...

    def names(self, bucket: str) -> list[str]: ...

    def write(self, bucket: str, name: str, data: bytes) -> None: ...


def google_settings(server: BucketServer, settings: Settings, bucket: str, prefix: str = "artifacts") -> Settings:
    """The settings with the artefact store as one of Google's: its XML API is what a server that speaks S3 answers."""
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    account = {
        "type": "service_account",
        "client_email": "automagik@example.org",
        "private_key": pem.decode(),
        "private_key_id": "key",
    }
    return settings.model_copy(
        update={
            "artifacts_url": f"gs://{bucket}/{prefix}",
            "artifacts_endpoint": server.url,
            "artifacts_secret_key": SecretStr(json.dumps(account)),
        }
    )


class TurnedClock:
    """Time as the test tells it; no moment comes twice."""

    def __init__(self, moment: datetime) -> None:
        self._moment = moment

    def now(self) -> datetime:
        self._moment += timedelta(microseconds=1)
        return self._moment

    def monotonic(self) -> float:
        return self._moment.timestamp()

    def turn(self, **by: float) -> None:
        self._moment += timedelta(**by)


@dataclass(frozen=True)
class FolderPlace:
    """The bytes in a folder, from behind the store's back."""

    folder: Path

    def names(self) -> list[str]:
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)


@dataclass(frozen=True)
class BucketPlace:
    """The bytes in a bucket, from behind the store's back."""

    server: BucketServer
    bucket: str

    def names(self) -> list[str]:
        return sorted(name.removeprefix("artifacts/") for name in self.server.names(self.bucket))

    def write(self, name: str, data: bytes) -> None:
        self.server.write(self.bucket, f"artifacts/{name}", data)


@dataclass(frozen=True)
class ArtifactHouse:
    """An open artefact store with its database, clock and bytes."""

    settings: Settings
    store: Store
    artifacts: ArtifactStore
    clock: TurnedClock
    place: FolderPlace | BucketPlace

    def fresh(self) -> ArtifactStore:
        """Another artefact store over the same rows and bytes, as another process has it: with nothing in memory. Not opened."""
        return ArtifactStore(self.settings, self.store, self.clock)
