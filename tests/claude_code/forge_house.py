"""A forge on loopback: real git over http (git's own CGI), and as much of GitHub's REST API as opens pull requests."""

import base64
import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from git_house import git

__all__ = ["Forge"]


class Forge(ThreadingHTTPServer):
    """Serves `OWNER/NAME.git` under `root`, whose pushes need `token`, and its pull requests."""

    daemon_threads = True

    def __init__(self, root: Path, *, token: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.token = token
        self.pulls: list[dict[str, Any]] = []
        self.asked: list[tuple[str, str, Any]] = []
        self.refusal: tuple[int, Any] | None = None
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def __enter__(self) -> "Forge":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()

    def bare(self, name: str, source: Path) -> Path:
        path = self.root / f"{name}.git"
        path.parent.mkdir(parents=True, exist_ok=True)
        git(source, "clone", "-q", "--bare", str(source), str(path))
        git(path, "config", "http.receivepack", "true")
        return path


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def _serve(self) -> None:
        forge = cast("Forge", self.server)
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path.startswith("/api/"):
            self._api(forge, body)
        else:
            self._git(forge, body)

    def _api(self, forge: Forge, body: bytes) -> None:
        parts = urlsplit(self.path)
        document: Any = json.loads(body) if body else None
        forge.asked.append((self.command, self.path, document))
        if self.headers.get("authorization") != f"Bearer {forge.token}":
            self._answer(401, {"message": "Bad credentials"})
        elif forge.refusal is not None:
            self._answer(*forge.refusal)
        elif self.command == "POST":
            if any(pull["head"] == document["head"] for pull in forge.pulls):
                message = f"A pull request already exists for owner:{document['head']}."
                self._answer(422, {"message": "Validation Failed", "errors": [{"message": message}]})
                return
            number = len(forge.pulls) + 1
            forge.pulls.append({**document, "number": number, "html_url": f"{forge.url}/pull/{number}"})
            self._answer(201, forge.pulls[-1])
        else:
            head = parse_qs(parts.query)["head"][0].partition(":")[2]
            self._answer(200, [pull for pull in forge.pulls if pull["head"] == head])

    def _git(self, forge: Forge, body: bytes) -> None:
        parts = urlsplit(self.path)
        pushes = "receive-pack" in self.path
        login = base64.b64encode(f"x-access-token:{forge.token}".encode()).decode()
        if pushes and forge.token and self.headers.get("authorization") != f"Basic {login}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic")
            self.end_headers()
            return
        env = {
            "PATH": "/usr/bin:/bin",
            "GIT_PROJECT_ROOT": str(forge.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "PATH_INFO": parts.path,
            "QUERY_STRING": parts.query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("content-type") or "",
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding") or "",
            "GIT_PROTOCOL": self.headers.get("git-protocol") or "",
            "REMOTE_USER": "somebody",
        }
        done = subprocess.run(["git", "http-backend"], env=env, input=body, capture_output=True, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _answer(self, status: int, document: Any) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(document if isinstance(document, bytes) else json.dumps(document).encode())

    do_GET = _serve  # noqa: N815 - the interface's names
    do_POST = _serve  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the interface's name
        del format, args
