"""Every line of the process is structured, and no secret is in any of them."""

import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import structlog
from pydantic import SecretStr

from automagik.settings import Settings
from automagik.telemetry import configure_logging

KEY = "amk_" + "Zx9-_q" * 7 + "a"


class _Logs:
    def __init__(
        self, log_format: Literal["json", "console"] = "json", log_level: Literal["debug", "info"] = "info"
    ) -> None:
        self.stream = io.StringIO()
        settings = Settings(log_format=log_format, log_level=log_level, model_api_key=SecretStr("local-llm-SECRET"))
        self.setup = configure_logging(settings, stream=self.stream)

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def logs() -> Iterator[_Logs]:
    made = _Logs()
    yield made
    structlog.contextvars.clear_contextvars()
    made.setup.restore()


def test_a_line_has_its_event_fields_level_time_and_logger(logs: _Logs) -> None:
    structlog.stdlib.get_logger("automagik.runs").info("run_finished", outcome="completed", seconds=0.25, tags=["a"])
    (line,) = logs.lines()
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "run_finished",
        "outcome": "completed",
        "seconds": 0.25,
        "tags": ["a"],
        "logger": "automagik.runs",
        "level": "info",
    }


def test_the_standard_librarys_lines_and_uvicorns_go_the_same_way_with_the_bound_fields(logs: _Logs) -> None:
    structlog.contextvars.bind_contextvars(request_id="req_1", run_id="run_1")
    logging.getLogger("uvicorn.error").warning("Started %s on %d", "server", 8881)
    structlog.stdlib.get_logger().warning("own")
    lines = logs.lines()
    assert [line["event"].splitlines()[0] for line in lines] == [
        "Started server on 8881",
        "own",
    ]
    assert all(line["request_id"] == "req_1" and line["run_id"] == "run_1" for line in lines)


def test_the_level_holds_for_all_and_vendors_are_quiet(logs: _Logs) -> None:
    structlog.stdlib.get_logger().debug("no")
    logging.getLogger("a").debug("no")
    logging.getLogger("httpx2").info("HTTP Request: POST")
    logging.getLogger("httpx2").warning("yes")
    assert [line["event"] for line in logs.lines()] == ["yes"]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_secret_is_in_a_line(log_format: Literal["json", "console"]) -> None:
    logs = _Logs(log_format)
    try:
        log = structlog.stdlib.get_logger("x")
        log.info(f"used {KEY}", authorization="SECRET", nested={"a": [{"cookie": "SECRET"}, SecretStr("SECRET")]})
        log.info("local-llm-SECRET", **{f"odd {KEY}": 1, "headers": [(b"x-api-key", b"SECRET")]})
        logging.getLogger("y").info("connecting to %s with %r", "postgresql://u:SECRET@h/db", {"password": "SECRET"})
        structlog.contextvars.bind_contextvars(api_key="SECRET", note="Bearer SECRETSECRET")
        log.warning("bound")
        structlog.contextvars.clear_contextvars()
        assert len(logs.text.splitlines()) == 4
        assert "SECRET" not in logs.text
        assert KEY not in logs.text
    finally:
        logs.setup.restore()


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_tracebacks_tell_where_without_variables_or_secrets(log_format: Literal["json", "console"]) -> None:
    logs = _Logs(log_format)

    def fail(argument: str) -> None:
        local = "local-" + argument
        raise ValueError(f"no good: password={argument} {KEY}") from KeyError(len(local))

    try:
        for way in ("given", "implied", "stdlib"):
            try:
                fail("value".join(["SECRET", ""]))
            except ValueError as error:
                if way == "given":
                    structlog.stdlib.get_logger().error(way, exc_info=error)
                elif way == "implied":
                    structlog.stdlib.get_logger().exception(way)
                else:
                    logging.getLogger("z").exception(way)
        assert logs.text.count("ValueError: no good") == 3
        assert logs.text.count("in fail") == 3
        assert "SECRETvalue" not in logs.text
        assert KEY not in logs.text
    finally:
        logs.setup.restore()


def test_uncaught_exceptions_are_logged_instead_of_printed_raw(logs: _Logs, capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise RuntimeError(f"token={KEY}")

    thread = threading.Thread(target=fail, name="worker")
    thread.start()
    thread.join()
    try:
        fail()
    except RuntimeError as error:
        sys.excepthook(RuntimeError, error, error.__traceback__)
    lines = logs.lines()
    assert [line["event"] for line in lines] == ["uncaught_exception"] * 2
    assert lines[0]["thread"] == "worker"
    assert KEY not in logs.text
    assert capfd.readouterr().err == ""


def test_what_no_json_can_hold_is_written_all_the_same(logs: _Logs) -> None:
    structlog.stdlib.get_logger().info("lone \ud800", big=10**30, none=float("nan"), odd=object(), at=SecretStr)
    (line,) = logs.lines()
    assert line["event"] == "lone \ud800"
    assert line["big"] == 10**30


def test_a_console_line_can_not_be_forged_or_steer_the_terminal() -> None:
    logs = _Logs("console")
    try:
        structlog.stdlib.get_logger().info(
            "one\n2026-01-01 [info] forged \x1b[2J", name="a\nb\x1b[1m", path="/\x1b[31m\x9b1m"
        )
        assert len(logs.text.splitlines()) == 1
        assert "\x1b" not in logs.text
        assert "\x9b" not in logs.text
    finally:
        logs.setup.restore()


def test_a_stream_that_is_gone_loses_the_line_and_nothing_else(logs: _Logs) -> None:
    logs.stream.close()
    structlog.stdlib.get_logger().info("lost")
    logging.getLogger("a").info("lost")


def test_restoring_puts_the_standard_librarys_logging_back() -> None:
    before = logging.getLogger().handlers[:], logging.getLogger().level, sys.excepthook
    _Logs().setup.restore()
    assert (logging.getLogger().handlers[:], logging.getLogger().level, sys.excepthook) == before


def test_lines_go_to_standard_error_and_an_ascii_terminal_gets_escapes() -> None:
    script = (
        "import structlog; from automagik.settings import Settings; from automagik.telemetry import configure_logging\n"
        "configure_logging(Settings(log_format='console')); structlog.stdlib.get_logger().info('ünï')\n"
        "import warnings, logging; warnings.warn('careful'); logging.error('bad %s %s', 'arguments')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={"PYTHONIOENCODING": "ascii:strict", "HOME": "/tmp"},
        check=True,
    )
    assert done.stdout == ""
    assert "\\xfcn\\xef" in done.stderr
    assert "UserWarning: careful" in done.stderr
    assert "bad %s %s ('arguments',)" in done.stderr
