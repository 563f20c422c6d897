from __future__ import annotations

import ast
from pathlib import Path

from tools.markers import marked_in


def test_markers_of_modules_classes_and_methods_count() -> None:
    module = ast.parse(
        "pytestmark = [pytest.mark.slow, pytest.mark.surface('T1')]\n"
        "@pytest.mark.surface('T2', 'T3')\n"
        "class TestIt:\n"
        "    @pytest.mark.surface('T4')\n"
        "    async def test_one(self): ...\n"
        "@pytest.mark.invariant('I1')\n"
        "def test_of_another_marker(): ...\n"
    )
    found = list(marked_in(Path("test_it.py"), module, "surface"))
    assert [(test.name, test.keys) for test in found] == [
        ("", ("T1",)),
        ("TestIt", ("T2", "T3")),
        ("TestIt.test_one", ("T4",)),
    ]
