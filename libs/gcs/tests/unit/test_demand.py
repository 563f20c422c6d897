"""What waits in the whole cluster, by shape: of nodes, of actors and groups without a place."""

from __future__ import annotations

import random

import pytest

from skate_gcs.machine.answers import Reported
from skate_gcs.machine.demand import Demand, DemandTable
from skate_gcs.machine.events import ListDemands, NodeUnregistered, ResourcesReported
from skate_gcs.machine.limits import GcsLimits
from skate_gcs.machine.records import BundleSpec, DeathCause, DeathKind, Strategy
from skate_scheduler import LabelRules, LabelSelector, ResourceSet

CPU = ResourceSet({"CPU": 10_000})
GPU = ResourceSet({"GPU": 10_000})
IN_ZONE = Strategy(labels=LabelRules((LabelSelector.parse({"zone": "a"}),)))

pytestmark = [pytest.mark.surface("Z2"), pytest.mark.surface("P16"), pytest.mark.surface("L9")]


def report(world, node_id, version, *demands, left_out=0):
    event = ResourcesReported(node_id, version, {}, {}, demands=demands, demands_left_out=left_out)
    answer = world.handle(event)
    assert isinstance(answer, Reported)
    assert answer.value


def listed(world):
    return world.handle(ListDemands())


def test_demands_of_nodes_are_summed_by_shape_and_strategy_the_most_numerous_first(world):
    one, other = world.add_node(beats=False), world.add_node(beats=False)
    report(world, one, 1, Demand(CPU, requests=4, backlog=10), Demand(GPU, requests=1))
    report(world, other, 1, Demand(CPU, requests=2, actors=1), Demand(CPU, IN_ZONE, requests=3))
    assert listed(world).demands == [
        Demand(CPU, requests=6, backlog=10, actors=1),
        Demand(CPU, IN_ZONE, requests=3),
        Demand(GPU, requests=1),
    ]


def test_report_replaces_the_one_before_and_one_without_demands_changes_nothing(world):
    node = world.add_node(beats=False)
    report(world, node, 1, Demand(CPU, requests=4))
    world.report(node, 2)
    assert listed(world).demands == [Demand(CPU, requests=4)]
    report(world, node, 3, Demand(GPU, requests=1))
    assert listed(world).demands == [Demand(GPU, requests=1)]
    report(world, node, 4)
    assert listed(world).demands == []


def test_report_that_was_overtaken_changes_no_demand(world):
    node = world.add_node(beats=False)
    report(world, node, 5, Demand(CPU, requests=4))
    report(world, node, 4, Demand(GPU, requests=9))
    assert listed(world).demands == [Demand(CPU, requests=4)]


def test_demand_goes_with_its_node(world):
    node = world.add_node(beats=False)
    report(world, node, 1, Demand(CPU, requests=4), left_out=3)
    world.handle(NodeUnregistered(node, DeathCause(DeathKind.NODE_DIED, "gone")))
    world.forgotten.clear()
    answer = listed(world)
    assert (answer.demands, answer.demands_left_out) == ([], 0)
    late = ResourcesReported(node, 2, {}, {}, demands=(Demand(CPU, requests=4),))
    assert world.handle(late) == Reported(False)
    assert listed(world).demands == []


def test_shape_is_infeasible_only_while_everybody_who_knows_it_says_so(world):
    one, other = world.add_node(beats=False), world.add_node(beats=False)
    report(world, one, 1, Demand(GPU, requests=1, is_infeasible=True))
    assert listed(world).demands == [Demand(GPU, requests=1, is_infeasible=True)]
    report(world, other, 1, Demand(GPU, requests=2))
    assert listed(world).demands == [Demand(GPU, requests=3)]


def test_actors_without_a_node_are_demand_until_a_node_takes_them(world):
    world.register(placement_resources={"CPU": 10_000})
    world.register(placement_resources={"CPU": 10_000})
    assert listed(world).demands == [Demand(CPU, actors=2, is_infeasible=True)]
    world.add_node(cpus=4)
    world.finish_start()
    world.finish_start()
    assert listed(world).demands == []


