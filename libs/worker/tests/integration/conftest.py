"""A driver's core joined to a small raylet, with real worker processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skate_worker.core import CoreWorker
from skate_worker.current import set_current_core

sys.path.insert(0, str(Path(__file__).parent))

from mini_raylet import TOKEN, MiniRaylet


@pytest.fixture
def raylet(tmp_path: Path) -> Iterator[MiniRaylet]:
    server = MiniRaylet(tmp_path)
    yield server
    server.close()


@pytest.fixture
def second(raylet: MiniRaylet, tmp_path: Path) -> Iterator[MiniRaylet]:
    """Another node, joined to the first; tasks that ask for the resource "second" run there."""
    directory = tmp_path / "second"
    directory.mkdir()
    server = MiniRaylet(directory, "second")
    raylet.join(server)
    yield server
    server.close()


@pytest.fixture
def core(raylet: MiniRaylet) -> Iterator[CoreWorker]:
    driver = CoreWorker.connect_driver(raylet_endpoint=raylet.endpoint, token=TOKEN)
    set_current_core(driver)
    yield driver
    set_current_core(None)
    driver.close()
