"""Why something waits: by reference, by handle and on the command line, on one node and on two."""

from __future__ import annotations

import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import skate
from skate.cluster_utils import Cluster
from skate.exceptions import GetTimeoutError
from skate.util.placement_group import placement_group
from skate.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Inside
from skate_cluster.cli import cli
from skate_worker.object_access import EXPLAINED_FROM_S
from tests.waiting import wait_for

WAIT_S = 30.0


def says(subject: Any, *patterns: str) -> str:
    """Wait until ``subject.why()`` has lines for all the patterns; returns the text."""

    def look() -> str:
        text = str(subject.why())
        return text if all(re.search(pattern, text) for pattern in patterns) else ""

    found: str = wait_for(look, f"why() says {patterns}; it says: {subject.why()}")
    return found


@skate.remote
def hold(folder: str) -> str:
    Path(folder, "begun").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.01)
    node_id: str = skate.get_runtime_context().get_node_id()
    return node_id


@skate.remote
def after(value: Any) -> Any:
    return value


@skate.remote
def nothing() -> None:
    pass


@skate.remote
def fail() -> None:
    raise ValueError("as it was meant to")


@skate.remote(num_cpus=0)
class Partner:
    def __init__(self) -> None:
        self.other: Any = None

    def meet(self, other: Any) -> None:
        self.other = other[0]

    def ask(self) -> int:
        value: int = skate.get(self.other.answer.remote())
        return value

    def answer(self) -> int:
        return 1


def test_why_follows_a_value_from_its_argument_to_its_end(nodes: Cluster, tmp_path: Path) -> None:
    nodes.add_node(num_cpus=1)
    nodes.connect()
    first = hold.remote(str(tmp_path))
    last = after.remote(after.remote(first))
    second = hold.remote(str(tmp_path))

    says(first, "RUNNING", r"It has run on worker, pid \d+")
    text = says(last, "PENDING_ARGS_AVAIL", r"waits for 1 argument", "task hold", "It has run on")
    assert text.startswith(f"object {last.hex()}")
    says(second, "PENDING_NODE_ASSIGNMENT", r"worker with CPU 1", r"CPU 1 \(free 0 of 1\); held by")
    with pytest.raises(skate.exceptions.GetTimeoutError, match=r"task hold waits for a worker"):
        skate.get(second, timeout=1)

    (tmp_path / "go").touch()
    skate.get([last, second], timeout=WAIT_S)
    assert first.why().state == "FINISHED"
    failed = fail.remote()
    skate.wait([failed], timeout=WAIT_S)
    assert "ValueError" in str(failed.why())


