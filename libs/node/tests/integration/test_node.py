"""Real daemons: started, used, killed at bad moments, and nothing left behind."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skate_node import NodeOptions, NodeStartError, RunningNode, find_node, live_nodes, start_node
from skate_node.processes import session_processes
from skate_node.root import root_path
from skate_node.session import is_alive
from skate_object_store import StoreClient
from skate_rpc.handshake import ClientHandshake

GONE_S = 3.0
MIB = 1024 * 1024
STORE_BYTES = 80 * MIB


def options(temp_dir: str, **changes: object) -> NodeOptions:
    values: dict[str, object] = {
        "temp_dir": temp_dir,
        "num_cpus": 1,
        "object_store_memory": STORE_BYTES,
    }
    return NodeOptions(**{**values, **changes})  # type: ignore[arg-type]


def eventually(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def sessions(temp_dir: str) -> list[str]:
    try:
        entries = os.listdir(root_path(temp_dir))
    except FileNotFoundError:
        return []
    return [name for name in entries if name.startswith("session_2")]


def processes_below(temp_dir: str) -> list[int]:
    """Live processes of any session below ``temp_dir``, their daemons included."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                environment = Path(f"/proc/{entry}/environ").read_bytes()
                state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if f"SK_TEST_MARK={temp_dir}".encode() in environment and state != "Z":
                found.append(int(entry))
    return found


