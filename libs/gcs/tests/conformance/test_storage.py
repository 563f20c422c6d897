from __future__ import annotations

import pytest

from skate_gcs.storage import MemoryStorage, SqliteStorage
from skate_gcs.storage_conformance import StorageConformance


class TestMemoryStorage(StorageConformance):
    def open_storage(self, tables):
        return MemoryStorage(tables)


class TestSqliteStorage(StorageConformance):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.path = str(tmp_path / "gcs.sqlite")

    def open_storage(self, tables):
        return SqliteStorage(self.path, tables)

    def reopen_storage(self, tables):
        return SqliteStorage(self.path, tables)
