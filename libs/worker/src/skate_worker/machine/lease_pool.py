"""Which leased worker gets which task, and how many leases to ask for.

Tasks of one scheduling key (resources, environment) share leased workers. A worker holds a *window*
of tasks:
one while nothing is known about their length, then about ``WINDOW_S`` worth, so that short tasks
travel in batches and long ones stay with the owner, who can still send them elsewhere. When a
worker falls idle while another holds tasks that have not started, those are taken back.

::

    submit --> queue.pending --push--> lease.in_flight --done/failed--> out
                   ^                        |
                   +------ given back ------+          (never started: costs no attempt)

Plain methods that change the pool and return what to send, instead of event objects: this is the
path of every task. Before it: argument resolution. After it: ``task_submitter``, the shell.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from typing import Any, Final, Generic, TypeVar

WINDOW_S: Final = (
    0.004  # tasks worth this long wait at a worker: longer than a wake-up, shorter than a pause
)
WINDOW_MAX: Final = 1000
REQUESTS_MAX: Final = 4  # outstanding lease requests per key: each grant triggers the next
BACKLOG_S: Final = 0.5  # what is behind these requests is told to the raylet this often at most
LINGER_S: Final = 0.2  # an idle lease is kept this long for the next task
SHORT_LINGER_S: Final = (
    0.001  # the same while others wait: longer than from a result to the next call
)
_EWMA: Final = 0.3
_RUN_FLOOR_S: Final = WINDOW_S / WINDOW_MAX

T = TypeVar("T")


class Lease(Generic[T]):
    """A worker that is ours for now."""

    __slots__ = (
        "connection",
        "endpoint",
        "idle_since_s",
        "in_flight",
        "is_blocked",
        "is_draining",
        "is_lost",
        "is_taking_back",
        "is_wanted",
        "lease_id",
        "node_id",
        "pid",
        "queue",
        "run_s",
        "serials",
        "window",
        "worker_id",
    )

    def __init__(self, lease_id: bytes, worker_id: bytes, endpoint: str, pid: int) -> None:
        self.lease_id = lease_id
        self.worker_id = worker_id
        self.endpoint = endpoint
        self.pid = pid
        self.node_id = b""  # where the worker runs, once that is known
        self.connection: Any = None
        self.serials: Iterator[int] = iter(())  # of what is sent to the worker; set when granted
        self.queue: KeyQueue[T] | None = None
        self.in_flight: dict[bytes, T] = {}  # task id -> task, in the order of pushing
        self.window = 1
        self.run_s = 0.0  # moving average of the tasks' run time
        self.idle_since_s = 0.0
        self.is_draining = False  # to be returned as soon as it is empty
        self.is_blocked = False  # its running task waits in get or wait
        self.is_taking_back = False
        self.is_wanted = False  # others wait: not to be kept through a pause
        self.is_lost = False


class KeyQueue(Generic[T]):
    """The tasks and leases of one scheduling key."""

    __slots__ = (
        "backlog_request",
        "backlog_told",
        "in_flight",
        "key",
        "leases",
        "open",
        "pending",
        "requests",
    )

    def __init__(self, key: Hashable) -> None:
        self.key: Hashable = key
        self.pending: deque[T] = deque()
        self.leases: dict[bytes, Lease[T]] = {}
        self.open: deque[Lease[T]] = (
            deque()
        )  # leases with room; may hold stale ones, checked on use
        self.requests: dict[int, None] = {}  # outstanding request ids
        self.in_flight: int = 0  # over all leases
        self.backlog_told: int = 0  # as the raylet was last told, at the request with this number
        self.backlog_request: int = 0  # 0: it was not, or that request is answered

    def backlog(self) -> int:
        """Tasks that wait for a worker that none is asked for."""
        return max(0, len(self.pending) - len(self.requests))


class LeasePool(Generic[T]):
    """All keys of one owner. The caller serialises the calls. ``T`` has ``task_id``, ``attempt``
    and ``is_solo``.

    A task that ``is_solo`` travels alone: when its worker dies it must be certain that it had
    started (``max_retries=0`` promises at most one start, and a retry counts exactly).
    """

    def __init__(self) -> None:
        self.queues: dict[Hashable, KeyQueue[T]] = {}
        self.leases: dict[bytes, Lease[T]] = {}
        self._queue_of_request: dict[int, KeyQueue[T]] = {}
        self._next_request = 0

    # ---- tasks ----

    def queue_of(self, key: Hashable) -> KeyQueue[T]:
        """The queue of a scheduling key; made on first use."""
        queue = self.queues.get(key)
        if queue is None:
            queue = self.queues[key] = KeyQueue(key)
        return queue

    def submit(self, queue: KeyQueue[T], task: Any) -> Lease[T] | None:
        """Queue a task, or place it at once: then the caller pushes it to the returned lease."""
        if not queue.pending:
            is_open = queue.open
            while is_open:
                lease = is_open[0]
                if not self._has_room(lease, task):
                    is_open.popleft()
                    continue
                is_open.rotate(-1)
                self._place(queue, lease, task)
                return lease
        queue.pending.append(task)
        return None

    def requeue(self, queue: KeyQueue[T], tasks: list[T]) -> None:
        """Put tasks that were given back, or are to be retried, at the head, in their order."""
        queue.pending.extendleft(reversed(tasks))

    def refill(self, lease: Lease[T]) -> list[T]:
        """The tasks to push to this lease now. Waits until half the window is free, so pushes
        batch.
        """
        queue = lease.queue
        assert queue is not None
        pending = queue.pending
        if lease.is_draining or lease.is_blocked or lease.is_lost:
            return []
        if not pending:
            if len(lease.in_flight) < lease.window and lease not in queue.open:
                queue.open.append(lease)
            return []
        if len(lease.in_flight) > lease.window // 2:
            return []
        pushed: list[T] = []
        while pending and self._has_room(lease, pending[0]):
            task = pending.popleft()
            self._place(queue, lease, task)
            pushed.append(task)
        if not pending and len(lease.in_flight) < lease.window and lease not in queue.open:
            queue.open.append(lease)
        return pushed

    def done_all(
        self, lease: Lease[T], outcomes: list[Any], now_s: float
    ) -> tuple[list[tuple[T, Any]], list[Any]]:
        """Tasks of one lease finished, in one batch; each outcome has ``task_id``, ``attempt`` and
        ``run_us``.

        Returns the tasks with their outcomes, and the outcomes of attempts that are not in flight
        here: they were given back, the lease was lost, or they are told a second time.
        """
        in_flight = lease.in_flight
        mean_s = lease.run_s
        finished: list[tuple[T, Any]] = []
        given_up: list[Any] = []
        for outcome in outcomes:  # paid by every task
            task: Any = in_flight.get(outcome.task_id)
            if task is None or task.attempt != outcome.attempt:
                given_up.append(outcome)
                continue
            del in_flight[outcome.task_id]
            finished.append((task, outcome))
            run_s = outcome.run_us * 1e-6
            mean_s = run_s if mean_s == 0.0 else mean_s + _EWMA * (run_s - mean_s)
        if finished:
            queue = lease.queue
            assert queue is not None
            queue.in_flight -= len(finished)
            lease.is_blocked = False
            lease.run_s = mean_s
            lease.window = max(1, int(WINDOW_S / max(mean_s, _RUN_FLOOR_S)))
            if not in_flight:
                lease.idle_since_s = now_s
        return finished, given_up

    def unsent(self, lease: Lease[T], tasks: list[T]) -> None:
        """Placed tasks that could not be sent: the connection is gone. Back to the head they go."""
        lease.is_lost = True
        queue = lease.queue
        assert queue is not None
        for task in tasks:
            placed: Any = task
            if lease.in_flight.pop(placed.task_id, None) is not None:
                queue.in_flight -= 1
        self.requeue(queue, tasks)

    def given_back(self, lease: Lease[T], task_ids: list[bytes], is_blocked: bool) -> list[T]:
        """Tasks that never started come back to the head of the queue; returned in their order."""
        lease.is_taking_back = False
        if is_blocked:
            lease.is_blocked = True
            lease.window = 1
        tasks = [
            task
            for task in (lease.in_flight.pop(task_id, None) for task_id in task_ids)
            if task is not None
        ]
        queue = lease.queue
        assert queue is not None
        queue.in_flight -= len(tasks)
        self.requeue(queue, tasks)
        return tasks

    def steal_for(self, idle: Lease[T]) -> tuple[Lease[T], int] | None:
        """For a worker that fell idle: whom to ask for tasks back, and how many (half of the
        surplus).
        """
        queue = idle.queue
        assert queue is not None
        if queue.pending or idle.in_flight or idle.is_draining:
            return None
        victim: Lease[T] | None = None
        for lease in queue.leases.values():
            if (
                len(lease.in_flight) > 1
                and not lease.is_taking_back
                and (victim is None or len(lease.in_flight) > len(victim.in_flight))
            ):
                victim = lease
        if victim is None:
            return None
        victim.is_taking_back = True
        return victim, len(victim.in_flight) // 2

    # ---- leases ----

    def requests_wanted(self, queue: KeyQueue[T]) -> int:
        """How many more leases to request now; negative: how many requests to cancel.

        Wanted is a worker for each task that has none of its own: tasks that queue behind another
        at a worker count too, because their length is only guessed.
        """
        needed = len(queue.pending) + queue.in_flight - len(queue.leases)
        if needed <= 0:
            return -len(queue.requests)
        return (
            min(needed, REQUESTS_MAX) - len(queue.requests) if needed > len(queue.requests) else 0
        )

    def new_request(self, queue: KeyQueue[T]) -> int:
        """Number a lease request."""
        self._next_request += 1
        queue.requests[self._next_request] = None
        self._queue_of_request[self._next_request] = queue
        return self._next_request

    def end_request(self, request_id: int) -> KeyQueue[T] | None:
        """A request was granted, refused or cancelled. None: it was cancelled before."""
        queue = self._queue_of_request.pop(request_id, None)
        if queue is not None:
            queue.requests.pop(request_id, None)
            if queue.backlog_request == request_id:
                queue.backlog_request = queue.backlog_told = 0
        return queue

    def first_backlog(self, queue: KeyQueue[T], request_id: int) -> int:
        """What a new request is to say of the backlog: nothing while another speaks for it."""
        if queue.backlog_request == request_id:
            return queue.backlog_told  # it was told before the request itself is sent
        if queue.backlog_request or request_id not in queue.requests:
            return 0
        backlog = queue.backlog()
        if backlog:
            queue.backlog_request, queue.backlog_told = request_id, backlog
        return backlog

    def backlog_news(self) -> list[tuple[int, int]]:
        """Request and backlog where it is not what was last told; counts as told.

        O(outstanding requests).
        """
        news: list[tuple[int, int]] = []
        for queue in dict.fromkeys(self._queue_of_request.values()):
            backlog = queue.backlog()
            if backlog != queue.backlog_told:
                if not queue.backlog_request:
                    queue.backlog_request = next(reversed(queue.requests))  # the last to be served
                queue.backlog_told = backlog
                news.append((queue.backlog_request, backlog))
        return news

    @property
    def has_requests(self) -> bool:
        """Whether any lease request is outstanding."""
        return bool(self._queue_of_request)

    def queue_of_request(self, request_id: int) -> KeyQueue[T] | None:
        """The queue that an outstanding request is for."""
        return self._queue_of_request.get(request_id)

    def granted(self, queue: KeyQueue[T], lease: Lease[T], now_s: float) -> None:
        """A lease arrived; ``refill`` it next."""
        lease.queue = queue
        lease.idle_since_s = now_s
        queue.leases[lease.lease_id] = lease
        self.leases[lease.lease_id] = lease

    def lost(self, lease_id: bytes) -> tuple[Lease[T], list[T]] | None:
        """A leased worker died. Its tasks as they were pushed: only the first surely started."""
        lease = self.leases.get(lease_id)
        if lease is None:
            return None
        tasks = list(lease.in_flight.values())
        self._remove(lease)
        return lease, tasks

    def reclaim(self, lease_id: bytes) -> Lease[T] | None:
        """Others wait for this lease: push no more to it; the caller takes back and returns it."""
        lease = self.leases.get(lease_id)
        if lease is not None:
            lease.is_draining = True
        return lease

    def wanted(self, lease_id: bytes) -> Lease[T] | None:
        """Others wait, and the lease is to be returned at its first pause."""
        lease = self.leases.get(lease_id)
        if lease is not None:
            lease.is_wanted = True
        return lease

    def returnable(self, now_s: float) -> list[Lease[T]]:
        """Removes and returns the leases to give back: drained ones, and idle ones past
        ``LINGER_S``, or past ``SHORT_LINGER_S`` where others wait.
        """
        leases = [
            lease
            for lease in self.leases.values()
            if not lease.in_flight
            and (
                lease.is_draining
                or now_s - lease.idle_since_s >= (SHORT_LINGER_S if lease.is_wanted else LINGER_S)
            )
        ]
        for lease in leases:
            self._remove(lease)
        return leases

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` when the counts disagree. O(leases)."""
        for queue in self.queues.values():
            assert queue.in_flight == sum(len(lease.in_flight) for lease in queue.leases.values())
            assert len(queue.requests) <= REQUESTS_MAX
            assert not queue.backlog_request or queue.backlog_request in queue.requests
            assert queue.backlog_request or not queue.backlog_told
            for lease in queue.leases.values():
                assert len(lease.in_flight) <= WINDOW_MAX
                assert self.leases[lease.lease_id] is lease

    def _has_room(self, lease: Lease[T], task: Any) -> bool:
        if lease.is_lost or lease.is_draining or lease.is_blocked:
            return False
        in_flight = lease.in_flight
        if not in_flight:
            return True
        if task.is_solo or len(in_flight) >= lease.window:
            return False
        first: Any = next(iter(in_flight.values()))
        return not first.is_solo

    def _place(self, queue: KeyQueue[T], lease: Lease[T], task: Any) -> None:
        lease.in_flight[task.task_id] = task
        queue.in_flight += 1

    def _remove(self, lease: Lease[T]) -> None:
        queue = lease.queue
        assert queue is not None
        lease.is_lost = True
        queue.in_flight -= len(lease.in_flight)
        lease.in_flight = {}
        queue.leases.pop(lease.lease_id, None)
        self.leases.pop(lease.lease_id, None)
