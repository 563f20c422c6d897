from __future__ import annotations

import sys
import types

import pytest

from skate_worker.setup_hook import SETUP_VARIABLE, run_setup_hook


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    module = types.ModuleType("hook_of_a_test")
    module.install = lambda: made.append("installed")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


def test_named_function_is_called_once(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETUP_VARIABLE, "hook_of_a_test:install")
    run_setup_hook()
    assert calls == ["installed"]


def test_nothing_is_called_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SETUP_VARIABLE, raising=False)
    run_setup_hook()


@pytest.mark.parametrize("named", ["hook_of_a_test", ":install", "hook_of_a_test:"])
@pytest.mark.usefixtures("calls")
def test_other_forms_are_refused(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETUP_VARIABLE, named)
    with pytest.raises(ValueError, match="module:function"):
        run_setup_hook()


@pytest.mark.usefixtures("calls")
def test_function_that_does_not_exist_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETUP_VARIABLE, "hook_of_a_test:other")
    with pytest.raises(AttributeError, match="other"):
        run_setup_hook()
