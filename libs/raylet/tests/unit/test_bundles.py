"""Bundles of placement groups in a node's machine: set aside, opened, used, given back."""

from __future__ import annotations

import pytest

from skate_raylet.machine import commands as do
from skate_raylet.machine import events as on
from skate_raylet.machine import loan_events as loan
from skate_raylet.machine import loans
from skate_raylet.machine.bundle_table import Held
from skate_raylet.machine.lease_machine import LeaseConfig
from skate_raylet.machine.node_machine import NodeMachine
from skate_raylet.machine.worker_pool_machine import PoolConfig
from skate_scheduler import NodeView, ResourceSet

pytestmark = pytest.mark.invariant("I13")

GROUP, OTHER = b"g" * 18, b"h" * 18
JOB = b"\0\0\0\1"
HERE, THERE, THIRD = b"here", b"there", b"third"


def amounts(cpu: float = 0, gpu: float = 0) -> ResourceSet:
    return ResourceSet({"CPU": int(cpu * 10_000), "GPU": int(gpu * 10_000)})


class Node:
    """One node's machine; every event is followed by a check of all invariants."""

    def __init__(self, cpu: float = 4, gpu: float = 0, node_id: bytes = HERE) -> None:
        lease_config = LeaseConfig(amounts(cpu, gpu), node_id[:8], node_id=node_id)
        self.machine = NodeMachine(lease_config, PoolConfig(8, 100, 100))
        self.now_s = 0.0
        self.out: list[object] = []
        self.workers = 0
        self.requests = 0

    def tell(self, event: object, after_s: float = 0.001) -> list[object]:
        self.now_s += after_s
        commands = self.machine.handle(event, self.now_s)
        self.machine.check_invariants()
        self.out += commands
        for command in commands:
            if isinstance(command, do.StartWorker):
                self.workers += 1
                worker_id = b"w%d" % self.workers
                self.tell(on.WorkerRegistered(command.startup_id, worker_id))
        return commands

    def take(self, kind: type) -> list:
        found = [command for command in self.out if isinstance(command, kind)]
        self.out = [command for command in self.out if not isinstance(command, kind)]
        return found

    def prepare(self, *cpus: float, group=GROUP, attempt=1, opens=True, first=0, gpus=()) -> str:
        gpus = gpus or (0,) * len(cpus)
        bundles = {
            first + number: amounts(cpu, gpu)
            for number, (cpu, gpu) in enumerate(zip(cpus, gpus, strict=True))
        }
        refusal = self.machine.bundle_refusal(group, attempt, bundles)
        if not refusal:
            self.tell(on.BundlesWanted(group, attempt, bundles, opens))
        return refusal

    def see(self, *node_ids: bytes, group=GROUP) -> None:
        self.tell(on.GroupSeen(group, node_ids))

    def ask(self, cpu: float = 1, index=-1, group=GROUP, holder=b"driver", gpu: float = 0) -> int:
        self.requests += 1
        strategy = on.Strategy(group_id=group, bundle_index=index)
        needs = amounts(cpu, gpu)
        event = on.LeaseRequested(holder, self.requests, JOB, needs, strategy=strategy)
        self.tell(event)
        return self.requests

    def give_back(self, *indices: int, group=GROUP, attempt=1) -> None:
        self.tell(on.BundlesReturned(group, attempt, indices))

    def bundle(self, index: int, group=GROUP):
        found = [
            b for b in self.machine.bundles() if (b.key.group_id, b.key.index) == (group, index)
        ]
        return found[0] if found else None

    def end_workers(self) -> None:
        for command in self.take(do.EndWorker):
            (worker,) = [w for w in self.machine.workers() if w.startup_id == command.startup_id]
            self.tell(on.WorkerGone(command.startup_id, worker.state.worker_id))

    @property
    def free(self) -> float:
        return self.machine.available["CPU"] / 10_000


@pytest.fixture
def node() -> Node:
    made = Node()
    made.see(HERE, HERE)
    return made


# ---- setting aside ----


def test_bundle_takes_from_the_node_and_is_closed_until_all_have_theirs(node):
    assert node.prepare(1, 2, opens=False) == ""
    assert node.free == 1
    node.ask()
    assert node.take(do.GrantLease) == []
    node.tell(on.BundlesOpened(GROUP, 1, (0, 1)))
    assert len(node.take(do.GrantLease)) == 1
    assert node.free == 1, "a lease inside takes nothing of the node's"


