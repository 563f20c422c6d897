"""Every option is checked where it is given, with one sentence that names it."""

from __future__ import annotations

from typing import Any

import pytest

from skate.options import (
    DecoratorError,
    asks_for_resources,
    check_actor_combination,
    check_actor_options,
    check_call_options,
    check_method_options,
    check_task_options,
    resources_of,
    strategy_of,
)
from skate.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
)
from skate_rpc.node_protocol import LabelRules
from skate_worker.specs import Strategy


class NotAnError:
    pass


WRONG_FOR_BOTH: list[tuple[str, Any, type[Exception]]] = [
    ("num_cpus", -1, ValueError),
    ("num_cpus", "1", TypeError),
    ("num_cpus", True, TypeError),
    ("num_cpus", float("nan"), ValueError),
    ("num_cpus", float("inf"), ValueError),
    ("num_gpus", 1e-7, ValueError),
    ("num_gpus", 1.5, ValueError),
    ("num_gpus", [1], TypeError),
    ("memory", -1, ValueError),
    ("memory", "1G", TypeError),
    ("resources", {"CPU": 1}, ValueError),
    ("resources", {"GPU": 1}, ValueError),
    ("resources", {"memory": 1}, ValueError),
    ("resources", {"object_store_memory": 1}, ValueError),
    ("resources", {"a": -1}, ValueError),
    ("resources", {"a": 1e-7}, ValueError),
    ("resources", {"a": "1"}, TypeError),
    ("resources", {1: 1}, TypeError),
    ("resources", {"": 1}, ValueError),
    ("resources", [("a", 1)], TypeError),
    ("accelerator_type", 3, TypeError),
    ("name", 3, TypeError),
    ("name", "", ValueError),
    ("runtime_env", "pip", TypeError),
    ("runtime_env", {"pip": ["x"]}, ValueError),
    ("runtime_env", {"env_vars": {"A": 1}}, TypeError),
    ("runtime_env", {"env_vars": ["A"]}, TypeError),
    ("runtime_env", {"env_vars": {"A=B": "1"}}, ValueError),
    ("scheduling_strategy", "spread", ValueError),
    ("scheduling_strategy", 3, TypeError),
    ("scheduling_strategy", ["SPREAD"], TypeError),
    ("placement_group", object(), TypeError),
    ("label_selector", "zone=a", TypeError),
    ("label_selector", {"a": "b c"}, ValueError),
    ("label_selector", {"a": 1}, ValueError),
    ("label_selector", {"-a": "b"}, ValueError),
    ("fallback_strategy", {"label_selector": {"a": "b"}}, TypeError),
    ("fallback_strategy", ["a"], TypeError),
    ("fallback_strategy", [{}], ValueError),
    ("fallback_strategy", [{"num_cpus": 1}], ValueError),
    ("fallback_strategy", [{"label_selector": {"a": "in("}}], ValueError),
    ("enable_task_events", False, ValueError),
]
WRONG_FOR_TASKS: list[tuple[str, Any, type[Exception]]] = [
    ("max_retries", 1.0, TypeError),
    ("max_retries", -2, ValueError),
    ("max_retries", True, TypeError),
    ("max_calls", -1, ValueError),
    ("max_calls", "1", TypeError),
    ("num_returns", -1, ValueError),
    ("num_returns", 1.5, TypeError),
    ("_generator_backpressure_num_objects", 0, ValueError),
    ("_generator_backpressure_num_objects", -2, ValueError),
    ("_generator_backpressure_num_objects", "2", TypeError),
    ("num_returns", "many", TypeError),
    ("retry_exceptions", 1, TypeError),
    ("retry_exceptions", [NotAnError], ValueError),
    ("retry_exceptions", [ValueError()], ValueError),
    ("object_store_memory", 1, ValueError),
    ("max_restarts", 1, ValueError),
]
WRONG_FOR_ACTORS: list[tuple[str, Any, type[Exception]]] = [
    ("max_restarts", 1.0, TypeError),
    ("max_restarts", -2, ValueError),
    ("max_task_retries", -2, ValueError),
    ("max_concurrency", 0, ValueError),
    ("max_concurrency", "2", TypeError),
    ("max_pending_calls", 0, ValueError),
    ("max_pending_calls", -2, ValueError),
    ("max_pending_calls", 1.5, TypeError),
    ("lifetime", "forever", ValueError),
    ("lifetime", 3, ValueError),
    ("namespace", "", ValueError),
    ("namespace", 3, TypeError),
    ("get_if_exists", 1, TypeError),
    ("concurrency_groups", [1], TypeError),
    ("concurrency_groups", {"io": 0}, ValueError),
    ("concurrency_groups", {"io": "2"}, TypeError),
    ("concurrency_groups", {3: 2}, TypeError),
    ("allow_out_of_order_execution", False, ValueError),
    ("max_retries", 1, ValueError),
    ("num_returns", 2, ValueError),
]


