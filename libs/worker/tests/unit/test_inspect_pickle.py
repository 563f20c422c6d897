"""The path to what can not be pickled is exact, wherever it hides."""

from __future__ import annotations

import functools
import socket
import threading
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from skate_worker.inspect_pickle import find_unpicklable
from skate_worker.serialization import serialize

LOCK = threading.Lock()
L = "_thread.lock"


class Box:
    def __init__(self, item: Any) -> None:
        self.item = item


class Slotted:
    __slots__ = ("item",)

    def __init__(self, item: Any) -> None:
        self.item = item


class Stateful:
    def __init__(self, item: Any) -> None:
        self._item = item

    def __getstate__(self) -> Any:
        return {"kept": self._item}

    def __setstate__(self, state: Any) -> None:
        self._item = state["kept"]


class Reduced:
    def __init__(self, item: Any) -> None:
        self.item = item

    def __reduce__(self) -> Any:
        return Reduced, (self.item,)


class Refusing:
    def __reduce__(self) -> Any:
        raise TypeError("I do not pickle")


class Bag(list[Any]):
    pass


class Named(dict[str, Any]):
    pass


@dataclass
class Data:
    item: Any


def closure(captured: Any) -> Callable[[], Any]:
    return lambda: captured


def default(item: Any) -> Callable[..., Any]:
    def work(x: int = 1, handle: Any = item) -> Any:
        return handle

    work.__module__ = "__main__"
    return lambda: work


def keyword_default(item: Any) -> Callable[..., Any]:
    def work(*, handle: Any = item) -> Any:
        return handle

    return work


def global_user(item: Any) -> Callable[[], Any]:
    namespace: dict[str, Any] = {"handle": item, "__name__": "__main__"}
    exec("def work():\n    return [handle for _ in 'a']", namespace)
    work: Callable[[], Any] = namespace["work"]
    return work


def local_class(item: Any) -> type:
    class Local:
        handle = item

        def method(self) -> Any:
            return self.handle

    return Local


def method_class(item: Any) -> type:
    class Local:
        def method(self) -> Any:
            return item

    return Local


def static_class(item: Any) -> type:
    class Local:
        @staticmethod
        def method() -> Any:
            return item

    return Local


def property_class(item: Any) -> type:
    class Local:
        @property
        def method(self) -> Any:
            return item

    return Local


def base_class(item: Any) -> type:
    class Child(local_class(item)):  # type: ignore[misc]
        pass

    return Child


def decorated(item: Any) -> Callable[[], Any]:
    inner = closure(item)

    @functools.wraps(inner)
    def outer() -> Any:
        return inner()

    return outer


def attribute(item: Any) -> Callable[[], Any]:
    def work() -> None:
        pass

    work.handle = item  # type: ignore[attr-defined]
    return work


def cyclic(item: Any) -> Any:
    box = Box(None)
    box.item = {"me": box, "other": item}
    return box


def nested(item: Any, depth: int) -> Any:
    for level in range(depth):
        item = {f"k{level}": item} if level % 2 else Box(item)
    return item


def deep_steps(depth: int) -> list[str]:
    return [f"['k{n}']" if n % 2 else ".item" for n in reversed(range(depth))] + [L]


