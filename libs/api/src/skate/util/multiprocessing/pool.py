"""``Pool``: the standard library's interface, with actors anywhere in the cluster for processes."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Final

from skate.cluster import cluster_resources
from skate.objects import put
from skate.session import init, is_initialized, require_session
from skate.util.multiprocessing.dispatch import ONE_ARGUMENT, SINGLE, SPREAD, Chunk, Dispatcher
from skate.util.multiprocessing.results import (
    AsyncResult,
    Callback,
    IMapIterator,
    IMapUnorderedIterator,
    Submit,
)

CHUNKS_PER_PROCESS: Final = 4  # of `map` without a chunk size, as in the standard library

RUNNING, CLOSED, TERMINATED = "RUN", "CLOSE", "TERMINATE"


class Pool:
    """A pool of actors with the interface of ``multiprocessing.pool.Pool``.

    Functions and arguments are pickled as those of tasks are, so lambdas work. What a process keeps
    between calls (globals, an initializer's work) an actor keeps too. A call whose actor dies
    raises ``ActorDiedError``, and another actor takes its place. The actors hold no CPU unless
    ``ray_remote_args`` says so: a pool inside a call of a pool finds room.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: object = None,
        ray_address: str | None = None,
        ray_remote_args: dict[str, Any] | None = None,
        *,
        skate_address: str | None = None,
        skate_remote_args: dict[str, Any] | None = None,
    ) -> None:
        """Start the actors.

        Args:
            processes: How many; by default the CPUs of the cluster.
            initializer: Called in each actor first, with ``initargs``.
            initargs: Its arguments.
            maxtasksperchild: Chunks that an actor runs before another takes its place.
            context: Accepted; there is one way to start.
            ray_address: As ``skate_address``, under Ray's name.
            ray_remote_args: As ``skate_remote_args``, under Ray's name.
            skate_address: The cluster, if there is no session yet.
            skate_remote_args: Options of the actors.

        Raises:
            ValueError: fewer than one process or task a child.
            TypeError: the initializer can not be called.
        """
        address = skate_address or ray_address
        if not is_initialized() and address:
            init(address)
        else:
            require_session()
        if processes is None:
            processes = max(1, int(cluster_resources().get("CPU", 1)))
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and maxtasksperchild < 1:
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._processes = processes
        self._state = RUNNING
        options = skate_remote_args or ray_remote_args or {}
        self._dispatcher = Dispatcher(
            processes, initializer, tuple(initargs), maxtasksperchild, options
        )
        weakref.finalize(self, self._dispatcher.terminate).atexit = False

    def apply(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwds: dict[str, Any] | None = None,
    ) -> Any:
        """The result of one call; waits for it."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwds: dict[str, Any] | None = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> AsyncResult:
        """Start one call. The callback gets its value, ``error_callback`` its error.

        Callbacks run on a thread of the pool and must not block it.
        """
        self._require_running()
        result = AsyncResult(self, 1, True, callback, error_callback)
        call = (tuple(args), dict(kwds or {}))
        self._send(func, SINGLE, [call], lambda outcomes: result.take(0, outcomes))
        return result

    def map(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None
    ) -> list[Any]:
        """``func(item)`` for each item, in order; raises the first error once all have ended."""
        results: list[Any] = self.map_async(func, iterable, chunksize).get()
        return results

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> AsyncResult:
        """As :meth:`map`, without waiting."""
        return self._map(func, ONE_ARGUMENT, iterable, chunksize, callback, error_callback)

    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
    ) -> list[Any]:
        """As :meth:`map`, with ``func(*item)``."""
        results: list[Any] = self.starmap_async(func, iterable, chunksize).get()
        return results

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
    ) -> AsyncResult:
        """As :meth:`starmap`, without waiting."""
        return self._map(func, SPREAD, iterable, chunksize, callback, error_callback)

    def imap(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1
    ) -> IMapIterator:
        """An iterator over ``func(item)`` in order; an error is raised in its item's place.

        The iterable is read two chunks a process ahead of what was taken, so it may be endless.
        """
        chunks, submit = self._stream(func, iterable, chunksize)
        return IMapIterator(self, chunks, submit, self._processes)

    def imap_unordered(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1
    ) -> IMapUnorderedIterator:
        """As :meth:`imap`, in the order in which results come."""
        chunks, submit = self._stream(func, iterable, chunksize)
        return IMapUnorderedIterator(self, chunks, submit, self._processes)

    def close(self) -> None:
        """Take no more calls; the actors end when all is done."""
        if self._state == RUNNING:
            self._state = CLOSED
            self._dispatcher.close()

    def terminate(self) -> None:
        """Kill the actors at once; results that are not there raise ``RuntimeError``."""
        if self._state != TERMINATED:
            self._state = TERMINATED
            self._dispatcher.terminate()

    def join(self) -> None:
        """Wait until a closed or terminated pool has ended.

        Raises:
            ValueError: it is neither closed nor terminated.
        """
        if self._state == RUNNING:
            raise ValueError("Pool is still running")
        self._dispatcher.join()

    def __enter__(self) -> Pool:
        self._require_running()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.terminate()

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def _require_running(self) -> None:
        if self._state != RUNNING:
            raise ValueError("Pool not running")

    def _map(
        self,
        func: Callable[..., Any],
        shape: str,
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: Callback | None,
        error_callback: Callback | None,
    ) -> AsyncResult:
        self._require_running()
        items = list(iterable)
        if chunksize is None:
            chunksize = max(1, -(-len(items) // (self._processes * CHUNKS_PER_PROCESS)))
        chunks = list(_chunks(items, chunksize))
        result = AsyncResult(self, len(chunks), False, callback, error_callback)
        function = put(func) if len(chunks) > 1 else func  # pickled once
        for piece, calls in enumerate(chunks):
            self._send(
                function, shape, calls, lambda outcomes, piece=piece: result.take(piece, outcomes)
            )
        return result

    def _stream(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int
    ) -> tuple[Iterator[list[Any]], Submit]:
        self._require_running()
        chunks = _chunks(iterable, chunksize)
        function = put(func)
        return chunks, lambda calls, tell: self._send(function, ONE_ARGUMENT, calls, tell)

    def _send(self, function: Any, shape: str, calls: list[Any], tell: Any) -> None:
        self._dispatcher.add(Chunk(function, shape, calls, tell))


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    if size < 1:
        raise ValueError(f"Chunksize must be 1+, not {size}")
    remaining = iter(items)
    # Not `batched`, which Python 3.11 lacks.
    return iter(lambda: list(itertools.islice(remaining, size)), [])
