"""The Unix socket that clients connect to: its place, its mode, and whose processes may pass.

Before it: nothing. After it: the server wraps each accepted socket in a
:class:`~skate_object_store.service.peer.Peer`.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import struct

from skate_object_store.protocol import pack_refused

logger = logging.getLogger(__name__)

_PATH_BYTES_MAX = 107  # sun_path of Linux, less its end mark
_BACKLOG = 256
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid


class Listener:
    """Owns the socket file from construction to :meth:`close`.

    Raises:
        ValueError: the path is too long, or others can write to its directory.
        OSError: the socket cannot be made, or a live server has it.
    """

    def __init__(self, path: str) -> None:
        if len(os.fsencode(path)) > _PATH_BYTES_MAX:
            raise ValueError(
                f"a socket's path has at most {_PATH_BYTES_MAX} bytes, {path!r} has"
                f" {len(os.fsencode(path))}; choose a directory nearer to the root."
            )
        self._path = path
        _ensure_private_directory(os.path.dirname(path) or ".")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._bind()
            # Before listen(), so that nobody connects while the mode is still the process's
            # default.
            os.chmod(path, 0o600)
            status = os.stat(path)
            self._identity = (status.st_dev, status.st_ino)
            self._socket.listen(_BACKLOG)
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The listening descriptor."""
        return self._socket.fileno()

    def accept(self) -> socket.socket | None:
        """The next connection, or None if it was another user's and has been refused.

        Raises ``BlockingIOError`` if there is none and ``OSError`` if the process can open no more.
        """
        connection, _ = self._socket.accept()
        try:
            credentials = connection.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
            )
        except OSError:
            connection.close()  # It is gone already.
            return None
        pid, uid, _ = _CREDENTIALS.unpack(credentials)
        if uid == os.geteuid():
            return connection
        logger.warning("event=store_foreign_user_refused uid=%d pid=%d", uid, pid)
        with connection:
            connection.setblocking(False)
            try:
                connection.send(pack_refused(f"user {uid} is not the store's user"))
            except OSError:
                pass  # It is gone already.
        return None

    def close(self) -> None:
        """Stop listening and remove the socket file, unless another server has replaced it."""
        self._socket.close()
        try:
            status = os.stat(self._path)
            if (status.st_dev, status.st_ino) == self._identity:
                os.unlink(self._path)
        except FileNotFoundError:
            pass  # Whoever removed the directory removed it too.

    def _bind(self) -> None:
        try:
            self._socket.bind(self._path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _is_abandoned(self._path):
                raise
            os.unlink(self._path)
            self._socket.bind(self._path)


def _ensure_private_directory(directory: str) -> None:
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        pass
    status = os.stat(directory)
    if status.st_uid not in {0, os.geteuid()} or status.st_mode & 0o022:
        mode = stat.S_IMODE(status.st_mode)
        raise ValueError(
            f"{directory!r} (owner {status.st_uid}, mode {mode:o}) is open to others, who could"
            " replace the socket; use a directory of mode 0700 of your own."
        )


def _is_abandoned(path: str) -> bool:
    """Whether the path is a socket on which nobody listens any more."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
    return False
