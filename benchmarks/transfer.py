"""How fast an object travels between two nodes, beside a plain copy through a socket.

Run as root: ``python -m benchmarks.transfer [--megabytes 1000] [--rounds 5] [--quick]``. The two
nodes are in network namespaces of their own, joined by a switch. In turn, so that a busy machine
treats all alike:

- *plain copy*: one connection between the same two namespaces; a process sends the payload with
  ``send``, the other takes it with ``recv_into`` into memory that was touched before;
- *pull, warm*: the raylet of one node pulls an object from the other's store into memory that
  its store has used before; from the request to the answer;
- *pull, cold*: the first pull of a node that has just started, whose store has to get its memory
  from the machine. As much memory is used and freed right before by the benchmark itself, so that
  the machine, where it is a virtual one, need not get it from its host in turn.

``--broadcast N`` measures how long an object takes to N nodes, as a tree: at most two pulls from
one copy at a time, which is how an owner hands out sources.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from skate_node import RunningNode
from tests.namespaces import Network, why_not
from tests.raw_process import RawProcess

MB = 1_000_000
CHUNK_BYTES = 8 << 20
PORT = 7701
PULLS_PER_COPY = 2
PLAIN_TIMEOUT_S = 120.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Returns 2 where it can not be measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=0, help="default: 1000; broadcast: 256")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="50 MB, one round")
    parser.add_argument("--broadcast", type=int, default=0, metavar="N", help="to N nodes")
    parser.add_argument("--plain", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.plain:
        role, address, size = options.plain
        return (
            _plain_send(address, int(size)) if role == "send" else _plain_take(address, int(size))
        )
    if reason := why_not():
        print(f"transfer: {reason}", file=sys.stderr)
        return 2
    megabytes = options.megabytes or (256 if options.broadcast else 1000)
    size_bytes = 50 * MB if options.quick else megabytes * MB
    rounds = 1 if options.quick else options.rounds
    with tempfile.TemporaryDirectory(prefix="sk-") as folder:
        os.environ["SKATE_TMPDIR"] = folder
        if options.broadcast:
            report_broadcast(options.broadcast, size_bytes, rounds)
        else:
            report_pulls(size_bytes, rounds)
    return 0


def report_pulls(size_bytes: int, rounds: int) -> None:
    """The table of one pair of nodes."""
    rows: dict[str, list[float]] = {"plain copy": [], "pull, warm": [], "pull, cold": []}
    with Network(2) as network, _nodes(network, 2, size_bytes) as (nodes, processes):
        source, sink = processes
        object_id = source.put(_payload(size_bytes))
        _pull(sink, object_id, size_bytes, nodes[0].node_id)
        for _ in range(rounds):
            rows["plain copy"].append(plain_copy_s(network, size_bytes))
            rows["pull, warm"].append(_pull(sink, object_id, size_bytes, nodes[0].node_id))
            rows["pull, cold"].append(_cold_pull_s(network, nodes[0], object_id, size_bytes))
    plain_s = statistics.median(rows["plain copy"])
    print(f"{size_bytes / 1e6:g} MB between two network namespaces, median of {rounds}")
    print(f"{'':14}{'GB/s':>8}{'of plain':>10}{'slowest':>10}{'fastest':>10}")
    for name, seconds in rows.items():
        rate = size_bytes / statistics.median(seconds) / 1e9
        worst, best = (size_bytes / limit(seconds) / 1e9 for limit in (max, min))
        share = plain_s / statistics.median(seconds)
        print(f"{name:14}{rate:8.2f}{share:10.2f}{worst:10.2f}{best:10.2f}")


def report_broadcast(count: int, size_bytes: int, rounds: int) -> None:
    """How long it takes until ``count`` nodes have what one had."""
    with Network(count + 1) as network, _nodes(network, count + 1, size_bytes) as made:
        nodes, processes = made
        object_id = processes[0].put(_payload(size_bytes))
        seconds = [broadcast_s(nodes, processes, object_id, size_bytes) for _ in range(rounds + 1)]
    print(f"{size_bytes / 1e6:g} MB from one node to {count}, each in a network namespace")
    print(
        f"cold {seconds[0]:.3f} s; warm, median of {rounds}: {statistics.median(seconds[1:]):.3f} s"
    )


def broadcast_s(
    nodes: Sequence[RunningNode], processes: Sequence[RawProcess], object_id: bytes, size_bytes: int
) -> float:
    """Bring the object from the first node to all others; returns the seconds, and deletes it."""
    start_s = time.perf_counter()
    free = [0] * PULLS_PER_COPY  # places of nodes that can serve one more
    waiting = list(range(1, len(nodes)))
    running: dict[int, tuple[int, int]] = {}  # who pulls -> (its pull, from whom)
    while waiting or running:
        while waiting and free:
            taker, giver = waiting.pop(0), free.pop(0)
            pull_id = processes[taker].start_pull(object_id, size_bytes, [nodes[giver].node_id])
            running[taker] = (pull_id, giver)
        taker = next(iter(running))
        pull_id, giver = running.pop(taker)
        ended = processes[taker].end_of_pull(pull_id)
        assert not ended.kind, ended.message
        free += [giver] + [taker] * PULLS_PER_COPY
    elapsed_s = time.perf_counter() - start_s
    for process in processes[1:]:
        _forget(process, object_id)
    return elapsed_s


def plain_copy_s(network: Network, size_bytes: int) -> float:
    """A copy through one socket between host 0 and host 1, as a loop of system calls."""
    command = [sys.executable, "-m", "benchmarks.transfer", "--plain"]
    place = [network.address(0), str(size_bytes)]
    with network.entered(0):
        sender = subprocess.Popen([*command, "send", *place], stdout=subprocess.PIPE, text=True)
    assert sender.stdout is not None
    try:
        assert sender.stdout.readline() == "ready\n"
        with network.entered(1):
            taken = subprocess.run(
                [*command, "take", *place],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
                timeout=PLAIN_TIMEOUT_S,
            )
        sender.wait(PLAIN_TIMEOUT_S)
    finally:
        sender.kill()
        sender.wait()
        sender.stdout.close()
    return float(taken.stdout)


@contextlib.contextmanager
def _nodes(
    network: Network, count: int, size_bytes: int
) -> Iterator[tuple[list[RunningNode], list[RawProcess]]]:
    store_bytes = _store_bytes(size_bytes)
    head = network.start_head(0, object_store_memory=store_bytes)
    nodes = [
        head,
        *(
            network.start_node(host, head, object_store_memory=store_bytes)
            for host in range(1, count)
        ),
    ]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(RawProcess(node.stream_endpoint, node.token)) for node in nodes
        ]
        yield nodes, processes


def _payload(size_bytes: int) -> memoryview:
    """What a numpy array of this size is to the store, which sees buffers."""
    return memoryview(os.urandom(1 << 20) * (size_bytes // (1 << 20) + 1))[:size_bytes]


def _pull(sink: RawProcess, object_id: bytes, size_bytes: int, node_id: str) -> float:
    start_s = time.perf_counter()
    ended = sink.pull(object_id, size_bytes, [node_id])
    elapsed_s = time.perf_counter() - start_s
    assert not ended.kind, ended.message
    _forget(sink, object_id)
    return elapsed_s


def _cold_pull_s(network: Network, head: RunningNode, object_id: bytes, size_bytes: int) -> float:
    """The first pull of a new node beside the one on host 1."""
    node = network.start_node(1, head, object_store_memory=_store_bytes(size_bytes))
    try:
        with RawProcess(node.stream_endpoint, node.token) as sink:
            _use_and_free(size_bytes * 5 // 4)
            return _pull(sink, object_id, size_bytes, head.node_id)
    finally:
        node.stop()


def _use_and_free(size_bytes: int) -> None:
    with mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for start in range(0, size_bytes, mmap.PAGESIZE):
            memory[start] = 1


def _store_bytes(size_bytes: int) -> int:
    return max(2 * size_bytes, 100 << 20)


def _forget(process: RawProcess, object_id: bytes) -> None:
    process.store.delete([object_id])
    process.store.contains(object_id)  # The delete has arrived when this is answered.


def _plain_send(address: str, size_bytes: int) -> int:
    payload = _payload(size_bytes)
    with socket.create_server((address, PORT)) as server:
        print("ready", flush=True)
        peer, _ = server.accept()
        with peer:
            sent = 0
            while sent < size_bytes:
                sent += peer.send(payload[sent : min(size_bytes, sent + CHUNK_BYTES)])
            peer.recv(1)  # so that the payload is not torn down before it was taken
    return 0


def _plain_take(address: str, size_bytes: int) -> int:
    target = memoryview(bytearray(b"\1") * size_bytes)  # touched
    with socket.create_connection((address, PORT)) as peer:
        start_s = time.perf_counter()
        taken = 0
        while taken < size_bytes:
            end = min(size_bytes, taken + CHUNK_BYTES)
            taken += peer.recv_into(target[taken:end], 0, socket.MSG_WAITALL)
        print(time.perf_counter() - start_s)
        peer.send(b"\0")
    return 0


if __name__ == "__main__":
    sys.exit(main())
