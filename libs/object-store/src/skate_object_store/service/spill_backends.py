"""Places that objects are spilled to: what any of them must do, and folders on this machine.

Before it: the spiller has a batch of objects to write, or one to read. After it: bytes are on disk,
or come from there. A back end keeps no index; it hands out a key for each file it wrote.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from skate_object_store.constants import SPILL_CHUNK_BYTES
from skate_object_store.spill_config import SpillConfig

FOLDER_PREFIX = "skate-spill-"
"""Each server makes a folder of its own with this prefix, and holds a lock on it."""

_FOLDER_ATTEMPTS = 10


class SpillBackend(Protocol):
    """Files by key, written once, read in parts. Called from a writing and a reading thread.

    Every method but :meth:`close` may raise ``OSError``, which fails that one operation; ``ENOSPC``
    and ``EDQUOT`` say that the place is full. The importable ``conformance.SpillConformance`` tests
    it.
    """

    def room_bytes(self) -> int | None:
        """How long a file could be written now; None: there is no telling."""

    def write(self, size_bytes: int, chunks: Iterable[memoryview]) -> str:
        """Write one file, private to this user, and return its key.

        A chunk is valid until the next is taken. If anything raises, nothing is left behind.
        """

    def read(self, key: str, position: int, size_bytes: int) -> Iterator[memoryview]:
        """A part of a file, in chunks, each valid until the next is taken.

        What lies beyond the end of the file is left out. ``FileNotFoundError`` for a file that is
        gone for good.
        """

    def delete(self, key: str) -> None:
        """Remove a file; one that is gone already is no error."""

    def close(self) -> None:
        """Remove everything that this back end wrote. It is not used afterwards."""


@dataclass(slots=True)
class _Folder:
    path: str
    fd: int  # everything is done through it, so that a path swapped for a link leads nowhere


class DirectorySpill:
    """Files in folders of this machine, one folder after the other.

    In each directory a folder of this back end's own is made, 0700, and locked while it lives;
    files are 0600. Folders of others whose lock is free were left by processes that were killed,
    and are removed on the way in.

    Args:
        directories: At least one; made, 0700, if absent.
        full_fraction: A file system that would be fuller than this share of it takes no more.

    Raises:
        OSError: a directory cannot be used.
        ValueError: there is none.
    """

    def __init__(self, directories: Iterable[str], full_fraction: float) -> None:
        self._full_fraction = full_fraction
        self._numbers = itertools.count(1)
        self._folders: list[_Folder] = []
        try:
            for directory in directories:
                os.makedirs(directory, 0o700, exist_ok=True)
                remove_leftovers(directory)
                self._folders.append(_make_folder(directory))
        except OSError:
            self.close()
            raise
        if not self._folders:
            raise ValueError("spilling needs at least one directory")

    def room_bytes(self) -> int | None:
        """The room of the directory that has most of it."""
        return max(self._room_of(folder) for folder in self._folders)

    def write(self, size_bytes: int, chunks: Iterable[memoryview]) -> str:
        """Write into the next directory that has room; ``ENOSPC`` if none has."""
        number = next(self._numbers)
        count = len(self._folders)
        for index in (turn % count for turn in range(number, number + count)):
            if self._room_of(self._folders[index]) >= size_bytes:
                break
        else:
            full = f"{self._full_fraction:.0%} full, or would be"
            paths = ", ".join(folder.path for folder in self._folders)
            raise OSError(errno.ENOSPC, f"the file system is {full}", paths)
        name = str(number)
        folder = self._folders[index]
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=folder.fd)
        try:
            for chunk in chunks:
                _write_all(fd, chunk)
        except BaseException:
            os.unlink(name, dir_fd=folder.fd)
            raise
        finally:
            os.close(fd)
        return f"{index}/{name}"

    def read(self, key: str, position: int, size_bytes: int) -> Iterator[memoryview]:
        """Chunks of one buffer that is filled again and again."""
        folder, name = self._find(key)
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder.fd)
        buffer = memoryview(bytearray(min(size_bytes, SPILL_CHUNK_BYTES)))
        try:
            left = size_bytes
            while left and (count := os.preadv(fd, [buffer[:left]], position)):
                yield buffer[:count]
                position += count
                left -= count
        finally:
            os.close(fd)

    def delete(self, key: str) -> None:
        """Unlink it."""
        folder, name = self._find(key)
        try:
            os.unlink(name, dir_fd=folder.fd)
        except FileNotFoundError:
            pass  # As it should be.

    def close(self) -> None:
        """Remove the folders that were made."""
        folders, self._folders = self._folders, []
        for folder in folders:
            shutil.rmtree(folder.path, ignore_errors=True)  # What is left is a leftover.
            os.close(folder.fd)

    def _find(self, key: str) -> tuple[_Folder, str]:
        index, _, name = key.partition("/")
        return self._folders[int(index)], name

    def _room_of(self, folder: _Folder) -> int:
        disk = os.fstatvfs(folder.fd)
        reserve = int(disk.f_blocks * disk.f_frsize * (1 - self._full_fraction))
        return max(0, disk.f_bavail * disk.f_frsize - reserve)


def open_backend(config: SpillConfig) -> SpillBackend:
    """The place that the configuration names. Raises ``OSError`` if it cannot be used.

    ``ImportError`` for a URL without the extra ``fsspec``.
    """
    if config.url is None:
        return DirectorySpill(config.directories, config.disk_full_fraction)
    # Late: an optional extra, and slow to import.
    module = import_module("skate_object_store.service.fsspec_spill")
    backend: SpillBackend = module.FsspecSpill(config.url)
    return backend


def remove_leftovers(directory: str) -> list[str]:
    """Remove the folders of dead back ends in a directory; returns their names.

    Another user's, and those on file systems without locks, are left alone.
    """
    removed: list[str] = []
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if not name.startswith(FOLDER_PREFIX):
            continue
        fd = _lock(path)
        if fd is None:
            continue
        try:
            if os.fstat(fd).st_uid == os.geteuid():
                shutil.rmtree(path, ignore_errors=True)
                removed.append(name)
        finally:
            os.close(fd)
    return removed


def _make_folder(directory: str) -> _Folder:
    """A fresh folder, locked. Another server's clean-up may take one away before its lock."""
    for _ in range(_FOLDER_ATTEMPTS):
        path = os.path.join(directory, f"{FOLDER_PREFIX}{os.getpid()}-{os.urandom(4).hex()}")
        os.mkdir(path, 0o700)
        os.chmod(path, 0o700)  # The mode given to mkdir passes the umask.
        fd = _lock(path)
        if fd is not None:
            if os.path.exists(path):
                return _Folder(path, fd)
            os.close(fd)
    raise OSError(errno.EAGAIN, "its new folders are locked or taken away", directory)


def _lock(path: str) -> int | None:
    """The locked folder's descriptor; None if someone else holds the lock, or it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


def _write_all(fd: int, chunk: memoryview) -> None:
    while chunk:
        chunk = chunk[os.write(fd, chunk) :]
