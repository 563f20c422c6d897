"""Task events of workers and drivers become spans and per-task metrics.

Events exist only while tracing is on. Their ids were made by the processes that saw the steps, so a
span here needs no context, and the spans of one trace may come from many nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from skate_rpc.node_protocol import TaskEvent
from skate_telemetry.readings import Reading, span_readings
from skate_telemetry.task_metrics import TaskMetrics
from skate_telemetry.tracing import SpanSink, TracingConfig


class TaskSpans:
    """The node's sink of task events. Thread-safe."""

    def __init__(self, config: TracingConfig, node_id: str) -> None:
        """Raises ``MissingExtraError`` when tracing is on and OpenTelemetry is not installed."""
        self._sink = SpanSink(config, resource={"skate.node.id": node_id})
        self._metrics = TaskMetrics()

    @property
    def is_enabled(self) -> bool:
        """Whether processes should send events at all."""
        return self._sink.is_enabled

    def record(self, events: Sequence[TaskEvent]) -> None:
        """Take a batch of events; malformed ones are counted by the sink."""
        for event in events:
            self._sink.record(
                f"{event.kind} {event.name}",
                trace_id=event.trace_id,
                span_id=event.span_id,
                parent_span_id=event.parent_span_id,
                start_s=event.start_s,
                end_s=event.end_s,
                attributes={
                    "skate.task.id": event.task_id.hex(),
                    "skate.task.name": event.name,
                    "skate.task.step": event.kind,
                    "skate.task.attempt": event.attempt,
                },
                error=event.error,
            )
            if event.kind == "run":
                duration_s = event.end_s - event.start_s
                self._metrics.record(event.name, duration_s, bool(event.error))

    def readings(self) -> Iterator[Reading]:
        """Counts of spans and of finished task attempts."""
        counts = self._sink.statistics()
        yield from span_readings(
            recorded=counts.recorded,
            exported=counts.exported,
            failed=counts.failed,
            rejected=counts.rejected,
        )
        yield from self._metrics.readings()

    def close(self, timeout_s: float) -> None:
        """Export what waits, for at most ``timeout_s``."""
        self._sink.close(timeout_s)
