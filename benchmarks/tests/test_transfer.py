"""The transfer benchmark, small, where network namespaces can be made."""

from __future__ import annotations

import importlib.util

import pytest


@pytest.mark.skipif(importlib.util.find_spec("skate_node") is None, reason="needs Skate installed")
@pytest.mark.parametrize("arguments", [["--quick"], ["--quick", "--broadcast", "2"]])
def test_quick_run_prints_its_figures(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import transfer
    from tests.namespaces import why_not

    if reason := why_not():
        pytest.skip(reason)
    assert transfer.main(arguments) == 0
    assert "cold" in capsys.readouterr().out