def test_actors_and_tasks_of_one_shape_are_one_row_and_labels_make_another(world):
    node = world.add_node(cpus=1, beats=False)
    report(world, node, 1, Demand(GPU, requests=2, is_infeasible=True))
    world.register(placement_resources={"GPU": 10_000})
    world.register(placement_resources={"GPU": 10_000}, strategy=IN_ZONE)
    assert listed(world).demands == [
        Demand(GPU, requests=2, actors=1, is_infeasible=True),
        Demand(GPU, IN_ZONE, actors=1, is_infeasible=True),
    ]


def test_actor_inside_a_waiting_group_is_no_demand_of_its_own(world):
    group_id = world.create_group(64)
    world.register(strategy=Strategy(group_id=group_id))
    answer = listed(world)
    assert answer.demands == []
    (group,) = answer.groups
    assert (group.count, group.bundles) == (1, ((BundleSpec({"CPU": 640_000}), 1),))


def test_groups_that_are_alike_are_one_row_with_their_bundles_counted(world):
    world.add_node(cpus=4)
    begun_s = world.now.unix_s
    for _ in range(3):
        world.create_group(8, 8, 2, strategy="SPREAD")
    world.advance(5.0)
    world.create_group(8, 2, 8, strategy="SPREAD")  # the order of bundles makes no difference
    world.create_group(8, 8, 2, strategy="PACK")
    spread, pack = listed(world).groups
    assert (spread.strategy, spread.count, spread.is_infeasible) == ("SPREAD", 4, True)
    assert dict(count_by_cpus(spread)) == {8: 2, 2: 1}
    assert spread.since_s == begun_s
    assert (pack.strategy, pack.count) == ("PACK", 1)


def count_by_cpus(group):
    return {bundle.resources["CPU"] // 10_000: count for bundle, count in group.bundles}


def test_group_that_fits_but_for_others_is_feasible_and_no_demand_once_it_is_placed(world):
    node = world.add_node(cpus=4)
    first = world.create_group(3)
    world.answer_prepare()
    world.create_group(2)
    (waiting,) = listed(world).groups
    assert not waiting.is_infeasible
    world.remove_group(first)
    world.returns.clear()
    world.report(node, 100, {"CPU": 40_000}, {"CPU": 40_000})
    world.advance(1.0)
    world.answer_prepare()
    assert listed(world).groups == []


def test_group_that_lost_a_bundle_wants_that_one_only(world):
    one, other = world.add_node(cpus=4), world.add_node(cpus=4)
    world.create_group(3, 3, strategy="STRICT_SPREAD")
    world.answer_prepare()
    world.answer_prepare()
    while world.commits_asked:
        world.answer_commit()
    world.handle(NodeUnregistered(other, DeathCause(DeathKind.NODE_DIED, "gone")))
    world.forgotten.clear()
    (group,) = listed(world).groups
    assert dict(count_by_cpus(group)) == {3: 1}
    assert one


def test_more_shapes_and_groups_than_the_limit_are_counted_as_left_out(make_world):
    world = make_world(GcsLimits(demand_shapes_max=2))
    node = world.add_node(cpus=1, beats=False)
    shapes = [ResourceSet({"CPU": 10_000 * n}) for n in range(2, 6)]
    report(world, node, 1, *(Demand(shape, requests=9) for shape in shapes), left_out=1)
    world.register(placement_resources={"GPU": 10_000})
    for cpus in (8, 16, 16, 32):
        world.create_group(cpus)
    answer = listed(world)
    assert [demand.shape for demand in answer.demands] == shapes[:2]
    assert answer.demands_left_out == 1 + 2 + 1  # at the node, of its report, of the answer
    assert [group.count for group in answer.groups] == [2, 1]
    assert answer.groups_left_out == 1


def test_sums_follow_any_reports_in_any_order():
    shapes = [ResourceSet({"CPU": 10_000 * n}) for n in range(1, 5)]
    for seed in range(50):
        rng = random.Random(seed)
        table = DemandTable(GcsLimits(demand_shapes_max=3))
        for version in range(40):
            node_id = b"%d" % rng.randrange(4)
            if rng.random() < 0.2:
                table.forget(node_id)
            else:
                demands = [
                    Demand(shape, requests=rng.randrange(3), is_infeasible=rng.random() < 0.5)
                    for shape in rng.sample(shapes, rng.randrange(5))
                ]
                table.reported(node_id, version - rng.randrange(4), demands, 0)
            table.check_invariants()
        for number in range(4):
            table.forget(b"%d" % number)
        assert table.with_actors(()) == ([], 0)