def test_repeated_orders_change_nothing(node):
    for _ in range(3):
        assert node.prepare(1, 2) == ""
        node.tell(on.BundlesOpened(GROUP, 1, (0, 1)))
    assert node.free == 1
    assert node.machine.held_bundles() == [Held(GROUP, 1, (0, 1))]
    for _ in range(3):
        node.give_back(0, 1)
    assert node.free == 4
    assert node.machine.held_bundles() == []


def test_what_does_not_fit_is_refused_as_a_whole(node):
    assert "CPU 1 of that is not free" in node.prepare(3, 2)
    assert node.free == 4
    assert node.machine.held_bundles() == []


def test_order_that_comes_after_its_return_is_refused_however_late(node):
    """ray#64693, ray#64696: lost and late messages must not leave bundles."""
    node.give_back(0, attempt=3)
    assert "given back" in node.prepare(1, attempt=3)
    assert "given back" in node.prepare(1, attempt=2)
    assert node.prepare(1, attempt=4) == ""
    node.give_back(0, attempt=3)  # late itself: of an older attempt
    assert node.machine.held_bundles() == [Held(GROUP, 4, (0,))]


def test_a_later_attempt_leaves_older_bundles_of_the_group_alone(node):
    node.prepare(1)
    node.prepare(1, attempt=2, first=1)
    node.give_back(1, attempt=2)
    assert node.machine.held_bundles() == [Held(GROUP, 1, (0,))]


def test_bundles_are_opened_of_the_very_attempt_alone(node):
    node.prepare(1, opens=False)
    assert not node.machine.holds_bundles(GROUP, 2, (0,))
    node.tell(on.BundlesOpened(GROUP, 2, (0,)))
    assert not node.bundle(0).is_open


# ---- leases inside ----


def test_lease_goes_into_the_bundle_that_was_named(node):
    node.prepare(1, 1)
    node.ask(index=1)
    assert [bool(b.leases) for b in (node.bundle(0), node.bundle(1))] == [False, True]
    node.ask(index=1)
    assert len(node.take(do.GrantLease)) == 1, "the second waits for its own bundle"
    (waiting,) = node.machine.waiting(node.now_s)
    assert waiting.reason.sentence() == (
        f"Waits for CPU 1 in bundle 1 of placement group {GROUP.hex()}."
    )


def test_any_bundle_is_the_fullest_with_room(node):
    node.prepare(2, 1)
    node.ask(1)
    assert node.bundle(1).leases
    node.ask(2)
    assert node.bundle(0).leases
    assert len(node.take(do.GrantLease)) == 2


def test_returned_lease_makes_room_for_the_next_in_its_bundle(node):
    node.prepare(1)
    node.ask()
    second = node.ask()
    (grant,) = node.take(do.GrantLease)
    node.tell(on.LeaseReturned(b"driver", grant.lease_id))
    (grant,) = node.take(do.GrantLease)
    assert grant.request_id == second


def test_blocked_worker_lends_inside_its_bundle_and_not_to_the_node(node):
    node.prepare(1)
    node.ask()
    (grant,) = node.take(do.GrantLease)
    node.tell(on.WorkerBlocked(grant.worker_id))
    assert node.free == 3
    child = node.ask(holder=grant.worker_id)
    (lent,) = node.take(do.GrantLease)
    assert lent.request_id == child
    node.tell(on.WorkerUnblocked(grant.worker_id))
    assert node.bundle(0).available["CPU"] == 0
    node.tell(on.LeaseReturned(grant.worker_id, lent.lease_id))
    node.tell(on.LeaseReturned(b"driver", grant.lease_id))
    assert node.bundle(0).available == node.bundle(0).total


def test_node_may_be_full_while_its_bundles_have_room(node):
    node.prepare(4)
    plain = on.LeaseRequested(b"driver", 99, JOB, amounts(1))
    node.tell(plain)
    assert node.take(do.GrantLease) == []
    node.ask()
    assert len(node.take(do.GrantLease)) == 1
    node.give_back(0)
    node.end_workers()
    assert [grant.request_id for grant in node.take(do.GrantLease)] == [99]


def test_idle_lease_inside_is_asked_back_for_another_holder(node):
    node.prepare(1)
    node.ask(holder=b"first")
    node.take(do.GrantLease)
    node.ask(holder=b"second")
    node.tell(on.TimePassed(), after_s=0.5)
    assert [ask.holder_id for ask in node.take(do.AskLeaseBack)] == [b"first"]


