"""Explanations of waits, from rows as processes and nodes report them."""

from __future__ import annotations

from typing import Any

from skate_raylet.service.explain import SUBJECTS_MAX, explain
from skate_raylet.service.wait_snapshot import SETTLED_S, Snapshot
from skate_rpc import wait_report as report
from skate_rpc.node_protocol import PlacementGroupView
from skate_rpc.wait_report import (
    ActorRow,
    BlockedRow,
    LeaseRow,
    NodeWaits,
    ProcessWaits,
    RequestRow,
    RunRow,
    TaskRow,
)

DRIVER, WORKER = b"D" * 28, b"W" * 28
ACTOR = b"A" * 16
ONE_GPU = {"GPU": 10_000}


def task_id(number: int) -> bytes:
    return bytes([number]) * 24


def object_id(number: int) -> bytes:
    return task_id(number) + b"\0\0\0\1"


class Cluster:
    """One node with a driver and a worker."""

    def __init__(self) -> None:
        self.driver = ProcessWaits(DRIVER, 100, True)
        self.worker = ProcessWaits(WORKER, 200, False)
        processes = [self.driver, self.worker]
        self.node = NodeWaits(b"N" * 28, "first", "", dict(ONE_GPU), processes)
        self.actors: list[ActorRow] = []
        self.groups: list[PlacementGroupView] = []

    def why(self, prefix: bytes | str, asked_for_s: float = 0.1) -> list[Any]:
        text = prefix if isinstance(prefix, str) else prefix.hex()
        snapshot = Snapshot([self.node], self.actors, self.groups, unix_s=1000.0)
        return explain(text, snapshot, asked_for_s)

    def runs(self, number: int, waits_for: int | None = None, waited_s: float = 5.0) -> None:
        """A task of the driver runs on the worker, and waits there for another one's value."""
        sent = TaskRow(task_id(number), f"f{number}", report.SUBMITTED, worker_id=WORKER)
        self.driver.tasks.append(sent)
        self.worker.running.append(RunRow(task_id(number), f"f{number}", 9.0))
        if waits_for is not None:
            row = BlockedRow(task_id(number), [object_id(waits_for)], 1, waited_s)
            self.worker.blocked.append(row)

    def queues(self, number: int, reason: str = "Waits for GPU 1.", waited_s: float = 5.0) -> None:
        """A task of the worker waits for a worker of its own, with the GPU."""
        request_id = len(self.node.requests) + 1
        row = TaskRow(task_id(number), f"f{number}", report.NODE, [], ONE_GPU, [request_id], 3)
        self.worker.tasks.append(row)
        self.node.requests.append(
            RequestRow(WORKER, request_id, ONE_GPU, "resources", reason, waited_s)
        )


def test_chain_of_waits_is_followed_to_the_request_at_the_node() -> None:
    cluster = Cluster()
    cluster.driver.tasks.append(
        TaskRow(task_id(1), "first", report.ARGUMENTS, waits_for=[object_id(2)])
    )
    cluster.runs(2, waits_for=3)
    cluster.queues(3, "Waits for GPU 1 (free 0 of 1).")

    (found,) = cluster.why(object_id(1))

    assert (found.kind, found.state, found.circle) == ("object", report.ARGUMENTS, ())
    text = str(found)
    for words in (
        "It waits for 1 argument",
        "task f2",
        "has run on worker, pid 200, on node 4e4e4e4e4e4e (first) for 9.0 s",
        "It has waited for 5.0 s in get() or wait(), for 1 object",
        "It waits for a worker with GPU 1, as do 2 others like it",
        "5.0 s ago: Waits for GPU 1 (free 0 of 1).",
    ):
        assert words in text, text


def test_task_that_holds_what_its_child_waits_for_is_in_a_circle() -> None:
    cluster = Cluster()
    cluster.runs(1, waits_for=2)
    cluster.queues(2)
    assert cluster.why(task_id(1))[0].circle == ()

    cluster.node.leases.append(LeaseRow(WORKER, DRIVER, ONE_GPU))

    (found,) = cluster.why(task_id(1))
    assert len(found.circle) == 2
    assert "waits for GPU 1, which is held by task f1" in "".join(found.circle)
    assert report.DEADLOCK in str(found)


