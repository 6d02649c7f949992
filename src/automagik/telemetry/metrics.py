"""Metrics: what Prometheus reads from this process. Counted in a registry of its own, sent nowhere."""

from datetime import datetime
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from automagik import __version__
from automagik.types import Usage

__all__ = ["CONTENT_TYPE", "FinishedRun", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The media type of `Metrics.render`: Prometheus' text format."""

_REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_RUN_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_WRITE_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class FinishedRun(Protocol):
    """What is counted of a run that has ended."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def outcome(self) -> str | None: ...
    @property
    def usage(self) -> Usage: ...
    @property
    def created_at(self) -> datetime: ...
    @property
    def finished_at(self) -> datetime | None: ...


class Metrics:
    """The platform's counters, each named `automagik_…`. Built once for an application; `registry` may be shared by a test."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        Info("automagik", "The version that runs", registry=self.registry).info({"version": __version__})
        self._requests = Counter(
            "automagik_http_requests",
            "Requests answered",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "automagik_http_request_seconds",
            "Time to the last byte of an answer, streams included",
            ["method", "route"],
            buckets=_REQUEST_SECONDS,
            registry=self.registry,
        )
        self._runs = Counter("automagik_runs", "Runs that ended", ["kind", "name", "outcome"], registry=self.registry)
        self._run_seconds = Histogram(
            "automagik_run_seconds",
            "Time from a run's acceptance to its stored end",
            ["kind", "name"],
            buckets=_RUN_SECONDS,
            registry=self.registry,
        )
        self._tokens = Counter(
            "automagik_tokens",
            "Tokens used, as the providers count them",
            ["name", "direction"],
            registry=self.registry,
        )
        self._cost = Counter(
            "automagik_cost_usd", "Cost of runs whose price is known", ["name"], registry=self.registry
        )
        self.active_runs = Gauge("automagik_active_runs", "Runs under way in this process", registry=self.registry)
        """Set or counted by the run service."""
        self.active_streams = Gauge(
            "automagik_active_streams", "Event streams open in this process", registry=self.registry
        )
        """Counted up and down by the API."""
        self._delivery_attempts = Counter(
            "automagik_webhook_attempts",
            "Attempts to deliver to a webhook, by what came of them: delivered, refused (another status), unanswered",
            ["result"],
            registry=self.registry,
        )
        self._delivery_seconds = Histogram(
            "automagik_webhook_attempt_seconds",
            "Time of one attempt to deliver to a webhook",
            buckets=_REQUEST_SECONDS,
            registry=self.registry,
        )
        self._deliveries_failed = Counter(
            "automagik_webhook_deliveries_failed",
            "Deliveries to webhooks that are not tried again",
            registry=self.registry,
        )
        self._batch_size = Histogram(
            "automagik_store_batch_size",
            "Transactions that shared one commit",
            buckets=_BATCH_SIZES,
            registry=self.registry,
        )
        self._write_seconds = Histogram(
            "automagik_store_write_seconds",
            "Time of one commit with its transactions",
            buckets=_WRITE_SECONDS,
            registry=self.registry,
        )
        self._request_children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._run_children: dict[tuple[str, str, str], tuple[Counter, Histogram, Counter, Counter, Counter]] = {}

    def request_finished(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request. `route` is the template (`/api/v1/runs/{run_id}`), never the path itself."""
        key = (method, route, status)
        children = self._request_children.get(key)
        if children is None:
            children = self._request_children[key] = (
                self._requests.labels(method, route, str(status)),
                self._request_seconds.labels(method, route),
            )
        children[0].inc()
        children[1].observe(seconds)

    def run_finished(self, row: FinishedRun) -> None:
        """Count one run that has ended, its time, tokens and cost."""
        key = (row.kind, row.name, row.outcome or "unknown")
        children = self._run_children.get(key)
        if children is None:
            children = self._run_children[key] = (
                self._runs.labels(*key),
                self._run_seconds.labels(row.kind, row.name),
                self._tokens.labels(row.name, "input"),
                self._tokens.labels(row.name, "output"),
                self._cost.labels(row.name),
            )
        children[0].inc()
        if row.finished_at is not None:
            children[1].observe(max(0.0, (row.finished_at - row.created_at).total_seconds()))
        children[2].inc(row.usage.input_tokens)
        children[3].inc(row.usage.output_tokens)
        if row.usage.cost_usd is not None:
            children[4].inc(float(row.usage.cost_usd))

    def delivery_attempted(self, result: str, seconds: float, *, gives_up: bool) -> None:
        """Count one attempt to deliver to a webhook: `delivered`, `refused` or `unanswered`; `gives_up`: it was the last."""
        self._delivery_attempts.labels(result).inc()
        self._delivery_seconds.observe(seconds)
        if gives_up:
            self._deliveries_failed.inc()

    def store_wrote(self, transactions: int, seconds: float) -> None:
        """Count one commit that `transactions` shared."""
        self._batch_size.observe(transactions)
        self._write_seconds.observe(seconds)

    def render(self) -> bytes:
        """Everything in Prometheus' text format, of the media type `CONTENT_TYPE`."""
        return generate_latest(self.registry)
