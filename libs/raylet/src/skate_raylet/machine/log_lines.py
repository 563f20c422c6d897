"""What a worker printed, from the bytes of its file: whole lines, and who printed them.

A worker writes a line that begins with ``LOG_NAME_MARK`` when another function begins to print; it
names who prints what follows, and is not shown. Source: SURFACE W3.
"""

from __future__ import annotations

from typing import Final

import msgspec

NAME_MARK: Final = 0x1E  # as skate_rpc.node_protocol.LOG_NAME_MARK
LINE_BYTES_MAX: Final = 64 * 1024  # a longer line is shown in pieces
LINES_MAX: Final = 1000  # of one run
_CONTINUATION: Final = range(0x80, 0xC0)  # the bytes of a UTF-8 character but for its first


class Run(msgspec.Struct, frozen=True):
    """Successive lines of one name, without line ends."""

    name: str
    lines: list[str]
    end: int  # the offset in the file behind the last of them


class LineSplitter:
    """Splits one file's bytes. Invariant: ``end`` is the offset behind what was returned."""

    def __init__(self, end: int = 0, name: str = "") -> None:
        """Go on at an offset where a line begins, printed by ``name``."""
        self.end = end
        self.name = name
        self._rest = b""

    @property
    def read_to(self) -> int:
        """The offset behind what was fed."""
        return self.end + len(self._rest)

    def feed(self, data: bytes) -> list[Run]:
        """The lines that are whole now. O(bytes)."""
        *whole, rest = (self._rest + data).split(b"\n")
        runs: list[Run] = []
        lines: list[str] = []
        for line in whole:
            if line and line[0] == NAME_MARK:
                self._close(runs, lines)
                lines = []
                self.name = line[1:].decode(errors="replace")
            else:
                lines += _shown(line)
            self.end += len(line) + 1
            if len(lines) >= LINES_MAX:
                self._close(runs, lines)
                lines = []
        while len(rest) > LINE_BYTES_MAX:
            cut = _boundary(rest)
            lines.append(rest[:cut].decode(errors="replace"))
            self.end += cut
            rest = rest[cut:]
        self._close(runs, lines)
        self._rest = rest
        return runs

    def finish(self) -> list[Run]:
        """The last line, of a file that ended or is not waited for, although it has no end."""
        rest, self._rest = self._rest, b""
        self.end += len(rest)
        if not rest or rest[0] == NAME_MARK:
            return []
        return [Run(self.name, _shown(rest), self.end)]

    def _close(self, runs: list[Run], lines: list[str]) -> None:
        if lines:
            runs.append(Run(self.name, lines, self.end))


def _shown(line: bytes) -> list[str]:
    """One line, in pieces if it is very long."""
    pieces = []
    line = line.removesuffix(b"\r")
    while len(line) > LINE_BYTES_MAX:
        cut = _boundary(line)
        pieces.append(line[:cut].decode(errors="replace"))
        line = line[cut:]
    pieces.append(line.decode(errors="replace"))
    return pieces


def _boundary(line: bytes) -> int:
    """Where to cut a long line, not in the middle of a character."""
    cut = LINE_BYTES_MAX
    while cut > LINE_BYTES_MAX - 4 and line[cut] in _CONTINUATION:
        cut -= 1
    return cut
