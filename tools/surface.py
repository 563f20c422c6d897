"""Where Skate stands, row by row of Ray's surface: ``docs/surface.md``.

Made from ``docs/surface.toml``, which says how far each row is there, and from the tests, which
name the rows that they hold::

    @pytest.mark.surface("T11", "T12")
    def test_listed_exceptions_are_retried_and_others_are_not() -> None: ...

``--check`` fails when the page is not what the two give, when a marker names no row, when a row
that is partly there does not say what lacks, and when a row of a section with ``tested = true`` is
not open and no test holds it.
"""

from __future__ import annotations

import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.markers import Marked, find_marked  # noqa: E402 - needs the path above

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = Path("docs", "surface.toml")
PAGE = Path("docs", "surface.md")
MARKER = "surface"
STATES = ("done", "partly", "open")
HEAD = """\
# Surface

What a user of Ray Core can rely on, row by row, and where Skate stands. **done**: there, and a test
or a run of the public API shows it. **partly**: the usual use works, what lacks stands beside it.
**open**: not there. Rows are named as in the project's inventory of Ray's surface; read `ray` as
`skate`. Not wanted, and left out: Java and C++ workers, compiled graphs, a separate client
protocol. Made by `python tools/surface.py` from [surface.toml](surface.toml)
and from the tests' markers.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that a user may rely on."""

    key: str
    what: str
    state: str
    note: str


@dataclass(frozen=True, slots=True)
class Section:
    """The rows of one part; ``tested``: each that is not open has a marked test."""

    title: str
    tested: bool
    rows: tuple[Row, ...]


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Write the page, or with ``--check`` compare it; 1 when something is wrong."""
    sections = read_sections(root / DATA)
    marked = list(find_marked(root, MARKER))
    problems = list(find_problems(sections, marked))
    page = render(sections, marked)
    if "--check" not in arguments:
        (root / PAGE).write_text(page, "utf-8")
    elif not (root / PAGE).exists() or (root / PAGE).read_text("utf-8") != page:
        problems.append(f"{PAGE} is not what its sources give: run python tools/surface.py")
    for problem in problems:
        print(f"broken: {problem}")
    print(f"surface: {count(sections)} {len(marked)} markers, {len(problems)} broken")
    return 1 if problems else 0


def read_sections(path: Path) -> list[Section]:
    """The sections in the order of the file. Raises ``KeyError`` when a field lacks."""
    return [
        Section(
            table["title"],
            table.get("tested", False),
            tuple(
                Row(key, row["what"], row["state"], row.get("note", ""))
                for key, row in table["rows"].items()
            ),
        )
        for table in tomllib.loads(path.read_text("utf-8"))["section"]
    ]


def find_problems(sections: list[Section], marked: list[Marked]) -> Iterator[str]:
    """What markers and data contradict."""
    rows = [row for section in sections for row in section.rows]
    known = {row.key for row in rows}
    held = {key for test in marked for key in test.keys}
    if len(known) < len(rows):
        yield f"{DATA} has two rows of one key"
    for test in marked:
        for key in test.keys:
            if key not in known:
                yield f"{test.path}::{test.name} holds {key}, which is not in {DATA}"
    for section in sections:
        for row in section.rows:
            if row.state not in STATES:
                yield f"{row.key}: its state {row.state!r} is none of {', '.join(STATES)}"
            if row.state == "partly" and not row.note:
                yield f"{row.key} is partly there, and nothing says what lacks"
            if section.tested and row.state != "open" and row.key not in held:
                yield f"{row.key} is said to be {row.state}, and no test holds it"


def count(sections: list[Section]) -> str:
    """How many rows are in which state, as a sentence."""
    states = [row.state for section in sections for row in section.rows]
    done, partly, missing = (states.count(state) for state in STATES)
    return f"Of {len(states)} rows, {done} are done, {partly} partly, {missing} open."


def render(sections: list[Section], marked: list[Marked]) -> str:
    """The page."""
    lines = [HEAD, count(sections)]
    for section in sections:
        lines += [
            f"\n## {section.title}\n",
            "| row | what | state | what lacks, or how it differs | tests |",
            "| --- | --- | --- | --- | --- |",
        ]
        for row in section.rows:
            paths = dict.fromkeys(test.path for test in marked if row.key in test.keys)
            links = ", ".join(f"[{path.stem}](../{path.as_posix()})" for path in paths)
            lines.append(f"| {row.key} | {row.what} | {row.state} | {row.note} | {links} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
