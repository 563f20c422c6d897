"""The daemon's thread that knows when to end, whatever the event loop is doing.

It waits for the lifeline's EOF, the starter's death (pidfd) and SIGTERM or SIGINT (wake-up pipe),
and asks for an orderly stop. When that is not possible yet, or takes longer than the grace, it ends
the daemon the hard way, so that neither a hung import nor a blocked loop keeps a node alive.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Watchdog:
    """Asks for a stop, and calls ``on_hard_stop`` (no return) unless it is done in time."""

    def __init__(
        self,
        *,
        lifeline_fd: int | None,
        starter_pid: int,
        grace_s: float,
        on_hard_stop: Callable[[str], None],
    ) -> None:
        self._lifeline_fd = lifeline_fd
        self._starter_pid = starter_pid
        self._grace_s = grace_s
        self._on_hard_stop = on_hard_stop
        self._lock = threading.Lock()
        self._ask: Callable[[str], None] | None = None
        self._reason = ""
        self._done = threading.Event()

    def start(self) -> None:
        """Install the signal handlers (main thread) and begin to watch."""
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in _STOP_SIGNALS:
            signal.signal(number, _note_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*_STOP_SIGNALS, signal.SIGQUIT))
        threading.Thread(
            target=self._watch, args=(reader,), name="skate-watchdog", daemon=True
        ).start()

    def arm(self, ask: Callable[[str], None]) -> None:
        """From now on a stop is asked for by ``ask(reason)``, called on the watchdog's thread."""
        with self._lock:
            self._ask = ask
            reason = self._reason
        if reason:
            ask(reason)

    def request_stop(self, reason: str) -> None:
        """Ask for the stop from any thread; the grace runs from now."""
        threading.Thread(
            target=self._stop, args=(reason, -1), name="skate-stopper", daemon=True
        ).start()

    def disarm(self) -> None:
        """The stop is done; nothing more is forced."""
        self._done.set()

    def _watch(self, signals: int) -> None:
        poller = select.poll()
        poller.register(signals, select.POLLIN)
        starter = -1
        if self._lifeline_fd is not None:
            poller.register(self._lifeline_fd, select.POLLIN)
        if self._starter_pid:
            try:
                starter = os.pidfd_open(self._starter_pid)
                # Only a parent is surely the starter: a dead one's number may be in use again.
                if os.getppid() != self._starter_pid:
                    return self._stop("the starting process is gone", signals)
            except ProcessLookupError:
                return self._stop("the starting process is gone", signals)
            poller.register(starter, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poller.poll()]
            if signals in ready:
                numbers = _drain(signals)
                stops = [number for number in numbers if number in _STOP_SIGNALS]
                if stops:
                    return self._stop(signal.Signals(stops[0]).name, signals)
            if starter in ready or self._lifeline_fd in ready:
                return self._stop("the starting process is gone", signals)

    def _stop(self, reason: str, signals: int) -> None:
        with self._lock:
            if self._reason:
                return
            self._reason = reason
            ask = self._ask
        if ask is None:
            self._on_hard_stop(f"{reason}, before the node was up")
            return
        ask(reason)
        deadline = time.monotonic() + self._grace_s
        while not self._done.wait(0.05):
            if time.monotonic() >= deadline:
                self._on_hard_stop(f"{reason}, and the stop took over {self._grace_s:g} s")
                return
            if signals >= 0 and signal.SIGTERM in _drain(signals) and reason == "SIGTERM":
                self._on_hard_stop("a second SIGTERM")
                return


def _note_signal(_number: int, _frame: object) -> None:
    """The C-level handler has written the number to the wake-up pipe; nothing is left to do."""


def _drain(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 256)
    except BlockingIOError:
        return b""
