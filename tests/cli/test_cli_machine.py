"""Commands that need no server: `doctor` and `db`."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from cli_harness import Command, StubApi, problem

from automagik.store.locks import FileLock
from automagik.testing.needs import need
from automagik.testing.postgres import PostgresServer


def findings(command: Command, *, code: int = 0, **environment: str) -> dict[str, Any]:
    done = command("doctor", "--json", **environment)
    assert done.code == code, done
    return {line["name"]: line for line in done.lines}


@pytest.fixture
def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


def test_the_doctor_finds_a_new_machine_fit_and_says_what_comes_next(command: Command, free_port: int) -> None:
    found = findings(command, AUTOMAGIK_PORT=str(free_port), AUTOMAGIK_URL=f"http://127.0.0.1:{free_port}")
    statuses = {name: finding["status"] for name, finding in found.items() if not name.startswith("workflows")}
    assert statuses | {"git": "ok", "curl": "ok", "make": "ok", "open files": "ok"} == {
        "python": "ok",
        "data folder": "ok",
        "database": "ok",
        "artefacts": "ok",
        "open files": "ok",
        "key": "warn",
        "server": "ok",
        "model": "ok",
        "agents": "ok",
        "git": "ok",
        "curl": "ok",
        "make": "ok",
    }
    assert "keys create --first" in found["key"]["fix"]
    assert "is free" in found["server"]["detail"]
    assert not command.data_dir.exists()


def test_the_doctor_names_what_is_broken_with_a_way_to_mend_it(command: Command, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    agents = tmp_path / "agents"
    agents.mkdir()
    (agents / "poet.py").write_text("raise ValueError('no rhyme')")
    command.write_profile("http://127.0.0.1:1", mode=0o640)
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        port = str(squatter.getsockname()[1])
        found = findings(
            command,
            code=1,
            AUTOMAGIK_DATA_DIR=str(blocked / "below"),
            AUTOMAGIK_AGENTS_DIR=str(agents),
            AUTOMAGIK_MODEL="openai:",
            AUTOMAGIK_PORT=port,
            AUTOMAGIK_DATABASE_URL="postgresql://ann:SECRETpw@127.0.0.1:1/x",
        )
    for name in ("data folder", "database", "profile", "model"):
        assert found[name]["status"] == "fail", found[name]
        assert found[name]["fix"]
    assert found["server"]["status"] == "warn"
    assert "poet" in found["agents"]["detail"]
    assert "no rhyme" in found["agents"]["detail"]
    assert "SECRETpw" not in json.dumps(found)


def test_the_doctor_says_how_to_get_a_missing_claude_cli(command: Command, tmp_path: Path) -> None:
    need("bubblewrap")  # without it, that is said first
    found = findings(command, AUTOMAGIK_EXECUTOR="local", AUTOMAGIK_CLAUDE_CLI=str(tmp_path / "none"))[
        "workflows (local)"
    ]
    assert found["status"] == "warn"
    assert "names no program" in found["detail"]
    assert "pip install 'automagik-agents[claude]'" in found["fix"]


def test_the_doctor_says_that_workflows_have_no_key_until_one_is_set_or_stored(command: Command) -> None:
    need("bubblewrap")
    need("claude")
    told = findings(command, AUTOMAGIK_EXECUTOR="local")["workflows (key)"]
    assert told["status"] == "warn" and "secrets set anthropic_api_key" in told["fix"]
    assert command("secrets", "set", "anthropic_api_key", stdin="sk-ant-made-up\n").code == 0
    assert "workflows (key)" not in findings(command, AUTOMAGIK_EXECUTOR="local")


def test_the_doctor_tells_who_holds_the_port(command: Command, api: StubApi) -> None:
    api.on("GET", "/health", problem(404, "x", "x"))
    port = str(api.server_address[1])
    found = findings(command, code=1, AUTOMAGIK_PORT=port)
    assert "taken" in found["server"]["detail"]
    assert "AUTOMAGIK_PORT" in found["server"]["fix"]


def test_the_doctor_tries_the_key_on_a_server_that_runs(command: Command, api: StubApi) -> None:
    api.on("GET", "/health", {"status": "healthy"})
    api.on("GET", "/api/v1/keys/self", {"key_id": "key_1", "scopes": ["admin"]})
    checks = [
        {"name": "database", "status": "ok", "detail": "sqlite"},
        {"name": "worker", "status": "degraded", "detail": "No queued run begins here."},
        {"name": "workers", "status": "degraded", "detail": "host 'b' (exec_1): The worker did not start: No DBOS."},
    ]
    api.on("GET", "/ready", {"status": "degraded", "checks": checks})
    found = findings(command)
    access, worker = found["access"], found["server (worker)"]
    assert (access["status"], access["detail"]) == ("ok", "key_1 may: admin")
    assert (worker["status"], worker["detail"]) == ("warn", "No queued run begins here.")
    others = found["server (workers)"]
    assert (others["status"], "host 'b'" in others["detail"], "on that host" in others["fix"]) == ("warn", True, True)
    assert "server (database)" not in found
    api.on("GET", "/api/v1/keys/self", problem(401, "unauthorized", "The API key is unknown, expired or revoked."))
    assert findings(command, code=1)["access"]["status"] == "fail"


def test_the_demo_model_is_told_as_what_it_is(command: Command, free_port: int) -> None:
    del command.environment["AUTOMAGIK_MODEL"]
    found = findings(command, AUTOMAGIK_DISCOVER_LOCAL_MODELS="false", AUTOMAGIK_PORT=str(free_port))
    assert found["model"]["status"] == "warn"
    assert "OPENAI_API_KEY" in found["model"]["fix"]


def test_people_get_a_line_a_finding_and_the_fix_below(command: Command) -> None:
    out = command("doctor").out
    assert "ok    python" in out
    assert "-> " in out
    assert "\x1b" not in out
    assert "\x1b[" in command.on_terminal("doctor").out
    assert "\x1b[" not in command.on_terminal("doctor", NO_COLOR="1").out


# -- db


def key_ids(command: Command) -> str:
    return command("keys", "create", "--first", "--json").lines[0]["key_id"]


def test_a_database_is_upgraded_backed_up_and_restored(command: Command, tmp_path: Path) -> None:
    assert command("db", "upgrade", "--json").lines == [{"database": "sqlite", "upgraded": True}]
    key_id = key_ids(command)
    archive = tmp_path / "archive.db"
    backed_up = command("db", "backup", str(archive), "--json").lines[0]
    assert backed_up["rows"]["api_keys"] == 1
    assert archive.stat().st_mode & 0o077 == 0
    again = command("db", "backup", str(archive))
    assert (again.code, "there already" in again.err) == (1, True)

    other = str(tmp_path / "other")
    restored = command("db", "restore", str(archive), "--json", AUTOMAGIK_DATA_DIR=other)
    assert restored.lines == [backed_up]
    kept = command("keys", "create", "--first", "--json", AUTOMAGIK_DATA_DIR=other).lines[0]
    assert (kept["key_id"], kept["created"]) == (key_id, False)


def test_rows_are_replaced_only_where_somebody_agrees(command: Command, tmp_path: Path) -> None:
    key_ids(command)
    archive = str(tmp_path / "archive.db")
    assert command("db", "backup", archive).code == 0
    asked = command("db", "restore", archive)
    assert asked.code == 2
    assert "--yes" in asked.err
    assert command("db", "restore", archive, "--yes").code == 0
    assert command.on_terminal("db", "restore", archive, types=[("[y/N]", "n\n")]).code == 1


def test_what_is_no_archive_and_no_address_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("not a database")
    for arguments in (["restore", str(tmp_path / "note.txt")], ["restore", "/nowhere"], ["copy", "--to", "mysql://x"]):
        done = command("db", *arguments)
        assert done.code == 2, done
        assert "Traceback" not in done.err


def test_a_database_that_is_away_is_told_by_what_named_it(command: Command) -> None:
    assert command("db", "upgrade").code == 0
    assert "of --to can't be used" in command("db", "copy", "--to", "postgresql://a@127.0.0.1:1/x").err


def test_a_copy_to_postgresql_keeps_the_keys(command: Command, postgres_server: PostgresServer) -> None:
    key_id = key_ids(command)
    url = postgres_server.create_empty_database()
    copied = command("db", "copy", "--to", "-", "--json", stdin=f"{url}\n")
    assert copied.code == 0, copied
    assert copied.lines[0]["rows"]["api_keys"] == 1
    assert "warning" not in copied.err
    assert command("db", "copy", "--to", url).code == 2
    kept = command("keys", "create", "--first", "--json", AUTOMAGIK_DATABASE_URL=url).lines[0]
    assert (kept["key_id"], kept["created"]) == (key_id, False)
    served = FileLock(command.data_dir / "server.lock")
    served.acquire("host:exec_1")
    warned = command("db", "copy", "--to", url, "--yes")
    served.release()
    assert warned.code == 0
    assert "warning: A server (host:exec_1) uses the data folder" in warned.err