def test_waits_that_are_young_end_in_time_or_may_be_served_are_no_circle() -> None:
    for change in ("young", "timeout", "slow reports", "starts a worker"):
        cluster = Cluster()
        cluster.runs(1, waits_for=2, waited_s=SETTLED_S / 2 if change == "young" else 5.0)
        cluster.queues(2)
        cluster.node.leases.append(LeaseRow(WORKER, DRIVER, ONE_GPU))
        if change == "timeout":
            cluster.worker.blocked[0].has_timeout = True
        if change == "starts a worker":
            cluster.node.requests[0].kind = "worker"
        asked_for_s = 6.0 if change == "slow reports" else 0.1
        (found,) = cluster.why(task_id(1), asked_for_s)
        assert found.circle == (), change


def test_call_stands_behind_the_calls_that_run_at_its_actor() -> None:
    cluster = Cluster()
    cluster.worker.actor_id = ACTOR
    cluster.actors = [ActorRow(ACTOR, "Counter", "ALIVE", node_id=b"N" * 28)]
    cluster.worker.running.append(RunRow(task_id(1), "Counter.slow", 3.0))
    call = TaskRow(task_id(2), "Counter.fast", report.SUBMITTED, worker_id=WORKER, actor_id=ACTOR)
    cluster.driver.tasks.append(call)

    text = str(cluster.why(task_id(2))[0])
    assert "stands behind" in text
    assert "call Counter.slow" in text
    assert "1 of at most 1 calls run" in str(cluster.why(ACTOR)[0])

    cluster.worker.blocked.append(BlockedRow(task_id(1), [object_id(2)], 1, 5.0))
    circle = cluster.why(ACTOR)[0].circle
    assert len(circle) == 2
    assert "waits for its turn at actor Counter" in "".join(circle)


def test_actor_that_is_not_placed_and_its_calls_say_why() -> None:
    cluster = Cluster()
    reason = "No node can ever hold it: it needs disk 1 (the most any node has is 0)."
    cluster.actors = [ActorRow(ACTOR, "Disk", "PENDING_CREATION", pending_reason=reason)]
    cluster.driver.tasks.append(TaskRow(task_id(1), "Disk.read", report.NODE, actor_id=ACTOR))

    assert reason in str(cluster.why(ACTOR)[0])
    assert reason in str(cluster.why(task_id(1))[0])


def test_nodes_workers_and_unknown_ids() -> None:
    cluster = Cluster()
    cluster.runs(1)
    cluster.queues(2)
    cluster.node.leases.append(LeaseRow(WORKER, DRIVER, ONE_GPU))
    (node,) = cluster.why(cluster.node.node_id)
    assert "It has GPU 1; in use: GPU 1." in str(node)
    assert "1 request waits: Waits for GPU 1." in str(node)
    (worker,) = cluster.why(WORKER)
    assert worker.state == report.RUNNING
    assert "It runs task f1" in str(worker)
    assert cluster.why("ffff") == []


def test_who_did_not_answer_is_named_and_what_they_own_is_not_known() -> None:
    cluster = Cluster()
    cluster.driver.problem = "It did not answer within 2 s."
    cluster.worker.running.append(RunRow(task_id(1), "f", 1.0))
    (found,) = cluster.why(task_id(1))
    assert any("process 100" in problem for problem in found.problems)
    assert "did not answer" in str(found)


def test_prefix_that_fits_many_shows_some() -> None:
    cluster = Cluster()
    for number in range(SUBJECTS_MAX + 5):
        row = TaskRow(b"\xaa" + bytes([number]) * 23, "f", report.SUBMITTED, worker_id=WORKER)
        cluster.driver.tasks.append(row)
    assert len(cluster.why("AA")) == SUBJECTS_MAX


def test_circle_of_waits_does_not_make_the_text_endless() -> None:
    cluster = Cluster()
    cluster.runs(1, waits_for=2)
    cluster.runs(2, waits_for=1)
    (found,) = cluster.why(task_id(1))
    assert len(found.circle) == 2
    assert "It was named above." in str(found)


