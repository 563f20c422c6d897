"""Where the tables are stored: one interface, and the back ends that keep its promises."""

from __future__ import annotations

from skate_gcs.storage.interface import Storage, StorageStatistics, Write
from skate_gcs.storage.memory import MemoryStorage
from skate_gcs.storage.opening import import_back_end, open_storage
from skate_gcs.storage.redis import RedisStorage
from skate_gcs.storage.redis_url import RedisAddress, parse_redis_url
from skate_gcs.storage.sqlite import SqliteStorage

__all__ = [
    "MemoryStorage",
    "RedisAddress",
    "RedisStorage",
    "SqliteStorage",
    "Storage",
    "StorageStatistics",
    "Write",
    "import_back_end",
    "open_storage",
    "parse_redis_url",
]
