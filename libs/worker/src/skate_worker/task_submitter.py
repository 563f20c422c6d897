"""The shell around the lease pool: requests leases, pushes tasks, takes results, retries.

Sends happen outside the runtime's lock, except that a message is *queued* inside it where order
matters. A lone task is written to its worker by the submitting thread itself; under load the loop's
thread writes batches.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from skate_core_ids import SkateError
from skate_rpc import node_protocol as node
from skate_rpc.event_loop import IoThread
from skate_rpc.stream import StreamClosedError
from skate_worker.errors import (
    OutOfMemoryError,
    RuntimeEnvSetupError,
    TaskCancelledError,
    TaskPlacementGroupRemovedError,
    TaskUnschedulableError,
    WorkerCrashedError,
)
from skate_worker.machine.lease_pool import (
    BACKLOG_S,
    LINGER_S,
    SHORT_LINGER_S,
    KeyQueue,
    Lease,
    LeasePool,
)
from skate_worker.node_client import NodeClient
from skate_worker.ownership import Ownership
from skate_worker.peers import Peer, Peers
from skate_worker.results import Completion
from skate_worker.specs import SchedulingKey, Strategy, TaskOptions
from skate_worker.submission import DependencyFailed, Submission
from skate_worker.task_protocol import (
    Cancel,
    LeaseBegins,
    Leaving,
    TakeBack,
    TasksGivenBack,
)
from skate_worker.tracing import Tracer

_log = logging.getLogger("skate")
_ANYWHERE = Strategy()
DEATH_REPORT_S = 3.0  # how long to wait for the raylet's word on why a worker's connection broke


def _nowhere(submission: Submission) -> list[tuple[bytes, int]]:
    return []


class TaskSubmitter:
    """Plain tasks of this process."""

    def __init__(
        self,
        ownership: Ownership,
        completion: Completion,
        peers: Peers,
        raylet: NodeClient,
        loop: IoThread,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock``: monotonic seconds."""
        self._now_s = clock
        self._ownership = ownership
        self._completion = completion
        self._peers = peers
        self._raylet = raylet
        self._loop = loop
        self._pool: LeasePool[Submission] = LeasePool()
        self._env_vars: dict[Any, dict[str, str]] = {}
        self._resources: dict[Any, dict[str, int]] = {}
        self._strategies: dict[Any, Strategy] = {}  # of the keys that have one
        self._is_linger_set = False
        self._is_short_linger_set = False
        self._is_backlog_watched = False
        # The nodes with bytes of a task's arguments, most first; set once there is a directory.
        self.near: Callable[[Submission], list[tuple[bytes, int]]] = _nowhere
        self.tracer: Tracer | None = None
        self._asked_s: dict[int, float] = {}  # lease requests while tracing is on
        self._unresolved: dict[bytes, Submission] = {}
        self._deaths: dict[bytes, node.Death] = {}  # reported, while results may still arrive

    # ---- submitting ----

    def queue_for(self, options: TaskOptions) -> KeyQueue[Submission]:
        """The queue of these options; look it up once per options object."""
        return self._queue_for(options.scheduling_key)

    def _queue_for(self, key: SchedulingKey) -> KeyQueue[Submission]:
        resources, env_vars, strategy = key
        with self._ownership.lock:
            queue = self._pool.queue_of(key)
            self._resources.setdefault(key, dict(resources))
            self._env_vars.setdefault(key, dict(env_vars))
            if strategy is not None:
                self._strategies[key] = strategy
            return queue

    def submit(self, submission: Submission) -> None:
        """Send a task whose arguments are resolved to a worker, or queue it."""
        queue: KeyQueue[Submission] = submission.queue
        requests: list[int] = []
        pool = self._pool
        with self._ownership.lock:
            lease = pool.submit(queue, submission)
            if lease is not None:
                is_lone = len(lease.in_flight) == 1
                submission.message.serial = next(lease.serials)
                try:
                    lease.connection.queue(submission.message)
                except StreamClosedError:
                    # The worker ended a moment ago; on_peer_lost is on its way.
                    pool.unsent(lease, [submission])
                    lease = None
            wanted = pool.requests_wanted(queue)
            if wanted > 0:
                requests = [pool.new_request(queue) for _ in range(wanted)]
        if lease is not None:
            if is_lone:
                lease.connection.flush()
            else:
                lease.connection.schedule_flush()
        if requests:
            self._request(queue, requests)

    def expect(self, submission: Submission) -> None:
        """A task waits for its arguments (so that it can be cancelled meanwhile)."""
        self._unresolved[submission.task_id] = submission

    def resolved(self, submission: Submission, failure: DependencyFailed | None) -> None:
        """The arguments of an expected task are there, or one of them is an error."""
        self._unresolved.pop(submission.task_id, None)
        if submission.is_cancelled:
            return
        if failure is not None:
            self._completion.fail_dependency(submission, failure.data)
            return
        if self._ownership.has_remote:
            self._move_near(submission)
        self.submit(submission)

    def _move_near(self, submission: Submission) -> None:
        """Queue a task with others whose arguments lie mostly on the same other node."""
        near = self.near(submission)
        queue: KeyQueue[Submission] = submission.queue
        key: Any = queue.key  # a SchedulingKey
        resources, env_vars, given = key
        strategy: Strategy = given or _ANYWHERE
        node_id = near[0][0] if near else b""
        if strategy.near == node_id or strategy.is_spread or strategy.node_id:
            return
        moved = replace(strategy, near=node_id)
        submission.queue = self._queue_for(
            (resources, env_vars, None if moved == _ANYWHERE else moved)
        )

    def _request(self, queue: KeyQueue[Submission], numbers: list[int]) -> None:
        for number in numbers:
            if self.tracer is not None:
                self._asked_s[number] = time.time()
            with self._ownership.lock:
                backlog = self._pool.first_backlog(queue, number)
            request = node.RequestLease(
                number,
                self._resources[queue.key],
                self._env_vars[queue.key],
                backlog=backlog,
            )
            strategy = self._strategies.get(queue.key)
            if strategy is not None:
                request.is_spread = strategy.is_spread
                request.node_id = strategy.node_id
                request.is_soft = strategy.is_soft
                request.is_impatient = strategy.is_impatient
                request.labels = strategy.labels
                request.placement_group_id = strategy.group_id
                request.bundle_index = strategy.bundle_index
                if strategy.near:
                    request.near = self._near_of(queue) or [(strategy.near, 0)]
            self._raylet.post(request)
        if numbers and not self._is_backlog_watched:
            self._is_backlog_watched = True
            self._loop.call_soon_threadsafe(self._watch_backlog)

    def _near_of(self, queue: KeyQueue[Submission]) -> list[tuple[bytes, int]]:
        with self._ownership.lock:
            first = queue.pending[0] if queue.pending else None
        return [] if first is None else self.near(first)

    # ---- leases; on the loop's thread ----

    def on_granted(self, message: node.LeaseGranted) -> None:
        """A worker is ours: connect and push."""
        lease: Lease[Submission] = Lease(
            message.lease_id, message.worker_id, message.endpoint, message.pid
        )
        lease.node_id = message.node_id
        with self._ownership.lock:
            queue = self._pool.end_request(message.request_id)
        if queue is None:
            self._raylet.post(node.ReturnLease(message.lease_id))
            return
        peer = self._peers.get(message.worker_id, message.endpoint)
        lease.connection = peer.connection
        lease.serials = peer.serials.sent
        peer.lease = lease
        self._peers.lives_on(peer, message.node_id)
        with self._ownership.lock:
            self._pool.granted(queue, lease, self._now_s())
            self._begin(lease, queue, message.resource_ids)
            self._push(lease)
            first = next(iter(lease.in_flight.values()), None)
            steal = self._pool.steal_for(lease)
            wanted = self._pool.requests_wanted(queue)
            requests = [self._pool.new_request(queue) for _ in range(wanted)]
        lease.connection.flush()
        if self.tracer is not None:
            asked_s = self._asked_s.pop(message.request_id, None)
            if first is not None and asked_s is not None:
                self.tracer.leased(first, asked_s)
        if steal is not None:
            self._take_back(*steal)
        if requests:
            self._request(queue, requests)
        self._watch_idle()

    def on_refused(self, message: node.LeaseRefused) -> None:
        """The raylet can not give a worker: what waits for one fails with the reason."""
        with self._ownership.lock:
            queue = self._pool.end_request(message.request_id)
            if queue is None:
                return
            tasks = list(queue.pending)
            queue.pending.clear()
        for submission in tasks:
            error: SkateError
            if message.kind == "unschedulable":
                error = TaskUnschedulableError(message.message)
            elif message.kind == "placement_group_removed":
                error = TaskPlacementGroupRemovedError(message.message)
            elif self._env_vars[queue.key]:
                error = RuntimeEnvSetupError(message.message)
            else:
                error = WorkerCrashedError(message.message, task_name=submission.message.name)
            self._completion.fail(submission, error)

    def on_warning(self, message: node.LeaseWarning) -> None:
        """No node can hold what some tasks need: their author should know, once."""
        with self._ownership.lock:
            queue = self._pool.queue_of_request(message.request_id)
            if queue is None or not queue.pending:
                return
            name, others = queue.pending[0].message.name, len(queue.pending) - 1
        more = f" and {others} more like it" if others else ""
        _log.warning("Waiting for a node to join: the task %s%s. %s", name, more, message.message)

    def on_reclaim(self, message: node.ReclaimLease) -> None:
        """Others wait: stop using the lease, and return it when its running task is done.

        ``when_idle``: use it on, and return it at the first pause.
        """
        if message.when_idle:
            with self._ownership.lock:
                wanted = self._pool.wanted(message.lease_id)
            if wanted is not None and not wanted.in_flight:
                self._watch_idle_shortly()
            return
        with self._ownership.lock:
            lease = self._pool.reclaim(message.lease_id)
            surplus = 0 if lease is None else len(lease.in_flight) - 1
            if lease is not None and surplus > 0:
                lease.is_taking_back = True
        if lease is not None and surplus > 0:
            self._take_back(lease, surplus)
        self._return_idle()

    def on_lost(self, message: node.LeaseLost) -> None:
        """The raylet reports a leased worker's death.

        Results that the worker sent before it died may still be on the connection: its end comes
        first.
        """
        with self._ownership.lock:
            lease = self._pool.leases.get(message.lease_id)
        if lease is None:
            return
        if lease.connection.has_ended:
            self._bury(message.lease_id, message.cause)
        else:
            self._deaths[message.lease_id] = message.cause
            self._loop.call_later(DEATH_REPORT_S, self._bury, message.lease_id, message.cause)

    def on_peer_lost(self, peer: Peer, reason: str) -> None:
        """A worker's connection broke: the raylet says why, but do not wait for that for ever."""
        lease: Lease[Submission] = peer.lease
        with self._ownership.lock:
            lease.is_lost = True
            in_flight = list(lease.in_flight.values())
        for submission in in_flight:
            self._ownership.hold_for_grace(submission.pinned)
        cause = self._deaths.pop(lease.lease_id, None)
        if cause is not None:
            self._bury(lease.lease_id, cause)
            return
        cause = node.Death(
            "exited", f"its connection broke ({reason}), and no cause was reported.", lease.pid
        )
        self._loop.call_later(DEATH_REPORT_S, self._give_up, lease.lease_id, cause)

    def on_leaving(self, peer: Peer, message: Leaving) -> None:
        """A worker ends on purpose and says what it leaves undone."""
        lease: Lease[Submission] = peer.lease
        peer.lease = None
        with self._ownership.lock:
            lost = self._pool.lost(lease.lease_id)
        self._raylet.post(node.ReturnLease(lease.lease_id, discard=True))
        if lost is None:
            return
        tasks = lost[1]
        for submission in tasks:
            self._ownership.hold_for_grace(submission.pinned)
        # Only the task that asked for the end had started; it stands first, as one that died.
        tasks.sort(key=lambda task: task.task_id != message.running_task)
        cause = node.Death("exited", f"{message.reason}.", lease.pid)
        self._worker_died(lease, tasks, cause, has_started=bool(message.running_task))

    def _give_up(self, lease_id: bytes, cause: node.Death) -> None:
        # The raylet reported no death: perhaps only the connection broke, and the worker lives.
        if lease_id in self._pool.leases:
            self._raylet.post(node.ReturnLease(lease_id, discard=True))
        self._bury(lease_id, cause)

    def _bury(self, lease_id: bytes, cause: node.Death) -> None:
        self._deaths.pop(lease_id, None)
        with self._ownership.lock:
            lost = self._pool.lost(lease_id)
        if lost is not None:
            self._worker_died(*lost, cause)

    def _worker_died(
        self,
        lease: Lease[Submission],
        tasks: list[Submission],
        cause: node.Death,
        *,
        has_started: bool = True,
    ) -> None:
        again: list[Submission] = []
        for submission in tasks:
            # Also those behind the first: what is done in an instant may be told a little later.
            self._completion.attempt_lost(submission, lease.node_id)
        for position, submission in enumerate(tasks):
            if submission.is_cancelled:
                self._completion.fail(submission, TaskCancelledError(submission.task_id.hex()))
            elif position > 0 or not has_started:
                again.append(submission)  # it never started, so it costs no attempt
            elif submission.take_attempt(is_counted=cause.kind != "node_preempted"):
                again.append(submission)
            else:
                kind = OutOfMemoryError if cause.kind == "out_of_memory" else WorkerCrashedError
                self._completion.fail(submission, kind.of(cause, submission.message.name))
        queue = lease.queue
        assert queue is not None
        # A task that could not be sent to the dying worker waits too: its lease still counted.
        if not again and not queue.pending:
            return
        with self._ownership.lock:
            self._pool.requeue(queue, again)
            wanted = self._pool.requests_wanted(queue)
            requests = [self._pool.new_request(queue) for _ in range(wanted)]
            leases = list(queue.leases.values())
            for other in leases:
                self._push(other)
        for other in leases:
            other.connection.flush()
        self._request(queue, requests)

    def _begin(
        self,
        lease: Lease[Submission],
        queue: KeyQueue[Submission],
        resource_ids: dict[str, list[tuple[int, int]]],
    ) -> None:
        begins = LeaseBegins(self._resources[queue.key], next(lease.serials))
        if resource_ids:
            begins.resource_ids = resource_ids
        strategy = self._strategies.get(queue.key)
        if strategy is not None and strategy.group_id:
            begins.placement_group_id, begins.captures = strategy.group_id, strategy.captures
        try:
            lease.connection.queue(begins)
        except StreamClosedError:
            return  # on_peer_lost follows

    def _push(self, lease: Lease[Submission]) -> None:
        # With the lock: the order of pushing is the order of the pool.
        tasks = self._pool.refill(lease)
        sent = 0
        try:
            for submission in tasks:
                submission.message.serial = next(lease.serials)
                lease.connection.queue(submission.message)
                sent += 1
        except StreamClosedError:
            self._pool.unsent(lease, tasks[sent:])  # on_peer_lost takes the others

    def _take_back(self, lease: Lease[Submission], count: int) -> None:
        try:
            lease.connection.post(TakeBack(count, next(lease.serials)))
        except StreamClosedError:
            return  # on_peer_lost follows

    # ---- results; on the loop's thread ----

    def on_results(self, peer: Peer, results: list[Any]) -> None:
        """Outcomes from one leased worker, in one batch."""
        lease: Lease[Submission] = peer.lease
        now_s = self._now_s()
        pool = self._pool
        with self._ownership.lock:
            finished, given_up = pool.done_all(lease, results, now_s)
            self._completion.settle(finished)
            self._push(lease)
            steal = None if lease.in_flight or lease.queue is None else pool.steal_for(lease)
        lease.connection.flush()
        if steal is not None:
            self._take_back(*steal)
        retries = self._completion.finish(peer, finished)
        if given_up:
            self._completion.refuse(peer, given_up)
        if retries:
            self._retry(lease, retries)
        if not lease.in_flight:
            if lease.is_draining:
                self._return_idle()
            else:
                if lease.is_wanted:
                    self._watch_idle_shortly()
                self._watch_idle()
                if lease.queue is not None and lease.queue.requests:
                    self._cancel_requests(lease.queue)
        self._completion.wake()

    def on_given_back(self, peer: Peer, message: TasksGivenBack) -> None:
        """Tasks that never started come back; other workers take them."""
        lease: Lease[Submission] = peer.lease
        queue = lease.queue
        assert queue is not None
        with self._ownership.lock:
            self._pool.given_back(lease, message.task_ids, message.is_blocked)
            leases = [other for other in queue.leases.values() if other is not lease]
            for other in leases:
                self._push(other)
            wanted = self._pool.requests_wanted(queue)
            requests = [self._pool.new_request(queue) for _ in range(wanted)]
            if not leases or queue.pending:
                self._push(lease)
        for other in (*leases, lease):
            other.connection.flush()
        self._request(queue, requests)

    def _retry(self, lease: Lease[Submission], retries: list[Submission]) -> None:
        queue = lease.queue
        assert queue is not None
        for submission in retries:
            # It is known how often it started; with its last start it must stay so.
            submission.is_solo = submission.attempts_left == 0
        with self._ownership.lock:
            self._pool.requeue(queue, retries)
            self._push(lease)
            # The lease may be lost by now: then others have to serve.
            wanted = self._pool.requests_wanted(queue)
            requests = [self._pool.new_request(queue) for _ in range(wanted)]
        lease.connection.flush()
        self._request(queue, requests)

    # ---- idle leases ----

    def _cancel_requests(self, queue: KeyQueue[Submission]) -> None:
        cancelled: list[int] = []
        with self._ownership.lock:
            surplus = -self._pool.requests_wanted(queue)
            for number in list(queue.requests)[: max(0, surplus)]:
                self._pool.end_request(number)
                cancelled.append(number)
        for number in cancelled:
            self._raylet.post(node.CancelLeaseRequest(number))

    def _watch_idle(self) -> None:
        if not self._is_linger_set:
            self._is_linger_set = True
            self._loop.call_later(LINGER_S / 2, self._on_linger)

    def _watch_backlog(self) -> None:
        self._loop.call_later(BACKLOG_S, self._tell_backlog)

    def _tell_backlog(self) -> None:
        with self._ownership.lock:
            news = self._pool.backlog_news()
            self._is_backlog_watched = self._pool.has_requests
        if news:
            self._raylet.post(node.TellBacklog(news))
        if self._is_backlog_watched:
            self._watch_backlog()

    def _watch_idle_shortly(self) -> None:
        if not self._is_short_linger_set:
            self._is_short_linger_set = True
            self._loop.call_later(SHORT_LINGER_S, self._on_short_linger)

    def _on_short_linger(self) -> None:
        self._is_short_linger_set = False
        self._return_idle()
        now_s = self._now_s()
        if any(
            lease.is_wanted and not lease.in_flight and now_s - lease.idle_since_s < LINGER_S
            for lease in self._pool.leases.values()
        ):
            self._watch_idle_shortly()

    def _on_linger(self) -> None:
        self._is_linger_set = False
        self._return_idle()
        if self._pool.leases:
            self._watch_idle()

    def _return_idle(self) -> None:
        wanting: list[tuple[KeyQueue[Submission], list[int]]] = []
        with self._ownership.lock:
            leases = self._pool.returnable(self._now_s())
            for lease in leases:
                # What a lease that was asked back left, others have to run.
                queue = lease.queue
                if queue is not None and queue.pending:
                    wanted = self._pool.requests_wanted(queue)
                    wanting.append((queue, [self._pool.new_request(queue) for _ in range(wanted)]))
        for lease in leases:
            peer = self._peers.find(lease.worker_id)
            if peer is not None:
                peer.lease = None
            self._raylet.post(node.ReturnLease(lease.lease_id))
        for queue, requests in wanting:
            self._request(queue, requests)

    # ---- cancelling ----

    def cancel(self, task_id: bytes, *, force: bool, is_recursive: bool) -> bool:
        """Stop a task wherever it is. False: it is not here (finished, or another kind of task)."""
        waiting = self._unresolved.pop(task_id, None)
        found: Submission | None = waiting
        running: Lease[Submission] | None = None
        with self._ownership.lock:
            if found is None:
                for queue in self._pool.queues.values():
                    for submission in queue.pending:
                        if submission.task_id == task_id:
                            queue.pending.remove(submission)
                            found = submission
                            break
                    for lease in queue.leases.values():
                        if task_id in lease.in_flight:
                            running = lease
                            lease.in_flight[task_id].is_cancelled = True
        if found is not None:
            if waiting is None:
                self._cancel_requests(found.queue)  # else a worker is still asked for
            found.is_cancelled = True
            self._completion.fail(found, TaskCancelledError(task_id.hex()))
            return True
        if running is None:
            return False
        try:
            if force:
                self._raylet.send(
                    node.KillWorker(
                        running.lease_id, "skate.cancel(force=True) was called on its task"
                    )
                )
            else:
                serial = next(running.serials)
                running.connection.send(Cancel(task_id, is_recursive, serial))
        except StreamClosedError:
            return True  # its worker is dying: on_lost finds the task cancelled
        return True

    def abandon(self) -> None:
        """The raylet is gone and every unfinished task was failed: no result counts any more."""
        self._unresolved.clear()
        with self._ownership.lock:
            for queue in self._pool.queues.values():
                queue.pending.clear()
            for lease in list(self._pool.leases.values()):
                self._pool.lost(lease.lease_id)

    def children_of(self, task_id: bytes) -> list[bytes]:
        """The unfinished tasks that this task submitted."""
        return [task.task_id for task, _ in self.unfinished() if task.parent == task_id]

    def unfinished(self) -> list[tuple[Submission, str]]:
        """The tasks that have not ended, each with its status by Ray's name. O(tasks)."""
        tasks = [(task, "PENDING_ARGS_AVAIL") for task in self.unresolved()]
        with self._ownership.lock:
            for queue in self._pool.queues.values():
                tasks += ((task, "PENDING_NODE_ASSIGNMENT") for task in queue.pending)
                for lease in queue.leases.values():
                    tasks += ((task, "SUBMITTED_TO_WORKER") for task in lease.in_flight.values())
        return tasks

    def unresolved(self) -> list[Submission]:
        """The tasks whose arguments are waited for."""
        return list(self._unresolved.values())

    def queues(self) -> list[KeyQueue[Submission]]:
        """The queues, for a look at them with the lock."""
        return list(self._pool.queues.values())

    def statistics(self) -> dict[str, int]:
        """Counts for people and tests: tasks pending and in flight, leases, requests."""
        with self._ownership.lock:
            queues = self._pool.queues.values()
            return {
                "pending": sum(len(q.pending) for q in queues) + len(self._unresolved),
                "in_flight": sum(q.in_flight for q in queues),
                "leases": len(self._pool.leases),
                "requests": sum(len(q.requests) for q in queues),
            }