GROUP, OTHER = b"G" * 18, b"H" * 18


def group(group_id: bytes, state: str, *node_ids: bytes, **fields: Any) -> PlacementGroupView:
    bundles = [dict(ONE_GPU) for _ in node_ids]
    return PlacementGroupView(
        group_id, state, strategy="PACK", bundles=bundles, node_ids=list(node_ids), **fields
    )


def test_group_that_waits_says_what_it_needs_who_holds_it_and_since_when() -> None:
    cluster = Cluster()
    cluster.node.total = {"GPU": 40_000}
    cluster.runs(1)
    cluster.node.leases.append(LeaseRow(WORKER, DRIVER, {"GPU": 5_000, "CPU": 10_000}))
    inside = LeaseRow(b"V" * 28, DRIVER, dict(ONE_GPU), group_id=OTHER)
    cluster.node.leases.append(inside)
    cluster.groups = [
        group(
            GROUP,
            "PENDING",
            b"",
            b"",
            name="train",
            pending_reason="It needs GPU 2.",
            pending_since_s=988.0,
            attempts=3,
        ),
        group(OTHER, "CREATED", cluster.node.node_id, cluster.node.node_id),
    ]

    (found,) = cluster.why(GROUP)

    assert (found.kind, found.state) == ("placement group", "PENDING")
    assert found.subject == f"placement group train ({GROUP.hex()})"
    reason, held = found.lines
    assert reason == "It needs GPU 2. It has waited for 12.0 s, in 3 attempts."
    where = "on node 4e4e4e4e4e4e (first)"
    assert held == (
        f"Of what it needs is held: GPU 2 by placement group ({OTHER.hex()}) {where};"
        f" GPU 0.5 by task f1 ({task_id(1).hex()}) {where}."
    )


def test_group_that_no_node_could_hold_names_no_holders() -> None:
    cluster = Cluster()
    cluster.node.leases.append(LeaseRow(WORKER, DRIVER, dict(ONE_GPU)))
    wanted = group(GROUP, "PENDING", b"", pending_reason="No nodes can ever hold it.")
    wanted.bundles = [{"GPU": 20_000}]
    cluster.groups = [wanted]
    assert cluster.why(GROUP)[0].lines == ("No nodes can ever hold it.",)


def test_group_that_lost_a_bundle_says_where_the_others_are() -> None:
    cluster = Cluster()
    place = cluster.node.node_id
    cluster.groups = [group(GROUP, "RESCHEDULING", place, b"", place, pending_reason="It waits.")]
    placed, reason = cluster.why(GROUP)[0].lines[:2]
    assert placed == "Bundles 0, 2: node 4e4e4e4e4e4e (first)."
    assert reason == "It waits."


def test_group_that_is_there_or_removed_says_so() -> None:
    cluster = Cluster()
    cluster.groups = [
        group(GROUP, "CREATED", cluster.node.node_id),
        group(OTHER, "REMOVED", b"", removal_reason="Its job has finished."),
    ]
    assert cluster.why(GROUP)[0].lines == ("Bundle 0: node 4e4e4e4e4e4e (first).",)
    assert cluster.why(OTHER)[0].lines == ("It was removed: Its job has finished.",)


def test_task_and_actor_inside_a_group_say_why_the_group_waits() -> None:
    cluster = Cluster()
    cluster.groups = [group(GROUP, "PENDING", b"", pending_reason="No nodes can ever hold it.")]
    cluster.queues(1, "Waits for GPU 1 in a bundle.")
    cluster.node.requests[0].group_id = GROUP
    cluster.actors.append(ActorRow(ACTOR, "A", "PENDING_CREATION", pending_reason="It waits."))
    cluster.actors[0].group_id = GROUP
    for subject in (task_id(1), ACTOR):
        *_, heading, line = cluster.why(subject)[0].lines
        assert heading.strip() == f"placement group ({GROUP.hex()}): PENDING"
        assert line.strip() == "No nodes can ever hold it."
    cluster.groups[0].state = "CREATED"
    assert "placement group" not in str(cluster.why(task_id(1))[0])
