from __future__ import annotations

import pytest

from skate_gcs.redis_for_tests import OwnRedisServer, is_redis_installed
from skate_gcs.storage import MemoryStorage, RedisStorage, SqliteStorage, parse_redis_url
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


@pytest.mark.skipif(not is_redis_installed(), reason="redis-server is not installed")
class TestRedisStorage(StorageConformance):
    @pytest.fixture(autouse=True)
    def _server(self, socket_folder):
        server = OwnRedisServer(socket_folder)
        server.start()
        self.url = server.url
        yield
        server.kill()

    def open_storage(self, tables):
        return RedisStorage(parse_redis_url(self.url), tables, holder="first")

    def reopen_storage(self, tables):
        return RedisStorage(parse_redis_url(self.url), tables, holder="second")
