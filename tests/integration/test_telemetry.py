"""One trace from driver to nested task, at a real OTLP receiver; metrics on the node's page."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

import skate

WAIT_S = 20.0

PROGRAM = """
import skate
skate.init(num_cpus=2)

@skate.remote
def child():
    return 1

@skate.remote
def parent():
    return skate.get(child.remote()) + 1

@skate.remote
class Actor:
    def call(self):
        return skate.get(child.remote())

assert skate.get(parent.remote()) == 2
assert skate.get(Actor.remote().call.remote()) == 1
skate.shutdown()
"""


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps every span that arrives."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self._lock = threading.Lock()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC names it
        with self._lock:
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    self.spans.extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def receiver() -> Iterator[tuple[Receiver, str]]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    servicer = Receiver()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"http://127.0.0.1:{port}"
    server.stop(0).wait(WAIT_S)


def test_one_trace_shows_driver_lease_worker_and_nested_task(
    receiver: tuple[Receiver, str], session_root: Path
) -> None:
    servicer, endpoint = receiver
    subprocess.run(
        [sys.executable, "-c", PROGRAM],
        check=True,
        timeout=60,
        env={
            **dict(__import__("os").environ),
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        },
    )
    deadline = time.monotonic() + WAIT_S

    def named(fragment: str) -> list[Any]:
        return [span for span in servicer.spans if fragment in span.name]

    while not (named("child") and named("parent") and named("lease")):
        assert time.monotonic() < deadline, [span.name for span in servicer.spans]
        time.sleep(0.05)
    by_id = {span.span_id: span for span in servicer.spans}

    def ancestors(span: Any) -> list[str]:
        names = []
        while span.parent_span_id in by_id:
            span = by_id[span.parent_span_id]
            names.append(span.name)
        return names

    nested = [span for span in named("child") if any("parent" in n for n in ancestors(span))]
    assert nested, [(s.name, ancestors(s)) for s in servicer.spans]
    roots = {span.trace_id for span in named("parent")}
    assert len(roots) == 1
    assert {span.trace_id for span in nested} == roots
    assert any(span.trace_id in roots for span in named("lease"))


def test_metrics_page_wants_the_token_and_counts_what_runs(cluster: Any) -> None:
    @skate.remote
    def one() -> int:
        return 1

    skate.get([one.remote() for _ in range(10)])
    node = skate.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, timeout=WAIT_S)
    assert refused.value.code == 401
    refused.value.close()  # the error is the answer, with its socket
    token = next(Path(cluster.address_info["session_dir"]).glob("token")).read_text().strip()
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=WAIT_S) as response:
        families = {f.name: f for f in text_string_to_metric_families(response.read().decode())}
    assert all(name.startswith(("skate_", "python_", "process_")) for name in families)
    total = (
        {
            sample.labels["name"]: sample.value
            for sample in families["skate_node_resource_total"].samples
        }
        if "skate_node_resource_total" in families
        else {}
    )
    assert total.get("CPU", 2.0) == 2.0
