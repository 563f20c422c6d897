from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools import surface

DATA = """
[[section]]
title = "Tasks"
tested = true
[section.rows]
T1 = { state = "done", what = "calls" }
T2 = { state = "open", what = "binding" }
"""
TEST = """
import pytest

@pytest.mark.surface("T1")
def test_call() -> None: ...
"""


@pytest.fixture
def house(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "surface.toml").write_text(DATA, "utf-8")
    (tmp_path / "test_it.py").write_text(TEST, "utf-8")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def test_page_has_each_row_with_its_state_and_tests(house: Path) -> None:
    assert surface.main([], house) == 0
    page = (house / surface.PAGE).read_text("utf-8")
    assert "Of 2 rows, 1 are done, 0 partly, 1 open." in page
    assert "| T1 | calls | done |  | [test_it](../test_it.py) |" in page
    assert "| T2 | binding | open |  |  |" in page
    assert surface.main(["--check"], house) == 0


@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        ("test_it.py", '"T1"', '"T9"', "holds T9, which is not in docs/surface.toml"),
        ("test_it.py", '"T1"', '"T2"', "T1 is said to be done, and no test holds it"),
        ("docs/surface.toml", '"open"', '"partly"', "T2 is partly there, and nothing says"),
        ("docs/surface.toml", '"open"', '"almost"', "its state 'almost' is none of"),
    ],
)
def test_what_markers_and_data_contradict_is_named(
    house: Path, capsys: pytest.CaptureFixture[str], file: str, old: str, new: str, problem: str
) -> None:
    path = house / file
    path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
    assert surface.main([], house) == 1
    assert problem in capsys.readouterr().out


def test_section_whose_tests_are_not_marked_yet_may_say_done(house: Path) -> None:
    data = DATA.replace("tested = true\n", "")
    (house / "docs" / "surface.toml").write_text(data, "utf-8")
    (house / "test_it.py").write_text("", "utf-8")
    assert surface.main([], house) == 0


def test_page_that_was_not_made_again_fails_the_check(house: Path) -> None:
    surface.main([], house)
    data = DATA.replace('"open"', '"done"').replace("tested = true\n", "")
    (house / "docs" / "surface.toml").write_text(data, "utf-8")
    assert surface.main(["--check"], house) == 1
