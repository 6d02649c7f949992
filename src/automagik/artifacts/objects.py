"""Objects: bytes under names, in a folder or in a bucket. The one module that imports obstore."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

from obstore import exceptions
from obstore.store import LocalStore, from_url
from pydantic import SecretStr

from automagik.errors import ArtifactDamaged, AutomagikError, ConfigurationError, ServiceUnavailable
from automagik.settings import Settings
from automagik.types import new_id

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

__all__ = ["Objects", "StoredObject"]

_SCHEMES = ("s3", "gs", "az", "file")
_CHUNK_BYTES = 512 * 1024
_AT_ONCE_BYTES = 64 * 1024 * 1024
_STAGED_SECONDS = 86_400.0
"""How old a half-written file of a folder must be to be nobody's."""

_WORDS = {
    "s3": {
        "artifacts_access_key": "access_key_id",
        "artifacts_secret_key": "secret_access_key",
        "artifacts_endpoint": "endpoint",
        "artifacts_region": "region",
    },
    "az": {
        "artifacts_access_key": "account_name",
        "artifacts_secret_key": "account_key",
        "artifacts_endpoint": "endpoint",
    },
    "gs": {"artifacts_secret_key": "service_account_key", "artifacts_endpoint": "base_url"},
}
"""What each kind of store calls the settings that it knows."""

_CLIENT: "ClientConfig" = {
    "connect_timeout": timedelta(seconds=5),
    "read_timeout": timedelta(seconds=30),
    "timeout": timedelta(minutes=15),  # of one request with its body, which may be large
}
_RETRY: "RetryConfig" = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object that is there."""

    name: str
    size: int


class Objects:
    """Bytes under names, where the settings say: a folder, or a bucket of an object store. Every write is whole or not at all.

    Everything raises ServiceUnavailable when the store is away or refuses.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder: Path | None = None
        self._opened: ObjectStore | None = None

    @property
    def place(self) -> str:
        """Where the bytes are, for people: the folder, or the bucket's URL."""
        url = self._settings.artifacts_url
        if url is None:
            return str(self._settings.data_dir / "artifacts")
        parts = urlsplit(url)  # what else a wrong URL has may be a secret
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    async def open(self) -> None:
        """Make the folder where it is missing, or the client of the object store; a bucket is not asked yet.

        Raises: ConfigurationError when the setting names no store, or the folder can't be used.
        """
        self._folder = self._named_folder()
        if self._folder is None:
            self._opened = self._bucket()
            return
        folder = self._folder
        try:
            await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
            self._opened = LocalStore(folder)
        except (OSError, exceptions.BaseError) as error:
            raise ConfigurationError(
                f"The folder of artefacts {folder} can't be used: {_reason(error)}.",
                hint="Give this user the folder, or name another place with AUTOMAGIK_ARTIFACTS_URL.",
            ) from error

    async def check(self) -> None:
        """Return when an object can be written, read and removed.

        Raises: ServiceUnavailable when it can't.
        """
        name = f"probe/{new_id('probe')}"
        await self.put(name, b"automagik")
        read = b"".join([chunk async for chunk in self.read(name)])
        await self.delete([name])
        if read != b"automagik":
            raise ServiceUnavailable("The artefact store does not give back what was written.", hint="Check it.")

    async def put(self, name: str, data: bytes | IO[bytes]) -> None:
        """Store an object; one that is there is replaced. It is durable when this returns."""
        store = self._store()
        with self._meanings():
            # What is in memory goes in one request, of which nothing is left when it is cut off.
            at_once = isinstance(data, bytes) and len(data) <= _AT_ONCE_BYTES
            await store.put_async(name, data, use_multipart=False if at_once else None)
        if self._folder is not None:
            await asyncio.to_thread(_settle, self._folder / name)

    async def size(self, name: str) -> int | None:
        """The object's size, None where it is not there."""
        store = self._store()
        try:
            with self._meanings():
                return (await store.head_async(name))["size"]
        except ArtifactDamaged:
            return None

    async def read(
        self, name: str, *, expected: int | None = None, start: int = 0, end: int | None = None
    ) -> AsyncGenerator[bytes]:
        """The object's bytes in pieces, from `start` to before `end`.

        Raises: ArtifactDamaged before the first piece when it is not there, or has not `expected` bytes.
        """
        store = self._store()
        options: GetOptions = {}
        if end is not None:
            options["range"] = (start, end)
        elif start:
            options["range"] = {"offset": start}
        with self._meanings():
            result = await store.get_async(name, options=options)
            found = result.meta["size"]
            if expected is not None and found != expected:
                raise ArtifactDamaged(
                    f"The artefact has {found} bytes in the artefact store instead of {expected}.", hint=_RESTORE
                )
            async for chunk in result.stream(min_chunk_size=_CHUNK_BYTES):
                yield bytes(chunk)

    async def delete(self, names: Sequence[str]) -> None:
        """Remove objects; one that is not there is removed already."""
        store = self._store()
        for name in names:  # one by one: stores differ in what they answer to a list of which some are missing
            try:
                with self._meanings():
                    await store.delete_async(name)
            except ArtifactDamaged:
                continue

    async def walk(self) -> AsyncGenerator[list[StoredObject]]:
        """All objects, some at a time."""
        listing = cast("AsyncIterator[Sequence[dict[str, Any]]]", cast("Any", self._store()).list(chunk_size=500))
        with self._meanings():
            async for chunk in listing:
                yield [StoredObject(item["path"], item["size"]) for item in chunk]

    async def sweep_unfinished(self) -> int:
        """Remove what writes that were killed have left in a folder, a day later; how many files. A bucket's rules do that there."""
        return 0 if self._folder is None else await asyncio.to_thread(_sweep_staged, self._folder)

    # -- inner parts

    def _named_folder(self) -> Path | None:
        url = self._settings.artifacts_url
        if url is None:
            return self._settings.data_dir / "artifacts"
        parts = urlsplit(url)
        if parts.scheme not in _SCHEMES or parts.username or parts.password or parts.query or parts.fragment:
            raise ConfigurationError(
                "AUTOMAGIK_ARTIFACTS_URL names no artefact store.",
                hint="Write s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://ACCOUNT/CONTAINER/PREFIX or file:///FOLDER; "
                "keys belong into AUTOMAGIK_ARTIFACTS_ACCESS_KEY and AUTOMAGIK_ARTIFACTS_SECRET_KEY.",
            )
        if parts.scheme != "file":
            return None
        folder = Path(unquote(parts.path))
        if parts.netloc not in {"", "localhost"} or folder == Path(folder.anchor):
            raise ConfigurationError(
                "AUTOMAGIK_ARTIFACTS_URL names no folder.", hint="Write file:///PATH/TO/FOLDER, with three slashes."
            )
        return folder

    def _bucket(self) -> "ObjectStore":
        settings = self._settings
        url = cast("str", settings.artifacts_url)
        words = _WORDS[url.partition(":")[0]]
        config: dict[str, str] = {}
        for setting in ("artifacts_access_key", "artifacts_secret_key", "artifacts_endpoint", "artifacts_region"):
            value = cast("SecretStr | str | None", getattr(settings, setting))
            if value is None:
                continue
            if setting not in words:
                raise ConfigurationError(
                    f"AUTOMAGIK_{setting.upper()} means nothing to the store of AUTOMAGIK_ARTIFACTS_URL.",
                    hint="Unset it.",
                )
            config[words[setting]] = value.get_secret_value() if isinstance(value, SecretStr) else value
        if url.startswith("az:"):
            url, config = _azure(url, config)
        plain = (settings.artifacts_endpoint or "").startswith("http://")
        client: ClientConfig = {**_CLIENT, "allow_http": plain}
        try:
            return from_url(url, config=cast("Any", config), client_options=client, retry_config=_RETRY)
        except (exceptions.BaseError, ValueError) as error:
            raise ConfigurationError(
                "The object store of AUTOMAGIK_ARTIFACTS_URL can't be used with these settings.",
                hint="Check AUTOMAGIK_ARTIFACTS_URL, _ENDPOINT, _REGION, _ACCESS_KEY and _SECRET_KEY.",
            ) from error

    def _store(self) -> "ObjectStore":
        if self._opened is None:
            raise ServiceUnavailable("The artefact store is closed: the server is stopping.", hint="Retry later.")
        return self._opened

    @contextmanager
    def _meanings(self) -> Generator[None]:
        """Turn what obstore raises into what it means here."""
        try:
            yield
        except AutomagikError:
            raise
        except (exceptions.BaseError, OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError) and not any(sign in str(error) for sign in _NO_BUCKET):
                raise ArtifactDamaged("The artefact's bytes are not in the artefact store.", hint=_SHARE) from error
            raise ServiceUnavailable(
                f"The artefact store can't be used: {_reason(error)}.",
                hint="Check the store, AUTOMAGIK_ARTIFACTS_URL and its keys (`automagik doctor`).",
            ) from error


