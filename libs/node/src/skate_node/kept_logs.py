"""Bounds what an ended node leaves in ``logs/``. Standard library only."""

from __future__ import annotations

import os

LOGS_KEPT_BYTES_MAX = 16 * 1024 * 1024
LOG_FILE_KEPT_BYTES_MAX = 1024 * 1024
_CUT_MARK = b"[the beginning was cut off when the node stopped]\n"


def trim_logs(folder: str, total_max: int = LOGS_KEPT_BYTES_MAX) -> int:
    """Keep the end of each long file, then drop the oldest files until the rest fits.

    Returns the bytes that are left. The node's processes must have ended.
    """
    files: list[tuple[float, int, str]] = []
    for name in _names(folder):
        path = os.path.join(folder, name)
        status = os.lstat(path)
        size = status.st_size
        if size > LOG_FILE_KEPT_BYTES_MAX and not os.path.islink(path):
            size = _cut(path)
        files.append((status.st_mtime, size, path))
    left = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if left <= total_max:
            break
        os.unlink(path)
        left -= size
    return left


def _cut(path: str) -> int:
    """Keep the last lines of a file; returns its new size."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(descriptor, "r+b") as file:
        file.seek(len(_CUT_MARK) - LOG_FILE_KEPT_BYTES_MAX, os.SEEK_END)
        tail = file.read().partition(b"\n")[2]
        file.seek(0)
        file.write(_CUT_MARK + tail)
        file.truncate()
        return file.tell()


def _names(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
