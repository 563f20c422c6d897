"""The shell around actor calls: learns where actors live, connects, sends, and fails or retries.

Actors are created by the GCS; this module hears of their states through the raylet
(``ActorUpdate``).
"""

from __future__ import annotations

from typing import Any

import msgspec

from skate_rpc import node_protocol as node
from skate_rpc.event_loop import IoThread
from skate_rpc.stream import StreamClosedError
from skate_worker.errors import (
    ActorDiedError,
    ActorPlacementGroupRemovedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    TaskCancelledError,
)
from skate_worker.machine.actor_calls import CONNECTED, DEAD, WAITING, ActorCalls
from skate_worker.node_client import NodeClient
from skate_worker.ownership import Ownership
from skate_worker.peers import Peer, Peers
from skate_worker.results import Completion
from skate_worker.serialization import ErrorValue, deserialize
from skate_worker.submission import DependencyFailed, Submission
from skate_worker.task_protocol import Cancel

UNAVAILABLE_S = 10.0  # how long calls without retries wait for news of an actor whose line broke


class ActorCall(Submission):
    """A call on its way to an actor."""

    __slots__ = ("is_resolved",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.is_resolved: bool = True


Calls = ActorCalls[ActorCall]


class ActorSubmitter:
    """Calls of this process to all actors that it knows."""

    def __init__(
        self,
        ownership: Ownership,
        completion: Completion,
        peers: Peers,
        raylet: NodeClient,
        loop: IoThread,
    ) -> None:
        self._ownership = ownership
        self._completion = completion
        self._peers = peers
        self._raylet = raylet
        self._loop = loop
        self._actors: dict[bytes, Calls] = {}

    # ---- submitting ----

    def calls_of(self, actor_id: bytes) -> Calls:
        """The calls of an actor; made, and its state subscribed to, on first use."""
        calls = self._actors.get(actor_id)
        if calls is not None:
            return calls
        actor_id = bytes(actor_id)  # an ActorID is one too, but not to the encoder
        with self._ownership.lock:
            calls = self._actors.setdefault(actor_id, ActorCalls(actor_id))
            is_first = not calls.is_subscribed
            calls.is_subscribed = True
        if is_first:
            self._raylet.post(node.SubscribeActor(actor_id))
        return calls

    def submit(self, calls: Calls, call: ActorCall) -> None:
        """Send a call, or queue it behind those that wait."""
        with self._ownership.lock:
            is_dead = calls.state == DEAD
            if not is_dead:
                is_sent = calls.submit(call)
                connection = calls.connection
                if is_sent:
                    is_lone = len(calls.in_flight) == 1
                    call.message.serial = next(calls.serials)
                    try:
                        connection.queue(call.message)
                    except StreamClosedError:
                        return  # on_peer_lost follows and finds the call in flight
        if is_dead:
            self._fail_dead(calls, [call])
        elif is_sent:
            if is_lone:
                connection.flush()
            else:
                connection.schedule_flush()

    def resolved(self, calls: Calls, call: ActorCall, failure: DependencyFailed | None) -> None:
        """The arguments of a waiting call are there, or one of them is an error."""
        if failure is not None:
            with self._ownership.lock:
                known = calls.withdraw(call.task_id)
            if known is not None:
                self._completion.fail_dependency(call, failure.data)
        else:
            call.is_resolved = True
        self._send_waiting(calls)

    def _send_waiting(self, calls: Calls) -> None:
        with self._ownership.lock:
            connection = calls.connection
            try:
                for call in calls.sendable():
                    call.message.serial = next(calls.serials)
                    connection.queue(call.message)
            except StreamClosedError:
                return  # on_peer_lost follows
        if connection is not None:
            connection.flush()

    # ---- the actor's state; on the loop's thread ----

    def on_update(self, message: node.ActorUpdate) -> None:
        """The actor changed state."""
        view = message.actor
        calls = self._actors.get(view.actor_id)
        if calls is None or calls.state == DEAD:
            return
        calls.view = view
        if view.state == "ALIVE":
            if view.incarnation > calls.incarnation:
                self._connect(calls, view)
        elif view.state == "DEAD":
            connection = calls.connection
            if connection is not None and not connection.has_ended:
                # Replies that the actor sent before its end may still be on the line: let it end
                # first.
                self._loop.call_later(UNAVAILABLE_S, self._died, calls)
            else:
                self._died(calls)
        elif view.state == "RESTARTING":
            self._fail_unavailable(calls)

    def _connect(self, calls: Calls, view: node.ActorView) -> None:
        peer = self._peers.get(view.worker_id, view.endpoint)
        peer.actor = calls
        self._peers.lives_on(peer, view.node_id)
        with self._ownership.lock:
            if calls.connection is not None and calls.connection is not peer.connection:
                # The line to the last incarnation is open still: its node may only be cut off.
                self._attempts_lost(calls)
                calls.unknown += calls.disconnected()
            calls.connected(peer.connection, view.incarnation, peer.serials.sent)
        if calls.unknown:
            self._fail_unavailable(calls)  # nobody listens to the last incarnation any more
        self._send_waiting(calls)

    def _died(self, calls: Calls) -> None:
        with self._ownership.lock:
            if calls.state == DEAD:
                return
            self._attempts_lost(calls)
            in_flight = list(calls.in_flight.values())
            failed = calls.died()
        for call in in_flight:
            self._ownership.hold_for_grace(call.pinned)
        self._fail_dead(calls, failed)

    def on_peer_lost(self, peer: Peer, reason: str) -> None:
        """The line to an actor broke: it died, or it restarts; the GCS will say."""
        calls: Calls = peer.actor
        if calls.connection is not peer.connection:
            return
        for call in list(calls.in_flight.values()):
            self._ownership.hold_for_grace(call.pinned)
        with self._ownership.lock:
            self._attempts_lost(calls)
            calls.unknown += calls.disconnected()
        view = calls.view
        if view is not None and view.state == "DEAD":
            self._died(calls)
        elif view is not None and view.state == "RESTARTING":
            self._fail_unavailable(calls)
        else:
            self._loop.call_later(UNAVAILABLE_S, self._no_news, calls)

    def _no_news(self, calls: Calls) -> None:
        """A line broke and nobody said why: only the line may be gone, so it is opened again."""
        self._fail_unavailable(calls)
        view = calls.view
        is_cut = calls.state == WAITING and calls.connection is None
        if is_cut and view is not None and view.state == "ALIVE":
            self._connect(calls, view)

    def _attempts_lost(self, calls: Calls) -> None:
        # Before the calls in flight are given up, or go again.
        if calls.connection is not None:
            peer: Peer = calls.connection.context
            for call in calls.in_flight.values():
                self._completion.attempt_lost(call, peer.node_id)

    def _fail_unavailable(self, calls: Calls) -> None:
        """Calls that were in flight and have no retries are told that nobody knows."""
        with self._ownership.lock:
            failed, calls.unknown = calls.unknown, []
        for call in failed:
            if calls.state == DEAD:
                self._fail_dead(calls, [call])
            else:
                text = "the actor is restarting, or its connection broke"
                self._completion.fail(call, ActorUnavailableError.of(calls.view, None, text))

    def _fail_dead(self, calls: Calls, failed: list[ActorCall]) -> None:
        with self._ownership.lock:
            failed = [*calls.unknown, *failed]
            calls.unknown = []
        view: node.ActorView = calls.view
        error: BaseException
        if view.creation_error:
            stored = deserialize(view.creation_error)
            cause = stored.error if isinstance(stored, ErrorValue) else None
            error = ActorDiedError.of(
                view,
                view.death,
                f"its constructor raised:\n{cause}",
                actor_init_failed=True,
            )
            error.__cause__ = cause
        elif view.death is not None and view.death.kind == "unschedulable" and not view.incarnation:
            error = ActorUnschedulableError(view.death.message)  # it never lived
        elif view.death is not None and _never_placed(view, view.death):
            error = ActorPlacementGroupRemovedError(view.death.message)
        else:
            error = ActorDiedError.of(view, view.death)
        for call in failed:
            if call.is_cancelled:
                self._completion.fail(call, TaskCancelledError(call.task_id.hex()))
            else:
                self._completion.fail(call, error)

    def mark_killed(self, actor_id: bytes) -> None:
        """This process had the actor killed for good: its calls end here and now."""
        calls = self._actors.get(actor_id)
        if calls is None or calls.state == DEAD:
            return
        view = calls.view or node.ActorView(actor_id, "DEAD")
        death = node.Death("killed_by_user", "it was killed by skate.kill().", view.pid)
        calls.view = msgspec.structs.replace(view, state="DEAD", death=death)
        self._died(calls)

    def fail_creation(self, actor_id: bytes, message: str) -> None:
        """The actor could not be registered: its calls fail with this reason."""
        calls = self.calls_of(actor_id)
        death = node.Death("start_failed", message)
        view = calls.view or node.ActorView(actor_id, "DEAD")
        view.state = "DEAD"
        view.death = death
        calls.view = view
        self._died(calls)

    # ---- results; on the loop's thread ----

    def on_results(self, peer: Peer, results: list[Any]) -> None:
        """Outcomes from one actor, in one batch."""
        calls: Calls = peer.actor
        if calls.connection is not peer.connection:
            # From an incarnation that was given up: its calls ran again, or failed.
            self._completion.refuse(peer, results)
            return
        with self._ownership.lock:
            finished, given_up = calls.done_all(results)
            self._completion.settle(finished)
        for again in self._completion.finish(peer, finished):
            self.submit(calls, again)  # type: ignore[arg-type]
        if given_up:
            self._completion.refuse(peer, given_up)
        self._completion.wake()

    # ---- cancelling ----

    def abandon(self) -> None:
        """The raylet is gone and every unfinished call was failed: no result counts any more."""
        with self._ownership.lock:
            for calls in self._actors.values():
                calls.in_flight.clear()
                calls.waiting.clear()
                calls.unknown.clear()

    def children_of(self, task_id: bytes) -> list[bytes]:
        """The unfinished calls that this task made."""
        return [call.task_id for call, _ in self.unfinished() if call.parent == task_id]

    def all_calls(self) -> list[Calls]:
        """The calls to each actor, for a look at them with the lock."""
        return list(self._actors.values())

    def unfinished(self) -> list[tuple[ActorCall, str]]:
        """The calls that have not ended, each with its status by Ray's name. O(calls)."""
        found: list[tuple[ActorCall, str]] = []
        with self._ownership.lock:
            for calls in self._actors.values():
                for call in calls.waiting:
                    is_ready = call.is_resolved  # then it waits for the actor
                    status = "PENDING_NODE_ASSIGNMENT" if is_ready else "PENDING_ARGS_AVAIL"
                    found.append((call, status))
                found += ((call, "SUBMITTED_TO_WORKER") for call in calls.in_flight.values())
        return found

    def cancel(self, task_id: bytes, *, is_recursive: bool) -> bool:
        """Stop a call. False: it is not here."""
        actor_id = task_id[8:]
        calls = self._actors.get(actor_id)
        if calls is None:
            return False
        with self._ownership.lock:
            withdrawn = calls.withdraw(task_id)
            sent = calls.in_flight.get(task_id)
        if withdrawn is not None:
            self._completion.fail(withdrawn, TaskCancelledError(task_id.hex()))
            return True
        if sent is None or calls.state != CONNECTED:
            return False
        sent.is_cancelled = True
        try:
            calls.connection.post(Cancel(task_id, is_recursive, next(calls.serials)))
        except StreamClosedError:
            return True
        return True


def _never_placed(view: node.ActorView, death: node.Death) -> bool:
    """Whether its placement group was removed before it ever ran."""
    return death.kind == "placement_group_removed" and not view.pid and not view.incarnation
