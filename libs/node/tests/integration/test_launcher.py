"""The launcher against small stand-ins for the daemon, each a few lines of Python."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable

import pytest

from skate_node.errors import NodeStartError
from skate_node.launcher import RunningNode, start_node
from skate_node.options import NodeOptions
from skate_node.processes import session_processes
from skate_node.root import root_path
from skate_node.session import is_alive

READY = {
    "event": "ready",
    "node_id": "ab",
    "gcs_endpoint": "unix:/g",
    "stream_endpoint": "unix:/s",
    "store_endpoint": "unix:/o",
    "raylet_endpoint": "unix:/r",
    "metrics_endpoint": "",
    "token": "t" * 64,
}
PRELUDE = f"""
import json, os, select, signal, sys, time
config = json.load(sys.stdin)
READY = {READY!r}
def say(**line): os.write(3, json.dumps(line).encode() + b"\\n")
def until_lifeline():
    poller = select.poll()
    poller.register(4, select.POLLIN)
    poller.poll()
"""


def stand_in(body: str) -> tuple[str, ...]:
    return ("-c", PRELUDE + textwrap.dedent(body))


LIVING = stand_in("say(**READY); until_lifeline()")
SLEEPING = stand_in("say(**READY); os.closerange(0, 3); time.sleep(60)")


def start(temp_dir: str, body: str, timeout_s: float = 20, **options: object) -> RunningNode:
    return start_node(
        NodeOptions(temp_dir=temp_dir, **options),  # type: ignore[arg-type]
        timeout_s=timeout_s,
        command=stand_in(body),
    )


def eventually(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def nothing_left(temp_dir: str) -> bool:
    root = root_path(temp_dir)
    return not [name for name in os.listdir(root) if name.startswith("session_")]


def test_start_ready_daemon_is_described(temp_dir: str) -> None:
    node = start(temp_dir, "say(**READY); until_lifeline()")
    assert node.gcs_endpoint == "unix:/g"
    assert node.token == "t" * 64
    assert node.is_running()
    assert is_alive(node.session_dir)
    assert node.token not in repr(node)
    node.stop()
    assert not node.is_running()
    assert nothing_left(temp_dir)


def test_stop_twice_is_once(temp_dir: str) -> None:
    node = start(temp_dir, "say(**READY); until_lifeline()")
    node.stop()
    node.stop()


def test_stop_deaf_daemon_is_killed(temp_dir: str) -> None:
    node = start(
        temp_dir, "signal.signal(signal.SIGTERM, signal.SIG_IGN); say(**READY); time.sleep(60)"
    )
    node.stop(timeout_s=0.05)
    assert str(node.wait(0)) == "was killed by SIGKILL"
    assert nothing_left(temp_dir)


def test_stop_kills_processes_that_left_their_group(temp_dir: str) -> None:
    node = start(
        temp_dir,
        """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.closerange(3, 10)
                time.sleep(60)
            os._exit(0)
        os.wait()
        say(**READY)
        until_lifeline()
        """,
    )
    name = os.path.basename(node.session_dir)
    assert len(list(session_processes(name))) == 2
    node.stop()
    assert list(session_processes(name)) == []


def test_stop_in_a_fork_leaves_the_node_alone(temp_dir: str) -> None:
    node = start(temp_dir, "say(**READY); until_lifeline()")
    child = os.fork()
    if child == 0:
        node.stop()
        os._exit(0)
    os.waitpid(child, 0)
    assert node.is_running()
    node.stop()


def test_fork_of_the_starter_does_not_hold_the_lifeline(temp_dir: str) -> None:
    script = textwrap.dedent(
        f"""
        import os, sys, time
        from skate_node import NodeOptions, start_node
        node = start_node(NodeOptions(temp_dir={temp_dir!r}), command={LIVING!r})
        if os.fork() == 0:
            os.closerange(0, 3)
            time.sleep(60)
        print(node.pid, os.path.basename(node.session_dir), flush=True)
        os.kill(os.getpid(), 9)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=30
    )
    pid, name = done.stdout.split()
    eventually(lambda: int(pid) not in list(session_processes(name)))
    for straggler in children_with(temp_dir):
        os.kill(straggler, signal.SIGKILL)


