"""What waits on a node for room, by shape: what the GCS is told of it.

Every request is counted once in the cluster, at the node of the process that made it: also while
another node is asked to serve it, and not by that one. An actor is counted by the GCS until a node
has taken it, and by that node until it has room. What waits inside a placement group is not
counted: no node could be added for it; its group is the demand.

Comes after ``lease_machine`` and ``borrowing``, which know what waits; before the report to the
GCS.
"""

from __future__ import annotations

import msgspec

from skate_raylet.machine.borrowing import Borrowing
from skate_raylet.machine.events import DEFAULT_STRATEGY, Strategy
from skate_raylet.machine.lease_machine import LeaseMachine
from skate_scheduler import ResourceSet


class Demand(msgspec.Struct, frozen=True):
    """What waits for one shape, under one strategy."""

    shape: ResourceSet
    strategy: Strategy
    requests: int  # tasks that a worker was asked for
    backlog: int  # tasks behind those
    actors: int
    is_infeasible: bool  # no live node could ever hold it

    @property
    def count(self) -> int:
        """Tasks and actors."""
        return self.requests + self.backlog + self.actors


class _Sum(msgspec.Struct):
    requests: int = 0
    backlog: int = 0
    actors: int = 0
    has_home: bool = False  # at some node


def collect_demands(leases: LeaseMachine, borrowing: Borrowing) -> list[Demand]:
    """All that waits, by strategy and shape. O(requests that wait), about a microsecond each."""
    sums: dict[Strategy, dict[ResourceSet, _Sum]] = {}
    # A strategy costs more to hash than all the rest, and most are the default.
    default = sums[DEFAULT_STRATEGY] = {}

    def sum_of(needs: ResourceSet, strategy: Strategy) -> _Sum:
        is_default = strategy is DEFAULT_STRATEGY
        shapes = default if is_default else sums.setdefault(strategy, {})
        one = shapes.get(needs)
        if one is None:
            one = shapes[needs] = _Sum()
        return one

    for needs, origin, backlog, has_home in leases.wanted():
        if origin is None:
            one = sum_of(needs, DEFAULT_STRATEGY)
            one.actors += 1
        elif origin.is_foreign:
            continue
        else:
            one = sum_of(needs, origin.strategy)
            one.requests += 1
            one.backlog += backlog
        one.has_home = one.has_home or has_home
    for _, asked in borrowing.unanswered():
        if not asked.strategy.group_id:
            one = sum_of(asked.resources, asked.strategy)
            one.requests += 1
            one.backlog += asked.backlog
            one.has_home = True
    return [
        Demand(shape, strategy, one.requests, one.backlog, one.actors, not one.has_home)
        for strategy, shapes in sums.items()
        for shape, one in shapes.items()
    ]
