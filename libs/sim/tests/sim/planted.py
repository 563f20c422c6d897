"""Bugs to plant one at a time, to see whether the simulation notices: each a plausible slip.

Each names the scenario in which it is looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from msgspec.structs import replace

from skate_gcs.machine.actor_table import ActorTable
from skate_gcs.machine.commands import PrepareBundlesOnNode
from skate_gcs.machine.kill_orders import KillOrders
from skate_gcs.machine.placement_group_rounds import Rounds
from skate_gcs.machine.placement_group_table import PlacementGroupTable
from skate_raylet.machine import events as on
from skate_raylet.machine.borrowing import Borrowing
from skate_raylet.machine.bundle_requests import BundleRequests
from skate_raylet.machine.bundle_table import BundleKey
from skate_raylet.machine.group_directory import GroupDirectory
from skate_raylet.machine.lease_machine import LeaseMachine
from skate_raylet.machine.lease_table import LeaseTable
from skate_raylet.machine.lending import Lending
from skate_raylet.machine.node_machine import NodeMachine
from skate_raylet.machine.worker_pool_machine import WorkerPoolMachine
from skate_rpc.serials import Received
from skate_scheduler import BundleStrategy, place_bundles
from skate_worker.actor_submitter import ActorSubmitter
from skate_worker.machine.actor_calls import ActorCalls
from skate_worker.machine.lease_pool import LeasePool
from skate_worker.submission import Submission
from skate_worker.task_submitter import TaskSubmitter

PLANTED: dict[str, tuple[str, Callable[[], Any]]] = {}


def planted(scenario: str) -> Callable[[Callable[[], Iterator[None]]], None]:
    """Make a generator a planted bug; its docstring says what is wrong."""

    def note(change: Callable[[], Iterator[None]]) -> None:
        PLANTED[change.__name__] = (scenario, contextmanager(change))

    return note


def replaced(owner: type, name: str, replacement: Callable[..., Any]) -> Any:
    """Put ``replacement(original, self, *args)`` in the place of a method."""
    original = getattr(owner, name)

    def call(self: Any, *args: Any, **named: Any) -> Any:
        return replacement(original, self, *args, **named)

    return mock.patch.object(owner, name, call)


# ---- owners ----


@planted("tasks")
def retry_costs_no_attempt() -> Iterator[None]:
    """A death does not use up a retry."""

    def take(original: Any, self: Any) -> bool:
        if self.attempts_left == 0:
            return False
        self.message.attempt += 1
        self.is_solo = True
        return True

    with replaced(Submission, "take_attempt", take):
        yield


@planted("tasks")
def dead_task_without_retries_runs_again() -> Iterator[None]:
    """A task without retries is taken for one that never started."""

    def died(original: Any, self: Any, *args: Any, **named: Any) -> Any:
        return original(self, *args, **{**named, "has_started": False})

    with replaced(TaskSubmitter, "_worker_died", died):
        yield


@planted("tasks")
def window_is_shared_by_the_last_attempt() -> Iterator[None]:
    """A task whose last attempt this is travels with others."""

    def has_room(original: Any, self: Any, lease: Any, task: Any) -> bool:
        was_solo, task.is_solo = task.is_solo, False
        try:
            return bool(original(self, lease, task))
        finally:
            task.is_solo = was_solo

    with replaced(LeasePool, "_has_room", has_room):
        yield


@planted("tasks")
def tasks_of_a_dead_worker_are_forgotten() -> Iterator[None]:
    """What stood behind the running task at a worker that died is dropped."""

    def lost(original: Any, self: Any, lease_id: bytes) -> Any:
        found = original(self, lease_id)
        return None if found is None else (found[0], found[1][:1])

    with replaced(LeasePool, "lost", lost):
        yield


@planted("tasks")
def given_back_tasks_are_dropped() -> Iterator[None]:
    """Tasks that a worker gave back are not queued again."""

    def given_back(original: Any, self: Any, lease: Any, task_ids: Any, is_blocked: bool) -> Any:
        tasks = original(self, lease, task_ids, is_blocked)
        for _ in tasks:
            lease.queue.pending.popleft()
        return tasks

    with replaced(LeasePool, "given_back", given_back):
        yield


@planted("actors")
def restarted_actor_is_not_called_again() -> Iterator[None]:
    """The caller keeps its line to the first life."""

    def on_update(original: Any, self: Any, message: Any) -> None:
        if message.actor.incarnation == 0 or message.actor.state != "ALIVE":
            original(self, message)

    with replaced(ActorSubmitter, "on_update", on_update):
        yield


@planted("actors")
def retried_calls_go_last() -> Iterator[None]:
    """Calls that are retried stand behind later ones."""

    def disconnected(original: Any, self: Any) -> Any:
        later = list(self.waiting)
        self.waiting.clear()
        failed = original(self)
        self.waiting.extendleft(reversed(later))
        return failed

    with replaced(ActorCalls, "disconnected", disconnected):
        yield


@planted("actors")
def calls_without_retries_are_sent_again() -> Iterator[None]:
    """Every call that was in flight is repeated after a restart."""

    def disconnected(original: Any, self: Any) -> Any:
        failed = original(self)
        self.waiting.extendleft(reversed(failed))
        return []

    with replaced(ActorCalls, "disconnected", disconnected):
        yield


@planted("network")
def broken_connection_keeps_its_lease() -> Iterator[None]:
    """A lease whose connection broke is buried and never returned."""
    with replaced(
        TaskSubmitter,
        "_give_up",
        lambda _, self, lease_id, cause: self._bury(lease_id, cause),
    ):
        yield


@planted("network")
def repeated_messages_act_twice() -> Iterator[None]:
    """Nobody looks at serials."""
    with replaced(Received, "is_new", lambda _, self, serial: True):
        yield


# ---- nodes ----


@planted("tasks")
def returned_lease_keeps_its_resources() -> Iterator[None]:
    """A return is noted, and what the lease held is still taken."""

    def remove(original: Any, self: Any, lease: Any) -> None:
        derived = self._derive()
        original(self, lease)
        self._derived = derived

    with replaced(LeaseTable, "remove", remove):
        yield


@planted("tasks")
def lent_cpus_are_not_counted() -> Iterator[None]:
    """The sums of what is free stay as they were when a worker blocks or wakes."""

    def set_blocked(original: Any, self: Any, lease: Any, is_blocked: bool) -> None:
        lease.is_blocked = is_blocked  # and the sums stay as they were

    with replaced(LeaseTable, "set_blocked", set_blocked):
        yield


@planted("tasks")
def dead_holder_keeps_its_leases() -> Iterator[None]:
    """The leases of a process that ended stay."""
    with replaced(LeaseMachine, "_lose_holder", lambda _, self, holder_id, commands: None):
        yield


@planted("tasks")
def leases_of_a_dead_holder_elsewhere_stay() -> Iterator[None]:
    """What other nodes lent to a process that ended is not given back."""
    with replaced(Borrowing, "lose_holder", lambda *_: []):
        yield


@planted("network")
def sync_is_ignored_by_the_lender() -> Iterator[None]:
    """A lender keeps loans that the borrower no longer knows."""
    with replaced(Lending, "_sync", lambda *_: ([], [])):
        yield


@planted("nodes")
def loans_to_a_dead_node_stay() -> Iterator[None]:
    """A borrower's death ends none of its loans."""
    with replaced(Lending, "lose_node", lambda *_: []):
        yield


