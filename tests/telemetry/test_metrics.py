"""Metrics are counted in a registry of their own and rendered as Prometheus reads them."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from prometheus_client.parser import text_string_to_metric_families

from automagik import __version__
from automagik.telemetry import Metrics
from automagik.types import Usage

_NOW = datetime(2026, 11, 24, tzinfo=UTC)
_USED = Usage(input_tokens=12, output_tokens=30, cost_usd=Decimal("0.25"))


@dataclass(frozen=True)
class _Run:
    kind: str = "agent"
    name: str = "simple"
    outcome: str | None = "completed"
    usage: Usage = _USED
    created_at: datetime = _NOW
    finished_at: datetime | None = _NOW + timedelta(seconds=0.3)


def _samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = metrics.render().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_requests_are_counted_by_route_and_status() -> None:
    metrics = Metrics()
    for status in (200, 200, 404):
        metrics.request_finished("GET", "/api/v1/runs/{run_id}", status, 0.02)
    samples = _samples(metrics)
    route = ("method", "GET"), ("route", "/api/v1/runs/{run_id}")
    assert samples["automagik_http_requests_total", (*route, ("status", "200"))] == 2
    assert samples["automagik_http_requests_total", (*route, ("status", "404"))] == 1
    assert samples["automagik_http_request_seconds_count", route] == 3


def test_runs_tokens_cost_and_commits_are_counted() -> None:
    metrics = Metrics()
    metrics.run_finished(_Run())
    metrics.run_finished(_Run())
    metrics.run_finished(_Run(outcome="model_error", usage=Usage(), finished_at=None))
    metrics.store_wrote(3, 0.002)
    metrics.active_streams.inc()
    samples = _samples(metrics)
    of = ("kind", "agent"), ("name", "simple")
    assert samples["automagik_runs_total", (*of, ("outcome", "completed"))] == 2
    assert samples["automagik_runs_total", (*of, ("outcome", "model_error"))] == 1
    assert samples["automagik_run_seconds_count", of] == 2
    assert samples["automagik_tokens_total", (("direction", "output"), ("name", "simple"))] == 60
    assert samples["automagik_cost_usd_total", (("name", "simple"),)] == 0.5
    assert samples["automagik_store_batch_size_sum", ()] == 3
    assert samples["automagik_active_streams", ()] == 1
    assert samples["automagik_info", (("version", __version__),)] == 1
    assert ("process_resident_memory_bytes", ()) in samples


def test_two_applications_of_one_process_count_apart() -> None:
    one, two = Metrics(), Metrics()
    one.active_runs.set(5)
    assert _samples(two)["automagik_active_runs", ()] == 0
