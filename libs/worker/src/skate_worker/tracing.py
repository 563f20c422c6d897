"""Task events for tracing, made only while tracing is on; the node's agent turns them into spans.

A span's context travels as a W3C ``traceparent`` in the task's message. Spans of one task:
``submit`` (its owner, from submission to outcome), ``lease`` (its owner, while a worker was asked
for), ``run`` (the worker). Nested tasks are children of the ``run`` span that submitted them, so
one trace shows the whole tree.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from skate_rpc import node_protocol as node
from skate_telemetry.context import (
    current_trace,
    format_traceparent,
    make_span_id,
    make_trace_id,
    parse_traceparent,
)
from skate_worker.context import running_task
from skate_worker.node_client import NodeClient
from skate_worker.submission import Submission

BATCH_EVENTS = 64
BATCH_S = 0.2


class Tracer:
    """Collects task events and sends them in batches. Thread-safe."""

    def __init__(self, raylet: NodeClient) -> None:
        self._raylet = raylet
        self._events: list[node.TaskEvent] = []
        self._sent_s = time.monotonic()
        self._lock = threading.Lock()

    def submitted(self, submission: Submission) -> None:
        """A task was submitted: start its span and put its context into the message."""
        parent = self._parent()
        trace_id, parent_span = parent or (make_trace_id(), "")
        span_id = make_span_id()
        submission.message.trace_parent = format_traceparent(trace_id, span_id)
        submission.span = (trace_id, span_id, parent_span, time.time())

    def ended(self, submission: Submission, error: str) -> None:
        """The task has its outcome."""
        if submission.span is None:
            return
        trace_id, span_id, parent_span, start_s = submission.span
        submission.span = None
        self._record("submit", submission.message, start_s, trace_id, span_id, parent_span, error)

    def leased(self, submission: Submission, asked_s: float) -> None:
        """A worker was granted for this task's queue after a request made at ``asked_s`` (Unix)."""
        if submission.span is not None:
            trace_id, span_id, _, _ = submission.span
            self._record(
                "lease", submission.message, asked_s, trace_id, make_span_id(), span_id, ""
            )

    def begin_run(self, trace_parent: str) -> str:
        """The context of the run span of a task that carries ``trace_parent``."""
        parent = parse_traceparent(trace_parent) if trace_parent else None
        if parent is None:
            return ""
        return format_traceparent(parent.trace_id, make_span_id())

    def ended_run(self, message: Any, own_context: str, start_s: float, error: str) -> None:
        """The task ran from ``start_s`` (Unix) until now, under the context that ``begin_run``
        gave.
        """
        parent = parse_traceparent(message.trace_parent)
        own = parse_traceparent(own_context)
        if parent is not None and own is not None:
            self._record("run", message, start_s, own.trace_id, own.span_id, parent.span_id, error)

    def flush(self) -> None:
        """Send what is collected."""
        with self._lock:
            events, self._events = self._events, []
            self._sent_s = time.monotonic()
        if events:
            self._raylet.post(node.TaskEvents(events))

    def _parent(self) -> tuple[str, str] | None:
        user = current_trace()
        if user is not None:
            return user.trace_id, user.span_id
        context = parse_traceparent(running_task.get().trace_parent)
        return (context.trace_id, context.span_id) if context else None

    def _record(
        self,
        kind: str,
        message: Any,
        start_s: float,
        trace_id: str,
        span_id: str,
        parent_span: str,
        error: str,
    ) -> None:
        event = node.TaskEvent(
            kind,
            getattr(message, "task_id", b""),
            message.name,
            start_s,
            time.time(),
            trace_id,
            span_id,
            parent_span,
            error,
            getattr(message, "attempt", 0),
        )
        with self._lock:
            self._events.append(event)
            is_due = len(self._events) >= BATCH_EVENTS or time.monotonic() - self._sent_s > BATCH_S
        if is_due:
            self.flush()
