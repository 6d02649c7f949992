"""Traces leave only for an endpoint that is set, as OTLP over HTTP, without secrets, and without content unless asked for."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from pydantic_ai import Agent
from pydantic_ai.capabilities import Instrumentation
from pydantic_ai.models.test import TestModel

from automagik.api import create_api
from automagik.app import Platform
from automagik.settings import Settings
from automagik.telemetry import Tracing
from automagik.testing.stopwatch import Stopwatch
from automagik.types import SYSTEM

pytestmark = pytest.mark.anyio

KEY = "amk_" + "Zx9-_q" * 7 + "a"


class _Collector(ThreadingHTTPServer):
    """An OTLP/HTTP collector that keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.paths: list[str] = []
        self.batches: list[ExportTraceServiceRequest] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def spans(self) -> dict[str, Span]:
        return {
            span.name: span
            for batch in self.batches
            for resource in batch.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }

    @property
    def text(self) -> str:
        return "".join(str(batch) for batch in self.batches)


class _Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        collector = cast("_Collector", self.server)
        collector.paths.append(self.path)
        collector.batches.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Say nothing."""


@pytest.fixture
def collector() -> Iterator[_Collector]:
    server = _Collector()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _settings(endpoint: str | None, *, content: bool = False) -> Settings:
    return Settings(otel_endpoint=endpoint, otel_content=content)


async def _ask(tracing: Tracing, text: str) -> None:
    agent = Agent(TestModel(custom_output_text="ANSWERTEXT"), instructions="INSTRUCTIONTEXT", name="simple")

    @agent.tool_plain
    def look_up(word: str) -> str:
        return f"TOOLTEXT {word}"

    settings = tracing.instrumentation()
    assert settings is not None
    await agent.run(text, capabilities=[Instrumentation(settings)])


async def test_a_run_is_told_as_one_trace_from_the_request_to_the_model(collector: _Collector) -> None:
    tracing = Tracing(_settings(collector.url))
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with tracing.span("POST /run", {"http.request.method": "POST"}, carrier={"traceparent": parent}, server=True):
        await _ask(tracing, "hello")
    tracing.close()
    assert set(collector.paths) == {"/v1/traces"}
    request, run = collector.spans["POST /run"], next(s for n, s in collector.spans.items() if "simple" in n)
    model = next(span for name, span in collector.spans.items() if name.startswith("chat"))
    assert request.trace_id.hex() == run.trace_id.hex() == model.trace_id.hex() == "0af7651916cd43dd8448eb211c80319c"
    assert request.parent_span_id.hex() == "b7ad6b7169203331"
    assert run.parent_span_id == request.span_id
    names = {attribute.key for attribute in model.attributes}
    assert {"gen_ai.request.model", "gen_ai.usage.input_tokens"} <= names
    assert "automagik" in collector.text


async def test_a_request_to_the_api_is_one_trace_down_to_the_model(collector: _Collector, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, model="demo", otel_endpoint=collector.url)
    async with Platform.open(settings) as platform:
        _, key = await platform.keys.create("tracer", ["admin"], caller=SYSTEM)
        transport = httpx2.ASGITransport(create_api(platform))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {"x-api-key": key.get_secret_value()}
            answer = await client.post("/api/v1/agent/simple/run", json={"message_content": "hi"}, headers=headers)
        assert answer.status_code == 200
    request, run = collector.spans["POST /api/v1/agent/{name}/run"], collector.spans["run simple"]
    model = next(span for name, span in collector.spans.items() if name.startswith("chat"))
    assert request.trace_id == run.trace_id == model.trace_id
    assert run.parent_span_id == request.span_id
    assert {"http.route", "http.response.status_code"} <= {attribute.key for attribute in request.attributes}
    assert key.get_secret_value() not in collector.text


@pytest.mark.parametrize("content", [False, True])
async def test_content_is_told_only_where_asked_for(collector: _Collector, content: bool) -> None:
    tracing = Tracing(_settings(f"{collector.url}/v1/traces", content=content))
    await _ask(tracing, "QUESTIONTEXT")
    tracing.close()
    assert collector.spans
    for word in ("QUESTIONTEXT", "ANSWERTEXT", "TOOLTEXT", "INSTRUCTIONTEXT"):
        assert (word in collector.text) is content, word


async def test_no_secret_is_in_a_span(collector: _Collector) -> None:
    tracing = Tracing(_settings(collector.url))

    def fail() -> None:
        with tracing.span(f"named {KEY}", {"url": "http://u:SECRETpw@h/", "x-api-key": "SECRET", "count": 3}):
            raise ValueError(f"refused Bearer SECRETSECRET, {KEY}")

    with pytest.raises(ValueError):
        fail()
    tracing.close()
    (span,) = collector.spans.values()
    assert span.status.code == 2
    assert span.events[0].name == "exception"
    assert "SECRET" not in collector.text
    assert KEY not in collector.text


async def test_a_collector_that_is_away_holds_up_the_end_for_seconds_only() -> None:
    tracing = Tracing(_settings("http://127.0.0.1:9"))
    for _ in range(3_000):
        with tracing.span("x"):
            pass
    with Stopwatch() as took:
        tracing.close()
        tracing.close()
    assert took.seconds < 8


async def test_without_an_endpoint_nothing_is_recorded_and_the_sdk_is_not_loaded() -> None:
    tracing = Tracing(_settings(None))
    assert not tracing.enabled
    assert tracing.instrumentation() is None
    with tracing.span("x", {"a": 1}) as span:
        assert span is None
    tracing.close()
    script = (
        "import sys; from automagik.settings import Settings; from automagik.telemetry import Tracing\n"
        "t = Tracing(Settings())\nwith t.span('x'): pass\n"
        "sys.exit(any(m.startswith('opentelemetry') for m in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={"HOME": "/tmp"})
