"""Spans: the configuration, and what a real OTLP receiver gets over gRPC."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent import futures
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from skate_telemetry.context import make_span_id, make_trace_id
from skate_telemetry.errors import MetricsBindError, MissingExtraError, TracingConfigError
from skate_telemetry.otlp import OtlpExport
from skate_telemetry.tracing import SpanSink, SpanStatistics, TracingConfig


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """A collector that keeps what it gets."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self.metadata: list[dict[str, Any]] = []
        self.failure: grpc.StatusCode | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def Export(  # noqa: N802
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.entered.set()
        self.gate.wait(20)
        if self.failure is not None:
            context.abort(self.failure, "told to fail")
        self.metadata.append(dict(context.invocation_metadata()))
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def spans(self) -> dict[str, trace_pb2.Span]:
        return {
            span.name: span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(  # type: ignore[no-untyped-call]
        receiver, server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    receiver.endpoint = f"http://127.0.0.1:{port}"  # type: ignore[attr-defined]
    yield receiver
    receiver.gate.set()
    server.stop(0).wait(20)


def config_for(receiver: Receiver, **variables: str) -> TracingConfig:
    endpoint: str = receiver.endpoint  # type: ignore[attr-defined]
    return TracingConfig.from_environment({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **variables})


@pytest.fixture
def sink(receiver: Receiver) -> Iterator[SpanSink]:
    sink = SpanSink(config_for(receiver), resource={"host.name": "node-1"})
    yield sink
    sink.close()


def attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


# ---- export ----


def test_spans_arrive_with_the_ids_times_and_parents_given(
    receiver: Receiver, sink: SpanSink
) -> None:
    trace, submit, lease, run = make_trace_id(), make_span_id(), make_span_id(), make_span_id()
    start_s = 1_700_000_000.5
    assert sink.record("train", trace_id=trace, span_id=submit, start_s=start_s, end_s=start_s + 2)
    assert sink.record(
        "lease",
        trace_id=trace,
        span_id=lease,
        parent_span_id=submit,
        start_s=start_s,
        end_s=start_s,
    )
    assert sink.record(
        "run train",
        trace_id=trace,
        span_id=run,
        parent_span_id=submit,
        start_s=start_s + 0.25,
        end_s=start_s + 1.25,
        attributes={"skate.task_id": "ab", "skate.attempt": 2, "x": 0.5, "y": True},
        error="ValueError: no",
    )
    assert sink.flush(20)
    spans = receiver.spans
    assert {span.trace_id.hex() for span in spans.values()} == {trace}
    assert {name: span.span_id.hex() for name, span in spans.items()} == {
        "train": submit,
        "lease": lease,
        "run train": run,
    }
    assert {name: span.parent_span_id.hex() for name, span in spans.items()} == {
        "train": "",
        "lease": submit,
        "run train": submit,
    }
    ran = spans["run train"]
    assert ran.start_time_unix_nano == 1_700_000_000_750_000_000
    assert ran.end_time_unix_nano == 1_700_000_001_750_000_000
    assert attributes(ran.attributes) == {
        "skate.task_id": "ab",
        "skate.attempt": 2,
        "x": 0.5,
        "y": True,
    }
    assert ran.status.code == trace_pb2.Status.STATUS_CODE_ERROR
    assert ran.status.message == "ValueError: no"
    assert spans["train"].status.code == trace_pb2.Status.STATUS_CODE_UNSET
    resource = attributes(receiver.requests[0].resource_spans[0].resource.attributes)
    assert resource["service.name"] == "skate"
    assert resource["host.name"] == "node-1"
    assert receiver.requests[0].resource_spans[0].scope_spans[0].scope.name == "skate"
    assert sink.statistics() == SpanStatistics(recorded=3, exported=3, failed=0, rejected=0)


def test_spans_are_exported_without_a_flush(receiver: Receiver, sink: SpanSink) -> None:
    sink.record("f", trace_id=make_trace_id(), span_id=make_span_id(), start_s=1.0, end_s=2.0)
    assert receiver.entered.wait(20)


def test_headers_and_service_name_of_the_environment_are_used(receiver: Receiver) -> None:
    sink = SpanSink(
        config_for(
            receiver,
            OTEL_EXPORTER_OTLP_HEADERS="x-secret=hunter2,other=1",
            OTEL_SERVICE_NAME="mine",
        )
    )
    sink.record("f", trace_id=make_trace_id(), span_id=make_span_id(), start_s=1.0, end_s=2.0)
    sink.close()
    assert receiver.metadata[0]["x-secret"] == "hunter2"
    resource = attributes(receiver.requests[0].resource_spans[0].resource.attributes)
    assert resource["service.name"] == "mine"


@pytest.mark.parametrize(
    "change",
    [
        {"trace_id": ""},
        {"trace_id": "0" * 32},
        {"trace_id": "x" * 32},
        {"trace_id": "ab"},
        {"span_id": "0" * 16},
        {"span_id": "ABCDEF0123456789"},
        {"parent_span_id": "1"},
        {"start_s": float("nan")},
        {"end_s": float("inf")},
        {"start_s": -1.0},
        {"start_s": 1e12},
    ],
)
def test_malformed_span_is_counted_and_not_exported(
    receiver: Receiver, sink: SpanSink, change: Mapping[str, Any]
) -> None:
    good: dict[str, Any] = {
        "trace_id": make_trace_id(),
        "span_id": make_span_id(),
        "start_s": 1.0,
        "end_s": 2.0,
    }
    assert not sink.record("f", **{**good, **change})
    assert sink.record("g", **good)
    assert sink.flush(20)
    assert set(receiver.spans) == {"g"}
    assert sink.statistics().rejected == 1


def test_span_that_ends_before_it_starts_ends_when_it_starts(
    receiver: Receiver, sink: SpanSink
) -> None:
    sink.record("f", trace_id=make_trace_id(), span_id=make_span_id(), start_s=5.0, end_s=4.0)
    assert sink.flush(20)
    span = receiver.spans["f"]
    assert span.start_time_unix_nano == span.end_time_unix_nano == 5_000_000_000


def test_traces_that_are_not_sampled_are_left_out(receiver: Receiver) -> None:
    sink = SpanSink(
        config_for(receiver, OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG="0.5")
    )
    low, high = "a" * 16 + "1" * 16, "a" * 16 + "f" * 16
    assert sink.record("low", trace_id=low, span_id=make_span_id(), start_s=1.0, end_s=2.0)
    assert not sink.record("high", trace_id=high, span_id=make_span_id(), start_s=1.0, end_s=2.0)
    sink.close()
    assert set(receiver.spans) == {"low"}


def test_many_spans_from_many_threads_all_arrive(receiver: Receiver, sink: SpanSink) -> None:
    trace = make_trace_id()

    def work(worker: int) -> None:
        for index in range(2_000):
            name = f"{worker}-{index}"
            sink.record(name, trace_id=trace, span_id=make_span_id(), start_s=1.0, end_s=2.0)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sink.flush(20)
    assert len(receiver.spans) == 8_000
    assert sink.statistics().exported == 8_000


def test_collector_that_refuses_is_counted(
    receiver: Receiver, sink: SpanSink, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.failure = grpc.StatusCode.INVALID_ARGUMENT
    with caplog.at_level(logging.CRITICAL):
        sink.record("f", trace_id=make_trace_id(), span_id=make_span_id(), start_s=1.0, end_s=2.0)
        assert sink.flush(20)
    assert sink.statistics() == SpanStatistics(recorded=1, exported=0, failed=1, rejected=0)


def test_close_with_a_collector_that_hangs_gives_up_and_counts(receiver: Receiver) -> None:
    receiver.gate.clear()
    sink = SpanSink(config_for(receiver, OTEL_EXPORTER_OTLP_TIMEOUT="60"))
    sink.record("f", trace_id=make_trace_id(), span_id=make_span_id(), start_s=1.0, end_s=2.0)
    assert not sink.flush(0.1)
    sink.close(timeout_s=0.2)  # must not take the exporter's 60 s: the test's time limit shows
    sink.close()
    assert receiver.requests == []


def test_close_without_any_collector_gives_up() -> None:
    config = TracingConfig(is_enabled=True, endpoint="http://127.0.0.1:1", timeout_s=60)
    sink = SpanSink(config)
    sink.record("f", trace_id=make_trace_id(), span_id=make_span_id(), start_s=1.0, end_s=2.0)
    sink.close(timeout_s=0.2)
    deadline_s = time.monotonic() + 20
    while sink.statistics().failed != 1:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_record_after_close_is_harmless(sink: SpanSink) -> None:
    sink.close()
    sink.record("f", trace_id=make_trace_id(), span_id=make_span_id(), start_s=1.0, end_s=2.0)
    assert sink.flush(20)


def test_disabled_sink_takes_nothing_and_imports_nothing() -> None:
    code = """
import sys
from skate_telemetry.tracing import SpanSink, TracingConfig
sink = SpanSink(TracingConfig.from_environment({}))
assert not sink.is_enabled
assert not sink.record("f", trace_id="a" * 32, span_id="b" * 16, start_s=1.0, end_s=2.0)
assert sink.flush()
sink.close()
assert sink.statistics().recorded == 0
sys.exit(" ".join(m for m in sys.modules if m.startswith(("opentelemetry", "grpc"))) or 0)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr


def test_enabled_sink_without_opentelemetry_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "skate_telemetry.otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(MissingExtraError, match=r"skate-telemetry\[tracing\]"):
        SpanSink(TracingConfig(is_enabled=True))


def test_otlp_export_type_is_what_the_sink_uses(sink: SpanSink) -> None:
    assert isinstance(sink._export, OtlpExport)


# ---- configuration ----

HERE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}


@pytest.mark.parametrize(
    ("environ", "is_enabled"),
    [
        ({}, False),
        (HERE, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4317"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none"}, False),
        ({**HERE, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({**HERE, "OTEL_TRACES_EXPORTER": "otlp,none"}, False),
        ({**HERE, "OTEL_TRACES_EXPORTER": " otlp , console"}, True),
        ({**HERE, "OTEL_SDK_DISABLED": "TRUE"}, False),
        ({**HERE, "OTEL_SDK_DISABLED": "false"}, True),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "zipkin"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "  "}, False),
    ],
)
def test_config_is_enabled_when_the_environment_asks_for_it(
    environ: dict[str, str], is_enabled: bool
) -> None:
    assert TracingConfig.from_environment(environ).is_enabled is is_enabled


def test_config_prefers_the_variables_for_traces() -> None:
    config = TracingConfig.from_environment(
        {
            **HERE,
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://traces:4317",
            "OTEL_EXPORTER_OTLP_HEADERS": "a=1",
            "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "b=2",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "3",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
            "OTEL_SERVICE_NAME": "mine",
        }
    )
    assert config == TracingConfig(True, "https://traces:4317", "b=2", 3.0, 1.0, "mine")


@pytest.mark.parametrize(
    ("sampler", "argument", "ratio"),
    [
        ("", "", 1.0),
        ("always_on", "0.1", 1.0),
        ("always_off", "", 0.0),
        ("traceidratio", "0.25", 0.25),
        ("parentbased_traceidratio", "0.25", 0.25),
        ("parentbased_always_on", "", 1.0),
        ("traceidratio", "", 1.0),
        ("traceidratio", "7", 1.0),
    ],
)
def test_config_sampler_gives_the_ratio(sampler: str, argument: str, ratio: float) -> None:
    config = TracingConfig.from_environment(
        {**HERE, "OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument}
    )
    assert config.sample_ratio == ratio


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {**HERE, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
        {**HERE, "OTEL_TRACES_SAMPLER": "jaeger_remote"},
        {**HERE, "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "half"},
        {**HERE, "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "-1"},
        {**HERE, "OTEL_EXPORTER_OTLP_TIMEOUT": "nan"},
    ],
)
def test_config_unsupported_value_names_its_variable(environ: dict[str, str]) -> None:
    with pytest.raises(TracingConfigError) as caught:
        TracingConfig.from_environment(environ)
    assert caught.value.variable in environ
    assert environ[caught.value.variable] in str(caught.value)


def test_config_text_leaves_the_headers_out() -> None:
    config = TracingConfig(is_enabled=True, headers="authorization=hunter2")
    assert "hunter2" not in repr(config)


def test_config_reads_this_processs_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.delenv("OTEL_SDK_DISABLED", raising=False)
    assert TracingConfig.from_environment().is_enabled


@pytest.mark.parametrize(
    "error",
    [
        MissingExtraError("Tracing", "tracing", "opentelemetry-sdk"),
        TracingConfigError("OTEL_TRACES_EXPORTER", "zipkin", "Use otlp."),
        MetricsBindError("127.0.0.1:1", "in use."),
    ],
)
def test_telemetry_errors_survive_pickling(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
