"""Objects that are passed on while they arrive."""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest

from libs.raylet.tests.integration.transfer_nodes import MakeNode, Node, served_bytes
from skate_rpc import node_protocol as node

SIZE_BYTES = (40 << 20) + 5
PART_BYTES = 10 << 20


class Arriving:
    """A copy on its way to a node, whose bytes come when the test says so."""

    def __init__(self, relay: Node, content: bytes) -> None:
        self.object_id = os.urandom(28)
        self._content = content
        self._relay = relay
        self._arrivals = relay.transfers._arrivals
        self._arrivals.begin(self.object_id)

    def make_room(self) -> None:
        self._view = self._relay.store.create(self.object_id, len(self._content))
        self._arrivals.has_room(self.object_id, self._view[:])

    def receive(self, start: int, end: int, range_start: int = 0) -> None:
        self._view[start:end] = self._content[start:end]
        self._arrivals.received(self.object_id, range_start, end)

    def seal(self) -> None:
        self._arrivals.end(self.object_id, is_whole=True)
        self._relay.store.seal(self.object_id)

    def give_up(self) -> None:
        self._arrivals.end(self.object_id, is_whole=False)
        self._relay.store.abort(self.object_id)


def test_bytes_are_passed_on_as_they_come(play_nodes: Any, wait_until: Any) -> None:
    async def test(make: MakeNode) -> None:
        relay, sink, home = make("relay"), make("sink"), make("home")
        content = os.urandom(SIZE_BYTES)
        coming = Arriving(relay, content)
        pull = sink.ask(coming.object_id, SIZE_BYTES, home, arriving_at=[relay])
        coming.make_room()
        coming.receive(0, PART_BYTES)
        await wait_until(lambda: served_bytes(relay) == PART_BYTES)
        # A second range, as when there are two sources: it counts once there is no gap before it.
        coming.receive(2 * PART_BYTES, 3 * PART_BYTES, 2 * PART_BYTES)
        coming.receive(PART_BYTES, 2 * PART_BYTES)
        await wait_until(lambda: served_bytes(relay) == 3 * PART_BYTES)
        coming.receive(3 * PART_BYTES, SIZE_BYTES, 2 * PART_BYTES)
        coming.seal()
        assert await sink.ended_as(pull) == node.PullEnded(pull)
        assert sink.content(coming.object_id) == content
        assert served_bytes(home) == 0
        # Nothing holds the relay's copy any more.
        relay.store.delete([coming.object_id])
        await wait_until(lambda: relay.server.statistics().used_bytes == 0)

    play_nodes(test)


@pytest.mark.invariant("I3")
def test_copy_that_does_not_come_is_had_from_the_stand_in_from_that_byte_on(
    play_nodes: Any, wait_until: Any
) -> None:
    async def test(make: MakeNode) -> None:
        relay, sink, home = make("relay"), make("sink"), make("home")
        content = os.urandom(SIZE_BYTES)
        coming = Arriving(relay, content)
        home.store.put(coming.object_id, [content])
        pull = sink.ask(coming.object_id, SIZE_BYTES, home, arriving_at=[relay])
        coming.make_room()
        coming.receive(0, PART_BYTES)
        await wait_until(lambda: served_bytes(relay) == PART_BYTES)
        coming.give_up()
        assert (await sink.ended_as(pull)).kind == ""
        assert sink.content(coming.object_id) == content
        await wait_until(lambda: served_bytes(home) == SIZE_BYTES - PART_BYTES)
        await wait_until(lambda: relay.server.statistics().used_bytes == 0)

    play_nodes(test)


def test_copy_that_nobody_brings_is_had_from_the_stand_in(play_nodes: Any) -> None:
    async def test(make: MakeNode) -> None:
        relay, sink, home = make("relay"), make("sink"), make("home")
        object_id = home.put(b"content")
        pull = sink.ask(object_id, 7, home, arriving_at=[relay])
        assert (await sink.ended_as(pull)).kind == ""
        assert sink.content(object_id) == b"content"

    play_nodes(test)


def test_copy_that_came_meanwhile_is_served_from_the_store(play_nodes: Any) -> None:
    async def test(make: MakeNode) -> None:
        relay, sink, home = make("relay"), make("sink"), make("home")
        object_id = relay.put(b"content")
        pull = sink.ask(object_id, 7, home, arriving_at=[relay])
        assert (await sink.ended_as(pull)).kind == ""
        assert served_bytes(home) == 0

    play_nodes(test)


def test_chain_of_nodes_brings_each_its_copy_and_the_first_serves_once(
    play_nodes: Any, wait_until: Any
) -> None:
    async def test(make: MakeNode) -> None:
        home, *others = [make(f"n{number}", bytes_max=64 << 20) for number in range(5)]
        content = os.urandom(SIZE_BYTES)
        object_id = home.put(content)
        pulls = [others[0].ask(object_id, SIZE_BYTES, home)]
        for before, one in itertools.pairwise(others):
            pulls.append(one.ask(object_id, SIZE_BYTES, home, arriving_at=[before]))
        for one, pull in zip(others, pulls, strict=True):
            assert (await one.ended_as(pull)).kind == ""
            assert one.content(object_id) == content
        for one in (home, *others[:-1]):
            await wait_until(lambda one=one: served_bytes(one) == SIZE_BYTES)

    play_nodes(test)
