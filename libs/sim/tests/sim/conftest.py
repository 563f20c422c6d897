"""Makes the simulation's own modules importable: pytest imports tests by their paths."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> range | None:
    """What ``--seeds`` or ``--seed`` ask for; None: the usual number."""
    only: int = request.config.getoption("--seed", -1)
    count: int = request.config.getoption("--seeds", 0)
    if only >= 0:
        return range(only, only + 1)
    return range(count) if count else None