def children_with(text: str) -> list[int]:
    """Processes whose command line holds ``text``."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    if text.encode() in file.read():
                        found.append(int(entry))
            except OSError:
                continue
    return found


@pytest.mark.parametrize(
    ("body", "component", "expected"),
    [
        ("sys.exit(3)", "python import", "exited with status 3"),
        ("say(event='starting', component='gcs'); os._exit(7)", "gcs", "exited with status 7"),
        (
            "say(event='starting', component='raylet'); os.kill(os.getpid(), 11)",
            "raylet",
            "was killed by SIGSEGV",
        ),
        (
            """say(event='failed', component='zygote', reason='it said no',
                exit_status='exited with status 3', log_tail='boom')""",
            "zygote",
            "it said no. Its process exited with status 3.\nLast lines of its log:\n    boom",
        ),
    ],
)
def test_start_failure_names_component_and_exit(
    temp_dir: str, body: str, component: str, expected: str
) -> None:
    with pytest.raises(NodeStartError) as caught:
        start(temp_dir, body)
    assert caught.value.component == component
    assert expected in str(caught.value)
    assert nothing_left(temp_dir)


def test_start_failure_shows_the_last_twenty_lines(temp_dir: str) -> None:
    with pytest.raises(NodeStartError) as caught:
        start(temp_dir, "[print('line', n, file=sys.stderr) for n in range(50)]; sys.exit(1)")
    assert caught.value.log_tail.splitlines() == [f"line {n}" for n in range(30, 50)]


def test_start_failure_interpreter_that_lacks_the_daemon_is_an_import_failure(
    temp_dir: str,
) -> None:
    with pytest.raises(NodeStartError, match="No module named") as caught:
        start_node(NodeOptions(temp_dir=temp_dir), command=("-P", "-m", "skate_node.no_daemon"))
    assert caught.value.component == "python import"


def test_start_hung_daemon_is_killed_in_time(temp_dir: str) -> None:
    with pytest.raises(NodeStartError, match=r"gcs failed: it was not up within 0\.5 s"):
        start(temp_dir, "say(event='starting', component='gcs'); time.sleep(60)", timeout_s=0.5)
    assert children_with(temp_dir) == []
    assert nothing_left(temp_dir)


def test_start_interrupted_leaves_nothing(temp_dir: str) -> None:
    root = root_path(temp_dir)

    def interrupt_when_spawned() -> None:
        eventually(lambda: os.path.isdir(root) and bool(os.listdir(root)))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt_when_spawned)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        start(temp_dir, "time.sleep(60)")
    thread.join()
    assert nothing_left(temp_dir)


def test_start_hands_the_daemon_its_options_and_no_secret_in_public(temp_dir: str) -> None:
    token = "canary-" * 6
    node = start(
        temp_dir,
        """
        text = open('/proc/self/cmdline').read() + open('/proc/self/environ').read()
        READY['node_id'] = str(config['options']['token'] in text)
        READY['token'] = config['options']['token']
        READY['gcs_endpoint'] = str(sorted(int(n) for n in os.listdir('/proc/self/fd'))[:6])
        say(**READY)
        until_lifeline()
        """,
        token=token,
    )
    assert node.node_id == "False"
    assert node.token == token
    assert node.gcs_endpoint == "[0, 1, 2, 3, 4, 5]"
    node.stop()


def test_start_large_options_fit(temp_dir: str) -> None:
    node = start(
        temp_dir,
        "READY['node_id'] = str(len(config['options']['labels'])); say(**READY); until_lifeline()",
        labels={f"label-{n}": "x" * 60 for n in range(4000)},
    )
    assert node.node_id == "4000"
    node.stop()


def test_start_and_stop_repeated_leaks_no_descriptor_thread_or_variable(temp_dir: str) -> None:
    def cycle() -> None:
        start(temp_dir, "say(**READY); until_lifeline()").stop()

    cycle()
    gc.collect()
    before = (os.listdir("/proc/self/fd"), threading.active_count(), dict(os.environ))
    for _ in range(10):
        cycle()
    gc.collect()
    assert (os.listdir("/proc/self/fd"), threading.active_count(), dict(os.environ)) == before


def test_start_with_standard_descriptors_closed_works(temp_dir: str) -> None:
    script = textwrap.dedent(
        f"""
        import os
        os.closerange(0, 3)
        from skate_node import NodeOptions, start_node
        node = start_node(NodeOptions(temp_dir={temp_dir!r}), command={LIVING!r})
        node.stop()
        os._exit(42)
        """
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=30).returncode == 42


def test_without_lifeline_the_node_outlives_its_starter(temp_dir: str) -> None:
    script = textwrap.dedent(
        f"""
        from skate_node import NodeOptions, start_node
        import os
        node = start_node(NodeOptions(temp_dir={temp_dir!r}, lifeline=False), command={SLEEPING!r})
        print(node.pid, flush=True)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=30
    )
    pid = int(done.stdout)
    os.kill(pid, 0)
    os.kill(pid, signal.SIGKILL)


def test_importing_the_launcher_loads_only_the_standard_library() -> None:
    script = (
        "import sys; before = set(sys.modules); import skate_node.launcher;"
        "print([n for n in set(sys.modules) - before if n.split('.')[0] not in"
        " sys.stdlib_module_names and not n.startswith(('skate_node', 'skate_core_ids'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=30
    )
    assert done.stdout.strip() == "[]"
