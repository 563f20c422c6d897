"""Which tests hold which promise: ``docs/invariants.md``, made from the tests' own markers.

A test says what it holds, on itself, its class or its module::

    @pytest.mark.invariant("I5")
    def test_owner_on_another_node_is_named_when_it_dies() -> None: ...

``docs/invariants.toml`` has the promises: what each says, how far it is kept, how many faults it
survived in the kept runs. ``--check`` fails when the page is not what the two give, when a marker
names no promise, and when a promise that is said to be kept has no test.
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

PROMISES = Path("docs", "invariants.toml")
PAGE = Path("docs", "invariants.md")
MARKER = "invariant"
STATES = ("kept", "partly", "open")
TESTS_SHOWN_MAX = 8
HEAD = """\
# Invariants

What Skate promises when things break, which tests hold each promise, and what it survived.
**kept**: all of it is tested; **partly**: what is not stands beside it; **open**: not promised yet.
With no failure in n independent tries, a failure in more than 3/n of them is excluded with 95 %
confidence: that, and not "never", is what a number says. Made by `python tools/promises.py` from
the tests' markers and [invariants.toml](invariants.toml).
"""


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise, as the data file has it."""

    key: str
    title: str
    says: str
    state: str
    lacks: str
    survived: str


def main(arguments: list[str], root: Path = ROOT) -> int:
    """Write the page, or with ``--check`` compare it; 1 when something is wrong."""
    promises = read_promises(root / PROMISES)
    holders = list(find_marked(root, MARKER))
    problems = list(find_problems(promises, holders))
    page = render(promises, holders)
    if "--check" not in arguments:
        (root / PAGE).write_text(page, "utf-8")
    elif not (root / PAGE).exists() or (root / PAGE).read_text("utf-8") != page:
        problems.append(f"{PAGE} is not what the markers give: run python tools/promises.py")
    for problem in problems:
        print(f"broken: {problem}")
    print(f"promises: {len(promises)}, held by {len(holders)} markers, {len(problems)} broken")
    return 1 if problems else 0


def read_promises(path: Path) -> dict[str, Promise]:
    """The promises in the order of the file, by key. Raises ``KeyError`` when a field lacks."""
    table = tomllib.loads(path.read_text("utf-8"))
    return {
        key: Promise(
            key,
            row["title"],
            row["says"],
            row["state"],
            row.get("lacks", ""),
            row.get("survived", ""),
        )
        for key, row in table.items()
    }


def find_problems(promises: dict[str, Promise], holders: list[Marked]) -> Iterator[str]:
    """What markers and data contradict."""
    held = {key for holder in holders for key in holder.keys}
    for holder in holders:
        for key in holder.keys:
            if key not in promises:
                yield f"{holder.path}::{holder.name} holds {key}, which is not in {PROMISES}"
    for promise in promises.values():
        if promise.state not in STATES:
            yield f"{promise.key}: its state {promise.state!r} is none of {', '.join(STATES)}"
        if promise.state != "open" and promise.key not in held:
            yield f"{promise.key} is said to be {promise.state}, and no test holds it"
        if promise.state == "partly" and not promise.lacks:
            yield f"{promise.key} is partly kept, and nothing says what lacks"


def render(promises: dict[str, Promise], holders: list[Marked]) -> str:
    """The page."""
    rows = [
        "| | promise | state | held by | survived |",
        "| --- | --- | --- | --- | --- |",
    ]
    for promise in promises.values():
        says = f"**{promise.title}** {promise.says}"
        if promise.lacks:
            says += f" *Lacks: {promise.lacks}*"
        tests = _links([holder for holder in holders if promise.key in holder.keys])
        rows.append(f"| {promise.key} | {says} | {promise.state} | {tests} | {promise.survived} |")
    return HEAD + "\n" + "\n".join(rows) + "\n"


def _links(holders: list[Marked]) -> str:
    """Links to the files, each with its tests; the names are cut when they are many."""
    by_file: dict[Path, list[str]] = {}
    for holder in holders:
        name = holder.name.rpartition(".")[2].removeprefix("test_")
        by_file.setdefault(holder.path, []).append(name.replace("_", " "))
    links = []
    for path, names in by_file.items():
        named = [name for name in names if name]
        shown, more = named[:TESTS_SHOWN_MAX], len(named) - TESTS_SHOWN_MAX
        what = "; ".join(shown) + (f"; {more} more" if more > 0 else "")
        links.append(f"[{path.name}](../{path.as_posix()})" + (f": {what}" if what else ""))
    return "<br>".join(links)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
