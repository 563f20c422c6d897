"""Remote functions: what is checked, what reaches the runtime, and when functions are exported."""

from __future__ import annotations

import functools
import inspect
import math
import pickle
from collections.abc import AsyncIterator, Iterator
from typing import Any

import cloudpickle
import pytest

import skate
from libs.api.tests.unit.recording_core import RecordingCore
from skate.async_function import runnable, yields
from skate.remote_function import RemoteFunction
from skate_worker import current
from skate_worker.errors import NotInitializedError
from skate_worker.generator_returns import DYNAMIC, STATIC, STREAMING, decode_returns


@skate.remote
def add(left: int, right: int = 1) -> int:
    """Add two numbers."""
    return left + right


def test_remote_submits_with_defaults(core: RecordingCore) -> None:
    assert add.remote(1, right=2) == "ref0"

    kind, function_id, args, kwargs, options = core.calls[0]
    assert (kind, function_id, args, kwargs) == ("task", b"id1", (1,), {"right": 2})
    assert options.name == "add"
    assert options.num_returns == 1
    assert options.resources == (("CPU", 10_000),)
    assert options.max_retries == 3
    assert options.retry_exceptions is False
    assert options.env_vars == ()
    assert options.max_calls == 0


def test_function_keeps_its_name_and_text() -> None:
    assert add.__name__ == "add"
    assert add.__doc__ == "Add two numbers."
    assert add.__wrapped__(1, 2) == 3


def test_function_is_exported_once_a_session(core: RecordingCore) -> None:
    fresh = skate.remote(lambda: 1)
    fresh.remote()
    fresh.options(num_cpus=2).remote()
    fresh.remote()
    assert len(core.exports) == 1

    second = RecordingCore()
    current.set_current_core(second)  # type: ignore[arg-type]
    fresh.remote()
    fresh.remote()
    assert len(second.exports) == 1


@pytest.mark.parametrize(
    ("count", "result"), [(0, None), (1, "ref0"), (3, ["ref0", "ref1", "ref2"])]
)
def test_num_returns_decides_what_remote_returns(
    core: RecordingCore, count: int, result: Any
) -> None:
    assert add.options(num_returns=count).remote(1) == result


def test_options_leave_the_function_as_it_was(core: RecordingCore) -> None:
    other = add.options(num_cpus=2, max_retries=0, name="sum", retry_exceptions=[ValueError])
    other.remote(1)
    add.remote(1)

    assert core.calls[0][4].resources == (("CPU", 20_000),)
    assert core.calls[0][4].max_retries == 0
    assert core.calls[0][4].name == "sum"
    assert core.calls[0][4].retry_exceptions == (ValueError,)
    assert core.calls[1][4].name == "add"


def test_options_of_decoration_and_call_are_merged(core: RecordingCore) -> None:
    @skate.remote(num_cpus=3, max_calls=4)
    def work() -> None: ...

    work.options(num_returns=2).remote()

    options = core.calls[0][4]
    assert (options.resources, options.max_calls, options.num_returns) == (
        (("CPU", 30_000),),
        4,
        2,
    )


def test_gpu_task_gets_a_fresh_worker_by_default(core: RecordingCore) -> None:
    @skate.remote(num_gpus=1)
    def work() -> None: ...

    @skate.remote(num_gpus=1, max_calls=0)
    def reuse() -> None: ...

    work.remote()
    reuse.remote()

    assert [call[4].max_calls for call in core.calls] == [1, 0]


def test_underscore_remote_takes_arguments_and_options(core: RecordingCore) -> None:
    assert add._remote(args=(1,), kwargs={"right": 2}, num_returns=2) == ["ref0", "ref1"]
    assert core.calls[0][2:4] == ((1,), {"right": 2})


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((1, 2, 3), {}), ((1,), {"z": 1}), ((1,), {"left": 1})]
)
def test_arguments_that_do_not_fit_raise_at_the_call(
    core: RecordingCore, args: Any, kwargs: Any
) -> None:
    with pytest.raises(TypeError, match=r"add\(\)"):
        add.remote(*args, **kwargs)

    assert core.calls == []


def test_direct_call_suggests_remote() -> None:
    with pytest.raises(TypeError, match=r"write add\.remote\(\.\.\.\)"):
        add(1, 2)


def test_recursive_function_survives_pickling(core: RecordingCore) -> None:
    namespace: dict[str, Any] = {"skate": skate, "__name__": "__main__"}
    exec(
        "@skate.remote\n"
        "def fib(n, base=1):\n"
        "    return base if n < 2 else skate.get(fib.remote(n - 1))\n",
        namespace,
    )
    fib = namespace["fib"]

    function = cloudpickle.loads(cloudpickle.dumps(fib._exported.function))
    again = function.__globals__["fib"]
    assert isinstance(again, RemoteFunction)
    again.remote(3)
    with pytest.raises(TypeError):
        again.remote()
    assert cloudpickle.loads(cloudpickle.dumps(fib)).remote(1) == "ref0"


def test_options_survive_pickling(core: RecordingCore) -> None:
    cloudpickle.loads(cloudpickle.dumps(add.options(num_cpus=2))).remote(1)

    assert core.calls[0][4].resources == (("CPU", 20_000),)


