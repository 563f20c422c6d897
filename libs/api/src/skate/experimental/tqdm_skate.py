"""``tqdm`` that works inside tasks and actors: its bar is shown by the driver. Source: SURFACE W10.

::

    from skate.experimental.tqdm_skate import tqdm


    @skate.remote
    def work(items):
        for item in tqdm(items, desc="work"):
            ...

In a worker each state of a bar is a marked line of the output, which the driver takes for what it
is; so bars need ``log_to_driver``, and arrive in order with everything else that is printed.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Generic, TypeVar

import msgspec

from skate.experimental.progress_display import BarState, ProgressDisplay
from skate_worker.current import current_core
from skate_worker.log_printer import PROGRESS_MARK

__all__ = ["safe_print", "tqdm"]

T = TypeVar("T")

_display: list[ProgressDisplay] = []


def display() -> ProgressDisplay:
    """That of this process."""
    if not _display:
        _display.append(ProgressDisplay())
    return _display[0]


def safe_print(*values: Any, **options: Any) -> None:
    """``print`` that leaves the bars of a terminal whole."""
    with display().hidden():
        print(*values, **options)  # noqa: T201 - that is what it is for


class tqdm(Generic[T]):  # noqa: N801 - the name that programs know
    """A progress bar with the usual part of the interface of the package ``tqdm``."""

    def __init__(
        self,
        iterable: Iterable[T] | None = None,
        desc: str | None = None,
        total: float | None = None,
        unit: str | None = None,
        position: int | None = None,
        flush_interval_s: float = 1.0,
    ) -> None:
        """Show a bar.

        Args:
            iterable: What to iterate over; its length is the total if it has one.
            desc: What stands before the bar.
            total: When it is full; None shows a count.
            unit: Of what is counted.
            position: Its place among other bars, from above.
            flush_interval_s: The shortest time between two states that are shown.
        """
        sized: object = iterable
        if total is None and isinstance(sized, Sized):
            total = len(sized)
        self._iterable = iterable
        self._started_s = self._shown_s = time.monotonic()
        self._interval_s = flush_interval_s
        core = current_core()
        self._is_worker = core is not None and not core.is_driver
        self._state = BarState(
            uuid=uuid.uuid4().hex,
            desc=desc or "",
            total=total,
            done=0,
            unit=unit or "it",
            position=position or 0,
            pid=os.getpid() if self._is_worker else 0,
            elapsed_s=0.0,
        )
        self.refresh()

    @property
    def n(self) -> float:
        """How far it is."""
        return self._state.done

    @property
    def total(self) -> float | None:
        """When it is full."""
        return self._state.total

    @total.setter
    def total(self, total: float | None) -> None:
        self._state.total = total

    def update(self, n: float = 1) -> None:
        """Go on by ``n``."""
        self._state.done += n
        if time.monotonic() - self._shown_s >= self._interval_s:
            self.refresh()

    def set_description(self, desc: str | None) -> None:
        """Change what stands before the bar."""
        self._state.desc = desc or ""
        self.refresh()

    def refresh(self) -> None:
        """Show the present state."""
        state = self._state
        if state.is_closed:
            return
        self._shown_s = time.monotonic()
        state.elapsed_s = self._shown_s - self._started_s
        self._send()

    def close(self) -> None:
        """End the bar. Idempotent."""
        if not self._state.is_closed:
            self._state.elapsed_s = time.monotonic() - self._started_s
            self._state.is_closed = True
            self._send()

    def _send(self) -> None:
        if not self._is_worker:
            display().show(msgspec.structs.replace(self._state))
        elif sys.stdout is not None:
            text = msgspec.json.encode(self._state).decode()
            # One write, so that no other thread's output comes in between.
            sys.stdout.write(f"{PROGRESS_MARK}{text}\n")
            sys.stdout.flush()

    def __iter__(self) -> Iterator[T]:
        if self._iterable is None:
            raise ValueError("This bar has nothing to iterate over: give it an iterable.")
        try:
            for item in self._iterable:
                yield item
                self.update()
        finally:
            self.close()

    def __enter__(self) -> tqdm[T]:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __del__(self) -> None:
        # A bar that nobody closed ends with its last reference.
        if "_state" in self.__dict__ and not sys.is_finalizing():
            self.close()
