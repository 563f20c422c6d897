"""Spilling to any place that fsspec knows: object stores, remote file systems, memory.

Before it: the configuration names a URL. After it: as for any back end. Needs the extra ``fsspec``,
and whatever package fsspec needs for that kind of URL.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator

import fsspec

from skate_object_store.constants import SPILL_CHUNK_BYTES
from skate_object_store.service.spill_backends import FOLDER_PREFIX


class FsspecSpill:
    """Files in a folder of its own under a URL, such as ``s3://bucket/prefix``.

    A server that is killed leaves its folder, ``skate-spill-<pid>-<random>``, behind: nothing tells
    from afar whether it lives, so a rule of the bucket should expire such names.
    """

    def __init__(self, url: str) -> None:
        self._fs, root = fsspec.core.url_to_fs(url)
        name = f"{FOLDER_PREFIX}{os.getpid()}-{os.urandom(4).hex()}"
        self._folder = f"{root.rstrip('/')}/{name}"
        self._numbers = itertools.count(1)
        self._fs.makedirs(self._folder, exist_ok=True)

    def room_bytes(self) -> int | None:
        """There is no telling."""
        return None

    def write(self, size_bytes: int, chunks: Iterable[memoryview]) -> str:
        """One object of the remote store."""
        key = str(next(self._numbers))
        path = f"{self._folder}/{key}"
        try:
            with self._fs.open(path, "wb") as file:
                for chunk in chunks:
                    file.write(chunk)
        except BaseException:
            self.delete(key)
            raise
        return key

    def read(self, key: str, position: int, size_bytes: int) -> Iterator[memoryview]:
        """Ranges of the remote object."""
        with self._fs.open(f"{self._folder}/{key}", "rb", block_size=SPILL_CHUNK_BYTES) as file:
            file.seek(position)
            left = size_bytes
            while left and (chunk := file.read(min(left, SPILL_CHUNK_BYTES))):
                yield memoryview(chunk)
                left -= len(chunk)

    def delete(self, key: str) -> None:
        """Remove it."""
        try:
            self._fs.rm_file(f"{self._folder}/{key}")
        except FileNotFoundError:
            pass  # As it should be.

    def close(self) -> None:
        """Remove the folder and what is in it."""
        try:
            self._fs.rm(self._folder, recursive=True)
        except FileNotFoundError:
            pass  # Some stores know no empty folders.
