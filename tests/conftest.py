"""What every test has: asyncio as the one loop, logs as a server writes them; and in CI no test may be skipped."""

import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest

from automagik.settings import Settings
from automagik.telemetry import configure_logging
from automagik.testing.fixtures import warm

__all__ = ["warm"]  # here and not in each folder's conftest, where each would have one of its own

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that runs the suite in the background ignores Ctrl-C, and every child would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def logs() -> None:
    """Structured logs: structlog's own default renders tracebacks with their local variables, at seconds each."""
    configure_logging(Settings.model_validate({"log_format": "json"}))


@pytest.fixture(scope="session", autouse=True)
def one_authority() -> None:
    """No test speaks TLS with the outside, so none needs the machine's 150 authorities, which each HTTP client would load anew:
    0.05 s for every platform that is opened."""
    os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("authority.pem"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a service or command that is missing is a failure: `.ci/run` installs what tests need."""
    del item, call
    report = yield
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {reason}"
    return report
