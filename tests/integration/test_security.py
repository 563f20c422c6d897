"""Every listener of a session, found in ``/proc``, against strangers and wrong tokens."""

from __future__ import annotations

import os
import pickle
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

import skate
from skate_rpc.handshake import AuthenticationError, run_client_handshake

WAIT_S = 8.0


class Canary:
    """Unpickling it would leave a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def listeners(root: Path) -> list[str]:
    """Paths of the Unix sockets below ``root`` on which somebody listens."""
    found = set()
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        is_listening = int(fields[3], 16) & 0x10000
        if len(fields) > 7 and is_listening and fields[7].startswith(str(root)):
            found.add(fields[7])
    return sorted(found)


@pytest.fixture
def busy_cluster(cluster: Any) -> Any:
    @skate.remote
    class Idle:
        def ping(self) -> int:
            return 1

    actor = Idle.remote()
    assert skate.get(actor.ping.remote()) == 1
    return actor


def strangers(canary: Path) -> list[bytes]:
    return [
        b"",
        os.urandom(512),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00" + os.urandom(200),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        pickle.dumps(Canary(str(canary))),
        b"SKATE\x00\x00\x01" + os.urandom(32) + pickle.dumps(Canary(str(canary))) + b"\0" * 64,
        b"\xff\xff\xff\xff" + b"\0" * 64,
    ]


def test_strangers_change_nothing_on_any_listener(
    busy_cluster: Any, session_root: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    paths = listeners(session_root)
    assert len(paths) >= 4, paths  # raylet, store, driver, worker, and the control plane
    for path in paths:
        for payload in strangers(canary):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(WAIT_S)
                sock.connect(path)
                try:
                    sock.sendall(payload)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(4096):
                        pass
                except (ConnectionError, BrokenPipeError):
                    pass  # closed on us: the refusal that we want
    assert not canary.exists()
    assert skate.get(busy_cluster.ping.remote(), timeout=WAIT_S) == 1


def test_wrong_tokens_are_refused_by_every_stream_listener(
    busy_cluster: Any, session_root: Path
) -> None:
    token_file = next(session_root.rglob("token"))
    token = token_file.read_text().strip().encode()
    for path in listeners(session_root):
        for wrong in (b"", token[:-1], token + b"0", b"\0" + token[1:], os.urandom(32)):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(path)
                with pytest.raises(AuthenticationError):
                    run_client_handshake(sock, wrong, WAIT_S)
    assert skate.get(busy_cluster.ping.remote(), timeout=WAIT_S) == 1


def test_files_and_sockets_of_a_session_are_private(busy_cluster: Any, session_root: Path) -> None:
    for path in session_root.rglob("*"):
        if path.is_symlink():
            continue
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode & 0o077 == 0, f"{path} has mode {mode:o}"


def test_token_is_in_no_command_line_environment_or_log(
    busy_cluster: Any, session_root: Path
) -> None:
    token = next(session_root.rglob("token")).read_text().strip().encode()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            for name in ("cmdline", "environ"):
                try:
                    assert token not in Path(f"/proc/{entry}/{name}").read_bytes(), (entry, name)
                except (FileNotFoundError, ProcessLookupError, PermissionError):
                    continue
    for path in session_root.rglob("logs/*"):
        assert token not in path.read_bytes(), path


def test_workers_and_drivers_listen_on_no_tcp_port(busy_cluster: Any) -> None:
    inodes = {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{fd}")
    }
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                assert f"socket:[{fields[9]}]" not in inodes
