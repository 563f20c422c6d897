"""No secret is compared with ``==``, whose time tells how much was right (RELIABILITY S02)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "skate_rpc"
MODULES = sorted(SOURCE.glob("*.py"))
SECRETS = ("token", "secret", "proof", "digest", "authorization", "offered", "expected", "nonce")


def secret_comparisons(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare):
            continue
        if not any(isinstance(operator, ast.Eq | ast.NotEq) for operator in node.ops):
            continue
        for side in (node.left, *node.comparators):
            if isinstance(side, ast.Call):  # len(token) and the like tell nothing
                continue
            names = {part.id for part in ast.walk(side) if isinstance(part, ast.Name)}
            names |= {part.attr for part in ast.walk(side) if isinstance(part, ast.Attribute)}
            names = {name for name in names if not name.endswith("_KEY")}  # names of headers
            if any(secret in name.lower() for name in names for secret in SECRETS):
                yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_module_compares_no_secret_with_equality(module: Path) -> None:
    assert list(secret_comparisons(ast.parse(module.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize("code", ["a.token == b", "x != self._expected[1:]", "proof(a) == PROOF"])
def test_secret_comparisons_finds_a_planted_one(code: str) -> None:
    assert list(secret_comparisons(ast.parse(code)))
