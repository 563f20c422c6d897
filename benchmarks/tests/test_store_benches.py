"""The object store's own benchmarks, small."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

BENCHES = Path(__file__).resolve().parents[2] / "libs" / "object-store" / "benches"


@pytest.mark.skipif(
    importlib.util.find_spec("skate_object_store") is None, reason="needs the store installed"
)
@pytest.mark.parametrize("name", ["bandwidth", "spilling"])
def test_quick_run_prints_its_table(name: str) -> None:
    command = [sys.executable, str(BENCHES / f"{name}.py"), "--quick"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert run.returncode == 0, run.stderr
    assert "MiB" in run.stdout
