"""Structured logs of the whole process, in which no secret can appear: structlog's, the standard library's, uvicorn's."""

import json
import logging
import re
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO, cast

import orjson
import structlog
from structlog.typing import EventDict, WrappedLogger

from automagik.settings import Settings
from automagik.telemetry.redaction import Redactor

__all__ = ["LogSetup", "configure_logging"]

_QUIET = (
    "httpx",
    "httpx2",
    "httpcore",
    "httpcore2",
    "openai",
    "anthropic",
    "google_genai",
    "asyncio",
    "urllib3",
    "alembic",
)
"""Loggers of vendors that say something for each request; heard below warning only at the level debug."""

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")

_Processor = Callable[[WrappedLogger, str, EventDict], Any]


@dataclass(frozen=True, slots=True)
class LogSetup:
    """What `configure_logging` set up: the redactor that all lines go through, and the way back."""

    redactor: Redactor
    restore: Callable[[], None]
    """Puts logging back as it was before."""


def configure_logging(settings: Settings, *, stream: TextIO | None = None) -> LogSetup:
    """Send every log line of this process through one redactor to `stream` (unset: standard error as it is at the time).

    Fields bound by `structlog.contextvars` (`request_id`, `run_id`) are in every line, the standard library's too.
    Tracebacks carry no local variables. An uncaught exception of any thread is logged too, instead of printed raw.
    """
    redactor = Redactor.from_settings(settings)
    sink = _Sink(stream)
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sink.is_terminal())
    render: _Processor = _render_json if as_json else _console(colors=sink.is_terminal())
    chain: list[_Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_logger_name,
        _render_exception,
        _Redaction(redactor),
        _add_time_and_level,
        render,
    ]
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    before = structlog.get_config() if structlog.is_configured() else None
    structlog.configure(
        processors=chain,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *names: _Line(sink, *names),
        cache_logger_on_first_use=False,
    )
    restore_rest = _take_over(_Bridge(chain, sink), level)

    def restore() -> None:
        restore_rest()
        structlog.reset_defaults() if before is None else structlog.configure(**before)

    return LogSetup(redactor, restore)


def _take_over(bridge: logging.Handler, level: int) -> Callable[[], None]:
    """Make `bridge` the one handler of the standard library's logging and of uncaught exceptions; returns the way back."""
    root = logging.getLogger()
    handlers, old_level = root.handlers[:], root.level
    hooks = sys.excepthook, threading.excepthook
    root.handlers[:] = [bridge]
    root.setLevel(level)
    logging.captureWarnings(True)
    levels: dict[str, int] = {}
    for name in _QUIET:
        logger = logging.getLogger(name)
        levels[name] = logger.level
        logger.setLevel(level if level <= logging.DEBUG else max(level, logging.WARNING))
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread

    def restore() -> None:
        root.handlers[:] = handlers
        root.setLevel(old_level)
        logging.captureWarnings(False)
        for name, before in levels.items():
            logging.getLogger(name).setLevel(before)
        sys.excepthook, threading.excepthook = hooks

    return restore


class _Sink:
    """Where lines go. A line that can't be written (full disk, closed pipe) is lost; the request that wrote it goes on."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def is_terminal(self) -> bool:
        stream = self._stream or sys.stderr
        return not stream.closed and stream.isatty()

    def write(self, line: str) -> None:
        with self._lock:
            stream = self._stream or sys.stderr
            try:
                try:
                    stream.write(f"{line}\n")
                except UnicodeEncodeError:
                    stream.write(f"{line.encode('ascii', 'backslashreplace').decode()}\n")
                stream.flush()
            except (OSError, ValueError):
                return


class _Line:
    """The innermost logger of structlog: takes the rendered line. `name` is the module that logs."""

    def __init__(self, sink: _Sink, *names: Any) -> None:
        self.name = str(names[0]) if names else None
        self._write = sink.write

    def msg(self, line: str) -> None:
        self._write(line)

    debug = info = warning = warn = error = critical = fatal = exception = log = failure = msg


class _Bridge(logging.Handler):
    """Takes the standard library's records through the same processors."""

    def __init__(self, chain: list[_Processor], sink: _Sink) -> None:
        super().__init__()
        self._chain = chain
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        try:
            event = record.getMessage()
        except (TypeError, ValueError, KeyError):
            event = f"{record.msg} {record.args!r}"
        fields: EventDict = {"event": event, "logger": record.name}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        if record.stack_info:
            fields["stack"] = record.stack_info
        result: Any = fields
        for processor in self._chain:
            result = processor(None, record.levelname.lower(), result)
        self._sink.write(cast("str", result))


class _Redaction:
    """The processor through which no secret passes: after it, every field is plain JSON without one."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor

    def __call__(self, logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
        named, text = self._redactor.named, self._redactor.text
        clean: EventDict = {}
        for name, value in event_dict.items():
            if name == "event":
                clean["event"] = text(value if isinstance(value, str) else str(value))
            else:
                clean[name if name.isidentifier() else text(name)] = named(name, value)
        return clean


def _add_logger_name(logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
    if isinstance(logger, _Line) and logger.name is not None:
        event_dict["logger"] = logger.name
    return event_dict


def _render_exception(logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
    """Turn `exc_info` (true, an exception, or a triple) into text: frames and source lines, no variables."""
    info = event_dict.pop("exc_info", None) or (method == "exception")
    if not info:
        return event_dict
    if isinstance(info, BaseException):
        error: BaseException | None = info
    elif isinstance(info, tuple):
        error = cast("tuple[Any, BaseException | None, TracebackType | None]", info)[1]
    else:
        error = sys.exc_info()[1]
    if error is not None:
        event_dict["exception"] = "".join(traceback.format_exception(error)).rstrip()
    return event_dict


def _add_time_and_level(logger: WrappedLogger, method: str, event_dict: EventDict) -> EventDict:
    event_dict["level"] = "error" if method == "exception" else "warning" if method == "warn" else method
    event_dict["timestamp"] = f"{datetime.now(UTC).isoformat(timespec='microseconds')[:-6]}Z"
    return event_dict


def _render_json(logger: WrappedLogger, method: str, event_dict: EventDict) -> str:
    try:
        return orjson.dumps(event_dict).decode()
    except TypeError:  # a lone surrogate, or an integer of more than 64 bits
        return json.dumps(event_dict)


def _console(*, colors: bool) -> _Processor:
    renderer = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)

    def render(logger: WrappedLogger, method: str, event_dict: EventDict) -> str:
        # A caller's text must not forge a line or steer the terminal; the renderer escapes only some values.
        for name, value in event_dict.items():
            if name == "exception":
                lines = cast("str", value).split("\n")
                event_dict[name] = "\n".join(_CONTROL.sub("�", line) for line in lines)
            elif isinstance(value, str):
                event_dict[name] = _CONTROL.sub(lambda found: repr(found.group())[1:-1], value)
        return renderer(logger, method, event_dict)

    return render


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    structlog.stdlib.get_logger("automagik").critical("uncaught_exception", exc_info=error)


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is None or isinstance(args.exc_value, SystemExit):
        return
    structlog.stdlib.get_logger("automagik").critical(
        "uncaught_exception", thread=args.thread.name if args.thread else None, exc_info=args.exc_value
    )
