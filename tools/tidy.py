"""The house rules that no linter knows: some are checked, sizes are only reported.

Checked (the exit status is 1 when one is broken):

- every library has README.md, CHANGELOG.md, tests and py.typed;
- every library is a root package of the import contracts, and one with a ``machine`` folder is
  listed in the purity contract (wildcards cannot match root packages);
- the range of a requirement on a sibling has the form ``>=X,<Y`` and admits the sibling's version;
- constraints.txt and the workspace's constraint-dependencies say the same, and no lock file is
  tracked (it would store registry addresses);
- no test under ``tests/unit`` or ``tests/sim`` sleeps.

Reported (a mirror, not a gate: cutting a thought in half to please a counter helps nobody): modules
past 800 lines, functions past 70, classes past 400 lines or 25 methods. One that is long for a good
reason is listed in ``REASONS`` with that reason, and is then left out.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools.workspace import Member, read_members, siblings  # noqa: E402 - needs the path above

if TYPE_CHECKING:
    from collections.abc import Iterator

MODULE_LINES_MAX = 800
FUNCTION_LINES_MAX = 70
CLASS_LINES_MAX = 400
CLASS_METHODS_MAX = 25
PURITY_CONTRACT = "Machines are pure"
SIBLING_RANGE = re.compile(r"[\w.-]+(?:\[[\w,.-]+\])?\s*>=([\d.]+),\s*<([\d.]+)")
LOCK_FILES = ("uv.lock", "poetry.lock")
REASONS: dict[str, str] = {}  # "path" or "path::Name" -> why it is long


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to look at: where, and what about it."""

    where: str
    what: str

    def __str__(self) -> str:
        """``where: what``."""
        return f"{self.where}: {self.what}"


def main(root: Path = ROOT) -> int:
    """Print the report, then the broken rules; 1 when there is a broken rule."""
    members = read_members(root)
    settings = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    sizes = list(find_oversized(root, members))
    broken = [
        *check_files(root, members),
        *check_ranges(root, members),
        *check_contracts(settings, members),
        *check_pins(root, settings),
        *check_sleeps(root, members),
    ]
    for finding in sizes:
        print(f"long: {finding}")
    for finding in broken:
        print(f"broken: {finding}")
    print(f"tidy: {len(members)} members, {len(sizes)} long, {len(broken)} broken")
    return 1 if broken else 0


def check_files(root: Path, members: dict[str, Member]) -> Iterator[Finding]:
    """What every library carries, and what the repository must not."""
    for member in members.values():
        folder = str(member.folder.relative_to(root))
        needed = [member.folder / "README.md", member.folder / "CHANGELOG.md"]
        for file in [*needed, member.source / "py.typed"]:
            if not file.is_file():
                yield Finding(folder, f"has no {file.name}")
        if not any(member.tests.rglob("test_*.py")):
            yield Finding(folder, "has no tests")
    for path in tracked_files(root):
        if Path(path).name in LOCK_FILES:
            yield Finding(path, "is tracked, and stores registry addresses")


def check_ranges(root: Path, members: dict[str, Member]) -> Iterator[Finding]:
    """A sibling is required by a range that admits the version in the workspace."""
    for member in members.values():
        where = str(member.folder.relative_to(root) / "pyproject.toml")
        for requirement, sibling in siblings(member, members):
            form = SIBLING_RANGE.fullmatch(requirement)
            if form is None:
                yield Finding(where, f"{requirement!r} is not of the form name>=X,<Y")
                continue
            low, version, high = map(version_key, (form[1], sibling.version, form[2]))
            if not low <= version < high:
                yield Finding(where, f"{requirement!r} does not admit {sibling.version}")


def check_contracts(settings: dict[str, Any], members: dict[str, Member]) -> Iterator[Finding]:
    """Every package is a root package, and every machine is in the purity contract."""
    linter = settings["tool"]["importlinter"]
    pure: set[str] = set()
    for contract in linter["contracts"]:
        if contract["name"].startswith(PURITY_CONTRACT):
            pure |= set(contract["source_modules"])
    for member in members.values():
        if member.package not in linter["root_packages"]:
            yield Finding("pyproject.toml", f"{member.package} is no root package of import-linter")
        machine = f"{member.package}.machine"
        if (member.source / "machine").is_dir() and machine not in pure:
            yield Finding("pyproject.toml", f"{machine} is not in the purity contract")


