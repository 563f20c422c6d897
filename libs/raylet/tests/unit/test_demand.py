"""What waits on a node, by shape, and what of it the GCS is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from skate_raylet.machine import events as on
from skate_raylet.machine import loan_events as loan
from skate_raylet.machine import loans
from skate_raylet.machine.demand import Demand
from skate_raylet.machine.events import DEFAULT_STRATEGY, Strategy
from skate_raylet.machine.lease_machine import LeaseConfig
from skate_raylet.machine.node_machine import NodeMachine
from skate_raylet.machine.worker_pool_machine import PoolConfig
from skate_raylet.service.demand_report import SHAPES_MAX, DemandReport
from skate_rpc.gen.skate.v1 import gcs_pb2
from skate_scheduler import LabelRules, LabelSelector, NodeView, ResourceSet

JOB = b"\0\0\0\1"
HERE, THERE = b"here----node", b"there---node"
IN_ZONE = Strategy(labels=LabelRules((LabelSelector.parse({"zone": "in(a,b)"}),)))

pytestmark = [pytest.mark.surface("Z2"), pytest.mark.surface("L9")]


def amounts(**values: float) -> ResourceSet:
    return ResourceSet.from_amounts(values)


class Node:
    """A full node with two CPUs."""

    def __init__(self) -> None:
        config = LeaseConfig(amounts(CPU=2), HERE[:8], None, HERE)
        self.machine = NodeMachine(config, PoolConfig(4, 4, 100))
        self.numbers = 0
        self.request(CPU=2)  # its worker starts, which takes the CPUs
        assert self.demands() == []

    def tell(self, event: Any) -> list[Any]:
        said: list[Any] = list(self.machine.handle(event, 0.0))
        self.machine.check_invariants()
        return said

    def request(
        self,
        strategy: Strategy = DEFAULT_STRATEGY,
        backlog: int = 0,
        *,
        is_foreign: bool = False,
        holder: bytes = b"driver",
        **needs: float,
    ) -> list[Any]:
        self.numbers += 1
        return self.tell(
            on.LeaseRequested(
                holder,
                self.numbers,
                JOB,
                amounts(**needs),
                backlog=backlog,
                strategy=strategy,
                is_foreign=is_foreign,
            )
        )

    def demands(self) -> list[Demand]:
        return self.machine.demands()


@pytest.fixture
def node() -> Node:
    return Node()


def wanted(
    requests: int, strategy: Strategy = DEFAULT_STRATEGY, *, never: bool = False, **needs: float
) -> Demand:
    return Demand(amounts(**needs), strategy, requests, 0, 0, never)


def test_requests_are_counted_by_shape_and_strategy_with_what_is_behind_them(node: Node) -> None:
    node.request(CPU=1, backlog=7)
    node.request(CPU=1, holder=b"other")
    node.request(Strategy(is_spread=True), CPU=1)
    assert node.demands() == [
        Demand(amounts(CPU=1), DEFAULT_STRATEGY, 2, 7, 0, False),
        wanted(1, Strategy(is_spread=True), CPU=1),
    ]


def test_what_no_node_can_hold_is_infeasible_until_one_joins_that_can(node: Node) -> None:
    node.request(GPU=1)
    node.request(IN_ZONE, CPU=1)
    assert node.demands() == [
        wanted(1, never=True, GPU=1),
        wanted(1, IN_ZONE, never=True, CPU=1),
    ]
    node.tell(loan.NodeSeen(NodeView(THERE, amounts(GPU=1), amounts(), {"zone": "b"})))
    is_infeasible = {demand.shape: demand.is_infeasible for demand in node.demands()}
    # That node has the label that is asked for, but no CPU.
    assert is_infeasible == {amounts(GPU=1): False, amounts(CPU=1): True}


def test_request_that_another_node_is_asked_for_is_counted_where_it_was_made(node: Node) -> None:
    node.tell(loan.NodeSeen(NodeView(THERE, amounts(CPU=1), amounts(CPU=1))))
    (ask,) = node.request(CPU=1, backlog=3)
    assert isinstance(ask.message, loans.Ask)
    (demand,) = node.demands()
    assert (demand.requests, demand.backlog, demand.is_infeasible) == (1, 3, False)
    node.tell(
        loan.LenderSaid(THERE, loans.Granted(ask.message.ask_id, b"lease", b"w", "unix:/w", 7))
    )
    assert node.demands() == []


def test_request_of_another_nodes_holder_is_not_counted_here(node: Node) -> None:
    node.request(CPU=1, is_foreign=True)
    assert node.machine.statistics().waiting == 1
    assert node.demands() == []


def test_actor_that_waits_for_room_is_counted(node: Node) -> None:
    node.tell(on.ActorRequested(b"a" * 16, 0, JOB, amounts(CPU=1), amounts(CPU=1)))
    assert node.demands() == [Demand(amounts(CPU=1), DEFAULT_STRATEGY, 0, 0, 1, False)]


def test_request_inside_a_placement_group_is_not_counted(node: Node) -> None:
    node.request(Strategy(group_id=b"g" * 18), CPU=1)
    assert node.machine.statistics().waiting == 1
    assert node.demands() == []


def test_backlog_that_is_told_later_counts_here_and_at_the_node_that_is_asked(node: Node) -> None:
    node.request(CPU=1)
    number = node.numbers
    node.tell(on.BacklogTold(b"driver", ((number, 50), (number + 9, 7))))
    node.tell(on.BacklogTold(b"other", ((number, 8),)))
    (demand,) = node.demands()
    assert (demand.requests, demand.backlog) == (1, 50)
    (ask,) = node.tell(loan.NodeSeen(NodeView(THERE, amounts(CPU=1), amounts(CPU=1))))
    assert ask.message.backlog == 50
    node.tell(on.BacklogTold(b"driver", ((number, 20),)))
    (demand,) = node.demands()
    assert (demand.requests, demand.backlog) == (1, 20)


def test_demand_goes_with_its_holder(node: Node) -> None:
    node.request(CPU=1, holder=b"other")
    node.request(GPU=1, holder=b"other")
    node.tell(on.HolderGone(b"other"))
    assert node.demands() == []


# ---- what the GCS is told ----


class Reports:
    """A report after each change of ``waits``, as the heartbeat makes them."""

    def __init__(self) -> None:
        self.waits: Sequence[Demand] = []
        self.of_gcs = DemandReport(lambda: list(self.waits))

    def next(self, life: int | None = 1) -> gcs_pb2.ReportResourcesRequest:
        """``life`` None: the GCS does not answer."""
        report = gcs_pb2.ReportResourcesRequest()
        if self.of_gcs.is_new():
            self.of_gcs.fill(report)
        if life is None:
            self.of_gcs.unanswered()
        else:
            self.of_gcs.answered(life)
        return report


def test_demand_is_told_once_and_again_when_it_changes() -> None:
    reports = Reports()
    reports.waits = [wanted(2, CPU=1)]
    report = reports.next()
    assert report.has_demands
    (told,) = report.demands
    assert (dict(told.shape.amounts), told.count) == ({"CPU": 10_000}, 2)
    assert not told.HasField("strategy")
    assert not reports.next().has_demands
    reports.waits = []
    report = reports.next()
    assert report.has_demands
    assert not report.demands


def test_demand_is_told_again_when_it_is_not_known_to_have_arrived() -> None:
    reports = Reports()
    reports.waits = [wanted(2, CPU=1)]
    assert reports.next(life=None).has_demands
    assert reports.next().has_demands
    assert not reports.next(life=None).has_demands
    assert reports.next().has_demands


def test_demand_is_told_again_to_a_gcs_that_was_started_anew() -> None:
    reports = Reports()
    reports.waits = [wanted(2, CPU=1)]
    reports.next(life=1)
    assert not reports.next(life=2).has_demands
    assert len(reports.next(life=2).demands) == 1
    assert not reports.next(life=2).has_demands


def test_demand_is_told_with_its_strategy() -> None:
    reports = Reports()
    reports.waits = [wanted(1, IN_ZONE, never=True, CPU=1), wanted(1, Strategy(node_id=THERE))]
    zone, bound = reports.next().demands
    (expression,) = zone.strategy.selectors[0].expressions
    assert (expression.key, list(expression.values)) == ("zone", ["a", "b"])
    assert zone.infeasible
    assert (bound.strategy.node_id, bound.strategy.soft) == (THERE, False)


def test_more_shapes_than_fit_are_counted_and_the_most_numerous_told() -> None:
    reports = Reports()
    reports.waits = [wanted(n, CPU=n) for n in range(1, SHAPES_MAX + 6)]
    report = reports.next()
    assert len(report.demands) == SHAPES_MAX
    assert report.demands_left_out == 5
    assert min(one.count for one in report.demands) == 6
