from __future__ import annotations

import pytest

from skate_scheduler import (
    ANY_NODE,
    LabelError,
    LabelExpression,
    LabelOperator,
    LabelSelector,
    check_labels,
)


@pytest.mark.parametrize(
    ("condition", "matching", "others"),
    [
        ("a", ["a"], ["b", "", None]),
        ("!a", ["b", "", None], ["a"]),
        ("in(a,b)", ["a", "b"], ["c", None]),
        ("in(a, b)", ["a", "b"], ["c", " b", None]),
        ("!in(a,b)", ["c", None], ["a", "b"]),
        ("", [""], ["a", None]),
        ("in", ["in"], ["a", None]),
        ("index", ["index"], ["dex", None]),
    ],
)
def test_selector_of_one_condition_matches_these_values(
    condition: str, matching: list[str | None], others: list[str | None]
) -> None:
    selector = LabelSelector.parse({"zone": condition})
    for value in matching:
        assert selector.matches({"zone": value} if value is not None else {"other": "a"}), value
    for value in others:
        assert not selector.matches({"zone": value} if value is not None else {}), value


def test_selector_of_several_conditions_needs_all_of_them() -> None:
    selector = LabelSelector.parse({"zone": "a", "disk": "!hdd"})
    assert selector.matches({"zone": "a", "disk": "ssd"})
    assert selector.matches({"zone": "a"})
    assert not selector.matches({"zone": "b", "disk": "ssd"})
    assert not selector.matches({"zone": "a", "disk": "hdd"})
    assert str(selector) == "disk is not hdd and zone is a"


def test_selector_without_conditions_matches_everything_and_is_false() -> None:
    assert LabelSelector.parse({}) == ANY_NODE
    assert not ANY_NODE
    assert ANY_NODE.matches({})
    assert str(ANY_NODE) == "anything"


def test_selectors_that_say_the_same_are_equal_keys() -> None:
    one = LabelSelector.parse({"zone": "in(b,a)", "disk": "ssd"})
    other = LabelSelector.parse({"disk": "in(ssd)", "zone": "in(a, b,a)"})
    assert one == other
    assert hash(one) == hash(other)


@pytest.mark.parametrize(
    ("operator", "with_label", "without"),
    [(LabelOperator.EXISTS, True, False), (LabelOperator.DOES_NOT_EXIST, False, True)],
)
def test_existence_of_a_label_is_a_condition(
    operator: LabelOperator, with_label: bool, without: bool
) -> None:
    expression = LabelExpression.of("zone", operator)
    assert expression.matches({"zone": ""}) is with_label
    assert expression.matches({}) is without


@pytest.mark.parametrize(
    "selector",
    [
        {"zone": "!"},
        {"zone": "in()"},
        {"zone": "in(a"},
        {"zone": "!!a"},
        {"zone": "a b"},
        {"zone": "-a"},
        {"zone": "a" * 64},
        {"zone": 1},
        {"": "a"},
        {"a/": "a"},
        {"/a": "a"},
        {"UPPER.io/zone": "a"},
        {"a" * 254 + "/zone": "a"},
        {"a" * 64: "a"},
        {1: "a"},
        ["zone"],
    ],
)
def test_malformed_selectors_are_value_errors_that_name_the_key(selector: object) -> None:
    with pytest.raises(LabelError) as raised:
        LabelSelector.parse(selector)  # type: ignore[arg-type]  # the point of the test
    assert isinstance(raised.value, ValueError)
    if isinstance(selector, dict):
        (key,) = selector
        assert str(key)[:20] in str(raised.value)


@pytest.mark.parametrize("key", ["zone", "Zone_1.b", "ray.io/zone", "a" * 63, "a.b-c.io/x"])
def test_keys_with_and_without_a_prefix_are_taken(key: str) -> None:
    assert LabelSelector.parse({key: "a"}).matches({key: "a"})


def test_labels_of_users_can_not_begin_with_the_reserved_prefix() -> None:
    check_labels({"zone": "a", "empty": ""})
    with pytest.raises(LabelError, match=r"ray\.io/"):
        check_labels({"ray.io/node-id": "x"})
    with pytest.raises(LabelError, match="value"):
        check_labels({"zone": "a b"})


def test_expressions_with_values_where_none_belong_are_refused() -> None:
    with pytest.raises(LabelError):
        LabelExpression.of("zone", LabelOperator.EXISTS, ["a"])
    with pytest.raises(LabelError):
        LabelExpression.of("zone", LabelOperator.IN)