@pytest.mark.parametrize(
    "target", [3, "f", None, math.sqrt, functools.partial(print), object(), add], ids=repr
)
def test_decorating_something_else_raises_type_error(target: Any) -> None:
    with pytest.raises(TypeError):
        skate.remote(target)


def test_decorator_with_empty_parentheses_or_positional_options_is_refused() -> None:
    with pytest.raises(TypeError, match="without parentheses"):
        skate.remote()  # type: ignore[call-overload]
    with pytest.raises(AssertionError):
        skate.remote(2, num_cpus=1)  # type: ignore[call-overload]


def test_decorator_options_are_checked_before_there_is_a_function() -> None:
    with pytest.raises(ValueError, match="Did you mean 'num_cpus'"):
        skate.remote(num_cpu=1)
    with pytest.raises(TypeError, match="max_retries"):
        skate.remote(max_retries=1.0)


def test_what_a_worker_calls_of_an_async_function_is_plain_and_keeps_its_name() -> None:
    async def work(number: int) -> int:
        """Work."""
        return number + 1

    plain = runnable(work)
    assert plain(1) == 2
    assert (plain.__name__, plain.__doc__) == ("work", "Work.")
    assert inspect.signature(plain) == inspect.signature(work)
    assert pickle.loads(cloudpickle.dumps(plain))(2) == 3
    assert runnable(len) is len
    assert skate.remote(work).__name__ == "work"


def test_what_a_worker_calls_of_an_async_generator_yields() -> None:
    closed = []

    async def count(to: int) -> AsyncIterator[int]:
        try:
            for number in range(to):
                yield number
        finally:
            closed.append(to)

    assert list(runnable(count)(3)) == [0, 1, 2]
    begun = runnable(count)(5)
    assert next(begun) == 0
    begun.close()
    assert closed == [3, 5]
    assert (yields(count), yields(numbers), yields(len)) == (True, True, False)


def numbers(count: int) -> Iterator[int]:
    """Yield so many numbers."""
    yield from range(count)


@pytest.mark.parametrize(
    ("options", "kind", "result"),
    [
        ({}, (STREAMING, 0), "ref0"),
        ({"num_returns": "streaming"}, (STREAMING, 0), "ref0"),
        ({"_generator_backpressure_num_objects": 4}, (STREAMING, 4), "ref0"),
        ({"_generator_backpressure_num_objects": -1}, (STREAMING, 0), "ref0"),
        ({"num_returns": "dynamic"}, (DYNAMIC, 0), "ref0"),
        ({"num_returns": 1}, (STATIC, 1), "ref0"),
        ({"num_returns": 3}, (STATIC, 3), ["ref0", "ref1", "ref2"]),
    ],
)
def test_generator_function_streams_unless_told_otherwise(
    core: RecordingCore, options: dict[str, Any], kind: tuple[int, int], result: Any
) -> None:
    given: Any = skate.remote(numbers).options(**options).remote(5)
    assert given == result
    assert decode_returns(core.calls[0][4].num_returns) == kind


def test_generator_function_without_returns_gives_none(core: RecordingCore) -> None:
    assert skate.remote(num_returns=0)(numbers).remote(5) is None


def test_bound_holds_for_other_options_of_the_same_stream(core: RecordingCore) -> None:
    bounded = skate.remote(_generator_backpressure_num_objects=2)(numbers)
    bounded.options(num_returns="streaming", max_retries=0).remote(1)
    bounded.options(num_returns=3).remote(1)
    assert [decode_returns(call[4].num_returns) for call in core.calls] == [
        (STREAMING, 2),
        (STATIC, 3),
    ]


def test_stream_of_a_function_that_does_not_yield_is_refused_where_it_is_written() -> None:
    with pytest.raises(ValueError, match="does not yield"):
        skate.remote(num_returns="streaming")(len_of)
    with pytest.raises(ValueError, match="does not yield"):
        skate.remote(len_of).options(num_returns="streaming")


def len_of(value: Any) -> int:
    return len(value)


def test_bound_without_a_stream_is_refused() -> None:
    for wrong in ({}, {"num_returns": 2}, {"num_returns": "dynamic"}):
        function: Any = numbers if wrong else len_of
        with pytest.raises(ValueError, match="is for streaming generators"):
            skate.remote(_generator_backpressure_num_objects=2, **wrong)(function)


def test_without_session_and_without_leave_to_start_one_remote_raises() -> None:
    with pytest.raises(NotInitializedError, match="SKATE_ENABLE_AUTO_CONNECT=0"):
        add.remote(1)


def test_runtime_env_is_merged_and_inherited(
    core: RecordingCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a worker that was started with A and B.
    monkeypatch.setenv("SKATE_RUNTIME_ENV", '{"A": "1", "B": "2"}')
    work = skate.remote(runtime_env={"env_vars": {"B": "3"}})(lambda: None)
    work.remote()

    given = dict(core.calls[0][4].env_vars)
    inherited = given.pop("SKATE_RUNTIME_ENV")
    assert given == {"A": "1", "B": "3"}
    assert inherited == '{"A": "1", "B": "3"}'