@pytest.fixture
def marked(temp_dir: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every process that descends from this test carries the folder in its environment."""
    monkeypatch.setenv("SK_TEST_MARK", temp_dir)
    return temp_dir


@pytest.fixture
def node(marked: str) -> Iterator[RunningNode]:
    running = start_node(options(marked))
    yield running
    running.stop()


def nothing_left(temp_dir: str) -> bool:
    return not processes_below(temp_dir) and not sessions(temp_dir)


def starter(temp_dir: str, *, after: str = "time.sleep(600)", changes: str = "") -> list[str]:
    """The command of a program that starts a node, says so and goes on."""
    return [
        sys.executable,
        "-c",
        textwrap.dedent(
            f"""
            import os, time
            from skate_node import NodeOptions, start_node
            print("starting", flush=True)
            node = start_node(NodeOptions(temp_dir={temp_dir!r}, num_cpus=1,
                object_store_memory={STORE_BYTES}, {changes}))
            print(node.pid, flush=True)
            {after}
            """
        ),
    ]


def test_node_serves_and_leaves_nothing(marked: str) -> None:
    node = start_node(options(marked, labels={"zone": "a"}))
    record = find_node(node.gcs_endpoint, marked)
    assert (record.node_id, record.pid) == (node.node_id, node.pid)
    assert record.is_owned
    for endpoint in (node.stream_endpoint, node.store_endpoint, node.gcs_endpoint):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(endpoint.removeprefix("unix:"))
    eventually(lambda: os.path.islink(os.path.join(root_path(marked), "session_latest")))
    node.stop()
    assert str(node.wait(0)) == "exited with status 0"
    assert nothing_left(marked)
    assert os.listdir(root_path(marked)) == []


def test_node_files_are_private_whatever_the_umask(marked: str) -> None:
    before = os.umask(0)
    try:
        node = start_node(options(marked, storage="sqlite:" + os.path.join(marked, "gcs.sqlite")))
    finally:
        os.umask(before)
    paths = [*Path(root_path(marked)).rglob("*"), Path(marked, "gcs.sqlite")]
    modes = {p: stat.S_IMODE(p.lstat().st_mode) for p in paths if not p.is_symlink()}
    node.stop()
    assert len(modes) > 8
    assert {str(path): oct(mode) for path, mode in modes.items() if mode & 0o077} == {}


@pytest.mark.parametrize("where", ["session", "elsewhere"])
def test_store_that_is_full_spills_and_leaves_nothing(marked: str, where: str) -> None:
    elsewhere = os.path.join(marked, "elsewhere")
    node = start_node(options(marked, spill_dir=None if where == "session" else elsewhere))
    folder = os.path.join(node.session_dir, "spill") if where == "session" else elsewhere
    value = os.urandom(MIB) * 16
    try:
        with StoreClient(node.store_endpoint, handshake=ClientHandshake(node.token.encode())) as s:
            ids = [b"object %d" % number for number in range(3 * STORE_BYTES // len(value))]
            for object_id in ids:
                s.put(object_id, [object_id, value])
            assert [name for _, _, names in os.walk(folder) for name in names]
            for object_id in ids:
                (view,) = s.get([object_id])
                assert view is not None
                assert view[len(object_id) :] == value
    finally:
        node.stop()
    assert not os.path.exists(node.session_dir)
    assert not os.path.exists(elsewhere) or os.listdir(elsewhere) == []


def test_node_metrics_want_the_token(node: RunningNode) -> None:
    url = f"http://{node.metrics_endpoint}/metrics"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, timeout=10)
    refused.value.close()
    assert refused.value.code == 401
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {node.token}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        text = response.read().decode()
    assert "skate_node_info{" in text
    assert "skate_node_metrics_source_errors_total" not in text or " 0.0" in text


def test_node_without_metrics_listens_on_no_port(marked: str) -> None:
    node = start_node(options(marked, metrics_port=None))
    inodes = {os.readlink(f"/proc/{node.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{node.pid}/fd")}
    listening = {
        f"socket:[{line.split()[9]}]"
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    }
    node.stop()
    assert node.metrics_endpoint == ""
    assert not inodes & listening


def test_twenty_nodes_started_at_once_all_work(marked: str) -> None:
    nodes: list[RunningNode] = []
    failures: list[BaseException] = []

    def start() -> None:
        try:
            nodes.append(start_node(options(marked), timeout_s=60))
        except BaseException as error:  # noqa: BLE001  # Told by the test's own thread.
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alive = [node for node in nodes if node.is_running() and is_alive(node.session_dir)]
    distinct = len({node.session_dir for node in nodes})
    for node in nodes:
        node.stop()
    assert failures == []
    assert (len(alive), distinct) == (20, 20)
    assert nothing_left(marked)


@pytest.mark.invariant("I15")
def test_starter_that_is_killed_takes_the_node_along(marked: str) -> None:
    process = subprocess.Popen(starter(marked), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "starting\n"
    int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    eventually(lambda: nothing_left(marked), GONE_S)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.invariant("I15")
def test_starter_that_ends_at_a_random_moment_of_the_start_leaves_nothing(
    marked: str, number: signal.Signals
) -> None:
    moments = random.Random(20261123)
    for _ in range(6):
        process = subprocess.Popen(
            starter(marked), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        try:
            process.wait(moments.uniform(0.0, 0.8))
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        process.wait(20)
        process.stdout.close()
        eventually(lambda: not processes_below(marked), GONE_S)
        # A starter killed before its daemon lived leaves an empty folder for the next start.
    start_node(options(marked)).stop()
    eventually(lambda: nothing_left(marked) or _sweep(marked))


def _sweep(temp_dir: str) -> bool:
    start_node(options(temp_dir)).stop()
    return nothing_left(temp_dir)


@pytest.mark.invariant("I15", "I16")
def test_daemon_that_is_killed_leaves_no_process_and_the_next_start_sweeps(marked: str) -> None:
    node = start_node(options(marked, lifeline=False))
    os.kill(node.pid, signal.SIGKILL)
    eventually(lambda: not processes_below(marked), GONE_S)
    assert sessions(marked) == [os.path.basename(node.session_dir)]
    second = start_node(options(marked))
    eventually(lambda: not os.path.exists(node.session_dir))
    second.stop()
    assert nothing_left(marked)


def test_daemon_that_is_stopped_by_a_signal_is_killed_by_stop(marked: str) -> None:
    node = start_node(options(marked))
    os.kill(node.pid, signal.SIGSTOP)
    node.stop(timeout_s=0.2)
    assert nothing_left(marked)


def test_sigterm_ends_a_node_that_nobody_owns_and_keeps_its_logs(marked: str) -> None:
    node = start_node(options(marked, lifeline=False, keep_logs=True, port=0))
    assert [record.pid for record in live_nodes(marked)] == [node.pid]
    assert find_node("auto", marked).node_id == node.node_id
    os.kill(node.pid, signal.SIGTERM)
    eventually(lambda: not processes_below(marked), GONE_S)
    assert sorted(os.listdir(node.session_dir)) == ["logs", "node.json"]
    assert os.path.getsize(os.path.join(node.session_dir, "logs", "daemon.log")) > 0
    assert str(node.wait(5)) == "exited with status 0"


def test_node_joins_a_head_and_survives_nothing_of_it(marked: str) -> None:
    head = start_node(options(marked, port=0))
    joined = start_node(
        options(marked, is_head=False, gcs_address=head.gcs_endpoint, token=head.token)
    )
    assert joined.gcs_endpoint == head.gcs_endpoint
    assert joined.node_id != head.node_id
    joined.stop()
    head.stop()
    assert nothing_left(marked)


def test_join_with_a_wrong_token_names_the_raylet(marked: str) -> None:
    head = start_node(options(marked, port=0))
    with pytest.raises(NodeStartError, match="token") as caught:
        start_node(options(marked, is_head=False, gcs_address=head.gcs_endpoint, token="x" * 64))
    head.stop()
    assert caught.value.component == "raylet"


def test_start_on_a_taken_port_names_the_gcs(marked: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(NodeStartError, match="taken") as caught:
            start_node(options(marked, port=taken.getsockname()[1]))
    assert caught.value.component == "gcs"
    assert nothing_left(marked)


def test_second_head_on_one_port_is_refused(marked: str) -> None:
    head = start_node(options(marked, port=0))
    port = int(head.gcs_endpoint.rpartition(":")[2])
    with pytest.raises(NodeStartError) as caught:
        start_node(options(marked, port=port))
    head.stop()
    assert caught.value.component == "gcs"


def test_start_on_a_taken_metrics_port_names_the_metrics(marked: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(NodeStartError) as caught:
            start_node(options(marked, metrics_port=taken.getsockname()[1]))
    assert caught.value.component == "metrics"
    assert nothing_left(marked)


def test_start_on_a_broken_database_names_the_gcs(marked: str) -> None:
    path = Path(marked, "broken.sqlite")
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(NodeStartError) as caught:
        start_node(options(marked, storage=f"sqlite:{path}"))
    assert caught.value.component == "gcs"
    assert "broken.sqlite" in str(caught.value)
    assert nothing_left(marked)


def test_start_with_a_module_in_the_working_folder_that_shadows_another_works(
    marked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json.py", "queue.py", "grpc.py", "secrets.py"):
        Path(marked, name).write_text("raise RuntimeError('shadowed')")
    monkeypatch.chdir(marked)
    start_node(options(marked)).stop()


def test_token_is_in_no_argument_environment_or_log(node: RunningNode) -> None:
    token = node.token.encode()
    pids = [node.pid, *session_processes(os.path.basename(node.session_dir))]
    for pid in pids:
        for name in ("cmdline", "environ"):
            assert token not in Path(f"/proc/{pid}/{name}").read_bytes()
    for path in Path(node.session_dir, "logs").iterdir():
        assert token not in path.read_bytes()
    assert token.decode() not in json.dumps(
        json.loads(Path(node.session_dir, "node.json").read_text())
    )
