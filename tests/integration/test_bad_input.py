"""Mistakes are told at the call, in one sentence, and nothing hangs or is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import skate

pytestmark = pytest.mark.usefixtures("shared_cluster")


@skate.remote
def f(x: int) -> int:
    return x


@skate.remote
class Actor:
    def __init__(self, x: int) -> None:
        self.x = x

    def get(self, y: int = 0) -> int:
        return self.x + y


CASES: list[tuple[str, Callable[[], Any], type[BaseException], str]] = [
    ("direct call of a function", lambda: f(1), TypeError, r"\.remote"),
    ("direct call of a class", lambda: Actor(1), TypeError, r"\.remote"),
    ("unknown option", lambda: f.options(num_cpu=1), ValueError, "num_cpus"),
    ("negative amount", lambda: f.options(num_cpus=-1), ValueError, "num_cpus"),
    ("too fine amount", lambda: f.options(num_gpus=1e-7), ValueError, "0.0001"),
    ("CPU among custom resources", lambda: f.options(resources={"CPU": 1}), ValueError, "num_cpus"),
    ("retries of the wrong type", lambda: f.options(max_retries=1.5), TypeError, "max_retries"),
    ("retries below -1", lambda: f.options(max_retries=-2), ValueError, "max_retries"),
    ("missing argument", f.remote, TypeError, "x"),
    ("too many arguments", lambda: f.remote(1, 2), TypeError, "argument"),
    ("unknown keyword", lambda: f.remote(1, z=1), TypeError, "z"),
    ("missing constructor argument", Actor.remote, TypeError, "x"),
    ("get of a value", lambda: skate.get(1), (TypeError, ValueError), "ObjectRef"),  # type: ignore[list-item]
    ("get of a list of values", lambda: skate.get([1]), TypeError, "ObjectRef"),
    ("put of a reference", lambda: skate.put(skate.put(1)), TypeError, "reference"),
    ("wait for a bare reference", lambda: skate.wait(skate.put(1)), TypeError, "list"),
    (
        "wait for too many",
        lambda: skate.wait([skate.put(1)], num_returns=2),
        ValueError,
        "num_returns",
    ),
    (
        "wait with a negative timeout",
        lambda: skate.wait([skate.put(1)], timeout=-1),
        ValueError,
        "timeout",
    ),
    ("kill of a non-handle", lambda: skate.kill(1), ValueError, "handle"),
    ("cancel of a non-reference", lambda: skate.cancel(1), TypeError, "ObjectRef"),
    ("empty actor name", lambda: Actor.options(name=""), ValueError, "name"),
    ("remote of a value", lambda: skate.remote(3), TypeError, "function"),
    (
        "unknown field of the environment",
        lambda: f.options(runtime_env={"conda": "x"}),
        ValueError,
        "env_vars",
    ),
]


@pytest.mark.parametrize(
    ("call", "error", "text"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_mistake_raises_at_the_call_and_the_session_goes_on(
    call: Callable[[], Any], error: type[BaseException], text: str
) -> None:
    with pytest.raises(error, match=text):
        call()
    assert skate.get(f.remote(1), timeout=20) == 1


def test_unpicklable_closure_is_named_by_its_path() -> None:
    config = {"pool": [threading.Lock()]}

    @skate.remote
    def train() -> Any:
        return config

    with pytest.raises(TypeError, match=r"train.*config.*\['pool'\].*lock"):
        train.remote()


def test_unpicklable_argument_is_named_by_its_path() -> None:
    with pytest.raises(TypeError, match="lock"):
        f.remote([threading.Lock()])


def test_unpicklable_result_is_the_tasks_error() -> None:
    @skate.remote
    def bad() -> Any:
        return threading.Lock()

    with pytest.raises(TypeError, match="lock"):
        skate.get(bad.remote(), timeout=20)


def test_unknown_method_is_an_attribute_error() -> None:
    actor = Actor.remote(1)
    with pytest.raises(AttributeError, match="nothing"):
        actor.nothing.remote()
    with pytest.raises(TypeError, match="remote"):
        actor.get()
    assert skate.get(actor.get.remote(2)) == 3