@pytest.mark.parametrize(("name", "value", "error"), WRONG_FOR_BOTH + WRONG_FOR_TASKS)
def test_task_option_with_wrong_value_is_refused(
    name: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        check_task_options({name: value}, is_decoration=True)

    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(("name", "value", "error"), WRONG_FOR_BOTH + WRONG_FOR_ACTORS)
def test_actor_option_with_wrong_value_is_refused(
    name: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        check_actor_options({name: value}, is_decoration=True)

    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "options",
    [
        {"num_cpus": 0},
        {"num_cpus": 0.5, "num_gpus": 0.25},
        {"num_gpus": 4},
        {"memory": 1 << 30},
        {"memory": 0.5},
        {"resources": {"custom": 0.0001}},
        {"resources": {}},
        {"accelerator_type": "A100"},
        {"max_retries": -1},
        {"retry_exceptions": True},
        {"retry_exceptions": [ValueError, KeyboardInterrupt]},
        {"retry_exceptions": (ValueError,)},
        {"num_returns": 0},
        {"max_calls": 0},
        {"name": "work"},
        {"runtime_env": {"env_vars": {"A": "1"}}},
        {"runtime_env": {}},
        {"scheduling_strategy": "DEFAULT"},
        {"scheduling_strategy": "SPREAD"},
        {"scheduling_strategy": NodeAffinitySchedulingStrategy("ab" * 28, soft=True)},
        {"scheduling_strategy": NodeLabelSchedulingStrategy({"zone": In("a")})},
        {"label_selector": {"zone": "!in(a,b)", "ray.io/node-id": "ab"}},
        {"fallback_strategy": [{"label_selector": {"zone": "b"}}, {"label_selector": {}}]},
        {"placement_group": "default"},
        {"enable_task_events": True},
    ],
)
def test_task_option_with_right_value_is_kept(options: dict[str, Any]) -> None:
    assert check_task_options(options, is_decoration=True) == options


def test_option_that_is_none_is_left_out() -> None:
    names = ("num_cpus", "name", "scheduling_strategy", "runtime_env", "num_returns")

    assert check_task_options(dict.fromkeys(names), is_decoration=False) == {}


def test_unknown_option_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no option 'num_cpu'.*Did you mean 'num_cpus'"):
        check_task_options({"num_cpu": 1}, is_decoration=True)


def test_decoration_only_options_are_refused_later() -> None:
    with pytest.raises(ValueError, match="max_calls"):
        check_task_options({"max_calls": 1}, is_decoration=False)
    with pytest.raises(ValueError, match="concurrency_groups"):
        check_actor_options({"concurrency_groups": {"io": 1}}, is_decoration=False)


def test_get_if_exists_without_name_is_refused() -> None:
    with pytest.raises(ValueError, match="name"):
        check_actor_combination({"get_if_exists": True})
    check_actor_combination({"get_if_exists": True, "name": "a"})


def test_unknown_method_option_is_a_decorator_error() -> None:
    for kind in (DecoratorError, ValueError, AssertionError):
        with pytest.raises(kind, match="num_return"):
            check_method_options({"num_return": 2})


def test_call_options_take_a_name() -> None:
    assert check_call_options({"name": "x", "num_returns": 2}) == {"name": "x", "num_returns": 2}
    with pytest.raises(ValueError, match="num_cpus"):
        check_call_options({"num_cpus": 1})


@pytest.mark.parametrize(
    ("options", "amounts"),
    [
        ({}, (("CPU", 10_000),)),
        ({"num_cpus": 0}, ()),
        ({"num_gpus": 2}, (("CPU", 10_000), ("GPU", 20_000))),
        ({"num_cpus": 0.5, "resources": {"a": 1}}, (("CPU", 5_000), ("a", 10_000))),
        ({"num_cpus": 0, "memory": 100.9}, (("memory", 1_000_000),)),
        ({"num_cpus": 0, "accelerator_type": "X"}, (("accelerator_type:X", 10),)),
        ({"num_cpus": 0, "resources": {"a": 0}}, ()),
    ],
)
def test_resources_become_exact_units(options: dict[str, Any], amounts: Any) -> None:
    assert resources_of(options, default_cpus=1) == amounts


def test_zero_cpus_count_as_asking_for_resources() -> None:
    assert asks_for_resources({"num_cpus": 0})
    assert not asks_for_resources({"name": "a"})


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"node_id": "zz" * 28, "soft": False}, ValueError),
        ({"node_id": "ab", "soft": False}, ValueError),
        ({"node_id": "ff" * 28, "soft": False}, ValueError),
        ({"node_id": b"x" * 28, "soft": False}, TypeError),
        ({"node_id": "ab" * 28, "soft": 1}, TypeError),
        ({"node_id": "ab" * 28, "soft": False, "_spill_on_unavailable": True}, ValueError),
        ({"node_id": "ab" * 28, "soft": True, "_fail_on_unavailable": True}, ValueError),
    ],
)
def test_node_affinity_with_wrong_value_is_refused(
    arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        NodeAffinitySchedulingStrategy(**arguments)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("hard", "soft"),
    [
        ({}, None),
        ({}, {}),
        ([], {}),
        ({"zone": "a"}, None),
        ({"zone": In}, None),
        ({"zone": In()}, None),
        ({"zone": In("a b")}, None),
        ({"-": Exists()}, None),
        ({1: Exists()}, None),
        ({"zone": Exists()}, {"zone": ["a"]}),
    ],
)
def test_node_labels_with_wrong_value_are_refused(hard: Any, soft: Any) -> None:
    with pytest.raises(ValueError, match=r"hard|soft"):
        NodeLabelSchedulingStrategy(hard, soft=soft)


