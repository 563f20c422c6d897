"""Shows on the driver what the workers of its job print.

Lines come in messages of the raylet, a bounded number at a time: the raylet goes on when they are
printed, so a terminal that is slow, or a pipe that nobody reads, costs no memory and loses no line.
They are written by a thread of their own, because what is written to may block. Source: SURFACE W4,
W6.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Final, TextIO

from skate_rpc.node_protocol import LogLines, LogsFlushed, LogsTaken

COLOR_VARIABLE: Final = "SKATE_COLOR_PREFIX"  # "1" and "0"; else terminals alone are coloured
COLORS: Final = ("36", "33", "32", "35", "34", "96", "93", "92", "95", "94")  # one a worker
RESET: Final = "\x1b[0m"


class LogPrinter:
    """The output of one driver's workers. :meth:`take` and :meth:`flushed`: on the I/O thread."""

    def __init__(self, tell: Callable[[LogsTaken], None]) -> None:
        """``tell`` reaches the raylet, from any thread."""
        self._tell = tell
        self._queue: queue.SimpleQueue[LogLines | LogsFlushed | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._flushes: dict[int, threading.Event] = {}
        self._count = 0

    def take(self, message: LogLines | LogsFlushed) -> None:
        """Lines to print, or the word that nothing of a flush is left."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="skate-logs", daemon=True)
            self._thread.start()
        self._queue.put(message)

    def begin_flush(self) -> tuple[int, threading.Event]:
        """A number for :class:`FlushLogs`, and what is set when its lines are printed."""
        self._count += 1
        event = self._flushes[self._count] = threading.Event()
        return self._count, event

    def close(self, timeout_s: float) -> None:
        """Print what has come, for at most so long."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join(timeout_s)

    def _run(self) -> None:
        while (message := self._queue.get()) is not None:
            if isinstance(message, LogsFlushed):
                event = self._flushes.pop(message.number, None)
                if event is not None:
                    event.set()
                continue
            out = sys.stderr if message.is_error else sys.stdout
            if out is not None and not out.closed:
                _print(message, out)
            self._tell(LogsTaken(message.number))


def _print(message: LogLines, out: TextIO) -> None:
    prefix = prefix_of(message, is_colored=_is_colored(out))
    text = "".join(f"{prefix} {line}\n" for line in message.lines)
    try:
        out.write(text)
    except UnicodeEncodeError:
        encoding = out.encoding or "ascii"
        out.write(text.encode(encoding, "backslashreplace").decode(encoding))
    except BrokenPipeError:
        return  # nobody reads it any more: the program's own next print tells the program
    out.flush()


def prefix_of(message: LogLines, *, is_colored: bool) -> str:
    """``(name pid=N)``, with ``ip=`` if it is another node's."""
    name = f"{message.name} " if message.name else ""
    where = f", ip={message.ip}" if message.ip else ""
    prefix = f"({name}pid={message.pid}{where})"
    if not is_colored:
        return prefix
    return f"\x1b[{COLORS[message.pid % len(COLORS)]}m{prefix}{RESET}"


def _is_colored(out: TextIO) -> bool:
    wanted = os.environ.get(COLOR_VARIABLE, "")
    if wanted in ("0", "1"):
        return wanted == "1"
    return out.isatty() and "NO_COLOR" not in os.environ
