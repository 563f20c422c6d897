"""Progress bars of many processes on one terminal, or as plain lines where there is none.

:mod:`skate.experimental.tqdm_skate` makes the states; the driver's display shows them, those of its
own process and those that come with the output of its workers. On a terminal the bars stay below
everything else that is printed; elsewhere each bar is a line whenever another tenth is done.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Final, TextIO

import msgspec

CELLS: Final = 24
SHARES: Final = 10  # lines of a bar that is not on a terminal
BARS_MAX: Final = 20  # shown at a time; the others wait for room


class BarState(msgspec.Struct):
    """One bar at one moment."""

    uuid: str
    desc: str
    total: float | None
    done: float
    unit: str
    position: int
    pid: int
    elapsed_s: float
    is_closed: bool = False


class ProgressDisplay:
    """The bars of one driver. Thread-safe."""

    def __init__(self, out: TextIO | None = None) -> None:
        """``out``: where they are shown; standard error of the moment by default."""
        self._given_out = out
        self._bars: dict[str, BarState] = {}
        self._shares: dict[str, int] = {}
        self._drawn = 0
        self._lock = threading.RLock()

    def update(self, text: str) -> None:
        """Show a state from a worker's output. Raises ``ValueError`` for other text."""
        try:
            bar = msgspec.json.decode(text, type=BarState)
        except msgspec.DecodeError as error:
            raise ValueError(f"{text!r:.80} is no state of a bar.") from error
        self.show(bar)

    def show(self, bar: BarState) -> None:
        """Show a bar, or end it when it is closed."""
        with self._lock:
            out = self._out()
            if out is None:
                return
            if not out.isatty():
                self._show_plainly(bar, out)
                return
            self._erase(out)
            if bar.is_closed:
                self._bars.pop(bar.uuid, None)
                out.write(f"{render(bar)}\n")
            else:
                self._bars[bar.uuid] = bar
            self._draw(out)

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """No bar is on the terminal inside, so that something else can be printed."""
        with self._lock:
            out = self._out()
            if out is not None and self._drawn:
                self._erase(out)
                out.flush()
            try:
                yield
            finally:
                if out is not None and self._bars:
                    self._draw(out)

    def _out(self) -> TextIO | None:
        out = self._given_out or sys.stderr
        return None if out is None or out.closed else out

    def _show_plainly(self, bar: BarState, out: TextIO) -> None:
        share = int(SHARES * bar.done / bar.total) if bar.total else 0
        if bar.is_closed:
            self._shares.pop(bar.uuid, None)
        elif share <= self._shares.get(bar.uuid, 0):
            return
        else:
            self._shares[bar.uuid] = share
        out.write(f"{render(bar)}\n")
        out.flush()

    def _erase(self, out: TextIO) -> None:
        # Up one line and clear it, for each bar.
        out.write("\x1b[1A\x1b[2K" * self._drawn)
        self._drawn = 0

    def _draw(self, out: TextIO) -> None:
        shown = sorted(self._bars.values(), key=lambda bar: bar.position)[:BARS_MAX]
        out.write("".join(f"{render(bar)}\n" for bar in shown))
        self._drawn = len(shown)
        out.flush()


def render(bar: BarState) -> str:
    """A bar as one line of text."""
    rate = bar.done / bar.elapsed_s if bar.elapsed_s > 0 else 0.0
    start = f"{bar.desc}: " if bar.desc else ""
    source = f" (pid={bar.pid})" if bar.pid else ""
    if not bar.total:
        return f"{start}{bar.done:g} {bar.unit} [{bar.elapsed_s:.1f} s, {rate:.1f}/s]{source}"
    share = min(1.0, bar.done / bar.total)
    cells = int(share * CELLS)
    drawn = "#" * cells + "." * (CELLS - cells)
    left_s = f", {(bar.total - bar.done) / rate:.1f} s left" if rate and share < 1 else ""
    return (
        f"{start}{share:4.0%} [{drawn}] {bar.done:g}/{bar.total:g} {bar.unit}"
        f" [{bar.elapsed_s:.1f} s{left_s}]{source}"
    )
