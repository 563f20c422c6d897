"""The benchmark of GCS restarts runs, small, and says what it measured."""

from __future__ import annotations

import pytest

from benchmarks.gcs_restart import ROWS, main, render
from skate_gcs.redis_for_tests import is_redis_installed


def test_table_has_a_median_and_a_range_for_each_storage() -> None:
    text = render({"sqlite": {row: [0.5, 0.1, 0.9] for row in ROWS}}, 7)
    assert "7 live actors" in text
    assert "| write | 0.500 [0.100-0.900] |" in text


@pytest.mark.parametrize("storage", ["sqlite", "redis"])
def test_small_run_measures_every_row(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    if storage == "redis" and not is_redis_installed():
        pytest.skip("redis-server is not installed")
    assert main(["--actors", "5", "--rounds", "1", "--storage", storage]) == 0
    printed = capsys.readouterr().out
    assert all(f"| {row} |" in printed for row in ROWS)


def test_unknown_storage_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--storage", "etcd"]) == 2
    assert "etcd" in capsys.readouterr().err
