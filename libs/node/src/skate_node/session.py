"""A node's session folder: made, locked, described, found again, swept. Standard library only.

::

    <root>/session_<utc>_<pid>_<random>/     0700; the daemon holds a flock on it while it lives
        sockets/  logs/  spill/  token  node.json  gcs.sqlite
    <root>/current_cluster                   name of the newest session of ``skate start``
    <root>/session_latest -> session_...     for people

The lock says whether a session lives: the kernel frees it with the daemon's last descriptor,
however the daemon ends, and no process id that was given out twice can be mistaken for it. Making
and sweeping need no lock between them: a maker that lost its new folder to a sweep sees that and
makes another.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

from skate_node.errors import ClusterNotFoundError, SessionRootError
from skate_node.kept_logs import LOGS_KEPT_BYTES_MAX, trim_logs
from skate_node.processes import kill_session_processes
from skate_node.root import open_root, root_path

SESSION_PREFIX = "session_"
LOGS_KEPT_SESSIONS_MAX = 2
DELETE_PASSES_MAX = 5
_LATEST_LINK = "session_latest"
_CURRENT_FILE = "current_cluster"
_RECORD_FILE = "node.json"
_CREATE_ATTEMPTS = 20


@dataclass(frozen=True)
class NodeRecord:
    """What ``node.json`` tells others of this user about a live node. The token is not in it."""

    session_dir: str
    node_id: str
    pid: int
    is_head: bool
    is_owned: bool
    """Ends with the process that started it; ``skate stop`` leaves it alone."""
    keeps_logs: bool
    gcs_endpoint: str
    stream_endpoint: str
    store_endpoint: str
    raylet_endpoint: str
    metrics_endpoint: str
    api_endpoint: str
    """``host:port`` of the API server on a head; empty without one."""
    node_name: str
    ip_address: str
    start_time_s: float

    @property
    def session_name(self) -> str:
        """The folder's own name."""
        return os.path.basename(self.session_dir)

    @property
    def token_path(self) -> str:
        """The 0600 file that holds the cluster's token."""
        return os.path.join(self.session_dir, "token")


@dataclass
class Session:
    """A session folder that this process made and holds the lock of."""

    path: str
    lock_fd: int

    @property
    def name(self) -> str:
        """The folder's own name; also the mark in its processes' environment."""
        return os.path.basename(self.path)

    def close(self) -> None:
        """Let go of the lock; another holder (the daemon) keeps it."""
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1


def create_session(temp_dir: str | None = None) -> Session:
    """Make and lock a fresh session folder with ``sockets/`` and ``logs/``.

    Raises ``SessionRootError`` when the root can not be trusted or written.
    """
    root = root_path(temp_dir)
    root_fd = open_root(root)
    try:
        for _ in range(_CREATE_ATTEMPTS):
            stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
            name = f"{SESSION_PREFIX}{stamp}_{os.getpid()}_{os.urandom(3).hex()}"
            lock_fd = _make_locked(root_fd, name)
            if lock_fd is not None:
                return Session(os.path.join(root, name), lock_fd)
    except OSError as error:
        raise SessionRootError(root, f"{error.strerror or error}") from None
    finally:
        os.close(root_fd)
    raise SessionRootError(root, f"{_CREATE_ATTEMPTS} new folders in a row were swept away")


def _make_locked(root_fd: int, name: str) -> int | None:
    """The locked folder's descriptor; None when a sweep took the folder before its lock."""
    os.mkdir(name, 0o700, dir_fd=root_fd)
    try:
        lock_fd = os.open(
            name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root_fd
        )
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchmod(lock_fd, 0o700)
        for child in ("sockets", "logs"):
            os.mkdir(child, 0o700, dir_fd=lock_fd)
            os.chmod(child, 0o700, dir_fd=lock_fd)  # The mode given to mkdir passes the umask.
    except (BlockingIOError, FileNotFoundError):
        os.close(lock_fd)
        return None
    except BaseException:
        os.close(lock_fd)
        raise
    return lock_fd


