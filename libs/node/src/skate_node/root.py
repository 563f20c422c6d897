"""The folder under which all sessions of one user lie. Standard library only.

``<base>/skate-<uid>`` with base = the given folder, else ``$SKATE_TMPDIR``, else ``$TMPDIR``, else
``/tmp``. The base may be shared with strangers, so the folder below it is taken only when it is a
real folder, ours, and closed to others; and only below a base in which nobody else can replace it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from skate_node.errors import SessionRootError

SESSION_NAME_LENGTH_MAX = 40
SOCKET_NAME_LENGTH_MAX = 24
_SOCKET_PATH_MAX = 103  # sun_path holds 108 bytes with its end mark; other systems hold 104.
_ROOT_LENGTH_MAX = (
    _SOCKET_PATH_MAX - SOCKET_NAME_LENGTH_MAX - len("//sockets/") - SESSION_NAME_LENGTH_MAX
)


def root_path(temp_dir: str | None = None, environment: Mapping[str, str] | None = None) -> str:
    """Where this user's sessions lie, made or not.

    A ``$TMPDIR`` too long for socket paths gives way to ``/tmp``: it was not chosen for Skate.
    Raises ``SessionRootError`` for a chosen folder that is relative or too long.
    """
    environment = os.environ if environment is None else environment
    name = f"skate-{os.geteuid()}"
    chosen = temp_dir or environment.get("SKATE_TMPDIR")
    if chosen:
        path = os.path.join(chosen, name)
        if not os.path.isabs(chosen):
            raise SessionRootError(path, "it is not an absolute path")
        if len(os.fsencode(path)) > _ROOT_LENGTH_MAX:
            raise SessionRootError(
                path,
                f"its path has {len(os.fsencode(path))} bytes, and the sockets below it leave room"
                f" for {_ROOT_LENGTH_MAX}",
            )
        return path
    path = os.path.join(environment.get("TMPDIR") or "/tmp", name)
    if os.path.isabs(path) and len(os.fsencode(path)) <= _ROOT_LENGTH_MAX:
        return path
    return os.path.join("/tmp", name)


def open_root(path: str) -> int:
    """Make the folder if need be, check it, and open it.

    Returns a directory's descriptor, to be closed. Raises ``SessionRootError`` when it is a link,
    not a folder, someone else's, or replaceable by others.
    """
    base = os.path.dirname(path)
    try:
        os.makedirs(base, mode=0o700, exist_ok=True)
        _check_base(path, os.stat(base))
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        reason = "it is a link or not a folder" if _is_other_kind(path) else _sentence(error)
        raise SessionRootError(path, reason) from None
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid():
        os.close(descriptor)
        raise SessionRootError(path, f"it belongs to the user with number {status.st_uid}")
    if stat.S_IMODE(status.st_mode) != 0o700:
        os.fchmod(descriptor, 0o700)
    return descriptor


def _check_base(path: str, status: os.stat_result) -> None:
    is_open_to_others = bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    if is_open_to_others and not status.st_mode & stat.S_ISVTX:
        raise SessionRootError(
            path, "others may write to the folder above it, which has no sticky bit"
        )
    if status.st_uid not in (0, os.geteuid()):
        raise SessionRootError(
            path, f"the folder above it belongs to the user with number {status.st_uid}"
        )


def _is_other_kind(path: str) -> bool:
    try:
        return not stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _sentence(error: OSError) -> str:
    return f"{error.strerror or error} ({error.filename})" if error.filename else str(error)
