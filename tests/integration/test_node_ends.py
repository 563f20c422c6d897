"""Nodes that fall silent and come back, and nodes that are drained.

RELIABILITY I10, I22; SURFACE Z9.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import skate
from skate.cluster_utils import Cluster
from skate_node import RunningNode
from tests.process_tree import is_running, tree_of
from tests.waiting import wait_for

WAIT_S = 30.0


@skate.remote(num_cpus=0, max_restarts=1, resources={"far": 0.01})
class Person:
    def place(self) -> tuple[str, int]:
        return skate.get_runtime_context().get_node_id(), os.getpid()


@skate.remote(max_retries=1, resources={"far": 0.01})
def stay(folder: str, node_id: str) -> str:
    here: str = skate.get_runtime_context().get_node_id()
    Path(folder, here).touch()
    while here == node_id:
        time.sleep(0.05)
    return here


def row_of(node: RunningNode) -> dict[str, Any]:
    (row,) = (row for row in skate.nodes() if row["NodeID"] == node.node_id)
    return row


@pytest.mark.invariant("I22")
@pytest.mark.timeout(90)
def test_node_that_pauses_is_suspect_and_alive_again(nodes: Cluster) -> None:
    nodes.add_node()
    other = nodes.add_node()
    nodes.connect()
    os.kill(other.pid, signal.SIGSTOP)
    try:
        wait_for(lambda: row_of(other)["State"] == "SUSPECT")
    finally:
        os.kill(other.pid, signal.SIGCONT)
    wait_for(lambda: row_of(other)["State"] == "ALIVE")
    assert other.is_running()


@pytest.mark.invariant("I10", "I22")
@pytest.mark.timeout(120)
def test_node_that_returns_after_its_death_is_fenced_and_its_actor_refused(nodes: Cluster) -> None:
    nodes.add_node()
    far = nodes.add_node(resources={"far": 1})
    nodes.connect()
    person = Person.options(max_task_retries=-1).remote()
    node_id, pid = skate.get(person.place.remote(), timeout=WAIT_S)
    assert node_id == far.node_id
    stopped = tree_of(far.pid)
    for process in stopped:
        os.kill(process, signal.SIGSTOP)
    late = person.place.remote()  # reaches the old one, if at all, when it is too late
    wait_for(lambda: not row_of(far)["Alive"])
    home = nodes.add_node(resources={"far": 1})
    place, fresh_pid = skate.get(person.place.remote(), timeout=WAIT_S)
    assert (place, fresh_pid != pid) == (home.node_id, True)
    for process in stopped:
        os.kill(process, signal.SIGCONT)
    assert far.wait(10.0) is not None, "a node that is held for dead must end"
    assert skate.get(late, timeout=WAIT_S) == (home.node_id, fresh_pid)
    for _ in range(20):
        assert skate.get(person.place.remote(), timeout=WAIT_S) == (home.node_id, fresh_pid)
    wait_for(lambda: not is_running(pid))
    assert row_of(far)["DeathReason"] == 2
    assert "silent" in row_of(far)["DeathReasonMessage"]


@pytest.mark.surface("Z9", "S1")
@pytest.mark.timeout(90)
def test_preempted_node_gives_its_work_away_and_nothing_is_counted(
    nodes: Cluster, tmp_path: Path
) -> None:
    nodes.add_node()
    far = nodes.add_node(resources={"far": 1})
    nodes.connect()
    person = Person.remote()
    assert skate.get(person.place.remote(), timeout=WAIT_S)[0] == far.node_id
    task = stay.remote(str(tmp_path), far.node_id)
    wait_for((tmp_path / far.node_id).exists)
    assert "not idle" in skate.drain_node(far.node_id, "idle_termination")
    assert row_of(far)["State"] == "ALIVE"
    assert skate.drain_node(far.node_id, message="spot", deadline_s=1.5) == ""
    assert row_of(far)["State"] == "DRAINING"
    home = nodes.add_node(resources={"far": 1})
    newcomer = Person.remote()
    assert skate.get(newcomer.place.remote(), timeout=WAIT_S)[0] == home.node_id
    assert skate.get(task, timeout=WAIT_S) == home.node_id
    wait_for(lambda: not row_of(far)["Alive"])
    moved = wait_for(lambda: place_of(person))
    assert moved[0] == home.node_id
    assert far.wait(WAIT_S) is not None
    row = row_of(far)
    assert (row["State"], row["DeathReason"]) == ("DEAD", 3)
    assert "spot" in row["DeathReasonMessage"]
    assert skate.drain_node(far.node_id) == ""  # it is dead already
    # The restart was not counted: there is one left.
    os.kill(moved[1], signal.SIGKILL)
    again = wait_for(lambda: place_of(person))
    assert again[0] == home.node_id


def place_of(person: Any) -> tuple[str, int] | None:
    try:
        place: tuple[str, int] = skate.get(person.place.remote(), timeout=WAIT_S)
    except skate.exceptions.ActorUnavailableError:
        return None  # it restarts
    return place


@pytest.mark.surface("Z9", "S1")
def test_idle_node_that_is_not_needed_leaves_at_once(nodes: Cluster) -> None:
    head = nodes.add_node()
    idle = nodes.add_node()
    nodes.connect()
    assert "drivers" in skate.drain_node(head.node_id, "idle_termination")
    command = [sys.executable, "-m", "skate_cluster", "drain-node", "--address", nodes.address]
    command += ["--node-id", idle.node_id[:12], "--reason", "idle-termination"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert (done.returncode, "takes no new work" in done.stdout) == (0, True), done.stderr
    assert idle.wait(WAIT_S) is not None
    wait_for(lambda: row_of(idle)["DeathReason"] == 4)
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert "dead already" in done.stdout
    for wrong in ("preempt", ""):
        with pytest.raises(ValueError, match="reason"):
            skate.drain_node(idle.node_id, wrong)
    with pytest.raises(ValueError, match="deadline"):
        skate.drain_node(idle.node_id, deadline_s=-1)
    with pytest.raises(ValueError, match="no node"):
        skate.drain_node("ab" * 28)


@pytest.mark.surface("Z9")
@pytest.mark.timeout(90)
def test_work_of_a_driver_on_a_draining_node_runs_elsewhere(nodes: Cluster) -> None:
    nodes.add_node()
    here = nodes.add_node(num_cpus=2)
    skate.init(here.session_dir)

    @skate.remote
    def where() -> str:
        node_id: str = skate.get_runtime_context().get_node_id()
        return node_id

    assert skate.drain_node(here.node_id) == ""
    places = skate.get([where.remote() for _ in range(20)], timeout=WAIT_S)
    assert here.node_id not in places
    assert here.is_running()  # its driver uses it
    skate.shutdown()
    assert here.wait(WAIT_S) is not None
