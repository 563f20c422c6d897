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
    """All that waits, in order of first arrival, what can be held before what can not.

    O(requests that wait).
    """
    sums: dict[tuple[ResourceSet, Strategy], _Sum] = {}
    for request, item, backlog in leases.waiting():
        origin = leases.origin_of(request)
        if leases.place_of(request) is not None or (origin is not None and origin.is_foreign):
            continue
        strategy = DEFAULT_STRATEGY if origin is None else origin.strategy
        one = sums.setdefault((item.needs, strategy), _Sum())
        one.backlog += backlog
        one.has_home = one.has_home or not leases.is_homeless(request)
        if origin is None:
            one.actors += 1
        else:
            one.requests += 1
    for _, asked in borrowing.unanswered():
        if not asked.strategy.group_id:
            one = sums.setdefault((asked.resources, asked.strategy), _Sum())
            one.requests += 1
            one.backlog += asked.backlog
            one.has_home = True
    return [
        Demand(*key, one.requests, one.backlog, one.actors, not one.has_home)
        for key, one in sums.items()
    ]
