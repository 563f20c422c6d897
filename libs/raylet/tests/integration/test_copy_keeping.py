"""Copies whose primary is lost become primary ones, on this node and on others."""

from __future__ import annotations

import os
from typing import Any

from libs.raylet.tests.integration.transfer_nodes import PROCESS, MakeNode
from skate_raylet.service.transfer.wire import KeepRequest, pack_keeping, unpack_ids, unpack_request
from skate_rpc import node_protocol as node


def test_copies_are_kept_on_every_node_and_missing_ones_are_named(
    play_nodes: Any, wait_until: Any
) -> None:
    async def test(make: MakeNode) -> None:
        near, far = make("near"), make("far")
        near.knows(far)
        ids = [os.urandom(28) for _ in range(3)]
        for store in (near.store, far.store):
            for object_id in ids[:2]:
                store.put(object_id, [b"x" * 640], evictable=True)
        for _ in range(2):  # it may be repeated
            near.kept.clear()
            wanted = {near.node_id: ids, far.node_id: ids}
            near.transfers.keep_copies(PROCESS, node.KeepCopies(wanted))
            await wait_until(lambda: len(near.kept) == 2)
            assert {answer.node_id for answer in near.kept} == {near.node_id, far.node_id}
            assert all(answer.object_ids == ids[:2] for answer in near.kept)
            assert all(answer.gone == ids[2:] for answer in near.kept)
        for server in (near.server, far.server):
            counts = server.statistics()
            assert (counts.primary_bytes, counts.evictable_bytes) == (1280, 0)

    play_nodes(test)


def test_keeping_waits_for_a_node_until_it_can_be_reached(play_nodes: Any, wait_until: Any) -> None:
    async def test(make: MakeNode) -> None:
        near, far = make("near"), make("far")
        object_id = os.urandom(28)
        far.store.put(object_id, [b"x" * 640], evictable=True)
        near.transfers.node_seen(far.node_id, far.endpoint + ".nobody-listens-here")
        near.transfers.keep_copies(PROCESS, node.KeepCopies({far.node_id: [object_id]}))
        near.knows(far)
        await wait_until(lambda: near.kept == [node.CopiesKept(far.node_id, [object_id], [])])

    play_nodes(test)


def test_keeping_of_many_copies_fits_the_wire(play_nodes: Any, wait_until: Any) -> None:
    async def test(make: MakeNode) -> None:
        near, far = make("near"), make("far")
        near.knows(far)
        ids = [far.put(b"x") for _ in range(1200)]
        near.transfers.keep_copies(PROCESS, node.KeepCopies({far.node_id: ids}))
        await wait_until(lambda: sum(len(answer.object_ids) for answer in near.kept) == 1200)

    play_nodes(test)


def test_keeping_names_its_ids_on_the_wire() -> None:
    ids = [os.urandom(28) for _ in range(10)]
    request = pack_keeping(ids)
    head, body = request[: -29 * 10], request[-29 * 10 :]
    assert unpack_request(head) == KeepRequest(len(body))
    assert unpack_ids(body) == ids
