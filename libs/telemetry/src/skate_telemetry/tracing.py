"""Spans of finished work, sent by OTLP over gRPC.

Workers record no spans: they send task events, and the node daemon turns those into spans here,
with the ids that the events carry. OpenTelemetry is imported only when tracing is on (311 ms, 41
MiB).

Configured by OpenTelemetry's own environment variables; without any of them tracing is off, which
is where this differs from OpenTelemetry's defaults (off costs nothing and needs no collector).

Source: OpenTelemetry specification, "Environment Variable Specification" and "OTLP Exporter".
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from skate_telemetry.context import is_trace_sampled, parse_traceparent
from skate_telemetry.errors import MissingExtraError, TracingConfigError

if TYPE_CHECKING:
    from skate_telemetry.otlp import OtlpExport

DEFAULT_ENDPOINT = "http://localhost:4317"
DEFAULT_TIMEOUT_S = 10.0

TIME_S_MAX = 2.0**33
"""Unix time of the year 2242: later ones are mistakes, and OTLP's 64 bits of nanoseconds end."""

AttributeValue = str | bool | int | float


@dataclass(frozen=True, slots=True)
class TracingConfig:
    """Whether and where spans are sent."""

    is_enabled: bool = False
    endpoint: str = DEFAULT_ENDPOINT
    """The collector's gRPC endpoint: ``http://host:4317`` or, with TLS, ``https://host:4317``."""
    headers: str = field(default="", repr=False)
    """``key=value`` pairs with commas between, sent with each export; may hold a collector's
    secret."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    """Per export, with its retries."""
    sample_ratio: float = 1.0
    """Share of traces that are recorded, decided by the trace id alone."""
    service_name: str = "skate"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> TracingConfig:
        """Read ``OTEL_*``; None takes this process's environment.

        On when ``OTEL_TRACES_EXPORTER`` is ``otlp``, or when it is not set and an OTLP endpoint is;
        off when it is ``none``, when ``OTEL_SDK_DISABLED`` is ``true``, and without any of these.

        Raises:
            TracingConfigError: another exporter, protocol or sampler is asked for, or a value is
                not a number.
        """
        read = _Reader(os.environ if environ is None else environ)
        exporters = [name.strip() for name in read.text("OTEL_TRACES_EXPORTER").split(",")]
        endpoint = read.otlp("ENDPOINT")
        is_enabled = "otlp" in exporters or (exporters == [""] and bool(endpoint))
        if read.text("OTEL_SDK_DISABLED").lower() == "true" or "none" in exporters:
            is_enabled = False
        elif not is_enabled and exporters != [""]:
            raise TracingConfigError(
                "OTEL_TRACES_EXPORTER", ",".join(exporters), "Use otlp, or none to switch it off."
            )
        if not is_enabled:
            return cls()
        if read.otlp("PROTOCOL") not in {"", "grpc"}:
            raise TracingConfigError(
                "OTEL_EXPORTER_OTLP_PROTOCOL",
                read.otlp("PROTOCOL"),
                "Use grpc, with the collector's gRPC port (4317 by default).",
            )
        return cls(
            is_enabled=True,
            endpoint=endpoint or DEFAULT_ENDPOINT,
            headers=read.otlp("HEADERS"),
            timeout_s=read.number("OTEL_EXPORTER_OTLP_TIMEOUT", DEFAULT_TIMEOUT_S),
            sample_ratio=read.sample_ratio(),
            service_name=read.text("OTEL_SERVICE_NAME") or "skate",
        )


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str) -> str:
        return self._environ.get(name, "").strip()

    def otlp(self, suffix: str) -> str:
        """The variable for traces, else the one for all signals."""
        own = self.text(f"OTEL_EXPORTER_OTLP_TRACES_{suffix}")
        return own or self.text(f"OTEL_EXPORTER_OTLP_{suffix}")

    def number(self, name: str, default: float) -> float:
        text = self.text(name)
        if not text:
            return default
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or number < 0:
            raise TracingConfigError(name, text, "Give a number that is not negative.")
        return number

    def sample_ratio(self) -> float:
        sampler = self.text("OTEL_TRACES_SAMPLER").removeprefix("parentbased_")
        match sampler:
            case "" | "always_on":
                return 1.0
            case "always_off":
                return 0.0
            case "traceidratio":
                return min(self.number("OTEL_TRACES_SAMPLER_ARG", 1.0), 1.0)
            case _:
                raise TracingConfigError(
                    "OTEL_TRACES_SAMPLER",
                    sampler,
                    "Use always_on, always_off or traceidratio, alone or after parentbased_.",
                )


@dataclass(frozen=True, slots=True)
class SpanStatistics:
    """What became of the spans: those not exported or failed wait, or were crowded out."""

    recorded: int
    exported: int
    failed: int
    rejected: int
    """Malformed ids or times: not recorded."""


class SpanSink:
    """Takes finished spans and exports them in batches from a thread of its own. Thread-safe.

    With a config that is not enabled it takes nothing, and OpenTelemetry is never imported.
    """

    def __init__(self, config: TracingConfig, *, resource: Mapping[str, str] | None = None) -> None:
        """``resource`` names what all spans of this process have in common, such as ``host.name``.

        Importing OpenTelemetry blocks for about 0.3 s: make the sink before an event loop runs.

        Raises:
            MissingExtraError: tracing is on and OpenTelemetry is not installed.
        """
        self._config = config
        self._recorded = 0
        self._rejected = 0
        self._export: OtlpExport | None = None
        if config.is_enabled:
            try:
                # Imported only when tracing is on: 311 ms, 41 MiB.
                from skate_telemetry.otlp import OtlpExport  # noqa: PLC0415
            except ModuleNotFoundError as error:
                missing = error.name or "opentelemetry"
                raise MissingExtraError("Tracing", "tracing", missing) from error
            self._export = OtlpExport(config, resource or {})

    @property
    def is_enabled(self) -> bool:
        """Whether spans are wanted at all."""
        return self._export is not None

    def record(
        self,
        name: str,
        *,
        trace_id: str,
        span_id: str,
        parent_span_id: str = "",
        start_s: float,
        end_s: float,
        attributes: Mapping[str, AttributeValue] | None = None,
        error: str = "",
    ) -> bool:
        """Queue one finished span; whether it was taken.

        Args:
            name: What ran; low cardinality reads best.
            trace_id: 32 hex digits.
            span_id: 16 hex digits.
            parent_span_id: 16 hex digits; empty for a root span.
            start_s: Unix time.
            end_s: Unix time; before ``start_s`` (a stepped clock) it counts as ``start_s``.
            attributes: Facts about this span.
            error: Not empty: the span failed, and this is why.

        A span that is malformed (it came from another process) is counted and not raised about; one
        whose trace is not sampled is left out.
        """
        if self._export is None:
            return False
        if not _is_span_id(trace_id, span_id) or not (
            parent_span_id == "" or _is_span_id(trace_id, parent_span_id)
        ):
            self._rejected += 1
            return False
        if not (math.isfinite(start_s) and math.isfinite(end_s) and 0 <= start_s < TIME_S_MAX):
            self._rejected += 1
            return False
        if not is_trace_sampled(trace_id, self._config.sample_ratio):
            return False
        self._recorded += 1
        self._export.add(
            name,
            trace_id=int(trace_id, 16),
            span_id=int(span_id, 16),
            parent_span_id=int(parent_span_id, 16) if parent_span_id else None,
            start_ns=_nanoseconds(start_s),
            end_ns=_nanoseconds(min(max(start_s, end_s), TIME_S_MAX)),
            attributes=dict(attributes or {}),
            error=error,
        )
        return True

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Export what is queued; whether that was done (not: accepted) within ``timeout_s``."""
        return self._export is None or self._export.flush(timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Export what is queued within ``timeout_s``, then end. May be repeated."""
        if self._export is not None:
            self._export.close(timeout_s)

    def statistics(self) -> SpanStatistics:
        """Counts since the start."""
        exported, failed = (0, 0) if self._export is None else self._export.counts()
        return SpanStatistics(self._recorded, exported, failed, self._rejected)


def _nanoseconds(time_s: float) -> int:
    # A double holds the present time to a quarter of a microsecond; what is below is noise.
    return round(time_s * 1e6) * 1000


def _is_span_id(trace_id: str, span_id: str) -> bool:
    return parse_traceparent(f"00-{trace_id}-{span_id}-01") is not None
