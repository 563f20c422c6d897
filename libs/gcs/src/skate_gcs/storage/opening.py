"""Which back end a setting names."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterable

from skate_gcs.errors import GcsConfigError
from skate_gcs.storage.interface import Storage
from skate_gcs.storage.memory import MemoryStorage
from skate_gcs.storage.redis import RECONNECT_S, RedisStorage
from skate_gcs.storage.redis_url import SCHEMES, is_redis, parse_redis_url
from skate_gcs.storage.sqlite import SqliteStorage

_SQLITE_PREFIX = "sqlite:"


def import_back_end(kind: str) -> None:
    """Import what a storage of this kind (``sqlite``, ``redis``; a setting's first word) needs.

    For a process that will open one later and should then lose no time. What is not installed is
    reported by :func:`open_storage`.
    """
    if kind in SCHEMES:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module("redis")


def open_storage(
    setting: str, tables: Iterable[str], holder: str, wait_s: float = RECONNECT_S
) -> Storage:
    """Open ``memory``, ``sqlite:/path`` or a ``redis://`` URL (see ``redis_url``). Blocks.

    ``holder`` names the opener to those who may open the same storage from elsewhere; ``wait_s``:
    how long a server may be away now.

    Raises:
        GcsConfigError: the setting names no back end, or the extra for it is not installed.
        StorageError: the back end can not be opened.
    """
    if setting == "memory":
        return MemoryStorage(tables)
    if is_redis(setting):
        address = parse_redis_url(setting)
        try:
            return RedisStorage(address, tables, holder=holder, open_s=wait_s)
        except ModuleNotFoundError as error:
            if error.name != "redis":
                raise
            raise GcsConfigError(
                "storage", "redis:// needs the extra: pip install 'skate-gcs[redis]'."
            ) from None
    path = setting.removeprefix(_SQLITE_PREFIX)
    if path != setting and path.startswith("/"):
        return SqliteStorage(path, tables)
    raise GcsConfigError(
        "storage", f'{setting!r} is neither "memory" nor "sqlite:/path" nor "redis://host:port".'
    )
