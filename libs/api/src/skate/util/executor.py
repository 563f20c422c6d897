"""``SkateExecutor``: the cluster as a ``concurrent.futures.Executor``. Source: PEP 3148."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

from skate.actor_class import ActorClass
from skate.decorators import remote
from skate.objects import cancel
from skate.remote_function import RemoteFunction

P = ParamSpec("P")
T = TypeVar("T")


class SkateExecutor(Executor):
    """Runs each submitted call as a task. Its futures work with ``concurrent.futures``.

    A future is cancelled in the standard library's way only: once its task has been sent to the
    cluster ``cancel()`` returns False, and ``future.running()`` is True. ``shutdown`` with
    ``cancel_futures=True`` stops the tasks themselves.
    """

    def __init__(self, **options: Any) -> None:
        """``options`` of the tasks: ``num_cpus``, ``max_retries``, ``runtime_env``, ...

        Raises:
            TypeError, ValueError: an option that does not exist or has a wrong value.
        """
        self._options = options
        self._task: Any = remote(_call).options(**options)
        self._lock = threading.Lock()
        self._refs: dict[Future[Any], Any] = {}
        self._is_shut_down = False
        self._all_done = threading.Condition(self._lock)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn(*args, **kwargs)`` as a task.

        ``fn`` may be a remote function, whose own options then hold. References among the
        arguments are resolved, as for every task.

        Raises:
            RuntimeError: the executor was shut down.
            TypeError: an actor class, or something that can not be pickled.
        """
        if isinstance(fn, ActorClass):
            raise TypeError("An executor runs functions; create an actor by its remote().")
        with self._lock:
            if self._is_shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if isinstance(fn, RemoteFunction):
                ref: Any = fn.remote(*args, **kwargs)
            else:
                ref = self._task.remote(fn, *args, **kwargs)
            future: Future[T] = Future()
            future.set_running_or_notify_cancel()
            self._refs[future] = ref

        def settle(value: Any, error: BaseException | None) -> None:
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
            with self._lock:
                self._refs.pop(future, None)
                self._all_done.notify_all()

        ref._when_loaded(settle)  # noqa: SLF001 - the callback that `future()` stands on
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[T]:
        """The results in order, ``chunksize`` calls a task; see ``concurrent.futures``.

        Raises:
            ValueError: ``chunksize`` is not positive.
            TimeoutError: at ``next``, a result did not come within ``timeout`` of the call.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if chunksize == 1 or isinstance(fn, RemoteFunction):
            return super().map(fn, *iterables, timeout=timeout)
        chunks = _chunks(zip(*iterables, strict=False), chunksize)
        results = super().map(_call_many, itertools.repeat(fn), chunks, timeout=timeout)
        return itertools.chain.from_iterable(results)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; ``wait`` until all are done. The session goes on."""
        with self._lock:
            self._is_shut_down = True
            refs = list(self._refs.values())
        if cancel_futures:
            for ref in refs:
                cancel(ref)
        if wait:
            with self._all_done:
                while self._refs:
                    self._all_done.wait()


def _call(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _call_many(function: Callable[..., T], calls: list[tuple[Any, ...]]) -> list[T]:
    return [function(*args) for args in calls]


def _chunks(items: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    while chunk := list(itertools.islice(items, size)):
        yield chunk
