"""Released objects are deleted on this node and on others."""

from __future__ import annotations

import os
from typing import Any

import pytest

from libs.raylet.tests.integration.transfer_nodes import MakeNode
from skate_raylet.service.transfer.wire import (
    DELETION_BYTES_MAX,
    Deletion,
    MalformedError,
    pack_deletion,
    unpack_ids,
    unpack_request,
)
from skate_rpc import node_protocol as node


def test_released_objects_are_deleted_on_every_node(play_nodes: Any, wait_until: Any) -> None:
    async def test(make: MakeNode) -> None:
        near, far = make("near"), make("far")
        near.knows(far)
        here = [near.put(b"x" * 100) for _ in range(3)]
        there = [far.put(b"x" * 100) for _ in range(1200)]
        kept = far.put(b"kept")
        near.transfers.delete_copies(node.DeleteCopies({near.node_id: here, far.node_id: there}))
        await wait_until(lambda: not any(map(near.store.contains, here)))
        await wait_until(lambda: not any(far.store.wait(there, 0, 0)))
        assert far.content(kept) == b"kept"

    play_nodes(test)


def test_deletion_waits_for_a_node_that_is_not_known_yet(play_nodes: Any, wait_until: Any) -> None:
    async def test(make: MakeNode) -> None:
        near, far = make("near"), make("far")
        object_id = far.put(b"x" * 100)
        near.transfers.delete_copies(node.DeleteCopies({far.node_id: [object_id]}))
        assert far.store.contains(object_id)
        near.knows(far)
        await wait_until(lambda: not far.store.contains(object_id))

    play_nodes(test)


def test_deletion_is_tried_again_until_the_node_answers(play_nodes: Any, wait_until: Any) -> None:
    async def test(make: MakeNode) -> None:
        near, far = make("near"), make("far")
        object_id = far.put(b"x" * 100)
        near.transfers.node_seen(far.node_id, far.endpoint + ".nobody-listens-here")
        near.transfers.delete_copies(node.DeleteCopies({far.node_id: [object_id]}))
        near.knows(far)
        await wait_until(lambda: not far.store.contains(object_id))

    play_nodes(test)


def test_deletion_keeps_its_ids_on_the_wire() -> None:
    object_ids = [os.urandom(28) for _ in range(100)] + [b"x"]
    request = pack_deletion(object_ids)
    head, body = request[: len(request) - 29 * 100 - 2], request[-(29 * 100 + 2) :]
    assert unpack_request(head) == Deletion(len(body))
    assert unpack_ids(body) == object_ids


@pytest.mark.parametrize("body", [b"\x05abc", b"\x00", b"\x02ab\x00"])
def test_malformed_list_of_ids_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedError):
        unpack_ids(body)


def test_too_many_ids_for_one_deletion_are_refused() -> None:
    with pytest.raises(ValueError, match="too many"):
        pack_deletion([b"x" * 28] * (DELETION_BYTES_MAX // 28))
