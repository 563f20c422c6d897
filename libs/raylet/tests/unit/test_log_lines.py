from __future__ import annotations

import random

import pytest

from skate_raylet.machine.log_lines import LINE_BYTES_MAX, LINES_MAX, LineSplitter, Run
from skate_raylet.machine.log_lines import NAME_MARK as MARK_BYTE
from skate_rpc.node_protocol import LOG_NAME_MARK

MARK = LOG_NAME_MARK.encode()


def test_mark_is_the_one_that_workers_write() -> None:
    assert bytes([MARK_BYTE]) == MARK


def test_lines_are_handed_out_when_they_are_whole() -> None:
    lines = LineSplitter()
    assert lines.feed(b"one\ntw") == [Run("", ["one"], 4)]
    assert lines.feed(b"o\n\nthree") == [Run("", ["two", ""], 9)]
    assert lines.finish() == [Run("", ["three"], 14)]
    assert lines.finish() == []


def test_name_lines_switch_the_name_and_are_not_shown() -> None:
    lines = LineSplitter()
    data = b"a\n" + MARK + b"f\nb\nc\n" + MARK + b"g\n" + MARK + b"h\nd\n"
    assert lines.feed(data) == [Run("", ["a"], 2), Run("f", ["b", "c"], 9), Run("h", ["d"], 17)]
    assert lines.name == "h"


def test_name_line_that_is_cut_short_is_not_shown() -> None:
    lines = LineSplitter()
    assert lines.feed(MARK + b"f") == []
    assert lines.finish() == []


def test_what_is_no_utf_8_is_replaced() -> None:
    assert LineSplitter().feed(b"\xff\xfe ok\n")[0].lines == ["\ufffd\ufffd ok"]


def test_carriage_return_before_the_end_of_a_line_is_dropped() -> None:
    assert LineSplitter().feed(b"10%\r100%\r\n")[0].lines == ["10%\r100%"]


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_long_line_comes_in_pieces_that_cut_no_character(end: bytes) -> None:
    text = "x" + "\u20ac" * LINE_BYTES_MAX
    lines = LineSplitter()
    runs = [*lines.feed(text.encode() + end), *lines.finish()]
    pieces = [piece for run in runs for piece in run.lines]
    assert "".join(pieces) == text
    assert max(len(piece.encode()) for piece in pieces) <= LINE_BYTES_MAX
    assert lines.end == len(text.encode() + end)


def test_runs_are_bounded() -> None:
    runs = LineSplitter().feed(b"x\n" * (2 * LINES_MAX + 1))
    assert [len(run.lines) for run in runs] == [LINES_MAX, LINES_MAX, 1]


@pytest.mark.parametrize("seed", range(50))
def test_reading_in_pieces_and_going_on_elsewhere_gives_the_same_lines(seed: int) -> None:
    draw = random.Random(seed)
    data = b"".join(
        draw.choice([b"line\n", b"\n", MARK + b"f\n", MARK + b"g\n", "\u00e4\u20ac\n".encode()])
        for _ in range(40)
    )
    whole = [(run.name, line) for run in LineSplitter().feed(data) for line in run.lines]
    lines, seen, end, name = LineSplitter(), [], 0, ""
    while lines.read_to < len(data):
        size = draw.randint(1, 9)
        for run in lines.feed(data[lines.read_to : lines.read_to + size]):
            seen += [(run.name, line) for line in run.lines]
            end, name = run.end, run.name
        if draw.random() < 0.2:
            lines = LineSplitter(end, name)  # as after a broken line: what was handed out is known
    assert seen == whole
