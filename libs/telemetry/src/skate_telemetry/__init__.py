"""Trace context, spans, metrics and logs.

Importing this package loads the standard library only; each concern is a module of its own:

- ``skate_telemetry.context``: W3C trace context in a contextvar; standard library only, used by
  workers
- ``skate_telemetry.logs``: key=value log files of the daemons; standard library only
- ``skate_telemetry.families``: every metric that Skate exports, declared once
- ``skate_telemetry.readings``: what a component's ``statistics()`` says, as metric values
- ``skate_telemetry.metrics``: the registry of a node (extra ``metrics``)
- ``skate_telemetry.metrics_server``: ``GET /metrics`` behind the cluster token
- ``skate_telemetry.tracing``: spans by OTLP (extra ``tracing``)
"""

from __future__ import annotations

from skate_telemetry.context import (
    TraceContext,
    current_trace,
    format_traceparent,
    make_span_id,
    make_trace_id,
    parse_traceparent,
    use_trace,
)

__all__ = [
    "TraceContext",
    "current_trace",
    "format_traceparent",
    "make_span_id",
    "make_trace_id",
    "parse_traceparent",
    "use_trace",
]
