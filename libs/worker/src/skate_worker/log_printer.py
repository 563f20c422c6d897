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
from contextlib import AbstractContextManager
from typing import Final, Protocol, TextIO

from skate_rpc.node_protocol import LogLines, LogsFlushed, LogsTaken

COLOR_VARIABLE: Final = "SKATE_COLOR_PREFIX"  # "1" and "0"; else terminals alone are coloured
COLORS: Final = ("36", "33", "32", "35", "34", "96", "93", "92", "95", "94")  # one a worker
RESET: Final = "\x1b[0m"
PROGRESS_MARK: Final = "__skate_progress__:"
"""A line of a worker that starts so is the state of a progress bar."""


class ProgressView(Protocol):
    """Shows progress bars of workers among their output."""

    def update(self, text: str, /) -> None:
        """Show a state, as it stands behind the mark. Raises ``ValueError`` for other text."""

    def hidden(self) -> AbstractContextManager[None]:
        """A time in which no bar is in the way of what is printed."""


class LogPrinter:
    """The output of one driver's workers. :meth:`take` and :meth:`flushed`: on the I/O thread."""

    def __init__(self, tell: Callable[[LogsTaken], None]) -> None:
        """``tell`` reaches the raylet, from any thread."""
        self._tell = tell
        self._queue: queue.SimpleQueue[LogLines | LogsFlushed | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._flushes: dict[int, threading.Event] = {}
        self._count = 0
        self.make_progress_view: Callable[[], ProgressView] | None = None
        self._view: ProgressView | None = None

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
                self._show(message, out)
            self._tell(LogsTaken(message.number))

    def _show(self, message: LogLines, out: TextIO) -> None:
        lines = [line for line in message.lines if not self._is_progress(line)]
        if lines and self._view is not None:
            with self._view.hidden():
                _print(message, lines, out)
        elif lines:
            _print(message, lines, out)

    def _is_progress(self, line: str) -> bool:
        """Whether it is the state of a bar; shows it then."""
        if not line.startswith(PROGRESS_MARK) or self.make_progress_view is None:
            return False
        if self._view is None:
            self._view = self.make_progress_view()
        try:
            self._view.update(line.removeprefix(PROGRESS_MARK))
        except ValueError:
            return False  # Some program prints such lines itself.
        return True


def _print(message: LogLines, lines: list[str], out: TextIO) -> None:
    prefix = prefix_of(message, is_colored=_is_colored(out))
    text = "".join(f"{prefix} {line}\n" for line in lines)
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
