"""S3Server: a server that speaks S3 on loopback, for tests, from the `moto` wheel."""

import importlib.util
import re
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx2
from pydantic import SecretStr

from automagik.errors import ConfigurationError
from automagik.settings import Settings

__all__ = ["S3Server"]

_START_SECONDS = 60
_SERVE = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
from moto.server import main
main(["-H", "127.0.0.1", "-p", "0"])
"""
"""The child ends when its standard input does: with its parent, however that ends."""


_SIGNED = {
    "authorization": "AWS4-HMAC-SHA256 Credential=somebody/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
}
"""Nobody checks the signature, but without one an object that is there can't be replaced."""


class S3Server:
    """A server with buckets in memory. A context manager."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        """Start; it answers when this returns. Raises ConfigurationError when the wheel is missing, or it does not start."""
        if importlib.util.find_spec("moto") is None:
            raise ConfigurationError("The wheel that speaks S3 is not installed.", hint="pip install 'moto[s3,server]'")
        with tempfile.TemporaryDirectory(prefix="automagik-s3-") as folder:
            log = Path(folder) / "output.log"
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _SERVE], stdin=subprocess.PIPE, stdout=output, stderr=output, cwd=folder
                )
            deadline = time.monotonic() + _START_SECONDS
            while time.monotonic() < deadline and self._process.poll() is None:
                found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text(errors="replace"))
                if found is not None:
                    self.url = found.group()
                    return self
                time.sleep(0.05)
            written = log.read_text(errors="replace")
        self._end()
        raise ConfigurationError(f"The S3 server did not start: {written[-1000:]}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def create_bucket(self) -> str:
        """The name of a new bucket."""
        name = f"test{secrets.token_hex(8)}"
        httpx2.put(f"{self.url}/{name}").raise_for_status()
        return name

    def write(self, bucket: str, name: str, data: bytes) -> None:
        """Put an object there, as somebody else would."""
        httpx2.put(f"{self.url}/{bucket}/{name}", content=data, headers=_SIGNED).raise_for_status()

    def names(self, bucket: str) -> list[str]:
        """What is in a bucket."""
        listing = httpx2.get(f"{self.url}/{bucket}", params={"list-type": "2", "max-keys": "1000"}).text
        return re.findall(r"<Key>([^<]+)</Key>", listing)

    def settings(self, settings: Settings, bucket: str, prefix: str = "artifacts") -> Settings:
        """The settings with the artefact store in a bucket of this server."""
        return settings.model_copy(
            update={
                "artifacts_url": f"s3://{bucket}/{prefix}",
                "artifacts_endpoint": self.url,
                "artifacts_region": "us-east-1",
                "artifacts_access_key": SecretStr("test-access-key"),
                "artifacts_secret_key": SecretStr("test-secret-key"),
            }
        )

    def _end(self) -> None:
        process = self._process
        if process is not None:
            self._process = None
            process.kill()
            process.communicate()
