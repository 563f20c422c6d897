from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture
def temp_dir() -> Iterator[str]:
    """A short folder: pytest's own is too long for socket paths."""
    path = tempfile.mkdtemp(prefix="sk", dir="/tmp")
    yield path
    shutil.rmtree(path, ignore_errors=True)
