"""Work that an interrupt can not cut in half.

Python raises ``KeyboardInterrupt`` between any two steps of the main thread, and of no other. So
the work runs on a thread of its own; the main thread waits, and only the waiting is interrupted.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Final

_INTERRUPTED_WAIT_S: Final = 15.0


class _Process:
    """What is known of this process's end."""

    is_exiting = False


_process = _Process()


def note_exit() -> None:
    """The interpreter runs its exit hooks: from here on, work runs in place."""
    _process.is_exiting = True


def run_whole(action: Callable[[], None], undo: Callable[[], None] | None = None) -> None:
    """Run ``action`` to its end. If an interrupt came, ``undo`` and let the interrupt go on.

    Raises what ``action`` raises. At interpreter exit, where no thread can start, it runs in place.
    """
    if (
        sys.is_finalizing()
        or _process.is_exiting
        or threading.current_thread() is not threading.main_thread()
    ):
        action()
        return
    failure: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - carried to the thread that waits.
            failure.append(error)
        finally:
            done.set()

    worker = threading.Thread(target=run, name="skate-session", daemon=True)
    try:
        worker.start()
        # Not `join`: interrupted once, it takes the thread for ended (Python 3.11 and 3.12).
        done.wait()
        worker.join()
    except BaseException:
        # KeyboardInterrupt, or SystemExit from a signal handler. The thread finishes what it began.
        if undo is not None:
            undo()
        if worker.ident is not None:
            done.wait(_INTERRUPTED_WAIT_S)
        raise
    if failure:
        raise failure[0]
