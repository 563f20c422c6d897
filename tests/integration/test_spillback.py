"""Plain tasks on several nodes: who runs what, and what happens when a node or an owner dies."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import skate
from skate.cluster_utils import Cluster
from skate.util.scheduling_strategies import (
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
)
from tests.waiting import wait_for

WAIT_S = 30.0


def free(name: str) -> float:
    return skate.available_resources().get(name, 0.0)


@skate.remote
def where() -> str:
    node_id: str = skate.get_runtime_context().get_node_id()
    return node_id


@skate.remote
def meet(folder: str, name: str, count: int) -> str:
    """Return when ``count`` tasks are here at the same time."""
    Path(folder, name).touch()
    deadline_s = time.monotonic() + WAIT_S
    while len(os.listdir(folder)) < count:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    node_id: str = skate.get_runtime_context().get_node_id()
    return node_id


@pytest.mark.surface("L1", "L10", "Q10")
def test_tasks_fill_every_node_of_the_cluster(nodes: Cluster, tmp_path: Path) -> None:
    started = [nodes.add_node(num_cpus=2) for _ in range(3)]
    nodes.connect()

    refs = [meet.remote(str(tmp_path), str(number), 6) for number in range(6)]
    places = skate.get(refs, timeout=WAIT_S)

    assert sorted(places) == sorted([node.node_id for node in started] * 2)
    wait_for(lambda: free("CPU") == 6, "every lease is returned")


def test_task_runs_where_its_resource_is(nodes: Cluster) -> None:
    nodes.add_node(num_cpus=2)
    other = nodes.add_node(num_cpus=1, resources={"disk": 2})
    nodes.connect()

    refs = [where.options(resources={"disk": 1}).remote() for _ in range(20)]

    assert set(skate.get(refs, timeout=WAIT_S)) == {other.node_id}
    wait_for(lambda: free("disk") == 2, "the leases are returned")


def test_task_that_no_node_can_hold_fails_and_says_what_the_most_is(nodes: Cluster) -> None:
    nodes.add_node(num_cpus=2, infeasible_timeout_s=0.2)
    nodes.add_node(num_cpus=3)
    nodes.connect()

    with pytest.raises(
        skate.exceptions.TaskUnschedulableError, match=r"most that any has is CPU 3"
    ):
        skate.get(where.options(num_cpus=4).remote(), timeout=WAIT_S)


def test_task_waits_for_the_node_that_will_have_its_resource(nodes: Cluster) -> None:
    nodes.add_node(num_cpus=1)
    nodes.connect()
    ref = where.options(resources={"late": 1}).remote()

    other = nodes.add_node(num_cpus=1, resources={"late": 1})

    assert skate.get(ref, timeout=WAIT_S) == other.node_id


@skate.remote
def family(count: int) -> tuple[str, list[str]]:
    children = skate.get([where.remote() for _ in range(count)], timeout=WAIT_S)
    return skate.get_runtime_context().get_node_id(), children


def test_nested_tasks_run_from_a_far_node(nodes: Cluster) -> None:
    head = nodes.add_node(num_cpus=1)
    other = nodes.add_node(num_cpus=1, resources={"disk": 1})
    nodes.connect()

    place, children = skate.get(family.options(resources={"disk": 1}).remote(8), timeout=WAIT_S)

    assert place == other.node_id
    assert set(children) <= {head.node_id, other.node_id}
    wait_for(lambda: free("CPU") == 2, "every lease is returned")


@skate.remote(max_retries=2, resources={"disk": 1})
def note_and_wait(folder: str, name: str) -> str:
    place: str = skate.get_runtime_context().get_node_id()
    with open(Path(folder, name), "a") as file:
        file.write(f"{place}\n")
    while not Path(folder, "go").exists():
        time.sleep(0.01)
    return place


@pytest.mark.invariant("I8")
def test_tasks_of_a_dead_node_run_elsewhere_within_their_retries(
    nodes: Cluster, tmp_path: Path
) -> None:
    nodes.add_node(num_cpus=1)
    doomed = nodes.add_node(num_cpus=2, resources={"disk": 2})
    nodes.connect()
    refs = [note_and_wait.remote(str(tmp_path), f"t{number}") for number in range(2)]
    wait_for(lambda: len(list(tmp_path.glob("t*"))) == 2, "both tasks run")

    heir = nodes.add_node(num_cpus=2, resources={"disk": 2})
    nodes.remove_node(doomed, allow_graceful=False)
    wait_for(
        lambda: all(len(p.read_text().split()) == 2 for p in tmp_path.glob("t*")), "both run again"
    )
    (tmp_path / "go").touch()

    assert skate.get(refs, timeout=WAIT_S) == [heir.node_id] * 2
    for path in tmp_path.glob("t*"):
        assert path.read_text().split() == [doomed.node_id, heir.node_id]


@pytest.mark.invariant("I7")
def test_task_without_retries_is_not_run_again_when_its_node_dies(
    nodes: Cluster, tmp_path: Path
) -> None:
    nodes.add_node(num_cpus=1)
    doomed = nodes.add_node(num_cpus=1, resources={"disk": 1})
    nodes.connect()
    ref = note_and_wait.options(max_retries=0).remote(str(tmp_path), "t0")
    wait_for(lambda: list(tmp_path.glob("t*")), "the task runs")
    nodes.add_node(num_cpus=1, resources={"disk": 1})

    nodes.remove_node(doomed, allow_graceful=False)

    with pytest.raises(skate.exceptions.WorkerCrashedError):
        skate.get(ref, timeout=WAIT_S)
    assert (tmp_path / "t0").read_text().split() == [doomed.node_id]


DRIVER = """
import sys, time, skate
from pathlib import Path
skate.init(address=sys.argv[1])
@skate.remote(resources={"disk": 1})
def hold(path):
    Path(path).touch()
    time.sleep(600)
