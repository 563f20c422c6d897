"""What the GCS knows of what waits here, so that it is told only of a change.

Comes between the node's machine, which sums up what waits when it is asked (at a report, not at
each request), and the report to the GCS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from skate_raylet.machine.demand import Demand
from skate_raylet.machine.events import DEFAULT_STRATEGY
from skate_raylet.service.convert import machine_strategy_to_proto, resources_to_proto
from skate_rpc.gen.skate.v1 import gcs_pb2

SHAPES_MAX: Final = 1000  # in one report, the most numerous; as many as the GCS keeps


class DemandReport:
    """One node's. ``collect`` gives what waits at this moment."""

    def __init__(self, collect: Callable[[], Sequence[Demand]]) -> None:
        self._collect = collect
        self._told: Sequence[Demand] | None = None  # None: nothing that the GCS can be sure to know
        self._sent: Sequence[Demand] | None = None  # and not answered
        self._life = 0

    def is_new(self) -> bool:
        """Whether something else waits than the GCS was told. O(requests that wait)."""
        return self._told is None or self._collect() != self._told

    def fill(self, report: gcs_pb2.ReportResourcesRequest) -> None:
        """Put what waits into a report; :meth:`answered` or :meth:`unanswered` follows."""
        self._sent = demands = self._collect()
        shown = sorted(demands, key=lambda demand: -demand.count)[:SHAPES_MAX]
        report.has_demands = True
        report.demands.extend(map(_to_proto, shown))
        report.demands_left_out = len(demands) - len(shown)

    def answered(self, life: int) -> None:
        """The GCS of this life has taken a report; one that has just started knew nothing."""
        if self._sent is not None:
            self._told, self._sent = self._sent, None
        elif life != self._life:
            self._told = None
        self._life = life

    def unanswered(self) -> None:
        """Whether the GCS has taken the report is not known."""
        self._told = self._sent = None


def _to_proto(demand: Demand) -> gcs_pb2.PendingDemand:
    is_default = demand.strategy == DEFAULT_STRATEGY
    return gcs_pb2.PendingDemand(
        shape=resources_to_proto(demand.shape),
        strategy=None if is_default else machine_strategy_to_proto(demand.strategy),
        count=demand.requests,
        backlog=demand.backlog,
        actors=demand.actors,
        infeasible=demand.is_infeasible,
    )
