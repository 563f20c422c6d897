"""Objects between real nodes of one machine, while their daemons are killed and stopped."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skate.cluster_utils import Cluster
from skate_node import RunningNode
from skate_rpc import node_protocol as node
from tests.raw_process import RawProcess

DEATH_SEEN_S = 5.0


@pytest.fixture
def nodes(session_root: Path) -> Iterator[Cluster]:
    """A head and two more nodes, on Unix sockets and loopback."""
    cluster = Cluster(initialize_head=True)
    cluster.add_node()
    cluster.add_node()
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def on(running: RunningNode) -> RawProcess:
    return RawProcess(running.stream_endpoint, running.token)


def digest(content: object) -> str:
    return hashlib.sha256(content).hexdigest()  # type: ignore[arg-type]


def test_object_is_pulled_from_a_node_and_then_from_its_copy(nodes: Cluster) -> None:
    left, right = nodes.worker_nodes
    head = nodes.head_node
    assert head is not None
    content = os.urandom(30_000_001)
    with on(left) as source, on(right) as second, on(head) as third:
        object_id = source.put(content)
        assert second.pull(object_id, len(content), [left.node_id]).kind == ""
        assert third.pull(object_id, len(content), [right.node_id]).kind == ""
        (view,) = third.store.get([object_id])
        assert view is not None
        assert digest(view) == digest(content)


@pytest.mark.invariant("I1")
def test_node_killed_in_mid_transfer_is_told_and_the_pull_ends_or_finds_another(
    nodes: Cluster,
) -> None:
    left, right = nodes.worker_nodes
    head = nodes.head_node
    assert head is not None
    content = os.urandom(100_000_000)
    with on(left) as source, on(head) as other, on(right) as sink:
        shared = source.put(content)
        other.store.put(shared, [content])
        alone = source.put(os.urandom(40_000_000))
        os.kill(left.pid, signal.SIGSTOP)  # so that it certainly dies in mid-transfer
        pulls = [
            sink.start_pull(shared, len(content), [left.node_id, head.node_id]),
            sink.start_pull(alone, 40_000_000, [left.node_id]),
        ]
        killed_s = time.monotonic()
        os.kill(left.pid, signal.SIGKILL)
        ended = [sink.end_of_pull(pull) for pull in pulls]
        assert [end.kind for end in ended] == ["", "lost"]
        assert ended[1].lost_at == [bytes.fromhex(left.node_id)]
        (view,) = sink.store.get([shared])
        assert view is not None
        assert digest(view) == digest(content)
        assert sink.store.get([alone]) == [None]
        for process in (sink, other):
            died = process.first(node.NodeDied)
            assert died.node_id == bytes.fromhex(left.node_id)
            assert died.cause.kind == "node_died"
        assert time.monotonic() - killed_s < DEATH_SEEN_S
        # At once, as the death is known: no attempt, no silence to wait for.
        again = sink.pull(alone, 40_000_000, [left.node_id])
        assert again.kind == "lost"
        assert "gone" in again.message
        assert len(sink.all(node.NodeDied)) == 1


@pytest.mark.invariant("I1")
def test_stopped_source_is_given_up_after_its_silence(nodes: Cluster) -> None:
    left, right = nodes.worker_nodes
    with on(left) as source, on(right) as sink:
        warm = source.put(b"x")
        assert sink.pull(warm, 1, [left.node_id]).kind == ""  # a connection is kept
        object_id = source.put(os.urandom(10_000_000))
        os.kill(left.pid, signal.SIGSTOP)
        try:
            ended = sink.pull(object_id, 10_000_000, [left.node_id])
        finally:
            os.kill(left.pid, signal.SIGCONT)
        assert ended.kind == "lost"
        assert ended.lost_at == [bytes.fromhex(left.node_id)]
        assert sink.store.get([object_id]) == [None]
