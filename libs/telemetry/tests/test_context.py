"""W3C trace context."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate_telemetry.context import (
    TraceContext,
    current_trace,
    format_traceparent,
    is_trace_sampled,
    make_span_id,
    make_trace_id,
    parse_traceparent,
    reset_current_trace,
    set_current_trace,
    use_trace,
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


def test_make_ids_gives_hex_of_the_right_length_that_differs() -> None:
    traces = {make_trace_id() for _ in range(1000)}
    spans = {make_span_id() for _ in range(1000)}
    assert len(traces) == len(spans) == 1000
    assert all(len(trace) == 32 and int(trace, 16) for trace in traces)
    assert all(len(span) == 16 and int(span, 16) for span in spans)


@pytest.mark.parametrize("is_sampled", [True, False])
def test_traceparent_round_trip_keeps_everything(is_sampled: bool) -> None:
    context = TraceContext(make_trace_id(), make_span_id(), is_sampled)
    assert parse_traceparent(context.traceparent()) == context


def test_traceparent_has_the_form_of_the_standard() -> None:
    assert format_traceparent(TRACE, SPAN) == f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"00-{TRACE}-{SPAN}-00", TraceContext(TRACE, SPAN, False)),
        (f"00-{TRACE}-{SPAN}-ff", TraceContext(TRACE, SPAN, True)),
        (f" 00-{TRACE}-{SPAN}-01\t", TraceContext(TRACE, SPAN, True)),
        (f"01-{TRACE}-{SPAN}-01-what-comes-later", TraceContext(TRACE, SPAN, True)),
        (f"cc-{TRACE}-{SPAN}-01", TraceContext(TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE[:-1]}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}-1", None),
        (f"01-{TRACE}-{SPAN}-01.more", None),
        (f"00-{TRACE}-{SPAN}", None),
        ("", None),
        ("01-" + f"{TRACE}-{SPAN}-01-" + "x" * 600, None),
        (f"00-{TRACE}-{SPAN}-01\n", None),
        (f"00-{TRACE[:-1]}٣-{SPAN}-01", None),
    ],
)
def test_parse_traceparent_follows_the_standard(text: str, expected: TraceContext | None) -> None:
    assert parse_traceparent(text) == expected


@given(st.text(max_size=80))
def test_parse_traceparent_any_text_does_not_raise(text: str) -> None:
    parse_traceparent(text)


def test_child_is_a_new_span_of_the_same_trace() -> None:
    parent = TraceContext(TRACE, SPAN, False)
    child = parent.child()
    assert (child.trace_id, child.is_sampled) == (TRACE, False)
    assert child.span_id != SPAN


def test_current_trace_follows_its_block_and_its_tasks_only() -> None:
    context = TraceContext(TRACE, SPAN)

    async def read() -> TraceContext | None:
        return current_trace()

    async def test() -> None:
        before = asyncio.ensure_future(read())
        with use_trace(context):
            inside = asyncio.ensure_future(read())
            assert current_trace() == context
        assert current_trace() is None
        assert await before is None
        assert await inside == context

    asyncio.run(test())


def test_set_current_trace_is_undone_by_reset() -> None:
    token = set_current_trace(TraceContext(TRACE, SPAN))
    assert current_trace() is not None
    reset_current_trace(token)
    assert current_trace() is None


def test_is_trace_sampled_shares_are_about_right_and_nested() -> None:
    traces = [make_trace_id() for _ in range(20_000)]
    quarter = {trace for trace in traces if is_trace_sampled(trace, 0.25)}
    half = {trace for trace in traces if is_trace_sampled(trace, 0.5)}
    assert quarter <= half
    assert 0.2 < len(quarter) / len(traces) < 0.3
    assert 0.45 < len(half) / len(traces) < 0.55
    assert all(is_trace_sampled(trace, 1.0) for trace in traces)
    assert not any(is_trace_sampled(trace, 0.0) for trace in traces)
    assert is_trace_sampled("f" * 32, 1.0)


@pytest.mark.parametrize(
    "module",
    [
        "skate_telemetry",
        "skate_telemetry.context",
        "skate_telemetry.logs",
        "skate_telemetry.metrics",
        "skate_telemetry.metrics_server",
        "skate_telemetry.tracing",
    ],
)
def test_import_loads_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, {module}\n"
        "heavy = {'grpc', 'google', 'opentelemetry', 'prometheus_client'}\n"
        "sys.exit(' '.join(heavy & {name.partition('.')[0] for name in sys.modules}) or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr
