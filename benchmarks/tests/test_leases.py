"""The benchmark of leases runs, small, and says what it measured."""

from __future__ import annotations

import importlib.util

import pytest


@pytest.mark.skipif(importlib.util.find_spec("skate_node") is None, reason="needs Skate installed")
def test_quick_run_measures_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import leases

    assert leases.main(["--quick"]) == 0
    printed = capsys.readouterr().out
    assert all(f"| {row} |" in printed for row in leases.ROWS)


@pytest.mark.skipif(importlib.util.find_spec("skate_node") is None, reason="needs Skate installed")
def test_table_has_rate_median_and_last_percentile_with_their_ranges() -> None:
    from benchmarks import leases

    slow = leases.Series([0.001] * 99 + [0.5], elapsed_s=0.1)
    fast = leases.Series([0.0005] * 100, elapsed_s=0.05)
    text = leases.render({"spilled": [slow, fast]}, 100, "a machine")
    assert "| spilled | 1500 [1000-2000] | 750 [500-1000] | 250250 [500-500000] |" in text
    assert "a machine" in text
