from __future__ import annotations

from collections.abc import Callable

import pytest

from skate_object_store import StoreConfig, StoreServer
from skate_object_store.conformance import CAPACITY_BYTES, StoreConformance


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
