"""The part of tracing that needs OpenTelemetry; imported by ``tracing.py`` only when it is on.

Spans carry ids that were given elsewhere, so they are built as finished ``ReadableSpan`` objects
and handed to the batch processor, past the tracer, which would invent ids and take the present
time.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

if TYPE_CHECKING:
    from skate_telemetry.tracing import AttributeValue, TracingConfig

QUEUE_SPANS_MAX = 65_536
"""Waiting spans, about 1 KB each; when they are more the oldest are dropped."""
BATCH_SPANS_MAX = 2_048
BATCH_DELAY_S = 1.0
ERROR_CHARS_MAX = 4_096
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class OtlpExport:
    """A queue of spans, its exporting thread, and counts of what was exported."""

    def __init__(self, config: TracingConfig, resource: Mapping[str, str]) -> None:
        self._exporter = _CountingExporter(
            OTLPSpanExporter(
                endpoint=config.endpoint, headers=config.headers or None, timeout=config.timeout_s
            )
        )
        self._processor = BatchSpanProcessor(
            self._exporter,
            max_queue_size=QUEUE_SPANS_MAX,
            schedule_delay_millis=BATCH_DELAY_S * 1000,
            max_export_batch_size=BATCH_SPANS_MAX,
        )
        # Resource.create adds OTEL_RESOURCE_ATTRIBUTES and the SDK's name.
        self._resource = Resource.create({"service.name": config.service_name, **resource})
        self._scope = InstrumentationScope("skate")
        self._is_closed = False

    def add(
        self,
        name: str,
        *,
        trace_id: int,
        span_id: int,
        parent_span_id: int | None,
        start_ns: int,
        end_ns: int,
        attributes: dict[str, AttributeValue],
        error: str,
    ) -> None:
        """Queue one finished span; the oldest queued one is dropped when the queue is full."""
        parent = (
            None
            if parent_span_id is None
            else SpanContext(trace_id, parent_span_id, is_remote=True, trace_flags=_SAMPLED)
        )
        status = Status(StatusCode.ERROR, error[:ERROR_CHARS_MAX]) if error else Status()
        self._processor.on_end(
            ReadableSpan(
                name,
                context=SpanContext(trace_id, span_id, is_remote=False, trace_flags=_SAMPLED),
                parent=parent,
                resource=self._resource,
                attributes=attributes,
                kind=SpanKind.INTERNAL,
                status=status,
                start_time=start_ns,
                end_time=end_ns,
                instrumentation_scope=self._scope,
            )
        )

    def flush(self, timeout_s: float) -> bool:
        """Export what is queued. The processor knows no bound, so another thread waits for it."""
        flushing = threading.Thread(
            target=self._processor.force_flush, name="skate-span-flush", daemon=True
        )
        flushing.start()
        flushing.join(timeout_s)
        return not flushing.is_alive()

    def close(self, timeout_s: float) -> None:
        """Flush, then end the exporting thread; break off what is not done by then."""
        if self._is_closed:
            return
        self._is_closed = True
        # The processor waits for its thread, which tries each batch for config.timeout_s;
        # shutting the exporter down makes the attempts that are left fail at once.
        breaking = threading.Timer(timeout_s, self._exporter.shutdown)
        breaking.daemon = True
        breaking.start()
        self._processor.shutdown()  # type: ignore[no-untyped-call]
        breaking.cancel()

    def counts(self) -> tuple[int, int]:
        """Spans exported, and spans whose export failed."""
        return self._exporter.exported, self._exporter.failed


class _CountingExporter(SpanExporter):
    """Counts what the exporter behind it does. Its exports run one at a time."""

    def __init__(self, exporter: OTLPSpanExporter) -> None:
        self._exporter = exporter
        self._shutdown = threading.Lock()
        self._is_shut_down = False
        self.exported = 0
        self.failed = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self._is_shut_down:
            self.failed += len(spans)
            return SpanExportResult.FAILURE
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            if result is SpanExportResult.SUCCESS:
                self.exported += len(spans)
            else:
                self.failed += len(spans)
        return result

    def shutdown(self) -> None:
        with self._shutdown:
            if self._is_shut_down:
                return
            self._is_shut_down = True
        self._exporter.shutdown()