def is_alive(session_dir: str) -> bool:
    """Whether a daemon holds the session's lock."""
    try:
        descriptor = os.open(session_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


# ---- records ----


def write_record(record: NodeRecord) -> None:
    """Publish the node to this user's other processes."""
    text = json.dumps(asdict(record), indent=1, sort_keys=True)
    _write_private(os.path.join(record.session_dir, _RECORD_FILE), text)


def read_record(session_dir: str) -> NodeRecord | None:
    """The node's record; None when there is none or it is of another version."""
    try:
        with open(os.path.join(session_dir, _RECORD_FILE), encoding="utf-8") as file:
            values = json.load(file)
    except (OSError, ValueError):
        return None
    names = {field.name for field in fields(NodeRecord)}
    if not isinstance(values, dict) or not names <= values.keys():
        return None
    return NodeRecord(**{name: values[name] for name in names})


def live_nodes(temp_dir: str | None = None) -> list[NodeRecord]:
    """The nodes of this user that are ready on this machine, oldest first."""
    root = root_path(temp_dir)
    records = [
        record
        for name in _session_names(root)
        if is_alive(os.path.join(root, name))
        and (record := read_record(os.path.join(root, name))) is not None
    ]
    return sorted(records, key=lambda record: record.start_time_s)


def set_current(record: NodeRecord) -> None:
    """Make the node the one that ``address="auto"`` finds."""
    root = os.path.dirname(record.session_dir)
    _write_private(os.path.join(root, _CURRENT_FILE), record.session_name)


def find_node(address: str = "auto", temp_dir: str | None = None) -> NodeRecord:
    """The local node through which a driver reaches the cluster at ``address``.

    ``auto``: the current cluster's node, else the newest live node of ``skate start``. Else a GCS
    address (``host:port`` or ``unix:/path``) or a session folder. Raises ``ClusterNotFoundError``;
    a record whose daemon is dead counts as none.
    """
    nodes = live_nodes(temp_dir)
    if address == "auto":
        shared = [node for node in nodes if not node.is_owned]
        current = _read_current(root_path(temp_dir))
        for node in reversed(shared):
            if node.session_name == current:
                return node
        if shared:
            return shared[-1]
        raise ClusterNotFoundError(address, "the last one has ended" if current else "")
    wanted = _plain_address(address)
    for node in nodes:
        if wanted in (_plain_address(node.gcs_endpoint), node.session_dir):
            return node
    raise ClusterNotFoundError(address)


def link_latest(session_dir: str) -> None:
    """Point ``session_latest`` at the session."""
    link = os.path.join(os.path.dirname(session_dir), _LATEST_LINK)
    fresh = f"{link}.{os.getpid()}"
    os.symlink(os.path.basename(session_dir), fresh)
    os.replace(fresh, link)


# ---- the end of a session ----


def remove_session(session_dir: str, *, keep_logs: bool = False) -> None:
    """Delete the folder; with ``keep_logs`` all but ``node.json`` and the end of ``logs/``.

    A file that vanishes meanwhile is no error: the next sweep tries again what is left.
    """
    if keep_logs:
        for entry in _entries(session_dir):
            if entry in ("logs", _RECORD_FILE):
                continue
            _delete(os.path.join(session_dir, entry))
        trim_logs(os.path.join(session_dir, "logs"))
        return
    # A node that is ended while it starts may add a file between the listing and the removal of its
    # folder, but never makes the folder again: a further pass finds all there is.
    for _ in range(DELETE_PASSES_MAX):
        _delete(session_dir)
        if not os.path.lexists(session_dir):
            break
    link = os.path.join(os.path.dirname(session_dir), _LATEST_LINK)
    try:
        if os.readlink(link) == os.path.basename(session_dir):
            os.unlink(link)
    except OSError:
        return  # No link, or another start has just replaced it.


def sweep_dead_sessions(temp_dir: str | None = None) -> list[str]:
    """End and delete what sessions without a live daemon left behind. Returns their names.

    Their processes are killed and their folders deleted, but the logs of the newest
    ``LOGS_KEPT_SESSIONS_MAX`` nodes of ``skate start`` stay, up to ``LOGS_KEPT_BYTES_MAX``
    together.
    """
    root = root_path(temp_dir)
    kept_sessions = 0
    kept_bytes = 0
    swept: list[str] = []
    for name in sorted(_session_names(root), reverse=True):
        path = os.path.join(root, name)
        lock_fd = _lock_dead(path)
        if lock_fd is None:
            continue
        try:
            record = read_record(path)
            is_ended = record is not None and not os.path.exists(os.path.join(path, "sockets"))
            if not is_ended:
                kill_session_processes(name)
                swept.append(name)
            if record is not None and record.keeps_logs and kept_sessions < LOGS_KEPT_SESSIONS_MAX:
                remove_session(path, keep_logs=True)
                room = LOGS_KEPT_BYTES_MAX - kept_bytes
                kept_bytes += trim_logs(os.path.join(path, "logs"), room)
                kept_sessions += 1
            else:
                remove_session(path)
        finally:
            os.close(lock_fd)
    return swept


def _lock_dead(path: str) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _session_names(root: str) -> list[str]:
    return [
        name
        for name in _entries(root)
        if name.startswith(SESSION_PREFIX) and not name.startswith(_LATEST_LINK)
    ]


def _entries(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _read_current(root: str) -> str:
    try:
        with open(os.path.join(root, _CURRENT_FILE), encoding="utf-8") as file:
            return file.read(256).strip()
    except OSError:
        return ""


def _plain_address(address: str) -> str:
    """``localhost`` and ``127.0.0.1`` are one place, and ``unix://`` one way to write ``unix:``."""
    address = address.removeprefix("skate://").replace("unix://", "unix:", 1)
    host, separator, port = address.rpartition(":")
    if separator and host in ("localhost", "[::1]", "0.0.0.0", ""):
        return f"127.0.0.1:{port}"
    return address


def _write_private(path: str, text: str) -> None:
    """Replace a 0600 file in one step, so that a reader sees the old one or the new one."""
    fresh = f"{path}.{os.getpid()}.{os.urandom(2).hex()}"
    descriptor = os.open(
        fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    with open(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, 0o600)
        file.write(text)
    os.replace(fresh, path)


def _delete(path: str) -> None:
    """Delete a file or a whole folder, never through a link. What can not be deleted stays.

    (``shutil.rmtree`` would do; its import costs the launcher as much as all the rest of it.)
    """
    try:
        with os.scandir(path) as entries:
            children = [(entry.path, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except NotADirectoryError:
        children = []
    except OSError:
        return
    for child, is_folder in children:
        if is_folder:
            _delete(child)
        else:
            _remove(os.unlink, child)
    _remove(os.unlink if os.path.islink(path) or not os.path.isdir(path) else os.rmdir, path)


def _remove(call: Callable[[str], None], path: str) -> None:
    try:
        call(path)
    except OSError:
        return  # Gone meanwhile, or still in use: the next sweep tries again.