def test_condition_takes_strings_alone() -> None:
    with pytest.raises(ValueError, match=r"NotIn .* 3"):
        NotIn("a", 3)


def test_labels_are_handed_to_the_runtime() -> None:
    strategy = NodeLabelSchedulingStrategy(
        {"zone": In("b", "a"), "tmp": DoesNotExist()}, soft={"disk": Exists(), "os": NotIn("x")}
    )
    hard = (("tmp", 4, ()), ("zone", 1, ("a", "b")))
    soft = (("disk", 3, ()), ("os", 2, ("x",)))
    assert strategy_of({"scheduling_strategy": strategy}) == Strategy(
        labels=LabelRules((hard,), soft)
    )
    selector = {"label_selector": {"zone": "!a"}}
    expected = LabelRules(((("zone", 2, ("a",)),),))
    assert strategy_of(selector) == Strategy(labels=expected)
    spread = {"scheduling_strategy": "SPREAD", **selector}
    assert strategy_of(spread) == Strategy(is_spread=True, labels=expected)
    fallback = {"fallback_strategy": [{"label_selector": {}}]}
    assert strategy_of(selector | fallback) == Strategy(
        labels=LabelRules((*expected.selectors, ()))
    )
    assert strategy_of(fallback) is None
    with pytest.raises(ValueError, match="label_selector"):
        strategy_of({"scheduling_strategy": strategy, **selector})


@pytest.mark.parametrize(
    "extra",
    [{"soft": True, "_spill_on_unavailable": True}, {"soft": False, "_fail_on_unavailable": True}],
)
def test_node_affinity_without_waiting_is_handed_to_the_runtime(extra: dict[str, bool]) -> None:
    strategy = NodeAffinitySchedulingStrategy("ab" * 28, **extra)
    assert strategy_of({"scheduling_strategy": strategy}) == Strategy(
        node_id=b"\xab" * 28, is_soft=extra["soft"], is_impatient=True
    )


def test_strategy_is_handed_to_the_runtime_and_absent_by_default() -> None:
    bound = NodeAffinitySchedulingStrategy("ab" * 28, soft=False)

    assert strategy_of({}) is None
    assert strategy_of({"scheduling_strategy": "DEFAULT"}) is None
    assert strategy_of({"scheduling_strategy": "SPREAD"}) == Strategy(is_spread=True)
    assert strategy_of({"scheduling_strategy": bound}) == Strategy(node_id=b"\xab" * 28)
