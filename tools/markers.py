"""The tests that carry a marker with names: ``@pytest.mark.invariant("I5")``, without running any.

Read from the source, so that the tools need nothing installed.
"""

from __future__ import annotations

import ast
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Marked:
    """A test, a class or a file of tests that names keys."""

    path: Path  # relative to the root
    name: str  # empty: every test of the file
    keys: tuple[str, ...]


def find_marked(root: Path, marker: str) -> Iterator[Marked]:
    """Every marked test of the files that git tracks or would, in the order of paths."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*test_*.py"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in sorted(set(listed.stdout.split())):
        path = root / name
        if path.exists():
            yield from marked_in(Path(name), ast.parse(path.read_text("utf-8")), marker)


def marked_in(path: Path, module: ast.Module, marker: str) -> Iterator[Marked]:
    """The marked tests of one parsed file."""
    for node in module.body:
        match node:
            case ast.Assign(targets=[ast.Name(id="pytestmark")], value=value):
                marks = value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
                yield from _marked(path, "", marks, marker)
            case ast.ClassDef():
                yield from _marked(path, node.name, node.decorator_list, marker)
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                        name = f"{node.name}.{inner.name}"
                        yield from _marked(path, name, inner.decorator_list, marker)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from _marked(path, node.name, node.decorator_list, marker)
            case _:
                pass


def _marked(path: Path, name: str, marks: list[ast.expr], marker: str) -> Iterator[Marked]:
    keys: list[str] = []
    for mark in marks:
        match mark:
            case ast.Call(func=ast.Attribute(attr=attr), args=arguments) if attr == marker:
                keys += [str(ast.literal_eval(argument)) for argument in arguments]
            case _:
                pass
    if keys:
        yield Marked(path, name, tuple(keys))
