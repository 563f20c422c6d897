"""Which processes to start, keep and end, so that every lease finds a worker and none lies about.

Workers are alike when they have the same job and environment variables; only alike workers are
reused.

::

    AcquireWorker --one alike is idle--> WorkerHanded
         |
         +--else--> in line; StartWorker, a few at a time
                        |--> WorkerRegistered  --> WorkerHanded to the first in line
                        +--> WorkerStartFailed --> once more (transient), or WorkerRefused
    ReleaseWorker --> to the first in line, else idle --1 s, past the soft limit--> EndWorker

How many to start is derived from who waits and what is starting, never counted by hand, so an
abandoned request starts nothing. ``EndWorker`` does not end the books: a process counts until its
death is seen.

Comes after ``lease_machine``. What it starts and ends is done by ``service.zygote`` and
``service.reaper``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final, assert_never

import msgspec

from skate_raylet.machine import commands as do
from skate_raylet.machine import events as on

IDLE_S: Final = 1.0  # SURFACE 3.2: an idle worker past the soft limit is retired after this
START_TIMEOUT_S: Final = 60.0  # SURFACE 3.2: from the request to registration
START_ATTEMPTS_MAX: Final = 5  # of one request, counting transient failures alone
RETRY_DELAY_S: Final = 0.1  # doubles with each transient failure of a kind of worker
RETRY_DELAY_MAX_S: Final = 2.0
JOB_EXIT_GRACE_S: Final = 1.0  # for exit hooks of a finished job's workers


class PoolConfig(msgspec.Struct, frozen=True):
    """How many worker processes a node runs."""

    # Idle workers are kept while there are no more task workers than this. Usually the CPUs.
    soft_limit: int
    # Processes that may be starting at once; each takes a core for some milliseconds.
    starts_max: int
    # Worker processes of the node, whatever they do. Never exceeded.
    workers_max: int


class WorkerKey(msgspec.Struct, frozen=True):
    """What makes two workers alike."""

    job_id: bytes
    env_vars: on.EnvVars


class Starting(msgspec.Struct, frozen=True):
    """Forked or about to be; not yet registered. ``is_late``: given up, its end is awaited."""

    since_s: float
    is_late: bool = False


class Idle(msgspec.Struct, frozen=True):
    """Registered and free."""

    worker_id: bytes
    since_s: float


class Leased(msgspec.Struct, frozen=True):
    """Serves a lease."""

    worker_id: bytes
    is_actor: bool


class Leaving(msgspec.Struct, frozen=True):
    """Was asked to end, or is ending by itself."""

    worker_id: bytes


WorkerState = Starting | Idle | Leased | Leaving


class Worker(msgspec.Struct):
    """One process of the pool."""

    startup_id: int
    key: WorkerKey
    state: WorkerState


class _Line(msgspec.Struct):
    """Who waits for a worker of one kind."""

    # By lease, first come first.
    waiting: dict[bytes, do.AcquireWorker] = msgspec.field(default_factory=dict)
    starting: int = 0  # processes that are starting and not late
    failures: int = 0  # transient, in a row
    retry_at_s: float = float("-inf")


PoolEvent = (
    do.AcquireWorker
    | do.AbandonWorker
    | do.ReleaseWorker
    | do.RetireWorker
    | on.WorkerRegistered
    | on.WorkerStartFailed
    | on.WorkerGone
    | on.WorkerRetiring
    | on.WorkerUnfit
    | on.JobFinished
    | on.TimePassed
)


class WorkerPoolMachine:
    """The worker processes of one node.

    ``is_holder(worker_id)`` says whether a worker holds leases of its own: such a worker is not
    retired, because what it started would die with it.
    """

    def __init__(self, config: PoolConfig, is_holder: Callable[[bytes], bool]) -> None:
        self._config = config
        self._is_holder = is_holder
        self._workers: dict[int, Worker] = {}
        self._idle: dict[WorkerKey, dict[int, None]] = {}  # longest idle first
        self._starting: dict[int, float] = {}  # not late ones, with since when; first first
        self._on_tasks: dict[int, None] = {}  # leased, but not to actors
        self._lines: dict[WorkerKey, _Line] = {}
        self._key_of: dict[bytes, WorkerKey] = {}  # waiting lease -> its line
        self._attempts: dict[bytes, int] = {}  # waiting lease -> transient failures charged to it
        self._finished_jobs: dict[bytes, None] = {}
        self._count = 0
        self._is_closed = False

    def handle(self, event: PoolEvent, now_s: float) -> list[do.PoolCommand]:
        """Take one event; returns what follows from it."""
        commands: list[do.PoolCommand] = []
        match event:
            case do.AcquireWorker():
                self._acquire(event, commands)
            case do.AbandonWorker(lease_id):
                self._abandon(lease_id)
            case do.ReleaseWorker(startup_id):
                worker = self._workers.get(startup_id)
                if worker is not None and isinstance(worker.state, Leased):
                    self._make_idle(worker, worker.state.worker_id, now_s, commands)
            case do.RetireWorker(startup_id, kind, message, grace_s) | on.WorkerUnfit(
                startup_id, kind, message, grace_s
            ):
                worker = self._workers.get(startup_id)
                if worker is not None:
                    self._end(worker, kind, message, grace_s, commands)
            case on.WorkerRegistered(startup_id, worker_id):
                self._register(startup_id, worker_id, now_s, commands)
            case on.WorkerStartFailed():
                self._fail_start(event, now_s, commands)
            case on.WorkerGone(startup_id, _):
                worker = self._workers.pop(startup_id, None)
                if worker is not None:
                    self._leave_state(worker)
            case on.WorkerRetiring(startup_id):
                worker = self._workers.get(startup_id)
                if worker is not None and isinstance(worker.state, (Idle, Leased)):
                    self._set_state(worker, Leaving(worker.state.worker_id))
            case on.JobFinished(job_id):
                self._finish_job(job_id, commands)
            case on.TimePassed():
                pass
            case _:
                assert_never(event)
        self._give_up_late_starts(now_s, commands)
        self._retire_idle(now_s, commands)
        self._start_needed(now_s, commands)
        return commands

    def next_wakeup(self, now_s: float) -> tuple[float, str] | None:
        """When ``TimePassed`` is due, and why; None when time alone changes nothing."""
        times: list[tuple[float, str]] = []
        for since_s in self._starting.values():
            times.append((since_s + START_TIMEOUT_S, "a start is given up"))
            break  # the first started is the first to be late
        # One that is due already counts too: an event that does not come here, between the moment
        # and the wake-up for it, must not have the wake-up forgotten.
        can_start = len(self._starting) < self._config.starts_max and self.has_room()
        times.extend(
            (max(line.retry_at_s, now_s), "a failed start is tried again")
            for line in self._lines.values()
            if len(line.waiting) > line.starting and (can_start or line.retry_at_s > now_s)
        )
        first = next(self._retirable(), None)
        if first is not None and isinstance(first.state, Idle):
            times.append((max(first.state.since_s + IDLE_S, now_s), "an idle worker is retired"))
        return min(times, default=None)

    def close(self) -> list[do.PoolCommand]:
        """Start nothing any more and refuse who waits. The shell ends the processes."""
        self._is_closed = True
        commands: list[do.PoolCommand] = []
        for lease_id in list(self._key_of):
            self._refuse(lease_id, "The node is shutting down.", commands)
        return commands

    def has_room(self) -> bool:
        """Whether one more process may be started."""
        return len(self._workers) < self._config.workers_max

    def workers(self) -> list[Worker]:
        """All processes, oldest first; not to be changed."""
        return list(self._workers.values())

    def get(self, startup_id: int) -> Worker | None:
        """The process with this number; not to be changed."""
        return self._workers.get(startup_id)

    # ---- events ----

    def _acquire(self, event: do.AcquireWorker, commands: list[do.PoolCommand]) -> None:
        key = WorkerKey(event.job_id, event.env_vars)
        for startup_id in reversed(self._idle.get(key, {})):  # the last used: its caches are warm
            worker = self._workers[startup_id]
            assert isinstance(worker.state, Idle)
            # A worker may still wait for tasks that it started in the background; it is idle and a
            # holder then, and must not become its own servant.
            if worker.state.worker_id != event.holder_id:
                self._hand(worker, worker.state.worker_id, event, commands)
                return
        self._lines.setdefault(key, _Line()).waiting[event.lease_id] = event
        self._key_of[event.lease_id] = key
        if self._is_closed:
            self._refuse(event.lease_id, "The node is shutting down.", commands)

    def _abandon(self, lease_id: bytes) -> None:
        key = self._key_of.pop(lease_id, None)
        self._attempts.pop(lease_id, None)
        if key is not None:
            del self._lines[key].waiting[lease_id]
            self._drop_line_if_unused(key)

    def _register(
        self, startup_id: int, worker_id: bytes, now_s: float, commands: list[do.PoolCommand]
    ) -> None:
        worker = self._workers.get(startup_id)
        if worker is None or not isinstance(worker.state, Starting):
            return  # unknown, or told to end while it started
        if worker.state.is_late:
            self._set_state(worker, Leaving(worker_id))
            return
        self._lines[worker.key].failures = 0
        self._make_idle(worker, worker_id, now_s, commands)

    def _make_idle(
        self, worker: Worker, worker_id: bytes, now_s: float, commands: list[do.PoolCommand]
    ) -> None:
        line = self._lines.get(worker.key)
        for waiter in line.waiting.values() if line is not None else ():
            if waiter.holder_id != worker_id:
                self._hand(worker, worker_id, waiter, commands)
                return
        self._set_state(worker, Idle(worker_id, now_s))

    def _hand(
        self,
        worker: Worker,
        worker_id: bytes,
        waiter: do.AcquireWorker,
        commands: list[do.PoolCommand],
    ) -> None:
        self._set_state(worker, Leased(worker_id, waiter.is_actor))
        self._abandon(waiter.lease_id)  # it waits no longer
        commands.append(on.WorkerHanded(waiter.lease_id, worker.startup_id, worker_id))

    def _fail_start(
        self, event: on.WorkerStartFailed, now_s: float, commands: list[do.PoolCommand]
    ) -> None:
        worker = self._workers.pop(event.startup_id, None)
        if worker is None:
            return
        was_awaited = isinstance(worker.state, Starting) and not worker.state.is_late
        self._leave_state(worker)
        line = self._lines.get(worker.key)
        if not was_awaited or line is None or not line.waiting:
            return
        lease_id = next(iter(line.waiting))
        attempts = self._attempts.get(lease_id, 0) + 1
        if not event.is_transient or attempts >= START_ATTEMPTS_MAX:
            self._refuse(lease_id, event.message, commands)
            return
        self._attempts[lease_id] = attempts
        delay_s = min(RETRY_DELAY_MAX_S, RETRY_DELAY_S * 2**line.failures)
        line.failures += 1
        line.retry_at_s = now_s + delay_s

    def _refuse(self, lease_id: bytes, message: str, commands: list[do.PoolCommand]) -> None:
        self._abandon(lease_id)
        commands.append(on.WorkerRefused(lease_id, "worker_start_failed", message))

    def _finish_job(self, job_id: bytes, commands: list[do.PoolCommand]) -> None:
        self._finished_jobs[job_id] = None
        for worker in list(self._workers.values()):
            if worker.key.job_id != job_id:
                continue
            match worker.state:
                case Idle() | Leaving():
                    # One that was only asked to leave for being idle gets a deadline too.
                    self._end(
                        worker, "job_finished", "Its job finished.", JOB_EXIT_GRACE_S, commands
                    )
                case Starting():
                    if not self._lines[worker.key].waiting:
                        self._end(worker, "job_finished", "Its job finished.", 0.0, commands)
                case Leased():
                    pass  # ends with its lease, or lives on for a detached actor

    # ---- what follows ----

    def _give_up_late_starts(self, now_s: float, commands: list[do.PoolCommand]) -> None:
        for startup_id, since_s in list(self._starting.items()):
            if now_s < since_s + START_TIMEOUT_S:
                return  # started in this order
            worker = self._workers[startup_id]
            message = f"The worker process did not register within {START_TIMEOUT_S:g} s."
            self._set_state(worker, Starting(since_s, is_late=True))
            commands.append(do.EndWorker(worker.startup_id, "start_failed", message, 0.0))
            line = self._lines.get(worker.key)
            if line is not None and line.waiting:
                self._refuse(next(iter(line.waiting)), message, commands)

    def _retirable(self) -> Iterator[Worker]:
        """Idle workers that are too many, longest idle first."""
        idle = sorted(
            (self._workers[startup_id] for group in self._idle.values() for startup_id in group),
            key=_idle_since_s,
        )
        surplus = len(self._on_tasks) + len(idle) - self._config.soft_limit
        for worker in idle:
            is_over = worker.key.job_id in self._finished_jobs
            if surplus <= 0 and not is_over:
                continue
            assert isinstance(worker.state, Idle)
            if not self._is_holder(worker.state.worker_id):
                surplus -= 1
                yield worker

    def _retire_idle(self, now_s: float, commands: list[do.PoolCommand]) -> None:
        if not self._idle:
            return
        for worker in list(self._retirable()):
            if now_s >= _idle_since_s(worker) + IDLE_S:
                self._end(worker, "intended_exit", "It was idle.", math.inf, commands)

    def _start_needed(self, now_s: float, commands: list[do.PoolCommand]) -> None:
        if self._is_closed:
            return
        for key, line in list(self._lines.items()):
            wanted = len(line.waiting) - line.starting
            while (
                wanted > 0
                and now_s >= line.retry_at_s
                and len(self._starting) < self._config.starts_max
            ):
                if not self.has_room():
                    self._make_room(key, commands)
                    return
                self._count += 1
                worker = Worker(self._count, key, Starting(now_s))
                self._workers[worker.startup_id] = worker
                self._starting[worker.startup_id] = now_s
                line.starting += 1
                wanted -= 1
                commands.append(do.StartWorker(worker.startup_id, key.job_id, key.env_vars))

    def _make_room(self, key: WorkerKey, commands: list[do.PoolCommand]) -> None:
        """At the hard limit an idle worker of another kind gives way, at once."""
        for other, idle in self._idle.items():
            if other != key:
                for startup_id in idle:
                    worker = self._workers[startup_id]
                    assert isinstance(worker.state, Idle)
                    if not self._is_holder(worker.state.worker_id):
                        message = "It was idle and the node runs as many workers as it may."
                        self._end(worker, "intended_exit", message, math.inf, commands)
                        return

    def _end(
        self,
        worker: Worker,
        kind: str,
        message: str,
        grace_s: float,
        commands: list[do.PoolCommand],
    ) -> None:
        match worker.state:
            case Starting():
                self._set_state(worker, Starting(worker.state.since_s, is_late=True))
            case Idle(worker_id) | Leased(worker_id):
                self._set_state(worker, Leaving(worker_id))
            case Leaving():
                pass
        commands.append(do.EndWorker(worker.startup_id, kind, message, grace_s))

    def _set_state(self, worker: Worker, state: WorkerState) -> None:
        self._leave_state(worker)
        worker.state = state
        match state:
            case Idle():
                self._idle.setdefault(worker.key, {})[worker.startup_id] = None
            case Leased(_, is_actor) if not is_actor:
                self._on_tasks[worker.startup_id] = None
            case _:  # a start is entered where it is made, and only leaves
                pass

    def _leave_state(self, worker: Worker) -> None:
        match worker.state:
            case Idle():
                idle = self._idle[worker.key]
                del idle[worker.startup_id]
                if not idle:
                    del self._idle[worker.key]
            case Leased(_, is_actor) if not is_actor:
                del self._on_tasks[worker.startup_id]
            case Starting(_, is_late) if not is_late:
                del self._starting[worker.startup_id]
                self._lines[worker.key].starting -= 1
                self._drop_line_if_unused(worker.key)
            case _:
                pass

    def _drop_line_if_unused(self, key: WorkerKey) -> None:
        line = self._lines[key]
        if not line.waiting and not line.starting:
            del self._lines[key]

    def check_invariants(self) -> None:
        """Raise ``AssertionError`` when the parts disagree. O(workers). For tests."""
        assert len(self._workers) <= self._config.workers_max
        idle = {i: None for group in self._idle.values() for i in group}
        starting: dict[WorkerKey, int] = {}
        on_tasks: dict[int, None] = {}
        for worker in self._workers.values():
            assert isinstance(worker.state, Idle) == (worker.startup_id in idle)
            if isinstance(worker.state, Starting) and not worker.state.is_late:
                starting[worker.key] = starting.get(worker.key, 0) + 1
                assert worker.startup_id in self._starting
            if isinstance(worker.state, Leased) and not worker.state.is_actor:
                on_tasks[worker.startup_id] = None
        assert starting == {
            key: line.starting for key, line in self._lines.items() if line.starting
        }
        assert sum(starting.values()) == len(self._starting) <= self._config.starts_max
        assert on_tasks == self._on_tasks
        waiting = {lease: key for key, line in self._lines.items() for lease in line.waiting}
        assert waiting == self._key_of
        assert set(self._attempts) <= set(waiting)
        for key, line in self._lines.items():
            assert line.waiting or line.starting
            for startup_id in self._idle.get(key, {}):
                state = self._workers[startup_id].state
                assert isinstance(state, Idle)
                for waiter in line.waiting.values():
                    assert waiter.holder_id == state.worker_id, "one waits while one alike is idle"


def _idle_since_s(worker: Worker) -> float:
    return worker.state.since_s if isinstance(worker.state, Idle) else math.inf
