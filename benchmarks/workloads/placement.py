"""Placement groups."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.peers.peer import Peer
from benchmarks.plan import Sizes
from benchmarks.workload import Capability, Loop, Registry


def placement_groups(peer: Peer, sizes: Sizes) -> Iterator[Loop]:
    """Create a batch of groups, wait for them, remove them."""

    def run(count: int) -> None:
        for _ in range(count):
            peer.placement_groups(sizes.placement_groups)

    yield Loop(run, sizes.placement_groups)


def many_placement_groups(peer: Peer, sizes: Sizes) -> Iterator[Loop]:
    """The same in a larger batch, in which calls that many groups share pay."""

    def run(count: int) -> None:
        for _ in range(count):
            peer.placement_groups(sizes.many_placement_groups)

    yield Loop(run, sizes.many_placement_groups, is_single=True)


def register(registry: Registry) -> None:
    """Add the workloads of this module."""
    registry.shared(
        "placement_groups",
        "placement group create and remove",
        "groups/s",
        "100 groups of one bundle of 0.001 of a custom resource: create, wait for all, remove all",
        {Capability.PLACEMENT_GROUPS},
        source="ray_perf.py",
    )(placement_groups)
    registry.shared(
        "placement_groups_1000",
        "1,000 placement groups create and remove",
        "groups/s",
        "1,000 such groups at once",
        {Capability.PLACEMENT_GROUPS},
    )(many_placement_groups)
