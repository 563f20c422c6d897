"""Which back end a setting names."""

from __future__ import annotations

from collections.abc import Iterable

from skate_gcs.errors import GcsConfigError
from skate_gcs.storage.interface import Storage
from skate_gcs.storage.memory import MemoryStorage
from skate_gcs.storage.sqlite import SqliteStorage

_SQLITE_PREFIX = "sqlite:"


def open_storage(setting: str, tables: Iterable[str]) -> Storage:
    """Open ``memory`` or ``sqlite:/path``. Blocks.

    Raises:
        GcsConfigError: the setting names no back end.
        StorageError: the back end can not be opened.
    """
    if setting == "memory":
        return MemoryStorage(tables)
    path = setting.removeprefix(_SQLITE_PREFIX)
    if path != setting and path.startswith("/"):
        return SqliteStorage(path, tables)
    raise GcsConfigError("storage", f'{setting!r} is neither "memory" nor "sqlite:/path".')
