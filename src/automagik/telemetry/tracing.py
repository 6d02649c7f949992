"""Tracing: OpenTelemetry spans of requests, runs and models, sent only where an OTLP/HTTP endpoint is set."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from automagik import __version__
from automagik.settings import Settings
from automagik.telemetry.redaction import Redactor

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer
    from pydantic_ai.models.instrumented import InstrumentationSettings

    from automagik.telemetry.spans import RedactingExporter

__all__ = ["SpanValue", "Tracing"]

SpanValue = str | bool | int | float
"""What an attribute of a span may be."""

_EXPORT_SECONDS = 3.0
"""How long a collector has to take a batch, retries included."""


class Tracing:
    """Spans of this process. Without `otel_endpoint` nothing is loaded, recorded or sent, and every method costs nothing."""

    def __init__(self, settings: Settings, *, redactor: Redactor | None = None) -> None:
        self._content = settings.otel_content
        self._provider: TracerProvider | None = None
        self._exporter: RedactingExporter | None = None
        self._tracer: Tracer | None = None
        if settings.otel_endpoint is not None:
            built = _build(settings.otel_endpoint, redactor or Redactor.from_settings(settings))
            self._provider, self._exporter = built
            self._tracer = self._provider.get_tracer("automagik", __version__)

    @property
    def enabled(self) -> bool:
        """Whether spans are recorded and sent."""
        return self._tracer is not None

    def instrumentation(self) -> "InstrumentationSettings | None":
        """What Pydantic AI's `Instrumentation` capability takes, so that its GenAI spans go our way; None without tracing.

        Prompts, answers and tool arguments are in them only with `otel_content`; binary content never is.
        """
        if self._provider is None:
            return None
        # Loaded here, for a platform without tracing needs neither: OpenTelemetry's API and Pydantic AI's models.
        from opentelemetry.metrics import NoOpMeterProvider  # noqa: PLC0415
        from pydantic_ai.models.instrumented import InstrumentationSettings  # noqa: PLC0415

        return InstrumentationSettings(
            tracer_provider=self._provider,
            meter_provider=NoOpMeterProvider(),
            include_content=self._content,
            include_binary_content=False,
            include_model_request_parameters=self._content,
        )

    @contextmanager
    def span(
        self,
        name: str,
        attributes: Mapping[str, SpanValue] | None = None,
        *,
        carrier: Mapping[str, str] | None = None,
        server: bool = False,
    ) -> "Generator[Span | None]":
        """A span round the block, the parent of those begun inside; None without tracing.

        `carrier` holds a request's headers, whose `traceparent` becomes the parent. An exception marks the span as failed.
        """
        if self._tracer is None:
            yield None
            return
        from opentelemetry.trace import SpanKind  # noqa: PLC0415 - only where tracing is on

        context = None
        if carrier is not None and "traceparent" in carrier:
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

            context = TraceContextTextMapPropagator().extract(carrier)
        kind = SpanKind.SERVER if server else SpanKind.INTERNAL
        with self._tracer.start_as_current_span(name, context, kind, attributes=dict(attributes or {})) as span:
            yield span

    def close(self) -> None:
        """Send what is left and stop; takes 6 seconds at the most, where the collector is away. Called last, it may block."""
        exporter, provider = self._exporter, self._provider
        self._exporter = self._provider = self._tracer = None
        if exporter is not None and provider is not None:
            exporter.expire(_EXPORT_SECONDS)
            provider.shutdown()


def _build(endpoint: str, redactor: Redactor) -> "tuple[TracerProvider, RedactingExporter]":
    # Loaded here: the SDK and its exporter cost a start 0.2 s, and only an operator who set an endpoint needs them.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    from automagik.telemetry.spans import RedactingExporter  # noqa: PLC0415 - it needs the SDK

    resource = Resource.create({"service.name": "automagik", "service.version": __version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = RedactingExporter(OTLPSpanExporter(endpoint=_traces_url(endpoint), timeout=_EXPORT_SECONDS), redactor)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider, exporter


def _traces_url(endpoint: str) -> str:
    """The traces' address at a collector: a base as in `OTEL_EXPORTER_OTLP_ENDPOINT`, or the whole address."""
    base = endpoint.rstrip("/")
    return base if base.endswith("/v1/traces") else f"{base}/v1/traces"
