from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from skate_node import session as session_module
from skate_node.errors import ClusterNotFoundError, SessionRootError
from skate_node.processes import SESSION_VARIABLE, session_processes
from skate_node.root import root_path
from skate_node.session import (
    NodeRecord,
    Session,
    create_session,
    find_node,
    is_alive,
    link_latest,
    live_nodes,
    read_record,
    remove_session,
    set_current,
    sweep_dead_sessions,
    write_record,
)


def record_of(session: Session, **changes: object) -> NodeRecord:
    values: dict[str, object] = {
        "session_dir": session.path,
        "node_id": "ab" * 28,
        "pid": os.getpid(),
        "is_head": True,
        "is_owned": False,
        "keeps_logs": True,
        "gcs_endpoint": "127.0.0.1:6379",
        "stream_endpoint": "",
        "store_endpoint": "",
        "raylet_endpoint": "",
        "metrics_endpoint": "",
        "api_endpoint": "",
        "node_name": "n",
        "ip_address": "127.0.0.1",
        "start_time_s": 1.0,
    }
    return NodeRecord(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.usefixtures("umask")
def test_session_under_any_umask_is_private(temp_dir: str, mask: int) -> None:
    os.umask(mask)
    session = create_session(temp_dir)
    for folder in (root_path(temp_dir), session.path, session.path + "/logs"):
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    write_record(record_of(session))
    assert stat.S_IMODE(os.stat(session.path + "/node.json").st_mode) == 0o600
    session.close()


def test_root_that_is_a_link_is_refused(temp_dir: str, tmp_path: Path) -> None:
    os.symlink(tmp_path, root_path(temp_dir))
    with pytest.raises(SessionRootError, match="link"):
        create_session(temp_dir)
    assert list(tmp_path.iterdir()) == []


def test_root_that_is_a_file_is_refused(temp_dir: str) -> None:
    Path(root_path(temp_dir)).write_text("x")
    with pytest.raises(SessionRootError, match="not a folder"):
        create_session(temp_dir)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_root_of_another_user_is_refused(temp_dir: str) -> None:
    os.mkdir(root_path(temp_dir))
    os.chown(root_path(temp_dir), 65534, 65534)
    with pytest.raises(SessionRootError, match="65534"):
        create_session(temp_dir)
    assert os.listdir(root_path(temp_dir)) == []


def test_root_below_a_folder_that_all_may_change_is_refused(temp_dir: str) -> None:
    os.chmod(temp_dir, 0o777)
    with pytest.raises(SessionRootError, match="sticky"):
        create_session(temp_dir)


def test_root_too_long_for_sockets_is_refused_when_chosen() -> None:
    with pytest.raises(SessionRootError, match="bytes"):
        root_path("/tmp/" + "x" * 60)


def test_root_too_long_for_sockets_falls_back_when_inherited() -> None:
    environment = {"TMPDIR": "/var/" + "x" * 60}
    assert root_path(None, environment) == f"/tmp/skate-{os.geteuid()}"


def test_root_prefers_its_own_variable() -> None:
    environment = {"TMPDIR": "/a", "SKATE_TMPDIR": "/b"}
    assert root_path(None, environment) == f"/b/skate-{os.geteuid()}"
    assert root_path("/c", environment) == f"/c/skate-{os.geteuid()}"


def test_root_relative_choice_is_refused() -> None:
    with pytest.raises(SessionRootError, match="absolute"):
        root_path("here")


def test_session_is_alive_while_any_holder_of_its_lock_lives(temp_dir: str) -> None:
    session = create_session(temp_dir)
    daemon_fd = os.dup(session.lock_fd)
    session.close()
    assert is_alive(session.path)
    os.close(daemon_fd)
    assert not is_alive(session.path)


def test_sessions_made_at_once_are_distinct(temp_dir: str) -> None:
    made: list[Session] = []
    threads = [
        threading.Thread(target=lambda: made.append(create_session(temp_dir))) for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({session.path for session in made}) == 20
    for session in made:
        session.close()


def test_create_session_swept_before_its_lock_makes_another(
    temp_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str] = []
    flock = fcntl.flock

    def sweep_first(descriptor: int, operation: int) -> None:
        if not lost:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            os.rmdir(path)
            lost.append(path)
        flock(descriptor, operation)

    monkeypatch.setattr(session_module.fcntl, "flock", sweep_first)
    session = create_session(temp_dir)
    assert session.path not in lost
    assert is_alive(session.path)
    session.close()


def test_sweep_deletes_dead_sessions_and_spares_live_ones(temp_dir: str) -> None:
    live = create_session(temp_dir)
    dead = create_session(temp_dir)
    Path(dead.path, "logs", "worker.out").write_text("x")
    dead.close()
    assert sweep_dead_sessions(temp_dir) == [dead.name]
    assert os.path.isdir(live.path)
    assert not os.path.exists(dead.path)
    live.close()


def test_sweep_keeps_the_logs_of_the_newest_shared_nodes(temp_dir: str) -> None:
    paths = []
    for number in range(4):
        session = create_session(temp_dir)
        path = f"{os.path.dirname(session.path)}/session_2026010{number}-000000_1_aaaaaa"
        os.rename(session.path, path)
        paths.append(path)
        write_record(record_of(Session(path, -1), session_dir=path))
        Path(path, "logs", "daemon.log").write_text("x")
        Path(path, "token").write_text("secret")
        session.close()
    sweep_dead_sessions(temp_dir)
    sweep_dead_sessions(temp_dir)
    assert [os.path.exists(path) for path in paths] == [False, False, True, True]
    assert sorted(os.listdir(paths[-1])) == ["logs", "node.json"]


def test_sweep_keeps_no_more_logs_than_the_cap(
    temp_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "LOGS_KEPT_BYTES_MAX", 10)
    session = create_session(temp_dir)
    write_record(record_of(session))
    Path(session.path, "logs", "daemon.log").write_text("x" * 11)
    session.close()
    sweep_dead_sessions(temp_dir)
    assert os.listdir(session.path + "/logs") == []


def test_sweep_kills_what_a_dead_session_left_running(temp_dir: str) -> None:
    session = create_session(temp_dir)
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"],
        env={**os.environ, SESSION_VARIABLE: session.name},
        start_new_session=True,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    assert list(session_processes(session.name)) == [child.pid]
    session.close()
    sweep_dead_sessions(temp_dir)
    assert child.wait(10) == -9
    child.stdout.close()


def test_sweep_follows_no_link_out_of_a_session(temp_dir: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep")
    session = create_session(temp_dir)
    os.symlink(victim, session.path + "/logs/file")
    os.symlink(tmp_path, session.path + "/logs/folder")
    session.close()
    sweep_dead_sessions(temp_dir)
    assert victim.read_text() == "keep"
    assert not os.path.lexists(session.path)


def test_remove_session_takes_its_latest_link_along(temp_dir: str) -> None:
    first, second = create_session(temp_dir), create_session(temp_dir)
    link = os.path.join(root_path(temp_dir), "session_latest")
    link_latest(first.path)
    link_latest(second.path)
    remove_session(first.path)
    assert os.readlink(link) == second.name
    remove_session(second.path)
    assert not os.path.lexists(link)
    first.close()
    second.close()


def test_find_node_auto_prefers_the_current_cluster(temp_dir: str) -> None:
    first, second = create_session(temp_dir), create_session(temp_dir)
    write_record(record_of(first, start_time_s=1.0))
    write_record(record_of(second, start_time_s=2.0, gcs_endpoint="127.0.0.1:7000"))
    assert find_node("auto", temp_dir).session_dir == second.path
    set_current(record_of(first))
    assert find_node("auto", temp_dir).session_dir == first.path
    assert find_node("localhost:7000", temp_dir).session_dir == second.path
    assert find_node(second.path, temp_dir).session_dir == second.path
    first.close()
    second.close()


def test_find_node_auto_ignores_nodes_that_belong_to_programs(temp_dir: str) -> None:
    session = create_session(temp_dir)
    write_record(record_of(session, is_owned=True))
    assert [node.session_dir for node in live_nodes(temp_dir)] == [session.path]
    with pytest.raises(ClusterNotFoundError, match="skate start --head"):
        find_node("auto", temp_dir)
    session.close()


def test_find_node_crashed_cluster_counts_as_none(temp_dir: str) -> None:
    session = create_session(temp_dir)
    write_record(record_of(session))
    set_current(record_of(session))
    session.close()
    with pytest.raises(ClusterNotFoundError, match="has ended"):
        find_node("auto", temp_dir)


def test_find_node_unknown_address_raises_connection_error(temp_dir: str) -> None:
    with pytest.raises(ConnectionError, match=r"10\.0\.0\.1:6379"):
        find_node("10.0.0.1:6379", temp_dir)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_read_record_unreadable_is_none(temp_dir: str, text: str) -> None:
    session = create_session(temp_dir)
    Path(session.path, "node.json").write_text(text)
    assert read_record(session.path) is None
    session.close()


def test_file_added_while_a_session_is_removed_goes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_dir = tmp_path / "session_1"
    (session_dir / "sockets").mkdir(parents=True)
    real_rmdir = os.rmdir
    added: list[Path] = []

    def rmdir(path: str) -> None:
        if str(path) == str(session_dir) and not added:
            added.append(session_dir / "token")
            added[0].write_text("written by a start that does not know yet")
        real_rmdir(path)

    monkeypatch.setattr(os, "rmdir", rmdir)
    session_module.remove_session(str(session_dir))
    assert added
    assert not session_dir.exists()