CASES: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "itself": (lambda: LOCK, [L]),
    "attribute": (lambda: Box(LOCK), [".item", L]),
    "slot": (lambda: Slotted(LOCK), [".item", L]),
    "dataclass": (lambda: Data(LOCK), [".item", L]),
    "namespace": (lambda: SimpleNamespace(item=LOCK), [".item", L]),
    "getstate": (lambda: Stateful(LOCK), [".kept", L]),
    "reduce": (lambda: Reduced(LOCK), ["argument 0 of its __reduce__", L]),
    "refusing": (lambda: Box(Refusing()), [".item", f"{__name__}.Refusing"]),
    "list": (lambda: [1, LOCK], ["[1]", L]),
    "tuple": (lambda: (1, 2, LOCK), ["[2]", L]),
    "set": (lambda: {LOCK}, ["member", L]),
    "dict_value": (lambda: {"pool": LOCK}, ["['pool']", L]),
    "dict_integer_key": (lambda: {7: LOCK}, ["[7]", L]),
    "dict_key": (lambda: {LOCK: 1}, [f"key {LOCK!r}", L]),
    "ordered_dict": (lambda: OrderedDict(a=LOCK), ["['a']", L]),
    "default_dict": (lambda: defaultdict(list, a=LOCK), ["['a']", L]),
    "deque": (lambda: deque([LOCK]), ["[0]", L]),
    "list_subclass": (lambda: Bag([LOCK]), ["[0]", L]),
    "dict_subclass": (lambda: Named(a=LOCK), ["['a']", L]),
    "closure": (lambda: closure(LOCK), ["closure variable captured", L]),
    "closure_deep": (
        lambda: closure(Box({"pool": LOCK})),
        ["closure variable captured", ".item", "['pool']", L],
    ),
    "default": (
        lambda: default(LOCK),
        ["closure variable work", "default of parameter handle", L],
    ),
    "keyword_default": (lambda: keyword_default(LOCK), ["default of parameter handle", L]),
    "global": (lambda: global_user(LOCK), ["global variable handle", L]),
    "global_attribute": (lambda: global_user(Box(LOCK)), ["global variable handle", ".item", L]),
    "class_attribute": (lambda: local_class(LOCK), ["class attribute handle", L]),
    "class_method": (lambda: method_class(LOCK), ["method method()", "closure variable item", L]),
    "class_static": (lambda: static_class(LOCK), ["method method()", "closure variable item", L]),
    "class_property": (
        lambda: property_class(LOCK),
        ["class attribute method", ".fget", "closure variable item", L],
    ),
    "class_base": (
        lambda: base_class(LOCK),
        ["base class local_class.<locals>.Local", "class attribute handle", L],
    ),
    "instance_of_local_class": (
        local_class(LOCK),
        ["class local_class.<locals>.Local", "class attribute handle", L],
    ),
    "bound_method": (lambda: Worker().run, ["bound to self", ".item", L]),
    "partial": (lambda: functools.partial(print, LOCK), ["partial argument 0", L]),
    "partial_keyword": (lambda: functools.partial(print, end=LOCK), ["partial argument end", L]),
    "partial_function": (
        lambda: functools.partial(closure(LOCK)),
        ["partial function", "closure variable captured", L],
    ),
    "decorated": (
        lambda: decorated(LOCK),
        ["closure variable inner", "closure variable captured", L],
    ),
    "function_attribute": (lambda: attribute(LOCK), [".handle", L]),
    "cycle": (lambda: cyclic(LOCK), [".item", "['other']", L]),
    "generator": (lambda: {"g": (i for i in [])}, ["['g']", "generator"]),
    "exception_args": (
        lambda: Box(ValueError(LOCK)),
        [".item", "argument 0 of its __reduce__", L],
    ),
    "second_of_two": (lambda: [Box(1), Box(LOCK)], ["[1]", ".item", L]),
    "lambda_in_list": (lambda: [closure(LOCK)], ["[0]", "closure variable captured", L]),
} | {
    f"depth_{depth}": (functools.partial(nested, LOCK, depth), deep_steps(depth))
    for depth in range(1, 9)
}


class Worker:
    def __init__(self) -> None:
        self.item = LOCK

    def run(self) -> None:
        pass


@pytest.mark.parametrize("case", CASES)
def test_path_to_planted_object_is_exact(case: str) -> None:
    make, path = CASES[case]

    assert find_unpicklable(make()) == path


def test_fifty_objects_are_planted() -> None:
    assert len(CASES) >= 50


def test_message_names_task_path_type_and_place() -> None:
    cfg = SimpleNamespace(client={"pool": LOCK})

    def train() -> Any:
        return cfg

    with pytest.raises(TypeError) as caught:
        serialize(train, subject="task train()")

    line = train.__code__.co_firstlineno
    text = str(caught.value)
    assert "task train() -> closure variable cfg -> .client -> ['pool'] -> _thread.lock" in text
    assert f"{__file__}:{line}" in text
    assert caught.value.__cause__ is not None


def test_message_without_subject_describes_the_value() -> None:
    with socket.socket() as sock, pytest.raises(TypeError, match=r"value of type .*Box"):
        serialize(Box(sock))
