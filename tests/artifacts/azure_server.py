"""A server that speaks as much of Azure's Blob service as the artefact store asks of it, and checks each request's signature.

After https://learn.microsoft.com/rest/api/storageservices: Put Blob, Put Block, Put Block List, Get Blob, Blob Batch, List Blobs, and
"Authorize with Shared Key".
"""

import base64
import hashlib
import hmac
import re
import secrets
import threading
from collections.abc import Mapping
from email import message_from_bytes
from email.message import Message
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self, cast
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

from pydantic import SecretStr

from automagik.settings import Settings

__all__ = ["AzureServer"]

ACCOUNT = "testaccount"
_KEY = secrets.token_bytes(64)
_SIGNED = (
    *("content-encoding", "content-language", "content-length", "content-md5", "content-type", "date"),
    *("if-modified-since", "if-match", "if-none-match", "if-unmodified-since", "range"),
)


class AzureServer(ThreadingHTTPServer):
    """Containers in memory. A context manager."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.containers: dict[str, dict[str, bytes]] = {}
        self.blocks: dict[tuple[str, str, str], bytes] = {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def create_bucket(self) -> str:
        """The name of a new container."""
        name = f"test-{secrets.token_hex(8)}"
        self.containers[name] = {}
        return name

    def names(self, bucket: str) -> list[str]:
        """What is in a container."""
        return list(self.containers[bucket])

    def write(self, bucket: str, name: str, data: bytes) -> None:
        """Put a blob there, as somebody else would."""
        self.containers[bucket][name] = data

    def settings(self, settings: Settings, bucket: str, prefix: str = "artifacts") -> Settings:
        """The settings with the artefact store in a container of this server."""
        return settings.model_copy(
            update={
                "artifacts_url": f"az://{ACCOUNT}/{bucket}/{prefix}",
                "artifacts_endpoint": self.url,
                "artifacts_secret_key": SecretStr(base64.b64encode(_KEY).decode()),
            }
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_PUT(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's word
        del format, args

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        container, _, name = unquote(parts.path).lstrip("/").partition("/")
        house = cast("AzureServer", self.server)
        if not _is_signed(self.command, parts.path, query, self.headers):
            self._answer(403, error="AuthenticationFailed")
        elif container not in house.containers:
            self._answer(404, error="ContainerNotFound")
        elif self.command == "PUT":
            self._put(house, container, name, query.get("comp"), query.get("blockid", ""), body)
        elif self.command == "POST" and query.get("comp") == "batch":
            self._delete(house.containers, body)
        elif query.get("comp") == "list":
            self._list(house.containers[container], query.get("prefix", ""))
        elif name not in house.containers[container]:
            self._answer(404, error="BlobNotFound")
        else:
            self._give(house.containers[container][name])

    def _delete(self, containers: Mapping[str, dict[str, bytes]], body: bytes) -> None:
        """Several requests in one, each signed for itself."""
        boundary = self.headers["content-type"].partition("boundary=")[2]
        answers: list[str] = []
        for number, part in enumerate(body.split(f"--{boundary}".encode())[1:-1]):
            request = part.partition(b"\r\n\r\n")[2].lstrip()
            first, _, rest = request.partition(b"\r\n")
            method, path, _ = first.decode().split(" ")
            container, _, name = unquote(path).lstrip("/").partition("/")
            status = "202 Accepted"
            if method != "DELETE" or not _is_signed(method, path, {}, message_from_bytes(rest)):
                status = "403 Forbidden"
            elif containers[container].pop(name, None) is None:
                status = "404 Not Found\r\nx-ms-error-code: BlobNotFound"
            answers.append(
                f"--{boundary}\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\nHTTP/1.1 {status}\r\n\r\n"
            )
        whole = "".join(answers) + f"--{boundary}--\r\n"
        self._answer(202, whole.encode(), headers={"content-type": f"multipart/mixed; boundary={boundary}"})

    def _put(self, house: AzureServer, container: str, name: str, part: str | None, block: str, body: bytes) -> None:
        if part == "block":
            house.blocks[container, name, block] = body
        elif part == "blocklist":
            listed = re.findall(r"<Uncommitted>([^<]+)</Uncommitted>", body.decode())
            house.containers[container][name] = b"".join(house.blocks.pop((container, name, one)) for one in listed)
        elif self.headers.get("x-ms-blob-type") != "BlockBlob":
            self._answer(400, error="MissingRequiredHeader")
            return
        else:
            house.containers[container][name] = body
        self._answer(201, headers=_about(body))

    def _give(self, data: bytes) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        headers = {**_about(data), "x-ms-blob-type": "BlockBlob"}
        if wanted is None:
            self._answer(200, data, headers=headers)
            return
        start, end = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        headers["content-range"] = f"bytes {start}-{end}/{len(data)}"
        self._answer(206, data[start : end + 1], headers=headers)

    def _list(self, blobs: Mapping[str, bytes], prefix: str) -> None:
        found = "".join(
            f"<Blob><Name>{escape(name)}</Name><Properties><Last-Modified>{formatdate(usegmt=True)}</Last-Modified>"
            f"<Etag>{_about(data)['etag'].strip(chr(34))}</Etag><Content-Length>{len(data)}</Content-Length>"
            "<Content-Type>application/octet-stream</Content-Type><BlobType>BlockBlob</BlobType></Properties></Blob>"
            for name, data in sorted(blobs.items())
            if name.startswith(prefix)
        )
        text = f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>{found}</Blobs><NextMarker/></EnumerationResults>'
        self._answer(200, text.encode(), headers={"content-type": "application/xml"})

    def _answer(
        self, status: int, body: bytes = b"", *, headers: Mapping[str, str] | None = None, error: str | None = None
    ) -> None:
        if error is not None:
            body = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{error}</Code></Error>'.encode()
            headers = {"x-ms-error-code": error, "content-type": "application/xml"}
        self.send_response(status)
        for name, value in {**(headers or {}), "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _is_signed(method: str, path: str, query: Mapping[str, str], headers: Message) -> bool:
    values = [headers.get(name, "") for name in _SIGNED]
    values[2] = "" if values[2] == "0" else values[2]
    own = sorted((name.lower(), value) for name, value in headers.items() if name.lower().startswith("x-ms-"))
    lines = [method, *values, *(f"{name}:{value}" for name, value in own), f"/{ACCOUNT}{path}"]
    lines += [f"{name}:{value}" for name, value in sorted(query.items())]
    signature = base64.b64encode(hmac.digest(_KEY, "\n".join(lines).encode(), "sha256")).decode()
    return headers.get("authorization") == f"SharedKey {ACCOUNT}:{signature}"


def _about(data: bytes) -> dict[str, str]:
    return {"etag": f'"{hashlib.sha256(data).hexdigest()[:16]}"', "last-modified": formatdate(usegmt=True)}
