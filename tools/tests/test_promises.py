from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools import promises

DATA = """
[I1]
title = "First."
says = "It ends."
state = "kept"

[I2]
title = "Second."
says = "Not yet."
state = "open"
"""
TEST = """
import pytest

@pytest.mark.invariant("I1")
def test_it_ends() -> None: ...
"""


@pytest.fixture
def house(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "invariants.toml").write_text(DATA, "utf-8")
    (tmp_path / "test_it.py").write_text(TEST, "utf-8")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def test_page_names_each_promise_and_the_tests_that_hold_it(house: Path) -> None:
    assert promises.main([], house) == 0
    page = (house / promises.PAGE).read_text("utf-8")
    assert "| I1 | **First.** It ends. | kept | [test_it.py](../test_it.py): it ends |" in page
    assert "| I2 | **Second.** Not yet. | open |" in page
    assert promises.main(["--check"], house) == 0


def test_page_that_was_not_made_again_fails_the_check(house: Path) -> None:
    promises.main([], house)
    renamed = TEST.replace("test_it_ends", "test_it_really_ends")
    (house / "test_it.py").write_text(renamed, "utf-8")
    assert promises.main(["--check"], house) == 1


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"I1"', '"I9"', "holds I9, which is not in docs/invariants.toml"),
        ('"I1"', '"I2"', "I1 is said to be kept, and no test holds it"),
    ],
)
def test_marker_and_data_that_contradict_each_other_are_named(
    house: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, problem: str
) -> None:
    (house / "test_it.py").write_text(TEST.replace(old, new), "utf-8")
    assert promises.main([], house) == 1
    assert problem in capsys.readouterr().out


def test_partly_kept_promise_says_what_lacks(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = DATA.replace('"kept"', '"partly"')
    (house / "docs" / "invariants.toml").write_text(data, "utf-8")
    assert promises.main([], house) == 1
    assert "nothing says what lacks" in capsys.readouterr().out
