"""What every test has: asyncio as the one loop, logs as a server writes them; in CI no test may be skipped; and second tries are
told, and few."""

import gc
import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter

from automagik.settings import Settings
from automagik.telemetry import configure_logging
from automagik.testing.fixtures import warm

__all__ = ["warm"]  # here and not in each folder's conftest, where each would have one of its own

SECOND_TRIES = 3
"""How many tests of a whole run may need a second try (CONTRIBUTING.md says why any may)."""

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
def pytest_collection() -> Generator[None]:
    """No search for garbage while modules are loaded, nor ever again among what they hold: a third of the time of collecting, and
    a second for each full search later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


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


@pytest.hookimpl(tryfirst=True)  # before the summary is written, which tells the exit status
def pytest_sessionfinish(session: pytest.Session) -> None:
    if len(_second_tries(session.config)) > SECOND_TRIES:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    """How each test failed that was given a second try: pytest tells it only of those that failed both times."""
    tries = _second_tries(config)
    if not tries:
        return
    terminalreporter.section("passed or failed at the second try only: each is a fault to mend")
    for report in tries:
        terminalreporter.write_sep("_", f"{report.nodeid} ({report.when})")
        terminalreporter.write_line(report.longreprtext)
        for name, text in report.sections:
            terminalreporter.write_sep("-", name)
            terminalreporter.write_line(text)
    if len(tries) > SECOND_TRIES:
        terminalreporter.write_line(f"{len(tries)} tests needed a second try, {SECOND_TRIES} may: the run has failed.")


def _second_tries(config: pytest.Config) -> list[pytest.TestReport]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return [] if reporter is None else reporter.stats.get("rerun", [])
