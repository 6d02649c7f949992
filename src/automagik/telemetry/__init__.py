"""What the platform tells its operator: logs without secrets, metrics, and traces where an endpoint is set. Nothing else leaves."""

from automagik.telemetry.logs import LogSetup, configure_logging
from automagik.telemetry.metrics import CONTENT_TYPE, FinishedRun, Metrics
from automagik.telemetry.redaction import REDACTED, Redactor
from automagik.telemetry.tracing import SpanValue, Tracing

__all__ = [
    "CONTENT_TYPE",
    "REDACTED",
    "FinishedRun",
    "LogSetup",
    "Metrics",
    "Redactor",
    "SpanValue",
    "Tracing",
    "configure_logging",
]
