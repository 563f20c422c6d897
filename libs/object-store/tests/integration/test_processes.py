from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from skate_object_store import StoreClient, StoreClosedError, StoreServer

Connect = Callable[..., StoreClient]
Eventually = Callable[[Callable[[], bool]], None]
Spawn = Callable[[str], "subprocess.Popen[str]"]

PRELUDE = """
import os, sys, numpy, skate_object_store
client = skate_object_store.StoreClient(sys.argv[1])
def say(word):
    print(word, flush=True)
"""


@pytest.fixture
def spawn(server: StoreServer) -> Iterator[Spawn]:
    """Starts Python processes that have a client of the store, and kills what is left of them."""
    children: list[subprocess.Popen[str]] = []

    def start(code: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code, server.endpoint],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate(timeout=10)


def heard(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def test_two_processes_share_an_array(client: StoreClient, spawn: Spawn) -> None:
    values = np.random.default_rng(3).random((500, 400))
    client.put(b"to", [values])
    child = spawn("""
array = numpy.frombuffer(client.get([b"to"])[0], dtype=float).reshape(500, 400)
client.put(b"from", [array.T.copy()])
say("done")
sys.stdin.readline()
""")
    assert heard(child) == "done"
    (view,) = client.get([b"from"])
    assert view is not None
    assert np.array_equal(np.frombuffer(view).reshape(400, 500), values.T)


def test_killed_client_releases_pins_and_unsealed_objects(
    server: StoreServer, client: StoreClient, spawn: Spawn, eventually: Eventually
) -> None:
    client.put(b"read", [b"x" * 1000])
    child = spawn("""
views = client.get([b"read"])
half = client.create(b"half", 5000)
client.put(b"whole", [b"sealed"])
say("ready")
sys.stdin.readline()
""")
    assert heard(child) == "ready"
    client.delete([b"read"])
    eventually(lambda: server.statistics().deleted_bytes >= 1000)
    assert server.statistics().unsealed_bytes >= 5000
    child.kill()
    eventually(lambda: server.statistics().deleted_bytes == 0)
    eventually(lambda: server.statistics().unsealed_bytes == 0)
    assert client.get([b"half", b"whole"]) == [None, b"sealed"]


@pytest.mark.invariant("I3")
def test_client_killed_in_the_middle_of_puts_leaves_whole_objects_only(
    server: StoreServer, client: StoreClient, spawn: Spawn, eventually: Eventually
) -> None:
    for life in range(10):
        child = spawn(f"""
say("go")
for number in range(1000):
    client.put(b"{life} %d" % number, [bytes([number % 251 + 1]) * 50_000])
    client.delete([b"{life} %d" % (number - 3)])
""")
        assert heard(child) == "go"
        client.get([b"%d %d" % (life, 5 + 3 * life)], 10)
        child.kill()
        child.wait()
        eventually(lambda: server.statistics().clients == 1)
        for number in range(1000):
            (view,) = client.get([b"%d %d" % (life, number)])
            if view is not None:
                assert view == bytes([number % 251 + 1]) * 50_000
                client.delete([b"%d %d" % (life, number)])
        del view
    client.contains(b"x")
    assert server.statistics().used_bytes == 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_child_cannot_use_the_client_but_keeps_its_views(
    client: StoreClient, server: StoreServer
) -> None:
    client.put(b"id", [b"value"])
    views = client.get([b"id"])
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            try:
                client.get([b"other"])
            except StoreClosedError as error:
                if "before a fork" in str(error) and views == [b"value"]:
                    views.clear()
                    client.close()
                    with StoreClient(server.endpoint) as own:
                        own.put(b"child", [b"hello"])
                    status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert client.get([b"child", b"id"]) == [b"hello", b"value"]


def test_death_of_a_parent_is_seen_while_its_forked_child_lives(
    server: StoreServer, client: StoreClient, spawn: Spawn, eventually: Eventually
) -> None:
    client.put(b"read", [b"x" * 1000])
    child = spawn("""
views = client.get([b"read"])
if os.fork() == 0:
    say(os.getpid())
    sys.stdin.readline()
    os._exit(0)
sys.stdin.readline()
""")
    grandchild = int(heard(child))
    try:
        child.kill()
        eventually(lambda: server.statistics().pinned_bytes == 0)
        os.kill(grandchild, 0)
    finally:
        os.kill(grandchild, signal.SIGKILL)


def test_killed_server_process_ends_its_clients(spawn: Spawn, tmp_path: object) -> None:
    child = spawn(f"""
server = skate_object_store.StoreServer({str(tmp_path)!r} + "/own.sock", 1 << 20)
server.start()
say(server.endpoint)
sys.stdin.readline()
""")
    other = StoreClient(heard(child))
    other.put(b"id", [b"value"])
    views = other.get([b"id"])
    child.kill()
    with pytest.raises(StoreClosedError):
        other.get([b"never"], None)
    assert views == [b"value"]
    other.close()
    assert views == [b"value"]


def test_stopped_client_does_not_hold_up_the_server(
    server: StoreServer, client: StoreClient, spawn: Spawn
) -> None:
    child = spawn("""
say("ready")
client.get([b"go"], 30)
""")
    assert heard(child) == "ready"
    child.send_signal(signal.SIGSTOP)
    for number in range(100):
        client.put(b"%d" % number, [b"x"])
    client.put(b"go", [b"x"])
    child.send_signal(signal.SIGCONT)
    assert child.wait(10) == 0


def test_exit_with_live_views_is_clean(spawn: Spawn, client: StoreClient) -> None:
    client.put(b"id", [np.ones(100_000)])
    child = spawn("""
class Late:
    def __init__(self, array): self.array = array
    def __del__(self): assert self.array.sum() == 100_000
import builtins
builtins.late = Late(numpy.frombuffer(client.get([b"id"])[0]))
view = client.create(b"half", 100)
client.put(b"big", [bytes(20 << 20)])
""")
    assert child.wait(20) == 0
