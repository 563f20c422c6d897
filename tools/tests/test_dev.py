from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import dev


class Commands:
    """Records what dev.py would run, and answers each with the status of the first match."""

    def __init__(self, failing: Sequence[str] = ()) -> None:
        self.lines: list[str] = []
        self._failing = failing

    def run(self, command: Sequence[str | Path], environment: dict[str, str] | None = None) -> int:
        line = " ".join(str(part) for part in command)
        self.lines.append(line)
        return 1 if any(words in line for words in self._failing) else 0


@pytest.fixture
def fresh_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """dev.py in a folder without an environment, under a pip that serves other interpreters."""
    monkeypatch.setattr(dev, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(dev, "VENV_PYTHON", tmp_path / ".venv" / "bin" / "python")
    monkeypatch.setattr(dev, "REPORTS", tmp_path / "build" / "reports")
    monkeypatch.setattr(dev, "_own_pip_serves_others", lambda: True)
    monkeypatch.setattr(dev, "_pip_setting", lambda name: "")
    return tmp_path


def use(monkeypatch: pytest.MonkeyPatch, commands: Commands) -> Commands:
    monkeypatch.setattr(dev, "_run", commands.run)
    return commands


@pytest.mark.usefixtures("fresh_checkout")
def test_set_up_in_a_fresh_checkout_makes_installs_and_syncs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands = use(monkeypatch, Commands())
    assert dev.main(["setup"]) == 0
    make, install, sync = commands.lines
    assert "-m venv --without-pip" in make
    assert "pip --python" in install
    assert install.endswith("uv nox")
    assert "sync --all-packages --all-extras" in sync


@pytest.mark.usefixtures("fresh_checkout")
def test_set_up_without_pip_and_ensurepip_says_so_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dev, "_own_pip_serves_others", lambda: False)
    commands = use(monkeypatch, Commands(failing=["-m venv"]))
    assert dev.main(["demo"]) == 1
    assert len(commands.lines) == 1
    (sentence,) = capsys.readouterr().err.splitlines()[1:]
    assert "neither pip nor ensurepip" in sentence
    assert "python3-venv" in sentence


@pytest.mark.usefixtures("fresh_checkout")
def test_set_up_without_own_pip_uses_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dev, "_own_pip_serves_others", lambda: False)
    commands = use(monkeypatch, Commands())
    assert dev.main(["setup"]) == 0
    assert "--without-pip" not in commands.lines[0]
    assert commands.lines[1].startswith(f"{dev.VENV_PYTHON} -m pip install")


def test_old_python_is_refused_with_its_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dev, "OLDEST_PYTHON", (99, 0))
    commands = use(monkeypatch, Commands())
    assert dev.main(["test"]) == 1
    assert commands.lines == []
    assert "needs Python" in capsys.readouterr().err


@pytest.mark.usefixtures("fresh_checkout")
def test_test_command_with_a_failed_run_still_prints_totals_and_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands = use(monkeypatch, Commands(failing=["-m nox", "totals.py"]))
    assert dev.main(["test"]) == 1
    run, totals = commands.lines[-2:]
    assert run.endswith("--session ci")
    assert totals.endswith("--status 1")


@pytest.mark.usefixtures("fresh_checkout")
def test_test_command_passes_its_arguments_to_nox(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = use(monkeypatch, Commands())
    assert dev.main(["test", "-s", "lint"]) == 0
    assert commands.lines[-2].endswith("nox.json -s lint")


def test_installer_environment_uses_the_index_that_pip_is_set_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"index-url": "https://packages.example/simple", "cert": "/etc/ca.pem"}
    monkeypatch.setattr(dev, "_pip_setting", lambda name: settings[name])
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_OFFLINE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    environment = dev.installer_environment()
    assert environment["UV_DEFAULT_INDEX"] == settings["index-url"]
    assert environment["SSL_CERT_FILE"] == settings["cert"]
    assert environment["UV_PYTHON_DOWNLOADS"] == "never"


def test_installer_environment_leaves_what_the_user_chose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dev, "_pip_setting", lambda name: "from pip")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "chosen")
    monkeypatch.setenv("SSL_CERT_FILE", "chosen")
    environment = dev.installer_environment()
    assert environment["UV_DEFAULT_INDEX"] == environment["SSL_CERT_FILE"] == "chosen"
