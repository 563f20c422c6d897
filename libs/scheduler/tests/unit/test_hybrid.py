from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from skate_scheduler import Fit, HybridConfig, NodeView, ResourceSet, choose_node


def node(name: str, cpu: int, free: int | None = None, **other: int) -> NodeView:
    total = ResourceSet({"CPU": cpu, **other})
    available = ResourceSet({"CPU": cpu if free is None else free, **other})
    return NodeView(name.encode(), total, available)


ONE = ResourceSet({"CPU": 1})


def choose(
    nodes: list[NodeView], request: ResourceSet = ONE, local: str = "a"
) -> tuple[Fit, object]:
    placement = choose_node(request, nodes, random=random.Random(0), local_id=local.encode())
    return placement.fit, placement.node_id


def test_choose_node_local_below_half_stays_local() -> None:
    assert choose([node("b", 4), node("a", 4, 3)]) == (Fit.NOW, b"a")


def test_choose_node_local_past_half_takes_least_used() -> None:
    assert choose([node("a", 4, 1), node("b", 4, 2), node("c", 4, 4)]) == (Fit.NOW, b"c")


def test_choose_node_all_past_half_and_local_equal_stays_local() -> None:
    assert choose([node("b", 4, 1), node("a", 4, 1)]) == (Fit.NOW, b"a")


def test_choose_node_without_room_names_a_node_for_later() -> None:
    assert choose([node("a", 4, 0), node("b", 8, 0)])[0] is Fit.LATER


def test_choose_node_nothing_large_enough_is_never() -> None:
    assert choose([node("a", 4)], ResourceSet({"CPU": 5})) == (Fit.NEVER, None)
    assert choose([]) == (Fit.NEVER, None)


def test_choose_node_dead_node_is_not_considered() -> None:
    dead = NodeView(b"b", ResourceSet({"CPU": 9}), ResourceSet({"CPU": 9}), is_alive=False)
    assert choose([dead], ResourceSet({"CPU": 1})) == (Fit.NEVER, None)


def test_choose_node_cpu_work_avoids_device_node_while_another_is_free() -> None:
    assert choose([node("a", 4, GPU=1), node("b", 4)]) == (Fit.NOW, b"b")
    assert choose([node("a", 4, GPU=1), node("b", 4, 0)]) == (Fit.NOW, b"a")
    request = ResourceSet({"CPU": 1, "GPU": 1})
    assert choose([node("a", 4, GPU=1), node("b", 4)], request) == (Fit.NOW, b"a")


def test_choose_node_empty_request_needs_only_a_live_node() -> None:
    assert choose([node("a", 4, 0)], ResourceSet())[0] is Fit.NOW


def test_with_claimed_never_reports_negative() -> None:
    view = node("a", 4, 1).with_claimed(ResourceSet({"CPU": 3}))
    assert view.available == ResourceSet()


views = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 8)).map(lambda pair: (max(pair), min(pair))),
    max_size=12,
).map(lambda rows: [node(f"n{index}", *row) for index, row in enumerate(rows)])


@given(views, st.integers(0, 8), st.integers(0, 2**32), st.floats(0, 1))
def test_choose_node_answer_is_sound_and_repeats_with_its_seed(
    nodes: list[NodeView], cpu: int, seed: int, fraction: float
) -> None:
    request = ResourceSet({"CPU": cpu})
    config = HybridConfig(top_fraction=fraction)
    first = choose_node(request, nodes, random=random.Random(seed), local_id=b"n1", config=config)
    second = choose_node(request, nodes, random=random.Random(seed), local_id=b"n1", config=config)
    assert first == second
    by_id = {view.node_id: view for view in nodes}
    if first.node_id is None:
        assert first.fit is Fit.NEVER
        assert not any(view.can_ever_hold(request) for view in nodes)
    elif first.fit is Fit.NOW:
        assert by_id[first.node_id].can_hold_now(request)
    else:
        assert not any(view.can_hold_now(request) for view in nodes)
        assert by_id[first.node_id].can_ever_hold(request)
