"""Objects between nodes that are machines of their own as far as the network is concerned."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from skate_node import RunningNode
from skate_rpc import node_protocol as node
from tests.namespaces import Network, why_not
from tests.raw_process import RawProcess

SIZE_BYTES = 100_000_000


@pytest.fixture
def network(session_root: Path) -> Iterator[Network]:
    """Two hosts on a switch."""
    if reason := why_not():
        pytest.skip(reason)
    with Network(2) as made:
        yield made


def on(running: RunningNode) -> RawProcess:
    return RawProcess(running.stream_endpoint, running.token)


def test_object_crosses_from_one_host_to_another_unchanged(network: Network) -> None:
    head = network.start_head(0)
    other = network.start_node(1, head)
    with on(head) as source, on(other) as sink:
        content = os.urandom(SIZE_BYTES)
        object_id = source.put(content)
        assert sink.pull(object_id, SIZE_BYTES, [head.node_id]).kind == ""
        (view,) = sink.store.get([object_id])
        assert view is not None
        assert hashlib.sha256(view).digest() == hashlib.sha256(content).digest()
        back = sink.put(b"and back")
        assert source.pull(back, 8, [other.node_id]).kind == ""


@pytest.mark.invariant("I1", "I22")
def test_host_whose_cable_is_out_ends_the_pull_and_is_told_to_be_dead(network: Network) -> None:
    head = network.start_head(0)
    other = network.start_node(1, head)
    with on(head) as sink, on(other) as source:
        object_id = source.put(bytes(1000))
        warm = source.put(b"x")
        assert sink.pull(warm, 1, [other.node_id]).kind == ""
        network.set_link(1, is_up=False)
        ended = sink.pull(object_id, 1000, [other.node_id])
        assert ended.kind == "lost"
        assert ended.lost_at == [bytes.fromhex(other.node_id)]
        assert sink.first(node.NodeDied).node_id == bytes.fromhex(other.node_id)
