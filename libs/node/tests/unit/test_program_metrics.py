from __future__ import annotations

import logging

import pytest

from skate_node.program_metrics import ProgramMetrics
from skate_rpc import node_protocol as node


def rows(**changes: object) -> node.MetricRows:
    fields: dict[str, object] = {
        "name": "size",
        "kind": node.HISTOGRAM,
        "description": "Sizes.",
        "tag_keys": ["of"],
        "boundaries": [1.0, 10.0],
        "rows": [node.MetricRow(["a"], 30.0, [1, 0, 2])],
    }
    return node.MetricRows(**{**fields, **changes})  # type: ignore[arg-type]


def test_messages_become_families() -> None:
    metrics = ProgramMetrics()
    metrics.record(b"1", [rows(), rows(name="n", kind=node.COUNTER, boundaries=[])])
    assert [family.name for family, _ in metrics.collect()] == ["skate_size", "skate_n_total"]


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": 9},
        {"name": "no-dash"},
        {"tag_keys": []},
        {"boundaries": [1.0]},
        {"boundaries": [10.0, 1.0]},
    ],
    ids=str,
)
def test_what_is_malformed_is_left_out_and_logged(
    changes: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    metrics = ProgramMetrics()
    with caplog.at_level(logging.WARNING):
        metrics.record(b"1", [rows(**changes), rows(name="good")])
    assert [family.name for family, _ in metrics.collect()] == ["skate_good"]
    assert len(caplog.records) == 1
