"""The work of one pipelined call in single steps, each timed alone with the runtime's own code.

Steps are timed in a loop over a batch, as pipelining runs them: caches are warm and nobody else
wants the interpreter lock. What a thread costs beyond the sum of its steps is glue and contention.
"""

# ruff: noqa: SLF001 - these are the parts of the runtime, one by one

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from skate_core_ids import TaskIdSource
from skate_rpc.stream import BATCH_MESSAGES_MAX
from skate_worker.context import TaskContext, running_task
from skate_worker.current import require_core
from skate_worker.machine.lease_pool import KeyQueue, Lease, LeasePool
from skate_worker.machine.references import PENDING
from skate_worker.serialization import deserialize, deserialize_args, serialize, serialize_args
from skate_worker.submission import Submission
from skate_worker.task_protocol import AnyMessage, PushTask, TaskDone

BATCH = BATCH_MESSAGES_MAX
SAMPLES = 15
DRIVER, DRIVER_IO = "driver thread", "driver I/O thread"
DRIVER_BOTH = "both driver threads"
WORKER, WORKER_IO = "worker main thread", "worker I/O thread"


@dataclass(frozen=True, slots=True)
class Step:
    """What one call pays for one step on one thread, in microseconds."""

    thread: str
    name: str
    us: float


def measure_steps() -> list[Step]:
    """The steps of a plain task, in a connected driver."""
    core: Any = require_core()
    ids = TaskIdSource()
    suffix = core._task_suffix
    task_ids = [bytes(ids.of(suffix)) for _ in range(BATCH)]
    arguments = serialize_args((), {}, core._promote, "empty")[0]
    function_id = bytes(16)
    pushes = [PushTask(one, function_id, arguments, "empty") for one in task_ids]
    result = serialize(b"ok").to_bytes()
    dones = [TaskDone(one, result, 1) for one in task_ids]
    encoder = msgspec.msgpack.Encoder()
    decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(list[AnyMessage])
    push_frame, done_frame = encoder.encode(pushes), encoder.encode(dones)
    frame = bytearray()

    def own() -> None:
        submissions = [
            Submission(one, push, [], 3, False) for one, push in zip(task_ids, pushes, strict=True)
        ]
        refs = [core._prepare(submission, 1, (), ()) for submission in submissions]
        del refs
        core.ownership.drain_dropped()

    def context() -> None:
        for one in task_ids:
            token = running_task.set(TaskContext(one, "empty", "empty", b"", 0, {}, ""))
            running_task.reset(token)

    def settle() -> None:
        with core.ownership.lock:
            for entry, done in zip(entries, dones, strict=True):
                entry.state = PENDING
                entry.settle(1, done.data)

    owned = [
        Submission(one, push, [], 3, False) for one, push in zip(task_ids, pushes, strict=True)
    ]
    kept = [core._prepare(submission, 1, (), ())[0] for submission in owned]
    entries = [ref._entry for ref in kept]
    work: list[tuple[str, str, Callable[[], object]]] = [
        (DRIVER, "serialise the arguments", lambda: [_arguments(core) for _ in task_ids]),
        (DRIVER, "make the task's id", lambda: [bytes(ids.of(suffix)) for _ in task_ids]),
        (
            DRIVER,
            "make the message",
            lambda: [PushTask(one, function_id, arguments, "empty", 1) for one in task_ids],
        ),
        (DRIVER, "own the result: submission, entry, reference; and their end", own),
        (DRIVER, "deserialise the result", lambda: [deserialize(result) for _ in task_ids]),
        (DRIVER_BOTH, "choose the worker; note it done", _pool_rounds(owned)),
        (DRIVER_IO, "encode the task", lambda: encoder.encode_into(pushes, frame)),
        (DRIVER_IO, "decode the result", lambda: decoder.decode(done_frame)),
        (DRIVER_IO, "settle the entry", settle),
        (WORKER_IO, "decode the task", lambda: decoder.decode(push_frame)),
        (WORKER, "set what is running", context),
        (
            WORKER,
            "deserialise the arguments",
            lambda: [deserialize_args(arguments) for _ in task_ids],
        ),
        (
            WORKER,
            "serialise the result, make the message",
            lambda: [TaskDone(one, _result(), 1) for one in task_ids],
        ),
        (WORKER, "encode the result", lambda: encoder.encode_into(dones, frame)),
    ]
    steps = [Step(thread, name, _us(run)) for thread, name, run in work]
    del kept
    return steps


def _arguments(core: Any) -> bytes:
    data: bytes = serialize_args((), {}, core._promote, "empty")[0]
    return data


def _result() -> bytes:
    return serialize(b"ok", subject="return value of empty()").to_bytes()


def _pool_rounds(submissions: list[Submission]) -> Callable[[], None]:
    pool: LeasePool[Submission] = LeasePool()
    queue: KeyQueue[Submission] = pool.queue_of("steps")
    lease: Lease[Submission] = Lease(b"lease", b"worker", "", 0)
    pool.granted(queue, lease, 0.0)

    def run() -> None:
        for submission in submissions:
            pool.submit(queue, submission)
        while pool.refill(lease) or lease.in_flight:
            pool.done_all(lease, [TaskDone(one, b"", 1) for one in lease.in_flight], 0.0)

    return run


def _us(run: Callable[[], object]) -> float:
    """Median microseconds per call of running a batch; the collector is off, as for `timeit`."""
    times: list[float] = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(SAMPLES):
            start_ns = time.perf_counter_ns()
            run()
            times.append((time.perf_counter_ns() - start_ns) / BATCH / 1e3)
    finally:
        gc.enable()
    return statistics.median(times)
