"""Parts of ``skate.util`` that need no cluster."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import sys
import threading
from typing import Any

import pytest

from skate import util
from skate.util import debug
from skate.util.actor_pool import ActorPool
from skate.util.check_serialize import inspect_serializability


@pytest.mark.surface("U6")
def test_table_of_names_is_what_the_type_checker_reads_and_every_name_loads() -> None:
    tree = ast.parse(inspect.getsource(util))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    read = {
        alias.asname: (node.module or "").removeprefix("skate.util.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert read == util._MODULE_OF
    for name in util.__all__:
        assert getattr(util, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        util.nothing  # noqa: B018 - reading it is the test


@pytest.mark.surface("U5")
def test_inspection_of_what_pickles_finds_nothing() -> None:
    out = io.StringIO()
    assert inspect_serializability([1, "two"], print_file=out) == (True, set())
    assert "can be pickled" in out.getvalue()


@pytest.mark.surface("U5")
def test_inspection_names_each_part_that_is_a_cause() -> None:
    first, second = threading.Lock(), threading.RLock()

    class Client:
        def __init__(self, lock: Any) -> None:
            self.lock = lock

    def work() -> Any:
        return client, second

    client = Client(first)
    out = io.StringIO()
    is_good, failures = inspect_serializability(work, name="my function", print_file=out)
    assert not is_good
    assert {failure.obj for failure in failures} == {first, second}
    by_part = {failure.obj: failure for failure in failures}
    assert by_part[first].name == ".lock"
    assert by_part[first].parent is client
    assert by_part[second].name == "closure variable second"
    assert "my function -> closure variable client -> .lock" in out.getvalue()


@pytest.mark.surface("U5")
def test_inspection_goes_as_deep_as_it_is_told() -> None:
    value = [[[threading.Lock()]]]
    _, failures = inspect_serializability(value, depth=2, print_file=io.StringIO())
    assert [failure.obj for failure in failures] == [value[0][0]]
    with pytest.raises(ValueError, match="depth"):
        inspect_serializability(value, depth=0)


def test_log_once_is_true_once_for_each_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debug, "_seen", set())
    assert [debug.log_once("a"), debug.log_once("b"), debug.log_once("a")] == [True, True, False]
    monkeypatch.setitem(debug._switches, "is_off", True)
    assert not debug.log_once("c")


def test_periodic_logging_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debug, "_seen", set())
    monkeypatch.setitem(debug._switches, "is_periodic", True)
    assert debug.log_once("a")
    assert not debug.log_once("a")
    monkeypatch.setattr(debug, "_last_reset_s", [debug._last_reset_s[0] - debug.PERIOD_S - 1])
    assert debug.log_once("a")


def test_joblib_back_end_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    register = importlib.import_module("skate.util.joblib").register_skate
    monkeypatch.setitem(sys.modules, "joblib.parallel", None)
    with pytest.raises(ImportError, match=r"skate\[joblib\]"):
        register()


@pytest.mark.surface("U1")
def test_actor_pool_keeps_the_actor_of_a_call_that_could_not_be_made() -> None:
    pool = ActorPool(["actor"])
    with pytest.raises(ZeroDivisionError):
        pool.submit(lambda actor, value: 1 / 0, 1)
    assert pool.pop_idle() == "actor"
