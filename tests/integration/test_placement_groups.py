"""Placement groups on real nodes: created, used, removed, and whole or nothing when nodes die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import skate
from skate.cluster_utils import Cluster
from skate.exceptions import (
    ActorDiedError,
    GetTimeoutError,
    TaskPlacementGroupRemovedError,
    WorkerCrashedError,
)
from skate.util import state
from skate.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Inside
from skate.util.state import list_placement_groups
from tests.waiting import wait_for

pytestmark = pytest.mark.invariant("I13")

WAIT_S = 30.0


@pytest.fixture
def one_node(session_root: Path) -> Iterator[None]:
    skate.init(num_cpus=4)
    yield
    skate.shutdown()


def free_cpus() -> float:
    return skate.available_resources().get("CPU", 0.0)


def created(group: PlacementGroup) -> PlacementGroup:
    assert group.wait(WAIT_S), placement_group_table(group)
    return group


@skate.remote
def where() -> str:
    node_id: str = skate.get_runtime_context().get_node_id()
    return node_id


@skate.remote
def current_group() -> PlacementGroup | None:
    return get_current_placement_group()


@skate.remote(max_retries=0)
def sleep_for_ever(marker: str) -> None:
    Path(marker).touch()
    time.sleep(1000)


@skate.remote(num_cpus=1)
class Actor:
    def where(self) -> tuple[str, int]:
        return skate.get_runtime_context().get_node_id(), os.getpid()

    def child_group(self) -> PlacementGroup | None:
        group: PlacementGroup | None = skate.get(current_group.remote())
        return group


# ---- one node ----


@pytest.mark.surface("P1", "P5", "Q10")
def test_group_is_ready_without_a_cpu_and_gives_everything_back(one_node: None) -> None:
    group = created(placement_group([{"CPU": 3}, {"CPU": 1}]))
    assert skate.get(group.ready(), timeout=WAIT_S) == group
    wait_for(lambda: free_cpus() == 0.0, "all four are reserved")
    assert skate.get(where.options(scheduling_strategy=Inside(group)).remote(), timeout=WAIT_S)
    plain = where.remote()
    with pytest.raises(GetTimeoutError):
        skate.get(plain, timeout=0.3)
    remove_placement_group(group)
    assert skate.get(plain, timeout=WAIT_S)
    wait_for(lambda: free_cpus() == 4.0, "all four are free")


@pytest.mark.surface("P4", "P5", "P12", "E25")
def test_ready_can_be_passed_and_fails_for_a_group_that_is_removed(one_node: None) -> None:
    @skate.remote
    def count(group: PlacementGroup) -> int:
        return group.bundle_count

    group = placement_group([{"CPU": 1}, {"CPU": 1}])
    assert skate.get(count.remote(group.ready()), timeout=WAIT_S) == 2
    waiting = placement_group([{"CPU": 100}])
    ready = waiting.ready()
    assert not waiting.wait(0.1)
    table = placement_group_table(waiting)
    assert (table["state"], table["stats"]["scheduling_state"]) == ("PENDING", "INFEASIBLE")
    assert "needs CPU 100 on one node" in table["stats"]["pending_reason"]
    remove_placement_group(waiting)
    for ref in (ready, waiting.ready()):
        with pytest.raises(TaskPlacementGroupRemovedError, match="was removed"):
            skate.get(ref, timeout=WAIT_S)


@pytest.mark.surface("P9", "E25")
def test_removal_kills_its_users_and_fails_who_waits(one_node: None, tmp_path: Path) -> None:
    group = created(placement_group([{"CPU": 1}, {"CPU": 1}]))
    inside = Inside(group)
    actor = Actor.options(scheduling_strategy=inside, max_restarts=-1).remote()  # type: ignore[attr-defined]
    skate.get(actor.where.remote(), timeout=WAIT_S)
    marker = tmp_path / "runs"
    running = sleep_for_ever.options(scheduling_strategy=inside).remote(str(marker))
    wait_for(marker.exists, "the task runs")
    waiting = where.options(scheduling_strategy=inside).remote()
    remove_placement_group(group)
    with pytest.raises(WorkerCrashedError, match="was removed"):
        skate.get(running, timeout=WAIT_S)
    with pytest.raises(ActorDiedError, match="was removed"):
        skate.get(actor.where.remote(), timeout=WAIT_S)
    with pytest.raises(TaskPlacementGroupRemovedError):
        skate.get(waiting, timeout=WAIT_S)
    with pytest.raises(TaskPlacementGroupRemovedError):
        skate.get(where.options(scheduling_strategy=inside).remote(), timeout=WAIT_S)
    remove_placement_group(group)
    wait_for(lambda: free_cpus() == 4.0, "everything is free")


@pytest.mark.surface("P8")
def test_children_are_captured_where_that_is_asked_for(one_node: None) -> None:
    group = created(placement_group([{"CPU": 2}]))
    out = Actor.options(scheduling_strategy=Inside(group)).remote()  # type: ignore[attr-defined]
    assert skate.get(out.child_group.remote(), timeout=WAIT_S) is None
    skate.kill(out)
    captured = Actor.options(  # type: ignore[attr-defined]
        scheduling_strategy=Inside(group, placement_group_capture_child_tasks=True)
    ).remote()
    assert skate.get(captured.child_group.remote(), timeout=WAIT_S) == group
    assert get_current_placement_group() is None


def test_nested_task_in_a_full_bundle_runs_on_its_parents_lent_cpu(one_node: None) -> None:
    @skate.remote
    def parent() -> PlacementGroup | None:
        group: PlacementGroup | None = skate.get(current_group.remote())
        return group

    group = created(placement_group([{"CPU": 1}]))
    strategy = Inside(group, placement_group_capture_child_tasks=True)
    ref = parent.options(scheduling_strategy=strategy).remote()
    assert skate.get(ref, timeout=WAIT_S) == group


@pytest.mark.surface("P6", "P11")
def test_names_and_handles_of_other_processes(one_node: None) -> None:
    @skate.remote
    def make() -> PlacementGroup:
        return placement_group([{"CPU": 1}], name="made inside")

    made: PlacementGroup = skate.get(make.remote(), timeout=WAIT_S)
    assert created(get_placement_group("made inside")) == made
    with pytest.raises(ValueError, match="made inside"):
        placement_group([{"CPU": 1}], name="made inside")
    remove_placement_group(made)
    with pytest.raises(ValueError, match="made inside"):
        get_placement_group("made inside")
    created(placement_group([{"CPU": 1}], name="made inside"))


def test_a_thousand_groups_come_and_go(one_node: None) -> None:
    groups = [placement_group([{"CPU": 0.001}]) for _ in range(1000)]
    assert all(group.wait(WAIT_S) for group in groups)
    for group in groups:
        remove_placement_group(group)
    wait_for(lambda: free_cpus() == 4.0, "everything is free")


@pytest.mark.surface("I9", "P10", "P18")
def test_groups_end_with_their_job_unless_detached(nodes: Cluster) -> None:
    nodes.add_node(num_cpus=4)
    nodes.connect(namespace="n")
    created(placement_group([{"CPU": 1}], name="mine"))
    created(placement_group([{"CPU": 1}], name="stays", lifetime="detached"))
    skate.shutdown()
    nodes.connect(namespace="n")
    wait_for(lambda: free_cpus() == 3.0, "one of them is gone")
    with pytest.raises(ValueError, match="mine"):
        get_placement_group("mine")
    remove_placement_group(get_placement_group("stays"))
    wait_for(lambda: free_cpus() == 4.0, "both are gone")


# ---- several nodes ----


@pytest.mark.surface("P2", "P7", "T15")
def test_strategies_decide_on_which_nodes(nodes: Cluster) -> None:
    for _ in range(3):
        nodes.add_node(num_cpus=2)
    nodes.connect()
    spread = created(placement_group([{"CPU": 1}] * 3, "STRICT_SPREAD"))
    assert len(set(placement_group_table(spread)["bundles_to_node_id"].values())) == 3
    pack = created(placement_group([{"CPU": 0.5}] * 2, "STRICT_PACK"))
    assert len(set(placement_group_table(pack)["bundles_to_node_id"].values())) == 1
    assert not placement_group([{"CPU": 1}] * 4, "STRICT_SPREAD").wait(0.2)
    homes = placement_group_table(spread)["bundles_to_node_id"]
    for index in range(3):
        ref = where.options(scheduling_strategy=Inside(spread, index)).remote()
        assert skate.get(ref, timeout=WAIT_S) == homes[index]
        actor = Actor.options(scheduling_strategy=Inside(spread, index)).remote()  # type: ignore[attr-defined]
        assert skate.get(actor.where.remote(), timeout=WAIT_S)[0] == homes[index]


@pytest.mark.surface("P7")
def test_any_bundle_on_any_node_serves_tasks_and_actors(nodes: Cluster, tmp_path: Path) -> None:
    for _ in range(3):
        nodes.add_node(num_cpus=1)
    nodes.connect()
    group = created(placement_group([{"CPU": 1}] * 3, "STRICT_SPREAD"))

    @skate.remote
    def meet(name: str) -> str:
        (tmp_path / name).touch()
        deadline_s = time.monotonic() + WAIT_S
        while len(os.listdir(tmp_path)) < 3:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        return str(skate.get_runtime_context().get_node_id())

    refs = [meet.options(scheduling_strategy=Inside(group)).remote(str(n)) for n in range(3)]
    assert len(set(skate.get(refs, timeout=WAIT_S))) == 3
    actors = [Actor.options(scheduling_strategy=Inside(group)).remote() for _ in range(3)]  # type: ignore[attr-defined]
    places = skate.get([actor.where.remote() for actor in actors], timeout=WAIT_S)
    assert len({node_id for node_id, _ in places}) == 3


@pytest.mark.surface("P13")
def test_bundles_of_a_node_that_is_killed_are_placed_again(nodes: Cluster) -> None:
    nodes.add_node(num_cpus=0)
    started = {node.node_id: node for node in (nodes.add_node(num_cpus=1) for _ in range(2))}
    nodes.connect()
    group = created(placement_group([{"CPU": 1}] * 2, "STRICT_SPREAD"))
    homes = placement_group_table(group)["bundles_to_node_id"]
    actors = [
        Actor.options(scheduling_strategy=Inside(group, index), max_restarts=2).remote()  # type: ignore[attr-defined]
        for index in range(2)
    ]
    before = skate.get([actor.where.remote() for actor in actors], timeout=WAIT_S)
    assert [node_id for node_id, _ in before] == [homes[0], homes[1]]
    nodes.remove_node(started[homes[0]], allow_graceful=False)
    wait_for(lambda: placement_group_table(group)["state"] == "RESCHEDULING", "the loss is seen")
    assert skate.get(actors[1].where.remote(), timeout=WAIT_S) == before[1], "it is left alone"
    fresh = nodes.add_node(num_cpus=1)
    wait_for(lambda: placement_group_table(group)["state"] == "CREATED", "it is whole again")
    assert placement_group_table(group)["bundles_to_node_id"] == {0: fresh.node_id, 1: homes[1]}

    def moved() -> bool:
        try:
            return bool(skate.get(actors[0].where.remote(), timeout=5)[0] == fresh.node_id)
        except skate.exceptions.RayActorError:
            return False

    wait_for(moved, "the actor lives in its bundle again")


@pytest.mark.surface("P3")
def test_node_that_is_stopped_while_it_is_asked_delays_the_group_and_nothing_else(
    nodes: Cluster,
) -> None:
    nodes.add_node(num_cpus=0)
    stopped = nodes.add_node(num_cpus=1)
    nodes.add_node(num_cpus=1)
    nodes.connect()
    os.kill(stopped.pid, signal.SIGSTOP)
    try:
        group = placement_group([{"CPU": 1}] * 2, "STRICT_SPREAD")
        assert not group.wait(1.0)
        assert placement_group_table(group)["state"] == "PENDING"
    finally:
        os.kill(stopped.pid, signal.SIGCONT)
    created(group)
    remove_placement_group(group)
    wait_for(lambda: free_cpus() == 2.0, "nothing is left on either")


@pytest.mark.surface("S4")
def test_groups_are_listed_with_filters_and_found_by_id(one_node: None) -> None:
    there = placement_group([{"CPU": 1}, {"CPU": 2}], strategy="SPREAD", name="there")
    never = placement_group([{"CPU": 64}], lifetime="detached", name="never")
    assert there.wait(WAIT_S)
    rows = {row.name: row for row in list_placement_groups()}
    assert rows.keys() == {"there", "never"}
    row = rows["there"]
    assert (row.state, row["strategy"], row.is_detached) == ("CREATED", "SPREAD", False)
    assert [bundle["unit_resources"] for bundle in row.bundles] == [{"CPU": 1.0}, {"CPU": 2.0}]
    assert all(bundle["node_id"] == skate.nodes()[0]["NodeID"] for bundle in row.bundles)
    assert row.creator_job_id == skate.get_runtime_context().get_job_id()
    (waiting,) = list_placement_groups(filters=[("state", "!=", "CREATED")])
    assert (waiting.placement_group_id, waiting.is_detached) == (never.id.hex(), True)
    assert "CPU 64" in waiting.stats["pending_reason"]
    assert list_placement_groups(filters=[("name", "=", "there"), ("state", "=", "REMOVED")]) == []
    assert len(list_placement_groups(limit=1)) == 1
    found = state.get_placement_group(never.id.hex())
    assert found is not None
    assert found.asdict() == waiting.asdict()
    remove_placement_group(never)
    wait_for(lambda: state.get_placement_group(never.id.hex()).state == "REMOVED", "removed")
    assert state.get_placement_group("ab" * 18) is None
    with pytest.raises(ValueError, match="have no field 'bundles'"):
        list_placement_groups(filters=[("bundles", "=", [])])
    with pytest.raises(ValueError, match="limit"):
        list_placement_groups(limit=0)