@planted("nodes")
def leases_at_a_dead_node_are_not_reported() -> Iterator[None]:
    """The holder of a lease at a node that died hears nothing, and the request is forgotten."""

    def lose(original: Any, self: Any, node_id: bytes, cause: Any) -> Any:
        commands, _ = original(self, node_id, cause)
        return commands, []

    with replaced(Borrowing, "lose_node", lose):
        yield


@planted("tasks")
def failed_start_is_forgotten() -> Iterator[None]:
    """A fork that failed is not tried again."""

    with replaced(WorkerPoolMachine, "_fail_start", lambda *_: None):
        yield


# ---- the GCS ----


@planted("actors")
def restarts_are_not_counted() -> Iterator[None]:
    """An actor restarts as often as it dies."""
    with mock.patch("skate_gcs.machine.actor_table.may_restart", return_value=True):
        yield


@planted("gcs")
def kill_orders_are_forgotten_in_a_crash() -> Iterator[None]:
    """A GCS that restarts does not know which processes it still has to end."""
    with replaced(KillOrders, "restore", lambda *_: None):
        yield


@planted("actors")
def actors_of_a_dead_owner_live_on() -> Iterator[None]:
    """The end of a job ends none of its actors."""
    with (
        replaced(ActorTable, "job_finished", lambda *_: None),
        replaced(ActorTable, "owner_died", lambda *_: None),
    ):
        yield


