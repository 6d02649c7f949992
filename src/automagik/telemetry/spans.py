"""RedactingExporter: spans leave without secrets. The one module that touches OpenTelemetry's SDK when it is imported."""

import time
from collections.abc import Mapping, Sequence
from typing import cast

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import Status
from opentelemetry.util.types import AttributeValue

from automagik.telemetry.redaction import Redactor, is_secret_name

__all__ = ["RedactingExporter"]


class RedactingExporter(SpanExporter):
    """Hands spans to `inner` without secrets, in the exporter's own thread. After `expire` no export begins any more."""

    def __init__(self, inner: SpanExporter, redactor: Redactor) -> None:
        self._inner = inner
        self._redactor = redactor
        self._deadline: float | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; fails at once where the time that `expire` gave is over."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            return SpanExportResult.FAILURE
        return self._inner.export([self._clean(span) for span in spans])

    def expire(self, seconds: float) -> None:
        """Begin no export later than `seconds` from now: a collector that is away must not hold up a stop."""
        self._deadline = time.monotonic() + seconds

    def shutdown(self) -> None:
        """Stop the exporter."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is buffered here."""
        return self._inner.force_flush(timeout_millis)

    def _clean(self, span: ReadableSpan) -> ReadableSpan:
        events = [
            Event(self._redactor.text(event.name), self._attributes(event.attributes), event.timestamp)
            for event in span.events
        ]
        description = span.status.description
        status = Status(span.status.status_code, None if description is None else self._redactor.text(description))
        return ReadableSpan(
            name=self._redactor.text(span.name),
            context=span.context,
            parent=span.parent,
            resource=span.resource,
            attributes=self._attributes(span.attributes),
            events=events,
            links=span.links,
            kind=span.kind,
            status=status,
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )

    def _attributes(self, attributes: Mapping[str, AttributeValue] | None) -> dict[str, AttributeValue]:
        clean: dict[str, AttributeValue] = {}
        for name, value in (attributes or {}).items():
            if isinstance(value, str):
                clean[name] = "[redacted]" if is_secret_name(name) else self._redactor.text(value)
            elif isinstance(value, Sequence) and not isinstance(value, bytes):
                items = [self._redactor.text(item) if isinstance(item, str) else item for item in value]
                clean[name] = cast("AttributeValue", items)
            else:
                clean[name] = value
        return clean
