"""What tracing costs: the same calls with tracing off and on, in turns.

On means Skate's default way: every task's spans go to the node's agent, which exports them by OTLP
over gRPC to a receiver, here a process that counts them. Receiver and agent share the machine with
the measured processes, as they do on a node with a local collector.
"""

from __future__ import annotations

import contextlib
import importlib
import mmap
import os
import signal
import statistics
import struct
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import skate
from benchmarks.probes import Probed, empty

VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
SYNC_CALLS = 1500
ASYNC_CALLS = 20_000
BATCH = 1000
QUIET_S = 1.0
POLL_S = 0.02
_NUMBERS = struct.Struct("QQ")  # the port, the number of spans


@dataclass(frozen=True, slots=True)
class Price:
    """Microseconds per call, median over the rounds; and the spans that arrived."""

    workload: str
    off_us: float
    on_us: float


@dataclass(frozen=True, slots=True)
class TracingResult:
    """All prices. `spans` reached the receiver of the `spans_made` that the calls stand for."""

    prices: list[Price]
    spans: int
    spans_made: int


def measure_tracing(rounds: int, scale: float) -> TracingResult | str:
    """Prices, or why there are none. Forks: call it while the process has one thread."""
    try:
        importlib.import_module("opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc")
        importlib.import_module("opentelemetry.sdk.trace")
    except ImportError as error:
        return f"{error.name} can not be imported"
    off: dict[str, list[float]] = {}
    on: dict[str, list[float]] = {}
    calls = 0
    with _receiver() as (endpoint, shared):
        for _ in range(rounds):
            for found, variables in ((off, {}), (on, {VARIABLE: endpoint})):
                with _environment(variables):
                    times, made = _workloads(scale)
                for name, us in times.items():
                    found.setdefault(name, []).append(us)
                calls += made if variables else 0
        spans = _count(shared, 2 * calls)
    prices = [
        Price(name, statistics.median(off[name]), statistics.median(on[name])) for name in off
    ]
    return TracingResult(prices, spans, 2 * calls)


def _workloads(scale: float) -> tuple[dict[str, float], int]:
    """Microseconds per call of each workload in a new cluster, and how many calls were made."""
    skate.init(address="local", num_cpus=1)
    try:
        task = skate.remote(empty)
        actor: Any = skate.remote(num_cpus=0)(Probed).remote()
        skate.get([task.remote() for _ in range(BATCH)])
        skate.get([actor.empty.remote() for _ in range(BATCH)])
        calls = 2 * BATCH
        times: dict[str, float] = {}
        for name, target in (("task", task), ("actor call", actor.empty)):
            sync, rounds = int(SYNC_CALLS * scale), max(1, int(ASYNC_CALLS * scale) // BATCH)
            samples: list[int] = []
            for _ in range(sync):
                start_ns = time.perf_counter_ns()
                skate.get(target.remote())
                samples.append(time.perf_counter_ns() - start_ns)
            times[f"{name}, one at a time"] = statistics.median(samples) / 1e3
            start_ns = time.perf_counter_ns()
            for _ in range(rounds):
                skate.get([target.remote() for _ in range(BATCH)])
            spent_ns = time.perf_counter_ns() - start_ns
            times[f"{name}, pipelined"] = spent_ns / rounds / BATCH / 1e3
            calls += sync + rounds * BATCH
        return times, calls
    finally:
        skate.shutdown()


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    hidden = {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}
    for name in hidden:
        del os.environ[name]
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
        os.environ.update(hidden)


@contextlib.contextmanager
def _receiver() -> Iterator[tuple[str, mmap.mmap]]:
    """A forked OTLP receiver: its endpoint, and shared memory with the number of spans it has."""
    shared = mmap.mmap(-1, _NUMBERS.size)
    pid = os.fork()
    if pid == 0:
        try:
            _receive(shared)
        finally:
            os._exit(0)  # the parent's exit hooks are not the child's
    try:
        while not _NUMBERS.unpack_from(shared)[0]:
            time.sleep(POLL_S)
        yield f"http://127.0.0.1:{_NUMBERS.unpack_from(shared)[0]}", shared
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _receive(shared: mmap.mmap) -> None:
    import grpc  # noqa: PLC0415 - only the receiver needs it; the driver must not pay for it
    from opentelemetry.proto.collector.trace.v1 import (  # noqa: PLC0415 - as above
        trace_service_pb2,
        trace_service_pb2_grpc,
    )

    class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
        spans = 0

        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
            self.spans += sum(
                len(scope.spans) for one in request.resource_spans for scope in one.scope_spans
            )
            _NUMBERS.pack_into(shared, 0, port, self.spans)
            return trace_service_pb2.ExportTraceServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(  # type: ignore[no-untyped-call]
        Receiver(), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    _NUMBERS.pack_into(shared, 0, port, 0)
    server.wait_for_termination()


def _count(shared: mmap.mmap, wanted: int) -> int:
    """The spans received, once all are here or none has come for a second."""
    seen, since_s = -1, time.monotonic()
    while time.monotonic() - since_s < QUIET_S:
        spans: int = _NUMBERS.unpack_from(shared)[1]
        if spans >= wanted:
            return spans
        if spans != seen:
            seen, since_s = spans, time.monotonic()
        time.sleep(POLL_S)
    return seen
