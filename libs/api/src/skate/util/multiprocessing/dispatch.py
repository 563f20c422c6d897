"""How chunks of work reach the actors of a pool, and how their outcomes come back.

``Pool`` makes chunks and results; a :class:`Dispatcher` gives each idle actor one chunk at a time,
replaces actors that died or have done their share, and tells the results. One thread does it, so
that callbacks run one after the other, as in the standard library.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import pool as stdlib_pool
from typing import Any, Final

from skate.actor import kill
from skate.decorators import remote
from skate.exceptions import ActorError, SkateError
from skate.session import require_session
from skate_worker.current import current_core
from skate_worker.inspect_pickle import can_pickle

_log = logging.getLogger(__name__)

SINGLE: Final = "single"  # ``(args, kwargs)`` of one call
ONE_ARGUMENT: Final = "one"  # one argument a call, as of ``map``
SPREAD: Final = "spread"  # a tuple of arguments a call, as of ``starmap``

Outcome = tuple[bool, Any]
"""Whether a call returned, and its value or its error."""


@dataclass(frozen=True, eq=False, slots=True)
class Chunk:
    """Calls that one actor runs one after the other."""

    function: Any
    shape: str
    calls: list[Any]
    tell: Callable[[list[Outcome]], None]
    """Takes an outcome for each call. On the dispatcher's thread."""


class PoolWorker:
    """The actor that stands for a process of the pool."""

    def __init__(self, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]):
        if initializer is not None:
            initializer(*initargs)

    def run(self, function: Callable[..., Any], shape: str, calls: list[Any]) -> list[Outcome]:
        """The outcome of each call, in order."""
        return [_outcome(function, shape, call) for call in calls]


def _outcome(function: Callable[..., Any], shape: str, call: Any) -> Outcome:
    try:
        if shape == ONE_ARGUMENT:
            value = function(call)
        elif shape == SPREAD:
            value = function(*call)
        else:
            value = function(*call[0], **call[1])
    except Exception as error:  # noqa: BLE001 - the boundary to user code: its error is the outcome
        # Not in typeshed, and there since Python 3.4.
        stdlib: Any = stdlib_pool
        carried = stdlib.ExceptionWithTraceback(error, error.__traceback__)
        if can_pickle(carried):
            return False, carried
        return False, stdlib.MaybeEncodingError(error, function)
    return True, value


class _Slot:
    """The place of one actor in the pool."""

    __slots__ = ("actor", "chunk", "done")

    def __init__(self) -> None:
        self.actor: Any = None
        self.done = 0
        self.chunk: Chunk | None = None


class Dispatcher:
    """See the module. Thread-safe."""

    def __init__(
        self,
        processes: int,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        chunks_per_actor: int | None,
        actor_options: dict[str, Any],
    ) -> None:
        self._core = require_session()
        self._actor_class = remote(PoolWorker).options(**actor_options)
        self._initializer = initializer
        self._initargs = initargs
        self._chunks_per_actor = chunks_per_actor
        self._slots = [_Slot() for _ in range(processes)]
        for slot in self._slots:
            self._renew(slot)
        self._idle: deque[_Slot] = deque(self._slots)
        self._waiting: deque[Chunk] = deque()
        self._events: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="skate-pool", daemon=True)
        self._thread.start()

    def add(self, chunk: Chunk) -> None:
        """Have it run, behind what was added before."""
        self._events.put((chunk,))

    def close(self) -> None:
        """Take no more; the thread ends, and the actors, when all is done."""
        self._events.put(None)

    def terminate(self) -> None:
        """Kill the actors; what has not ended fails."""
        self._events.put(())

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def _serve(self) -> None:
        is_closing = False
        while not (is_closing and self._is_done()):
            event = self._events.get()
            if event is None:
                is_closing = True
            elif not event:
                self._kill_all()
                return
            elif len(event) == 1:
                self._waiting.append(event[0])
                self._feed()
            else:
                self._ended(*event)
        self._slots.clear()  # Their last handles: each actor ends.
        self._idle.clear()

    def _is_done(self) -> bool:
        return not self._waiting and len(self._idle) == len(self._slots)

    def _feed(self) -> None:
        while self._waiting and self._idle:
            slot, chunk = self._idle.popleft(), self._waiting.popleft()
            try:
                ref = slot.actor.run.remote(chunk.function, chunk.shape, chunk.calls)
            except Exception as error:  # noqa: BLE001 - what can not be sent is the chunk's error
                self._idle.append(slot)
                _tell(chunk, [(False, error)] * len(chunk.calls))
                continue
            slot.chunk = chunk
            # What `future()` stands on.
            ref._when_loaded(functools.partial(self._note_end, slot))  # noqa: SLF001

    def _note_end(self, slot: _Slot, value: Any, error: BaseException | None) -> None:
        self._events.put((slot, value, error))

    def _ended(self, slot: _Slot, value: Any, error: BaseException | None) -> None:
        chunk, slot.chunk = slot.chunk, None
        slot.done += 1
        is_spent = isinstance(error, ActorError) or slot.done == self._chunks_per_actor
        if is_spent and self._has_session():
            self._renew(slot)
        self._idle.append(slot)
        self._feed()  # First, because callbacks take as long as they like.
        assert chunk is not None
        _tell(chunk, value if error is None else [(False, error)] * len(chunk.calls))

    def _renew(self, slot: _Slot) -> None:
        slot.actor = self._actor_class.remote(self._initializer, self._initargs)
        slot.done = 0

    def _has_session(self) -> bool:
        return current_core() is self._core

    def _kill_all(self) -> None:
        running = [slot.chunk for slot in self._slots if slot.chunk is not None]
        if self._has_session():  # Or the actors have ended with it.
            for slot in self._slots:
                with contextlib.suppress(SkateError):  # It ends at this moment.
                    kill(slot.actor)
        self._slots.clear()
        self._idle.clear()
        waiting, self._waiting = list(self._waiting), deque()
        while not self._events.empty():
            event = self._events.get()
            if event and len(event) == 1:
                waiting.append(event[0])
        reason = RuntimeError("The pool was terminated before this call ended.")
        for chunk in itertools.chain(running, waiting):
            _tell(chunk, [(False, reason)] * len(chunk.calls))


def _tell(chunk: Chunk, outcomes: list[Outcome]) -> None:
    try:
        chunk.tell(outcomes)
    except Exception:  # noqa: BLE001 - the boundary to a user's callback: the pool goes on
        _log.exception("A callback of a pool raised.")
