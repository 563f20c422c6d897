from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from skate_object_store import SpillBackend, SpillConfig, StoreConfig, StoreServer
from skate_object_store.conformance import CAPACITY_BYTES, SpillConformance, StoreConformance
from skate_object_store.service.fsspec_spill import FsspecSpill
from skate_object_store.service.spill_backends import DirectorySpill


class TestSharedMemoryStore(StoreConformance):
    """The memfd arena, with freed memory overwritten so that a use after free shows."""

    @pytest.fixture
    def server(self, serve: Callable[..., StoreServer]) -> StoreServer:
        config = StoreConfig(commit_ahead_min_bytes=0, is_poisoning=True)
        return serve(CAPACITY_BYTES, config=config)


class TestFileStore(StoreConformance):
    """An unlinked file in a directory as the arena."""

    @pytest.fixture
    def server(
        self, serve: Callable[..., StoreServer], tmp_path_factory: pytest.TempPathFactory
    ) -> StoreServer:
        directory = str(tmp_path_factory.mktemp("arena"))
        return serve(CAPACITY_BYTES, config=StoreConfig(arena_directory=directory))


class TestSpillingStore(StoreConformance):
    """The memfd arena over a folder, in batches so small that every test spills."""

    is_spilling = True

    @pytest.fixture
    def server(
        self, serve: Callable[..., StoreServer], tmp_path_factory: pytest.TempPathFactory
    ) -> StoreServer:
        spill = SpillConfig(
            directories=(str(tmp_path_factory.mktemp("spill")),), threshold=0.3, min_batch_bytes=1
        )
        config = StoreConfig(commit_ahead_min_bytes=0, is_poisoning=True, spill=spill)
        return serve(CAPACITY_BYTES, config=config)


class TestDirectorySpill(SpillConformance):
    """Two folders in turn."""

    @pytest.fixture
    def backend(self, tmp_path: Path) -> SpillBackend:
        return DirectorySpill([str(tmp_path / "a"), str(tmp_path / "b")], 1.0)


class TestFsspecFileSpill(SpillConformance):
    """fsspec over this machine's files."""

    @pytest.fixture
    def backend(self, tmp_path: Path) -> SpillBackend:
        return FsspecSpill(f"file://{tmp_path}/place")


class TestFsspecMemorySpill(SpillConformance):
    """fsspec over a dictionary."""

    @pytest.fixture
    def backend(self) -> SpillBackend:
        return FsspecSpill("memory://place")
