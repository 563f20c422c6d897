"""Every Python example in a README runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FENCED_PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
READMES = sorted(
    path
    for pattern in ("README.md", "libs/*/README.md", "apps/*/README.md")
    for path in ROOT.glob(pattern)
    if FENCED_PYTHON.search(path.read_text("utf-8"))
)


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_in_a_readme_runs(readme: Path, run_script: Any, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text("\n".join(FENCED_PYTHON.findall(readme.read_text("utf-8"))), "utf-8")
    done = run_script(script)
    assert done.returncode == 0, done.stderr
