from __future__ import annotations

from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "counter.py"


def test_counter_example_prints_its_name_from_the_environment_and_counts(run_script: Any) -> None:
    done = run_script(EXAMPLE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"test_counter got {number}" for number in range(1, 6)]
