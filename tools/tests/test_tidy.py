from __future__ import annotations

from pathlib import Path

import pytest

from tools import tidy
from tools.workspace import closure, read_members

ROOT_SETTINGS = """
[tool.uv]
constraint-dependencies = ["numpy==2.4.6"]
[tool.importlinter]
root_packages = ["skate_low", "skate_high"]
[[tool.importlinter.contracts]]
name = "Machines are pure: no clock"
source_modules = ["skate_low.machine"]
"""


def write_member(root: Path, key: str, *, version: str = "0.1.0", requires: str = "") -> Path:
    folder = root / "libs" / key
    source = folder / "src" / f"skate_{key}"
    source.mkdir(parents=True)
    (folder / "tests" / "unit").mkdir(parents=True)
    requirements = f'"{requires}"' if requires else ""
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "skate-{key}"\nversion = "{version}"\n'
        f"dependencies = [{requirements}]\n",
        "utf-8",
    )
    for path in (folder / "README.md", folder / "CHANGELOG.md", source / "py.typed"):
        path.write_text("", "utf-8")
    (source / "__init__.py").write_text("", "utf-8")
    (folder / "tests" / "unit" / "test_it.py").write_text("", "utf-8")
    return folder


@pytest.fixture
def house(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text(ROOT_SETTINGS, "utf-8")
    (tmp_path / "constraints.txt").write_text("numpy==2.4.6\n", "utf-8")
    (tmp_path / "tools").mkdir()
    write_member(tmp_path, "low")
    write_member(tmp_path, "high", requires="skate-low>=0.1,<0.2")
    return tmp_path


def broken_rules(house: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    status = tidy.main(house)
    lines = capsys.readouterr().out.splitlines()
    broken = [line.removeprefix("broken: ") for line in lines if line.startswith("broken: ")]
    assert status == (1 if broken else 0)
    return broken


def test_tidy_in_a_tidy_house_finds_nothing(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert broken_rules(house, capsys) == []


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "src/skate_low/py.typed"])
def test_tidy_with_a_missing_file_names_it(
    house: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (house / "libs" / "low" / name).unlink()
    assert broken_rules(house, capsys) == [f"libs/low: has no {Path(name).name}"]


@pytest.mark.parametrize(
    ("requirement", "complaint"),
    [
        ("skate-low>=0.2,<0.3", "does not admit 0.1.0"),
        ("skate-low", "not of the form"),
        ("skate-low==0.1.0", "not of the form"),
    ],
)
def test_tidy_with_a_wrong_sibling_range_says_so(
    house: Path, capsys: pytest.CaptureFixture[str], requirement: str, complaint: str
) -> None:
    file = house / "libs" / "high" / "pyproject.toml"
    file.write_text(file.read_text("utf-8").replace("skate-low>=0.1,<0.2", requirement), "utf-8")
    (finding,) = broken_rules(house, capsys)
    assert complaint in finding


def test_tidy_with_extras_in_a_sibling_range_finds_nothing(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = house / "libs" / "high" / "pyproject.toml"
    text = file.read_text("utf-8")
    file.write_text(text.replace("skate-low>=", "skate-low[fast,tracing]>="), "utf-8")
    assert broken_rules(house, capsys) == []


def test_tidy_with_an_unlisted_machine_names_it(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (house / "libs" / "low" / "src" / "skate_low" / "machine").mkdir()
    (house / "libs" / "high" / "src" / "skate_high" / "machine").mkdir()
    assert broken_rules(house, capsys) == [
        "pyproject.toml: skate_high.machine is not in the purity contract"
    ]


def test_tidy_with_an_unlisted_package_names_it(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_member(house, "new")
    assert broken_rules(house, capsys) == [
        "pyproject.toml: skate_new is no root package of import-linter"
    ]


def test_tidy_with_differing_pins_names_the_file_that_lacks_one(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (house / "constraints.txt").write_text("numpy==2.4.6\npytest==9.2.0\n", "utf-8")
    assert broken_rules(house, capsys) == ["pyproject.toml: lacks pytest==9.2.0"]


@pytest.mark.parametrize(
    "code", ["import time\ntime.sleep(1)\n", "\nfrom time import monotonic, sleep\n"]
)
def test_tidy_with_a_sleeping_unit_test_gives_its_line(
    house: Path, capsys: pytest.CaptureFixture[str], code: str
) -> None:
    (house / "libs" / "low" / "tests" / "unit" / "test_it.py").write_text(code, "utf-8")
    (finding,) = broken_rules(house, capsys)
    assert finding.startswith("libs/low/tests/unit/test_it.py:2: sleeps")


def test_tidy_with_long_code_reports_it_without_failing(
    house: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = "def long():\n" + "    x = 1\n" * tidy.MODULE_LINES_MAX
    (house / "libs" / "low" / "src" / "skate_low" / "long.py").write_text(body, "utf-8")
    assert tidy.main(house) == 0
    output = capsys.readouterr().out
    assert "long: libs/low/src/skate_low/long.py: 801 lines" in output
    assert "long: libs/low/src/skate_low/long.py::long: 801 lines" in output


def test_closure_of_a_member_holds_what_it_needs_in_order(house: Path) -> None:
    write_member(house, "top", requires="skate-high>=0.1,<0.2")
    members = read_members(house)
    assert [member.key for member in closure(members["top"], members)] == ["low", "high", "top"]
    assert [member.key for member in closure(members["low"], members)] == ["low"]
