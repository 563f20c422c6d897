from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    """Each arena over each kind of place, in batches so small that every test spills."""

    is_spilling = True

    @pytest.fixture(params=["memfd", "file"])
    def arena_directory(
        self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
    ) -> str | None:
        return None if request.param == "memfd" else str(tmp_path_factory.mktemp("arena"))

    @pytest.fixture(params=["folder", "fsspec files", "fsspec memory"])
    def place(
        self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
    ) -> dict[str, Any]:
        folder = str(tmp_path_factory.mktemp("spill"))
        places: dict[str, dict[str, Any]] = {
            "folder": {"directories": (folder,)},
            "fsspec files": {"url": f"file://{folder}"},
            "fsspec memory": {"url": "memory://stores"},
        }
        return places[request.param]

    @pytest.fixture
    def server(
        self,
        serve: Callable[..., StoreServer],
        arena_directory: str | None,
        place: dict[str, Any],
    ) -> StoreServer:
        config = StoreConfig(
            commit_ahead_min_bytes=0,
            is_poisoning=True,
            arena_directory=arena_directory,
            spill=SpillConfig(**place, threshold=0.3, min_batch_bytes=1),
        )
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
