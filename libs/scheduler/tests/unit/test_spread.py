from __future__ import annotations

from skate_scheduler import Fit, NodeView, Placement, ResourceSet, choose_spread

ONE = ResourceSet({"CPU": 1})


def node(name: bytes, cpu: int, free: int) -> NodeView:
    return NodeView(name, ResourceSet({"CPU": cpu}), ResourceSet({"CPU": free}))


def test_choose_spread_takes_turns_in_the_order_of_ids() -> None:
    nodes = [node(b"c", 1, 1), node(b"a", 1, 1), node(b"b", 1, 1)]
    after = b""
    turns = []
    for _ in range(6):
        placement = choose_spread(ONE, nodes, after=after)
        assert placement.node_id is not None
        after = placement.node_id
        turns.append(after)
    assert turns == [b"a", b"b", b"c"] * 2


def test_choose_spread_skips_full_nodes_while_another_has_room() -> None:
    nodes = [node(b"a", 1, 0), node(b"b", 1, 1), node(b"c", 1, 0)]
    assert choose_spread(ONE, nodes, after=b"b") == Placement(Fit.NOW, b"b")


def test_choose_spread_without_room_names_a_node_for_later() -> None:
    nodes = [node(b"a", 1, 0), node(b"b", 2, 0)]
    assert choose_spread(ONE, nodes, after=b"a") == Placement(Fit.LATER, b"b")


def test_choose_spread_nothing_large_enough_is_never() -> None:
    assert choose_spread(ONE, [node(b"a", 0, 0)], after=b"") == Placement(Fit.NEVER, None)
    assert choose_spread(ONE, [], after=b"") == Placement(Fit.NEVER, None)