def _azure(url: str, config: dict[str, str]) -> tuple[str, dict[str, str]]:
    """The URL as the library takes it, which knows only the container, and the account's name among the other settings.

    Raises: ConfigurationError for a URL without a container.
    """
    parts = urlsplit(url)
    container, _, prefix = parts.path.strip("/").partition("/")
    if not container:
        raise ConfigurationError(
            "AUTOMAGIK_ARTIFACTS_URL names no container.", hint="Write az://ACCOUNT/CONTAINER/PREFIX."
        )
    return f"az://{container}/{prefix}", {"account_name": parts.netloc, **config}


_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_RESTORE = "Restore the artefact store from a backup, or send the bytes again."
_SHARE = "All hosts must use one artefact store (AUTOMAGIK_ARTIFACTS_URL); else restore it, or send the bytes again."


def _reason(error: BaseException) -> str:
    """Why, in a few words; the library's own text would show requests and their headers."""
    if isinstance(error, exceptions.UnauthenticatedError) or "AuthenticationFailed" in str(error):  # Azure's word
        return "it refuses the keys"
    if isinstance(error, PermissionError | exceptions.PermissionDeniedError):
        return "permission denied"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error)
    for sign, meaning in (
        ("NoSuchBucket", "there is no such bucket"),
        ("ContainerNotFound", "there is no such bucket"),
        ("InvalidAccessKeyId", "it refuses the keys"),
        ("SignatureDoesNotMatch", "it refuses the keys"),
        ("Permission denied", "permission denied"),
        ("No space left", "no space is left"),
        ("Not a directory", "it is not a folder"),
        ("error sending request", "it does not answer"),
        ("timed out", "it does not answer in time"),
    ):
        if sign in text:
            return meaning
    return "it failed"


def _settle(path: Path) -> None:
    """Bring a file and its name to the disk: a row must not outlive its bytes when the power fails."""
    for target in (path, path.parent):
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sweep_staged(folder: Path) -> int:
    """Remove the files that the library writes before it names them: `NAME#1`."""
    swept = 0
    for path in folder.glob("*/*#*"):
        try:
            if time.time() - path.stat().st_mtime > _STAGED_SECONDS:
                path.unlink()
                swept += 1
        except FileNotFoundError:
            continue
    return swept
