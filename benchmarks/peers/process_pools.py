"""The standard library's two process pools: the floor in features, and quick at plain tasks."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import multiprocessing.pool
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from benchmarks import served
from benchmarks.peers.peer import Peer, Reference, Send
from benchmarks.workload import Capability

NO_OBJECTS = "a pool has no object store: arguments and results are copied"
NO_ACTORS = "a pool has no actors"
POOL_LACKS = {
    Capability.SMALL_OBJECTS: NO_OBJECTS,
    Capability.LARGE_PUT: NO_OBJECTS,
    Capability.LARGE_GET: NO_OBJECTS,
    Capability.TASK_REFERENCES: NO_OBJECTS,
    Capability.BORROWED: NO_OBJECTS,
    Capability.TASK_RETURNS: "a pool's task has one result",
    Capability.NESTED: "a pool's workers cannot submit to it",
    Capability.ACTORS: NO_ACTORS,
    Capability.ACTOR_PROCESSES: NO_ACTORS,
    Capability.ACTOR_THREADS: NO_ACTORS,
    Capability.ASYNC_ACTORS: NO_ACTORS,
    Capability.ACTOR_CLIENTS: NO_ACTORS,
    Capability.PLACEMENT_GROUPS: "a pool has no resources",
}


class PoolPeer(Peer):
    """`multiprocessing.Pool` with the platform's start method, tasks by `apply_async`."""

    name = "pool"
    import_statement = "import multiprocessing.pool"
    lacks: ClassVar[dict[Capability, str]] = POOL_LACKS | {
        Capability.WAIT: "an AsyncResult cannot be waited for among others"
    }

    def __init__(self) -> None:
        self._pool: multiprocessing.pool.Pool | None = None

    def start(self, cpus: int) -> None:
        """A pool that has answered."""
        self._pool = multiprocessing.Pool(cpus)
        self._pool.apply(served.small_value)

    def stop(self) -> None:
        """Close the pool and join its workers."""
        assert self._pool is not None
        self._pool.close()
        self._pool.join()
        self._pool = None

    def task(self, function: Callable[..., object], returns: int = 1) -> Send:
        """`apply_async` of the function."""
        if self._pool is None or returns != 1:
            raise ValueError("the pool is not started, or several return values are asked for")
        apply_async = self._pool.apply_async

        def send(*arguments: object) -> Reference:
            return apply_async(function, arguments)

        return send

    def get(self, reference: Reference | list[Reference]) -> Any:
        """The result or the results."""
        if isinstance(reference, list):
            return [each.get() for each in reference]
        return reference.get()


class ExecutorPeer(Peer):
    """`concurrent.futures.ProcessPoolExecutor` with the platform's start method."""

    name = "executor"
    import_statement = "import concurrent.futures.process"
    lacks: ClassVar[dict[Capability, str]] = POOL_LACKS

    def __init__(self) -> None:
        self._executor: concurrent.futures.ProcessPoolExecutor | None = None

    def start(self, cpus: int) -> None:
        """An executor that has answered: it starts its processes on demand."""
        self._executor = concurrent.futures.ProcessPoolExecutor(cpus)
        self._executor.submit(served.small_value).result()

    def stop(self) -> None:
        """Shut it down and wait for its processes."""
        assert self._executor is not None
        self._executor.shutdown()
        self._executor = None

    def task(self, function: Callable[..., object], returns: int = 1) -> Send:
        """`submit` of the function."""
        if self._executor is None or returns != 1:
            raise ValueError("the executor is not started, or several return values are asked for")
        submit = self._executor.submit

        def send(*arguments: object) -> Reference:
            return submit(function, *arguments)

        return send

    def get(self, reference: Reference | list[Reference]) -> Any:
        """The result or the results."""
        if isinstance(reference, list):
            return [each.result() for each in reference]
        return reference.result()

    def wait_each(self, references: Sequence[Reference]) -> None:
        """`wait` for the first one, again and again."""
        unready = set(references)
        while unready:
            done, unready = concurrent.futures.wait(
                unready, return_when=concurrent.futures.FIRST_COMPLETED
            )
            # Several may be done; as elsewhere, one is taken at a time.
            done.pop()
            unready |= done
