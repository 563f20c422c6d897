"""Iterating over the results of many tasks. Source: SURFACE U6."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

from skate.objects import get, wait
from skate.remote_function import RemoteFunction
from skate_worker.object_ref import ObjectRef

T = TypeVar("T")

CHUNK: Final = 10  # results that are fetched by one `get`, as in Ray


def as_completed(
    refs: Sequence[ObjectRef[T]], chunk_size: int = CHUNK, yield_obj_refs: bool = False
) -> Iterator[T]:
    """The values of references, each as soon as it is there.

    Args:
        refs: References; what they refer to is kept until it is yielded.
        chunk_size: How many values are waited for and fetched together. 1 yields each at once.
        yield_obj_refs: Yield the references of what is ready, instead of the values.

    Raises:
        ValueError: ``chunk_size`` is not positive, or a reference stands twice.
        Exception: the error of a task, in the place of its value; the iteration ends there.
    """
    _check_chunk(chunk_size)
    return _completed(list(refs), chunk_size, yield_obj_refs)


def map_unordered(
    fn: RemoteFunction[..., Any],
    items: Iterable[Any],
    backpressure_size: int | None = 100,
    chunk_size: int = CHUNK,
    yield_obj_refs: bool = False,
) -> Iterator[Any]:
    """The results of ``fn.remote(item)`` for each item, each as soon as it is there.

    Args:
        fn: A remote function of one argument.
        items: May be without end: it is read as far as tasks are started.
        backpressure_size: At most so many tasks are running or unfetched; None starts one for each
            item at once.
        chunk_size: How many results are waited for and fetched together.
        yield_obj_refs: Yield the references of results that are ready, instead of the results.

    Raises:
        TypeError: ``fn`` is not a remote function.
        ValueError: ``chunk_size`` or ``backpressure_size`` is not positive, or the latter is
            smaller than the former.
        Exception: the error of a task, in the place of its result; the iteration ends there.
    """
    if not hasattr(fn, "remote"):
        raise TypeError(
            f"map_unordered() takes a function made by @skate.remote, got {type(fn).__name__}."
        )
    _check_chunk(chunk_size)
    if backpressure_size is None:
        refs: list[Any] = [fn.remote(item) for item in items]
        return _completed(refs, chunk_size, yield_obj_refs)
    if backpressure_size < chunk_size:
        raise ValueError(
            f"backpressure_size must be at least chunk_size ({chunk_size}), got"
            f" {backpressure_size}: so many results are waited for at a time."
        )
    return _mapped(fn, iter(items), backpressure_size, chunk_size, yield_obj_refs)


def _mapped(fn: Any, items: Iterator[Any], limit: int, chunk: int, as_refs: bool) -> Iterator[Any]:
    pending: list[ObjectRef[Any]] = []
    is_over = False
    while True:
        while not is_over and len(pending) < limit:
            try:
                item = next(items)
            except StopIteration:
                is_over = True
            else:
                pending.append(fn.remote(item))
        if not pending:
            return
        ready, pending = wait(pending, num_returns=min(chunk, len(pending)))
        yield from ready if as_refs else get(ready)


def _completed(pending: list[ObjectRef[Any]], chunk: int, as_refs: bool) -> Iterator[Any]:
    while pending:
        ready, pending = wait(pending, num_returns=min(chunk, len(pending)))
        yield from ready if as_refs else get(ready)


def _check_chunk(chunk_size: Any) -> None:
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"chunk_size must be a positive whole number, got {chunk_size!r}.")