def check_pins(root: Path, settings: dict[str, Any]) -> Iterator[Finding]:
    """constraints.txt and constraint-dependencies name the same versions."""
    ours = set(settings["tool"]["uv"]["constraint-dependencies"])
    theirs = set((root / "constraints.txt").read_text("utf-8").split())
    for pin in sorted(ours ^ theirs):
        missing = "constraints.txt" if pin in ours else "pyproject.toml"
        yield Finding(missing, f"lacks {pin}")
    for pin in sorted(ours | theirs):
        if re.fullmatch(r"[a-z0-9-]+==[\w.]+", pin) is None:
            yield Finding("constraints.txt", f"{pin!r} is not of the form name==version")


def check_sleeps(root: Path, members: dict[str, Member]) -> Iterator[Finding]:
    """A unit test or a simulated one takes time as a number; it never waits for it."""
    for member in members.values():
        for folder in ("unit", "sim"):
            for path in sorted((member.tests / folder).rglob("*.py")):
                for node in walk_syntax(path):
                    if is_sleep(node):
                        where = f"{path.relative_to(root)}:{node.lineno}"
                        yield Finding(where, "sleeps; wait for a condition or step the clock")


def find_oversized(root: Path, members: dict[str, Member]) -> Iterator[Finding]:
    """Modules, classes and functions past the size at which to think again."""
    for path in source_files(root, members):
        where = str(path.relative_to(root))
        text = path.read_text("utf-8")
        lines = text.count("\n")
        if lines > MODULE_LINES_MAX and where not in REASONS:
            yield Finding(where, f"{lines} lines")
        for node in walk_syntax(path):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            named = f"{where}::{node.name}"
            if named not in REASONS:
                yield from find_long_definition(named, node)


def find_long_definition(
    where: str, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
) -> Iterator[Finding]:
    """Whether one class or function is past its size."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if not isinstance(node, ast.ClassDef):
        if lines > FUNCTION_LINES_MAX:
            yield Finding(where, f"{lines} lines")
        return
    methods = sum(isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) for part in node.body)
    if lines > CLASS_LINES_MAX:
        yield Finding(where, f"{lines} lines")
    if methods > CLASS_METHODS_MAX:
        yield Finding(where, f"{methods} methods")


def source_files(root: Path, members: dict[str, Member]) -> Iterator[Path]:
    """Written Python, generated code left out."""
    for member in members.values():
        for path in sorted(member.source.rglob("*.py")):
            if "gen" not in path.relative_to(member.source).parts:
                yield path
    yield from sorted((root / "tools").glob("*.py"))
    for path in sorted((root / "benchmarks").rglob("*.py")):
        if not any(part.startswith(".") for part in path.relative_to(root).parts):
            yield path


def walk_syntax(path: Path) -> Iterator[ast.AST]:
    """Every node of a module; nothing of one that does not parse, which ruff reports."""
    try:
        yield from ast.walk(ast.parse(path.read_text("utf-8")))
    except SyntaxError:
        return


def tracked_files(root: Path) -> list[str]:
    """What git tracks, or nothing outside a git checkout."""
    listing = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True, check=False
    )
    return [path for path in listing.stdout.split("\0") if path]


def is_sleep(node: ast.AST) -> TypeGuard[ast.expr | ast.stmt]:
    """Whether a node is ``time.sleep`` or ``from time import sleep``."""
    if isinstance(node, ast.Attribute):
        return node.attr == "sleep" and isinstance(node.value, ast.Name) and node.value.id == "time"
    if isinstance(node, ast.ImportFrom):
        return node.module == "time" and any(alias.name == "sleep" for alias in node.names)
    return False


def version_key(version: str) -> tuple[int, ...]:
    """``0.1`` and ``0.1.0`` are one version."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version))
    return numbers + (0,) * (3 - len(numbers))


if __name__ == "__main__":
    sys.exit(main())