@pytest.mark.surface("P15")
def test_devices_of_a_bundle_are_its_own():
    node = Node(cpu=4, gpu=2)
    node.see(HERE, HERE)
    assert node.prepare(1, 1, gpus=(1, 0.5)) == ""
    node.ask(cpu=0, gpu=0.5, index=0)
    node.ask(cpu=0, gpu=0.5, index=0)
    node.ask(cpu=0, gpu=0.5, index=1)
    grants = node.take(do.GrantLease)
    devices = [dict(grant.device_ids)["GPU"][0][0] for grant in grants]
    assert devices[0] == devices[1] != devices[2]
    plain = on.LeaseRequested(b"driver", 99, JOB, amounts(0, 0.5))
    node.tell(plain)
    (grant,) = node.take(do.GrantLease)
    assert dict(grant.device_ids)["GPU"][0][0] == devices[2], "the rest of the shared device"
    assert "not free" in node.prepare(0, gpus=(1,), group=OTHER)


# ---- giving back ----


def test_removal_ends_who_uses_the_bundle_and_frees_when_they_are_gone(node):
    node.prepare(2)
    node.ask()
    (grant,) = node.take(do.GrantLease)
    node.give_back(0)
    (end,) = [command for command in node.out if isinstance(command, do.EndWorker)]
    assert (end.kind, end.grace_s) == ("placement_group_removed", 0.0)
    assert node.free == 2, "until the process is gone"
    assert node.machine.held_bundles() == [Held(GROUP, 1, (0,))]
    node.end_workers()
    (lost,) = node.take(do.LoseLease)
    assert lost.lease_id == grant.lease_id
    assert node.free == 4
    assert node.machine.held_bundles() == []


def test_removal_refuses_who_waits_for_a_worker_or_for_room(node):
    node.prepare(1)
    lease_config = node.machine
    strategy = on.Strategy(group_id=GROUP, bundle_index=-1)
    slow = on.LeaseRequested(b"driver", 50, JOB, amounts(1), strategy=strategy)
    node.now_s += 0.001
    commands = lease_config.handle(slow, node.now_s)  # its worker is starting
    (start,) = [command for command in commands if isinstance(command, do.StartWorker)]
    waiting = node.ask()
    node.give_back(0)
    assert node.free == 4, "it never had a process"
    node.tell(on.GroupGone(GROUP, "gone"))
    refused = node.take(do.RefuseLease)
    assert {one.request_id for one in refused} == {50, waiting}
    assert {one.kind for one in refused} == {"placement_group_removed"}
    node.tell(on.WorkerRegistered(start.startup_id, b"late"))
    assert node.take(do.GrantLease) == []
    after = node.ask()
    assert [one.request_id for one in node.take(do.RefuseLease)] == [after]


@pytest.mark.parametrize("is_gone", [False, True])
def test_task_without_a_worker_outlives_its_bundle_but_not_its_group(node, is_gone):
    node.prepare(1)
    strategy = on.Strategy(group_id=GROUP, bundle_index=0)
    slow = on.LeaseRequested(b"driver", 50, JOB, amounts(1), strategy=strategy)
    node.now_s += 0.001
    commands = node.machine.handle(slow, node.now_s)  # its worker is starting
    (start,) = [command for command in commands if isinstance(command, do.StartWorker)]
    if is_gone:
        node.tell(on.GroupGone(GROUP, "gone"))
    node.give_back(0)
    refused = [(one.request_id, one.kind) for one in node.take(do.RefuseLease)]
    if is_gone:
        assert refused == [(50, "placement_group_removed")]
        return
    assert refused == []
    node.tell(on.WorkerRegistered(start.startup_id, b"late"))
    assert node.take(do.GrantLease) == []
    assert node.prepare(1, attempt=2) == ""
    (grant,) = node.take(do.GrantLease)
    assert grant.request_id == 50


def test_bundle_can_be_set_aside_again_once_its_users_are_gone(node):
    node.prepare(1)
    node.ask()
    node.give_back(0)
    assert "still ending" in node.prepare(1, attempt=2)
    node.end_workers()
    assert node.prepare(1, attempt=2) == ""


def test_actors_live_inside_bundles_and_end_with_them(node):
    node.prepare(1)
    strategy = on.Strategy(group_id=GROUP, bundle_index=0)
    one = amounts(1)
    assert node.machine.actor_refusal(strategy, one, one) == ""
    assert "could hold it" in node.machine.actor_refusal(strategy, amounts(2), one)
    node.tell(on.ActorRequested(b"a" * 16, 0, JOB, one, one, strategy=strategy))
    (placed,) = node.take(do.PlaceActor)
    assert node.bundle(0).available["CPU"] == 0
    node.give_back(0)
    node.end_workers()
    (lost,) = node.take(do.LoseActor)
    assert lost.worker_id == placed.worker_id
    assert node.free == 4


