"""Webhooks and secrets from the command line, against a real server."""

import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from automagik.testing.servers import RunningServer
from automagik.testing.warm import WarmPython


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(503 if self.path == "/broken" else 204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server(tmp_path: Path, warm: WarmPython) -> RunningServer:
    return RunningServer(tmp_path, settings={"AUTOMAGIK_OUTBOUND_ALLOW": "127.0.0.1"}, warm=warm)


def command(server: RunningServer, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = server.try_command(*arguments)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return done


def test_a_webhook_is_made_tested_looked_at_and_deleted(server: RunningServer, tmp_path: Path, address: str) -> None:
    with server:
        made = json.loads(server.command("webhooks", "create", address, "--event", "run.completed", "--json"))
        webhook, secret = made["webhook_id"], made["secret"]
        assert made["events"] == ["run.completed"]
        assert command(server, "webhooks", "list").stdout.split("\t")[:2] == [webhook, address]
        assert "is delivered. The receiver answered 204." in command(server, "webhooks", "test", webhook).stderr
        command(server, "webhooks", "update", webhook, "--agent", "simple", "--description", "mine")
        shown = json.loads(server.command("webhooks", "show", webhook, "--json"))
        assert (shown["names"], shown["description"], shown["active"]) == (["simple"], "mine", True)
        rotated = command(server, "webhooks", "rotate-secret", webhook)
        assert rotated.stdout.startswith("whsec_")
        assert rotated.stdout.strip() != secret

        command(server, "webhooks", "update", webhook, "--address", f"{address}/broken", "--paused")
        failed = command(server, "webhooks", "test", webhook, "--json", code=1)
        delivery = json.loads(failed.stdout)
        assert (delivery["status"], delivery["attempts"][0]["status_code"]) == ("failed", 503)
        listed = server.command("webhooks", "deliveries", webhook, "--status", "failed", "--json")
        assert json.loads(listed)["delivery_id"] == delivery["delivery_id"]
        refused = command(server, "webhooks", "redeliver", delivery["delivery_id"], code=1)
        assert "not active" in refused.stderr
        command(server, "webhooks", "update", webhook, "--address", address, "--active")
        command(server, "webhooks", "redeliver", delivery["delivery_id"])
        assert "delivery_id" in command(server, "webhooks", "delivery", delivery["delivery_id"]).stdout
        command(server, "webhooks", "update", webhook, code=2)
        command(server, "webhooks", "create", "http://10.0.0.1/", code=2)
        command(server, "webhooks", "show", "whk_unknown", code=5)

        assert json.loads(server.command("secrets", "check", "--json"))["total"] == 2
        assert json.loads(server.command("secrets", "rotate", "--json")) == {"changed": 2}
        assert "is delivered" in command(server, "webhooks", "test", webhook).stderr
        assert "Secrets: 2," in command(server, "secrets", "check").stderr
        command(server, "webhooks", "delete", webhook, "--yes")
        assert server.command("webhooks", "list") == ""
        assert json.loads(server.command("secrets", "check", "--json"))["total"] == 0
        for text in (secret, rotated.stdout.strip()):
            assert text not in (tmp_path / "server-output.log").read_text()


def test_a_lost_key_ends_the_start_with_the_way_out(server: RunningServer, tmp_path: Path, address: str) -> None:
    with server:
        webhook = json.loads(server.command("webhooks", "create", address, "--json"))["webhook_id"]
    (tmp_path / "secret.key").unlink()
    with pytest.raises(RuntimeError, match="a key that is not here"):
        server.start()
    assert "a key that is not here" in command(server, "secrets", "check", code=1).stderr
    assert "Add --yes" in command(server, "secrets", "reset", code=2).stderr
    assert "Secrets deleted: 1." in command(server, "secrets", "reset", "--yes").stderr
    key = command(server, "secrets", "generate").stdout.strip()
    server.environment |= {"AUTOMAGIK_SECRET_KEY": key, "AUTOMAGIK_KEY": server.key}
    server.start()
    try:
        failed = json.loads(command(server, "webhooks", "test", webhook, "--json", code=1).stdout)
        assert "no secret" in failed["attempts"][0]["error"]
        command(server, "webhooks", "rotate-secret", webhook)
        assert "is delivered" in command(server, "webhooks", "test", webhook).stderr
        assert not (tmp_path / "secret.key").exists()
        assert key not in (tmp_path / "server-output.log").read_text()
    finally:
        server.stop()
