"""A bar inside a task is shown by the driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import skate
from skate.experimental.tqdm_skate import tqdm

skate.init(num_cpus=1)

@skate.remote
def work(count):
    print("before")
    for _ in tqdm(range(count), desc="in the task", flush_interval_s=0):
        pass
    print("__skate_progress__:something else")
    return count

assert skate.get(work.remote(20)) == 20
skate.shutdown()
"""


@pytest.mark.surface("W10")
def test_bar_of_a_task_is_shown_by_the_driver(run_script: Any, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM, "utf-8")
    done = run_script(script)
    assert done.returncode == 0, done.stderr
    bars = [line for line in done.stderr.splitlines() if line.startswith("in the task:")]
    assert len(bars) == 11
    assert "100% [########################] 20/20 it" in bars[-1]
    printed = [line.partition(") ")[2] for line in done.stdout.splitlines()]
    assert printed == ["before", "__skate_progress__:something else"]
