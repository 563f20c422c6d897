from __future__ import annotations

import random

from skate_scheduler import (
    ANY_LABELS,
    Fit,
    LabelRules,
    LabelSelector,
    NodeView,
    Placement,
    ResourceSet,
    choose_node,
)

ONE = ResourceSet({"CPU": 1})


def node(name: bytes, cpu: int, free: int, **labels: str) -> NodeView:
    return NodeView(name, ResourceSet({"CPU": cpu}), ResourceSet({"CPU": free}), labels)


def rules(*selectors: dict[str, str], preferred: dict[str, str] | None = None) -> LabelRules:
    return LabelRules(
        tuple(map(LabelSelector.parse, selectors)), LabelSelector.parse(preferred or {})
    )


def choose(wanted: LabelRules, *nodes: NodeView) -> Placement:
    return wanted.choose(
        lambda test: choose_node(
            ONE, [view for view in nodes if test(view.labels)], random=random.Random(0)
        )
    )


def test_rules_keep_the_policy_to_matching_nodes() -> None:
    wanted = rules({"zone": "b"})
    nodes = [node(b"a", 4, 4, zone="a"), node(b"b", 4, 1, zone="b")]
    assert choose(wanted, *nodes) == Placement(Fit.NOW, b"b")
    assert choose(wanted, nodes[0]) == Placement(Fit.NEVER, None)
    assert choose(ANY_LABELS, nodes[0]) == Placement(Fit.NOW, b"a")


def test_fallback_with_room_comes_before_a_first_choice_that_is_busy() -> None:
    wanted = rules({"zone": "a"}, {"zone": "b"}, {})
    busy, free = node(b"a", 4, 0, zone="a"), node(b"b", 4, 4, zone="b")
    assert choose(wanted, busy, free) == Placement(Fit.NOW, b"b")
    assert choose(wanted, busy, node(b"c", 1, 1)) == Placement(Fit.NOW, b"c")


def test_without_room_anywhere_the_first_choice_is_waited_for() -> None:
    wanted = rules({"zone": "a"}, {"zone": "b"})
    full = [node(b"b", 4, 0, zone="b"), node(b"a", 4, 0, zone="a")]
    assert choose(wanted, *full) == Placement(Fit.LATER, b"a")
    assert choose(wanted, full[0]) == Placement(Fit.LATER, b"b")


def test_preferred_nodes_come_first_while_they_have_room() -> None:
    wanted = rules({"zone": "in(a,b)"}, preferred={"disk": "ssd"})
    slow, fast = node(b"s", 4, 4, zone="a"), node(b"f", 4, 1, zone="b", disk="ssd")
    assert choose(wanted, slow, fast) == Placement(Fit.NOW, b"f")
    assert choose(wanted, slow, node(b"f", 4, 0, zone="b", disk="ssd")) == Placement(Fit.NOW, b"s")
    assert choose(wanted, node(b"x", 4, 4, disk="ssd")) == Placement(Fit.NEVER, None)


def test_preference_alone_forbids_no_node() -> None:
    wanted = rules(preferred={"disk": "ssd"})
    assert wanted
    assert wanted.allow({})
    assert choose(wanted, node(b"s", 4, 4)) == Placement(Fit.NOW, b"s")


def test_rules_are_allowed_by_any_selector_and_read_as_alternatives() -> None:
    wanted = rules({"zone": "a"}, {"disk": "!hdd"})
    assert wanted.allow({"zone": "a", "disk": "hdd"})
    assert wanted.allow({"disk": "ssd"})
    assert not wanted.allow({"zone": "b", "disk": "hdd"})
    assert str(wanted) == "zone is a, or else disk is not hdd"
    assert hash(wanted) == hash(rules({"zone": "in(a)"}, {"disk": "!hdd"}))


def test_selector_through_tuples_is_equal() -> None:
    selector = LabelSelector.parse({"zone": "in(a,b)", "disk": "!hdd"})
    assert LabelSelector.from_tuples(selector.to_tuples()) == selector