def test_actor_in_any_bundle_is_refused_where_another_node_may_have_room(node):
    node.prepare(1)
    node.ask()
    strategy = on.Strategy(group_id=GROUP, bundle_index=-1)
    assert node.machine.actor_refusal(strategy, amounts(1), amounts(1)) == "", "alone: it waits"
    node.see(HERE, THERE)
    assert "has room" in node.machine.actor_refusal(strategy, amounts(1), amounts(1))


# ---- bundles on other nodes ----


def two_nodes() -> Node:
    node = Node()
    for name in (THERE, THIRD):
        view = NodeView(name, amounts(4), amounts(4))
        node.tell(loan.NodeSeen(view))
    return node


def asks(node: Node) -> list[tuple[bytes, loans.Ask]]:
    told = node.take(loan.TellLender)
    return [(one.node_id, one.message) for one in told if isinstance(one.message, loans.Ask)]


def test_request_goes_to_the_node_of_its_bundle():
    node = two_nodes()
    node.see(THERE, THIRD)
    node.ask(index=1)
    ((node_id, ask),) = asks(node)
    assert (node_id, ask.group_id, ask.bundle_index) == (THIRD, GROUP, 1)
    assert ask.wait_s > 0, "nobody else can serve it"


def test_request_for_any_bundle_goes_on_to_the_next_node_and_then_waits():
    node = two_nodes()
    node.see(THERE, THIRD)
    node.ask()
    busy = loans.Cause("busy", "full")
    seen = []
    for _ in range(2):
        ((node_id, ask),) = asks(node)
        seen.append(node_id)
        node.tell(loan.LenderSaid(node_id, loans.Ended(ask.ask_id, busy)))
    assert sorted(seen) == sorted([THERE, THIRD])
    assert asks(node) == []
    assert node.machine.next_wakeup(node.now_s) is not None
    node.tell(on.TimePassed(), after_s=0.5)
    assert len(asks(node)) == 1


def test_request_for_a_group_that_nobody_told_of_is_asked_about_once_and_waits():
    node = two_nodes()
    node.ask()
    node.ask()
    assert node.take(do.AskForGroup) == [do.AskForGroup(GROUP)]
    node.tell(on.GroupUnanswered(GROUP))
    assert node.take(do.AskForGroup) == [do.AskForGroup(GROUP)]
    node.see()
    assert asks(node) == []
    node.see(THERE)
    assert len(asks(node)) == 2


def test_answer_that_is_older_than_the_news_changes_nothing():
    node = two_nodes()
    node.ask()
    assert node.take(do.AskForGroup) == [do.AskForGroup(GROUP)]
    node.see(THERE)
    for late in (
        on.GroupSeen(GROUP, (), is_answer=True),
        on.GroupGone(GROUP, "The cluster does not know it.", is_answer=True),
    ):
        node.tell(late)
    assert node.take(do.RefuseLease) == []
    node.ask()
    assert len(asks(node)) == 2


def test_lender_serves_an_ask_for_its_bundle_and_says_busy_without_room():
    node = two_nodes()
    node.prepare(1)
    first = loans.Ask(1, b"far", JOB, amounts(1), (), 0, 0.0, 0.0, GROUP, 0)
    second = loans.Ask(2, b"far", JOB, amounts(1), (), 0, 0.0, 0.0, GROUP, 0)
    for message in (loans.Sync(1, ()), first, second):
        node.tell(loan.BorrowerSaid(THERE, message))
    (lend,) = node.take(loan.Lend)
    assert lend.ask_id == 1
    (answer,) = node.take(loan.TellBorrower)
    assert (answer.message.ask_id, answer.message.cause.kind) == (2, "busy")
    node.give_back(0)
    node.end_workers()
    (lost,) = node.take(loan.ReportLoss)
    assert lost.ask_id == 1


def test_removal_that_the_lender_knows_first_ends_the_request():
    node = two_nodes()
    node.see(THERE)
    request = node.ask()
    ((node_id, ask),) = asks(node)
    cause = loans.Cause("placement_group_removed", "gone")
    node.tell(loan.LenderSaid(node_id, loans.Ended(ask.ask_id, cause)))
    (refused,) = node.take(do.RefuseLease)
    assert (refused.request_id, refused.kind) == (request, "placement_group_removed")