@pytest.mark.surface("L9", "T35", "Z10")
def test_infeasible_work_is_explained_warned_of_and_served_by_a_node_that_joins(
    nodes: Cluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.add_node(num_cpus=2)
    nodes.connect()
    tasks = [after.options(resources={"late": 1}, num_cpus=3).remote(n) for n in range(3)]
    labelled = after.options(label_selector={"zone": "b"}).remote(1)
    actor = Partner.options(resources={"late": 1}).remote()
    call = actor.answer.remote()

    says(tasks[0], "needs CPU 3, late 1")
    says(labelled, "zone is b")
    says(call, "PENDING_NODE_ASSIGNMENT", "late 1")
    says(actor, "PENDING_CREATION", "No node can ever hold it")
    with caplog.at_level(logging.WARNING, "skate"):
        wait_for(lambda: len(caplog.records) >= 2, "both kinds of tasks are warned of")
    texts = sorted(record.getMessage() for record in caplog.records)
    assert len(texts) == 2
    assert "the task after and 2 more like it" in "".join(texts)
    assert any("zone is b" in text for text in texts)

    nodes.add_node(num_cpus=3, resources={"late": 2}, labels={"zone": "b"})

    assert skate.get([*tasks, labelled, call], timeout=WAIT_S) == [0, 1, 2, 1, 1]


def run_why(nodes: Cluster, token: str, *arguments: str) -> Any:
    return CliRunner().invoke(
        cli, ["why", "--address", nodes.address, "--token-file", token, *arguments]
    )


@pytest.mark.surface("K3")
def test_command_explains_ids_of_every_kind(nodes: Cluster, tmp_path: Path) -> None:
    head = nodes.add_node(num_cpus=1)
    other = nodes.add_node(num_cpus=1, resources={"disk": 1})
    nodes.connect()
    token = tmp_path / "token"
    token.write_text(head.token)
    token.chmod(0o600)
    running = hold.options(resources={"disk": 1}).remote(str(tmp_path))
    wait_for((tmp_path / "begun").exists, "the task runs")
    waiting = hold.options(resources={"disk": 1}).remote(str(tmp_path))

    for prefix in (running.hex(), running.task_id().hex(), running.hex()[:12]):
        shown = run_why(nodes, str(token), prefix)
        assert shown.exit_code == 0, shown.output
        assert f"on node {other.node_id[:12]}" in shown.output
    shown = run_why(nodes, str(token), waiting.hex(), "--format", "json")
    (found,) = json.loads(shown.output)["found"]
    assert found["state"] == "PENDING_NODE_ASSIGNMENT"
    assert "disk 1" in " ".join(found["lines"])
    shown = run_why(nodes, str(token), other.node_id)
    assert "CPU 1, disk 1" in shown.output
    assert run_why(nodes, str(token), "0123456789").exit_code == 4
    assert run_why(nodes, str(token), "xyz").exit_code == 2
    (tmp_path / "go").touch()
    assert set(skate.get([running, waiting], timeout=WAIT_S)) == {other.node_id}


# ---- circles ----


@pytest.mark.invariant("I1")
def test_actors_that_wait_for_each_other_are_found_out(
    nodes: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    started = [nodes.add_node(num_cpus=1, resources={f"n{n}": 1}) for n in range(2)]
    nodes.connect()
    here = Partner.options(resources={"n0": 1}).remote()
    there = Partner.options(resources={"n1": 1}).remote()
    skate.get([here.meet.remote([there]), there.meet.remote([here])], timeout=WAIT_S)

    asked = [here.ask.remote(), there.ask.remote()]

    text = says(asked[0], "Deadlock", "RUNNING_IN_RAY_GET")
    assert all(f"on node {node.node_id[:12]}" in text for node in started)
    assert len(asked[0].why().circle) == 4
    says(here, "Deadlock")
    with caplog.at_level(logging.WARNING, "skate"), pytest.raises(skate.exceptions.GetTimeoutError):
        skate.get(asked, timeout=7)
    (warning,) = [one for one in caplog.records if "Deadlock" in one.getMessage()]
    assert warning.getMessage().count("Partner.ask") == 4
    skate.kill(here)
    with pytest.raises(skate.exceptions.SkateError):
        skate.get(asked, timeout=WAIT_S)


@skate.remote(num_cpus=1, resources={"key": 1})
def parent(depth: int) -> int:
    if depth == 0:
        return 0
    value: int = skate.get(parent.remote(depth - 1))
    return value + 1


def test_task_that_holds_what_its_child_needs_is_found_out_and_served_by_a_node_that_joins(
    nodes: Cluster,
) -> None:
    nodes.add_node(num_cpus=4, resources={"key": 1})
    nodes.connect()

    ref = parent.remote(1)

    text = says(ref, "Deadlock", "key 1, which is held by task parent")
    assert len(ref.why().circle) == 2, text
    nodes.add_node(num_cpus=1, resources={"key": 1})
    assert skate.get(ref, timeout=WAIT_S) == 1


def test_deep_recursion_on_one_cpu_is_no_deadlock(nodes: Cluster) -> None:
    nodes.add_node(num_cpus=1)
    nodes.connect()

    @skate.remote
    def sink(depth: int) -> int:
        return 0 if depth == 0 else skate.get(sink.remote(depth - 1)) + 1  # type: ignore[no-any-return]

    ref = sink.remote(8)
    while not skate.wait([ref], timeout=0.05)[0]:
        assert ref.why().circle == ()
    assert skate.get(ref, timeout=WAIT_S) == 8


def test_group_that_waits_is_explained_on_the_command_line(nodes: Cluster, tmp_path: Path) -> None:
    nodes.add_node(num_cpus=2)
    nodes.connect()
    held = hold.remote(str(tmp_path))
    wait_for(Path(tmp_path, "begun").exists, "a CPU is taken")
    group = placement_group([{"CPU": 2}], name="wide")
    never = placement_group([{"CPU": 3}])

    def asked(id_: str, *words: str) -> Any:
        def look() -> Any:
            command = ["why", id_, "--address", nodes.address, "--format", "json"]
            result = CliRunner().invoke(cli, command)
            if result.exit_code != 0:
                return None  # its registration is on the way
            (found,) = json.loads(result.stdout)["found"]
            text = " ".join(found["lines"])
            return found if all(re.search(one, text) for one in words) else None

        return wait_for(look, f"why says {' and '.join(words)}")

    # While an attempt is under way its own reason stands there.
    short = r"^It needs CPU 2 on one node; .*free is CPU 1\. It has waited for \d"
    found = asked(group.id.hex(), short, r"held: CPU 1 by task .*hold")
    assert (found["kind"], found["state"]) == ("placement group", "PENDING")
    assert "wide" in found["subject"]
    found = asked(never.id.hex(), r"No nodes can ever hold it: it needs CPU 3")
    assert "CPU 2" in found["lines"][0]
    assert len(found["lines"]) == 1
    inside = nothing.options(scheduling_strategy=Inside(never)).remote()
    says(inside, rf"placement group .*{never.id.hex()}.*: PENDING", "No nodes can ever hold it")
    ready = never.ready()
    text = says(ready, "No nodes can ever hold it: it needs CPU 3")
    assert f"ready() of placement group {never.id.hex()}" in text
    with pytest.raises(GetTimeoutError, match=f"waits for placement group {never.id.hex()}"):
        skate.get(ready, timeout=EXPLAINED_FROM_S)
    Path(tmp_path, "go").touch()
    assert group.wait(WAIT_S)
    asked(group.id.hex(), r"^Bundle 0: node [0-9a-f]{12}")
    skate.get(held, timeout=WAIT_S)
