"""A registry of images on this machine, and images put into it by hand: of any configuration, without the engine's help."""

import asyncio
import base64
import contextlib
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from automagik.testing.needs import need

__all__ = ["Registry", "free_port", "registry"]

_USER, _PASSWORD = "somebody", "let-me-in"
_PEOPLE = f"{_USER}:$2b$04$iAYJTph7zxvlgbh8HNOUk.oXI0kegn4sZRh6r3FqGm2aNDE7iFox2\n"
"""The password above, by bcrypt's cheapest."""
_OWN = {"Labels": {"automagik.sandbox": "1"}}
"""What makes an image one of the platform's already: nothing is built upon it."""


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Registry:
    """The registry at `address`; it lets everybody in, or who knows the password."""

    def __init__(self, folder: Path, *, closed: bool) -> None:
        self._folder = folder
        self._closed = closed
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.login = {"auths": {self.address: {"auth": base64.b64encode(f"{_USER}:{_PASSWORD}".encode()).decode()}}}
        """What `docker login` writes down of it."""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """It answers."""
        people = self._folder / "people"
        people.write_text(_PEOPLE)
        config = {
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(self._folder / "images")}},
            "http": {"addr": self.address},
            **({"auth": {"htpasswd": {"realm": "tests", "path": str(people)}}} if self._closed else {}),
        }
        file = self._folder / "config.yml"
        file.write_text(json.dumps(config))  # JSON is YAML
        program = shutil.which("docker-registry")
        assert program is not None
        self._process = subprocess.Popen(
            [program, "serve", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"PATH": os.defpath},
        )
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            assert self._process.poll() is None, "the registry ended"
            assert time.monotonic() < deadline, "the registry does not answer"
            time.sleep(0.05)

    def stop(self) -> None:
        """It is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def publish(self, name: str, config: Mapping[str, Any] | None = None, **of_the_image: str) -> str:
        """The digest of an image `NAME:TAG` with one file and such a configuration; `architecture` may be another one's."""
        repository, _, tag = name.partition(":")
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as archive:
            member = tarfile.TarInfo("name")
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
        content = layer.getvalue()
        described = {
            "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
            "os": "linux",
            "config": {**_OWN, **(config or {})},
            "rootfs": {"type": "layers", "diff_ids": [_digest(content)]},
            **of_the_image,
        }
        kind = "application/vnd.docker."
        media = f"{kind}distribution.manifest.v2+json"
        manifest = {
            "schemaVersion": 2,
            "mediaType": media,
            "config": self._blob(repository, json.dumps(described).encode(), f"{kind}container.image.v1+json"),
            "layers": [self._blob(repository, content, f"{kind}image.rootfs.diff.tar")],
        }
        written = json.dumps(manifest).encode()
        self._ask("PUT", f"/v2/{repository}/manifests/{tag}", written, {"Content-Type": media})
        return _digest(written)

    def _blob(self, repository: str, content: bytes, kind: str) -> dict[str, Any]:
        where = self._ask("POST", f"/v2/{repository}/blobs/uploads/", b"", {})
        path = where.partition(self.address)[2]
        self._ask(
            "PUT",
            f"{path}{'&' if '?' in path else '?'}digest={_digest(content)}",
            content,
            {"Content-Type": "application/octet-stream"},
        )
        return {"mediaType": kind, "size": len(content), "digest": _digest(content)}

    def _ask(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> str:
        """Where the answer points."""
        basic = self.login["auths"][self.address]["auth"]
        request = urllib.request.Request(
            f"http://{self.address}{path}",
            data=body,
            method=method,
            headers={"Authorization": f"Basic {basic}", **headers},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return str(answer.headers.get("Location", ""))


@contextlib.asynccontextmanager
async def registry(folder: Path, *, closed: bool = False) -> AsyncGenerator[Registry]:
    """A registry that runs. Skips the test where the machine has none."""
    need("docker-registry")
    folder.mkdir()
    opened = Registry(folder, closed=closed)
    try:
        await asyncio.to_thread(opened.start)
        yield opened
    finally:
        await asyncio.to_thread(opened.stop)


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