refs = [hold.remote(f"{sys.argv[2]}/t{n}") for n in range(2)]
skate.get(refs)
"""


@pytest.mark.invariant("I23")
def test_death_of_a_driver_frees_its_leases_on_other_nodes(nodes: Cluster, tmp_path: Path) -> None:
    nodes.add_node(num_cpus=1)
    nodes.add_node(num_cpus=2, resources={"disk": 2})
    nodes.connect()
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, nodes.address, str(tmp_path)])
    try:
        wait_for(lambda: len(list(tmp_path.glob("t*"))) == 2, "its tasks run")
        wait_for(lambda: free("disk") == 0, "its leases are reported")
        driver.send_signal(signal.SIGKILL)
    finally:
        driver.kill()
        driver.wait(WAIT_S)

    wait_for(lambda: free("disk") == 2, "its leases are free")
    wait_for(lambda: free("CPU") == 3, "its CPUs are free")


def test_forced_cancel_kills_a_task_on_another_node(nodes: Cluster, tmp_path: Path) -> None:
    nodes.add_node(num_cpus=1)
    nodes.add_node(num_cpus=1, resources={"disk": 1})
    nodes.connect()
    ref = note_and_wait.options(max_retries=0).remote(str(tmp_path), "t0")
    wait_for(lambda: list(tmp_path.glob("t*")), "the task runs")

    skate.cancel(ref, force=True)

    with pytest.raises(skate.exceptions.TaskCancelledError):
        skate.get(ref, timeout=WAIT_S)
    wait_for(lambda: free("disk") == 1, "its lease is free")


def test_environment_and_modules_of_the_job_reach_other_nodes(
    nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "far_module.py").write_text("VALUE = 41\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    nodes.add_node(num_cpus=1)
    nodes.add_node(num_cpus=1, resources={"disk": 1})
    nodes.connect()

    @skate.remote(resources={"disk": 1}, runtime_env={"env_vars": {"FAR": "1"}})
    def look() -> tuple[int, str]:
        import far_module  # type: ignore[import-not-found]

        return far_module.VALUE + 1, os.environ["FAR"]

    assert skate.get(look.remote(), timeout=WAIT_S) == (42, "1")


def test_worker_that_dies_on_another_node_tells_its_true_cause(nodes: Cluster) -> None:
    nodes.add_node(num_cpus=1)
    nodes.add_node(num_cpus=1, resources={"disk": 1})
    nodes.connect()

    @skate.remote(resources={"disk": 1}, max_retries=0)
    def die() -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    with pytest.raises(skate.exceptions.WorkerCrashedError, match="SIGSEGV"):
        skate.get(die.remote(), timeout=WAIT_S)


def bound_to(node: Any, *, soft: bool) -> Any:
    return where.options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(node.node_id, soft=soft)
    )


@pytest.mark.surface("L4")
def test_task_bound_to_a_node_runs_there_and_waits_while_it_is_busy(
    nodes: Cluster, tmp_path: Path
) -> None:
    nodes.add_node(num_cpus=4)
    other = nodes.add_node(num_cpus=1, resources={"disk": 1})
    nodes.connect()
    held = note_and_wait.remote(str(tmp_path), "t0")
    wait_for(lambda: list(tmp_path.glob("t*")), "the other node is busy")

    refs = [bound_to(other, soft=soft).remote() for soft in (False, True) for _ in range(3)]
    assert skate.wait(refs, num_returns=1, timeout=0.5)[0] == []
    (tmp_path / "go").touch()

    assert set(skate.get(refs, timeout=WAIT_S)) == {other.node_id}
    assert skate.get(held, timeout=WAIT_S) == other.node_id


def test_task_bound_to_its_owners_node_never_leaves_it(nodes: Cluster) -> None:
    head = nodes.add_node(num_cpus=1)
    nodes.add_node(num_cpus=4)
    nodes.connect()

    refs = [bound_to(head, soft=False).remote() for _ in range(10)]

    assert set(skate.get(refs, timeout=WAIT_S)) == {head.node_id}


def test_task_bound_to_a_dead_node_fails_or_goes_elsewhere(nodes: Cluster) -> None:
    head = nodes.add_node(num_cpus=1)
    other = nodes.add_node(num_cpus=1)
    nodes.connect()
    assert skate.get(bound_to(other, soft=False).remote(), timeout=WAIT_S) == other.node_id
    nodes.remove_node(other)
    nodes.wait_for_nodes()

    assert skate.get(bound_to(other, soft=True).remote(), timeout=WAIT_S) == head.node_id
    with pytest.raises(skate.exceptions.TaskUnschedulableError, match=other.node_id):
        skate.get(bound_to(other, soft=False).remote(), timeout=WAIT_S)


@pytest.mark.surface("L2")
def test_spread_tasks_use_every_node(nodes: Cluster, tmp_path: Path) -> None:
    started = [nodes.add_node(num_cpus=4) for _ in range(3)]
    nodes.connect()

    spread = meet.options(scheduling_strategy="SPREAD")
    everywhere = sorted(node.node_id for node in started)
    deadline_s = time.monotonic() + WAIT_S
    for number in itertools.count():
        folder = tmp_path / str(number)
        folder.mkdir()
        round_ = [spread.remote(str(folder), str(person), 3) for person in range(3)]
        places = sorted(skate.get(round_, timeout=WAIT_S))
        if places == everywhere:
            return
        # The driver's node may not have heard of the last one when the first round was placed.
        assert time.monotonic() < deadline_s, f"round {number} ran on {places}"


@skate.remote(num_cpus=0, max_restarts=1)
class Dweller:
    def place(self) -> str:
        node_id: str = skate.get_runtime_context().get_node_id()
        return node_id


def dweller(node: Any, *, soft: bool) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node.node_id, soft=soft)
    return Dweller.options(scheduling_strategy=strategy).remote()


def test_actors_go_where_they_are_bound_to_or_take_turns(nodes: Cluster) -> None:
    started = [nodes.add_node(num_cpus=1) for _ in range(3)]
    nodes.connect()

    bound = [dweller(node, soft=False) for node in started for _ in range(2)]
    places = skate.get([actor.place.remote() for actor in bound], timeout=WAIT_S)
    assert places == [node.node_id for node in started for _ in range(2)]

    spread = [Dweller.options(scheduling_strategy="SPREAD").remote() for _ in range(6)]
    places = skate.get([actor.place.remote() for actor in spread], timeout=WAIT_S)
    assert sorted(places) == sorted([node.node_id for node in started] * 2)


def test_actor_bound_to_a_dead_node_fails_or_lives_elsewhere(nodes: Cluster) -> None:
    head = nodes.add_node(num_cpus=1)
    other = nodes.add_node(num_cpus=1)
    nodes.connect()
    movable = dweller(other, soft=True)
    assert skate.get(movable.place.remote(), timeout=WAIT_S) == other.node_id
    nodes.remove_node(other)
    nodes.wait_for_nodes()

    assert skate.get(dweller(other, soft=True).place.remote(), timeout=WAIT_S) == head.node_id
    with pytest.raises(skate.exceptions.ActorUnschedulableError, match=other.node_id):
        skate.get(dweller(other, soft=False).place.remote(), timeout=WAIT_S)
    wait_for(lambda: place_of(movable) == head.node_id, "the actor restarts on the head")


@pytest.mark.surface("L5", "L6", "L7", "L8", "T15", "T17")
def test_labels_choose_the_node_of_tasks_and_actors(nodes: Cluster) -> None:
    head = nodes.add_node(num_cpus=4, labels={"zone": "a"})
    far = nodes.add_node(num_cpus=1, labels={"zone": "b", "disk": "ssd"})
    nodes.connect()
    strategy = NodeLabelSchedulingStrategy({"zone": In("b", "c")})
    wishes: list[dict[str, Any]] = [
        {"label_selector": {"zone": "b"}},
        {"label_selector": {"zone": "!a", "disk": "in(ssd,hdd)"}},
        {"label_selector": {"ray.io/node-id": far.node_id}},
        {"label_selector": {"zone": "x"}, "fallback_strategy": [{"label_selector": {"zone": "b"}}]},
        {"scheduling_strategy": strategy},
    ]

    tasks = [where.options(**wish).remote() for wish in wishes]
    actors = [Dweller.options(**wish).remote() for wish in wishes]
    soft = where.options(
        scheduling_strategy=NodeLabelSchedulingStrategy({}, soft={"zone": In("nowhere")})
    )

    assert skate.get(tasks, timeout=WAIT_S) == [far.node_id] * len(wishes)
    places = skate.get([actor.place.remote() for actor in actors], timeout=WAIT_S)
    assert places == [far.node_id] * len(wishes)
    assert skate.get(soft.remote(), timeout=WAIT_S) == head.node_id


@pytest.mark.surface("L6", "L9")
def test_labelled_work_waits_for_a_node_that_joins(nodes: Cluster) -> None:
    nodes.add_node(num_cpus=1)
    nodes.connect()
    wish = {"label_selector": {"zone": "late"}}
    task, actor = where.options(**wish).remote(), Dweller.options(**wish).remote()
    place = actor.place.remote()
    assert skate.wait([task, place], timeout=0.3)[0] == []

    late = nodes.add_node(num_cpus=1, labels={"zone": "late"})

    assert skate.get([task, place], timeout=WAIT_S) == [late.node_id] * 2


@skate.remote
def make_bytes(size: int) -> bytes:
    return bytes(size)


@skate.remote
def where_with(*values: bytes) -> str:
    node_id: str = skate.get_runtime_context().get_node_id()
    return node_id


@pytest.mark.surface("L3")
def test_tasks_run_where_most_bytes_of_their_arguments_lie(nodes: Cluster, tmp_path: Path) -> None:
    head = nodes.add_node(num_cpus=4)
    small = nodes.add_node(num_cpus=1, resources={"small": 1})
    large = nodes.add_node(num_cpus=1, resources={"large": 1})
    nodes.connect()

    def made() -> tuple[Any, Any]:
        """A value on the small node and one of three times its size on the large one."""
        little = make_bytes.options(resources={"small": 1}).remote(1 << 20)
        much = make_bytes.options(resources={"large": 1}).remote(3 << 20)
        skate.wait([little, much], num_returns=2, timeout=WAIT_S, fetch_local=False)
        wait_for(lambda: free("CPU") == 6, "every node is idle")
        return little, much

    def comes_to(node: Any, task: Any, pick: Callable[[Any, Any], tuple[Any, ...]]) -> bool:
        """Whether one try with values made for it does; where a task runs, copies stay."""
        place: str = skate.get(task.remote(*pick(*made())), timeout=WAIT_S)
        return place == node.node_id

    # A node is near while it has room by the driver's node's last news, which may be a report old:
    # hence more than one try. Without nearness all would run on the head, less than half used.
    both = (large, where_with, lambda little, much: (little, much))
    wait_for(lambda: comes_to(*both), "a task runs by the larger argument")
    alone = (small, where_with, lambda little, _: (little,))
    wait_for(lambda: comes_to(*alone), "a task runs by its argument")
    assert skate.get(where_with.remote(), timeout=WAIT_S) == head.node_id
    bound = where_with.options(label_selector={"ray.io/node-id": head.node_id})
    assert comes_to(head, bound, lambda _, much: (much,))

    much = made()[1]
    busy = note_and_wait.options(resources={"large": 1}).remote(str(tmp_path), "t0")
    wait_for(lambda: list(tmp_path.glob("t*")), "the node with the argument is busy")
    elsewhere = skate.get(where_with.remote(much), timeout=WAIT_S)
    assert elsewhere in {head.node_id, small.node_id}
    (tmp_path / "go").touch()
    assert skate.get(busy, timeout=WAIT_S) == large.node_id


def place_of(actor: Any) -> str:
    try:
        place: str = skate.get(actor.place.remote(), timeout=WAIT_S)
    except skate.exceptions.ActorUnavailableError:
        return ""
    return place