# ---- placement groups ----


@planted("groups")
def second_phase_is_forgotten() -> Iterator[None]:
    """A group counts as created once all nodes have set its bundles aside, and none is told."""
    with replaced(Rounds, "is_alone", lambda *_: True):
        yield


@planted("groups")
def strict_groups_are_packed_at_will() -> Iterator[None]:
    """STRICT_PACK and STRICT_SPREAD are taken for wishes."""

    def place(requests: Any, strategy: Any, index: Any, **named: Any) -> Any:
        mild = str(strategy).removeprefix("STRICT_")
        return place_bundles(requests, BundleStrategy(mild), index, **named)

    with mock.patch("skate_gcs.machine.placement_group_table.place_bundles", place):
        yield


@planted("groups")
def nobody_says_which_bundles_are_stale() -> Iterator[None]:
    """A node keeps what it was ordered to give back while the order was lost."""
    with replaced(PlacementGroupTable, "reported", lambda *_: ()):
        yield


@planted("groups")
def removed_group_keeps_its_users() -> Iterator[None]:
    """Neither its node nor the GCS ends who is in it, so its bundles stay."""

    def give_back(original: Any, self: Any, event: Any, commands: Any) -> None:
        bundles = [self.table.bundles.get(BundleKey(event.group_id, i)) for i in event.indices]
        if not any(bundle is not None and bundle.leases for bundle in bundles):
            original(self, event, commands)

    with (
        replaced(LeaseMachine, "_return_bundles", give_back),
        replaced(ActorTable, "group_removed", lambda *_: None),
    ):
        yield


@planted("groups")
def tasks_of_a_group_run_outside() -> Iterator[None]:
    """A request for room in a bundle is served like any other."""

    def place(original: Any, self: Any, request: Any, now_s: float, out: Any) -> None:
        self._place(replace(request, strategy=on.Strategy()), now_s, out)

    with replaced(NodeMachine, "_place_in_group", place):
        yield


@planted("groups")
def answers_overrule_later_news() -> Iterator[None]:
    """What the GCS answered before it published news is believed when it comes after them."""
    with replaced(GroupDirectory, "is_asked_for", lambda *_: True):
        yield


@planted("groups")
def restarted_gcs_does_not_ask_again() -> Iterator[None]:
    """A GCS that restarts waits for answers to questions of its former life."""

    def resume(original: Any, self: Any, now: Any, out: Any) -> None:
        sent: list[Any] = []
        original(self, now, sent)
        out += [one for one in sent if not isinstance(one, PrepareBundlesOnNode)]

    with replaced(PlacementGroupTable, "resume", resume):
        yield


@planted("groups")
def groups_outlive_their_jobs() -> Iterator[None]:
    """The end of a job removes none of its groups."""
    with replaced(PlacementGroupTable, "job_finished", lambda *_: None):
        yield


@planted("groups")
def tasks_of_a_removed_group_wait_on() -> Iterator[None]:
    """Who waits for room in a group is not refused when that is removed."""
    with replaced(BundleRequests, "of_group", lambda *_: []):
        yield
