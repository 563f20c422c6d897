"""Bars on a terminal and elsewhere."""

from __future__ import annotations

import io
from typing import Any

import pytest

from skate.experimental import tqdm_skate
from skate.experimental.progress_display import BarState, ProgressDisplay, render
from skate.experimental.tqdm_skate import safe_print, tqdm

pytestmark = pytest.mark.surface("W10")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def bar(uuid: str = "a", **changes: Any) -> BarState:
    fields: dict[str, Any] = {
        "uuid": uuid,
        "desc": uuid,
        "total": 10.0,
        "done": 5.0,
        "unit": "it",
        "position": 0,
        "pid": 0,
        "elapsed_s": 2.0,
    }
    return BarState(**{**fields, **changes})


def screen(written: str) -> list[str]:
    """The lines that a terminal shows after these characters."""
    lines: list[str] = []
    for piece in written.replace("\x1b[1A\x1b[2K", "\0").splitlines(keepends=True):
        text = piece
        while text.startswith("\0"):
            lines.pop()
            text = text[1:]
        if text:
            lines.append(text.rstrip("\n"))
    return lines


def test_bar_is_one_line() -> None:
    assert render(bar()) == "a:  50% [############............] 5/10 it [2.0 s, 2.0 s left]"
    assert render(bar(total=None, pid=7)) == "a: 5 it [2.0 s, 2.5/s] (pid=7)"


def test_bars_of_a_terminal_stay_below_what_is_printed() -> None:
    out = Terminal()
    display = ProgressDisplay(out)
    display.show(bar("a", position=1))
    display.show(bar("b"))
    with display.hidden():
        out.write("printed\n")
    display.show(bar("b", done=10.0, is_closed=True))
    assert screen(out.getvalue()) == [
        "printed",
        render(bar("b", done=10.0)),
        render(bar("a", position=1)),
    ]


def test_bar_elsewhere_is_a_line_a_tenth() -> None:
    out = io.StringIO()
    display = ProgressDisplay(out)
    for done in range(101):
        display.show(bar(total=100.0, done=float(done)))
    display.show(bar(total=100.0, done=100.0, is_closed=True))
    shares = [line.split("%")[0].split()[-1] for line in out.getvalue().splitlines()]
    assert shares == ["10", "20", "30", "40", "50", "60", "70", "80", "90", "100", "100"]


def test_other_text_is_no_state() -> None:
    with pytest.raises(ValueError, match="no state"):
        ProgressDisplay(io.StringIO()).update("{}")


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[BarState]:
    states: list[BarState] = []
    display = ProgressDisplay(io.StringIO())
    monkeypatch.setattr(display, "show", states.append)
    monkeypatch.setattr(tqdm_skate, "_display", [display])
    return states


def test_tqdm_in_a_driver_shows_its_states(shown: list[BarState]) -> None:
    assert list(tqdm(range(3), desc="count", flush_interval_s=0)) == [0, 1, 2]
    assert [(state.done, state.total) for state in shown] == [(n, 3) for n in (0, 1, 2, 3, 3)]
    assert [state.is_closed for state in shown] == [False] * 4 + [True]


def test_tqdm_is_throttled_and_closed_with_its_last_reference(shown: list[BarState]) -> None:
    made: tqdm[int] = tqdm(total=100)
    for _ in range(50):
        made.update(2)
    assert len(shown) == 1
    made.set_description("named")
    assert (shown[-1].done, shown[-1].desc) == (100, "named")
    del made
    assert shown[-1].is_closed
    with pytest.raises(ValueError, match="iterable"), tqdm(total=1) as empty:
        next(iter(empty))


def test_safe_print_prints(capsys: pytest.CaptureFixture[str]) -> None:
    safe_print("a", "b", sep="-")
    assert capsys.readouterr().out == "a-b\n"
