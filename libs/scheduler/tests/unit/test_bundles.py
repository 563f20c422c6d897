from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from skate_scheduler import (
    BundleRequest,
    BundleStrategy,
    Fit,
    LabelSelector,
    NodeIndex,
    NodeView,
    ResourceSet,
    place_bundles,
    why_bundles_wait,
)

PACK, SPREAD = BundleStrategy.PACK, BundleStrategy.SPREAD
STRICT_PACK, STRICT_SPREAD = BundleStrategy.STRICT_PACK, BundleStrategy.STRICT_SPREAD


def view(
    name: bytes,
    free: dict[str, int],
    total: dict[str, int] | None = None,
    labels: dict[str, str] | None = None,
) -> NodeView:
    return NodeView(name, ResourceSet(total or free), ResourceSet(free), labels or {})


def index_of(*views: NodeView) -> NodeIndex:
    index = NodeIndex()
    for one in views:
        index.put(one)
    return index


def bundle(amounts: dict[str, int], **selector: str) -> BundleRequest:
    return BundleRequest(ResourceSet(amounts), LabelSelector.parse(selector))


def cpus(*amounts: int) -> list[BundleRequest]:
    return [bundle({"CPU": amount}) for amount in amounts]


def test_pack_takes_one_node_if_one_can_hold_all_and_the_fullest_of_those() -> None:
    nodes = index_of(view(b"a", {"CPU": 3}), view(b"b", {"CPU": 9}), view(b"c", {"CPU": 5}))
    assert place_bundles(cpus(2, 2), PACK, nodes).node_ids == (b"c", b"c")


def test_pack_uses_few_nodes_when_none_can_hold_all() -> None:
    nodes = index_of(*(view(bytes([65 + n]), {"CPU": 4}) for n in range(5)))
    placed = place_bundles(cpus(2, 2, 2, 2), PACK, nodes).node_ids
    assert len(set(placed)) == 2


def test_spread_takes_nodes_of_their_own_and_doubles_up_only_when_it_must() -> None:
    nodes = index_of(view(b"a", {"CPU": 8}), view(b"b", {"CPU": 8}))
    assert len(set(place_bundles(cpus(1, 1), SPREAD, nodes).node_ids)) == 2
    placed = place_bundles(cpus(1, 1, 1, 1), SPREAD, nodes).node_ids
    assert sorted(placed) == [b"a", b"a", b"b", b"b"]


def test_strict_pack_waits_rather_than_share() -> None:
    nodes = index_of(view(b"a", {"CPU": 3}, {"CPU": 4}), view(b"b", {"CPU": 3}))
    assert place_bundles(cpus(2, 2), STRICT_PACK, nodes).fit is Fit.LATER
    assert place_bundles(cpus(3, 2), STRICT_PACK, nodes).fit is Fit.NEVER


def test_strict_spread_finds_the_one_matching_that_a_greedy_choice_misses() -> None:
    nodes = index_of(
        view(b"a", {"CPU": 2}, labels={"zone": "x"}), view(b"b", {"CPU": 2}, labels={"zone": "y"})
    )
    bundles = [bundle({"CPU": 1}), bundle({"CPU": 1}, zone="x")]
    assert place_bundles(bundles, STRICT_SPREAD, nodes).node_ids == (b"b", b"a")
    assert place_bundles(cpus(1, 1, 1), STRICT_SPREAD, nodes).fit is Fit.NEVER


@pytest.mark.surface("P4")
def test_a_bundle_is_never_divided() -> None:
    nodes = index_of(view(b"a", {"CPU": 2}), view(b"b", {"CPU": 2}))
    for strategy in BundleStrategy:
        assert place_bundles(cpus(3), strategy, nodes).fit is Fit.NEVER


@pytest.mark.surface("P14")
def test_selectors_bind_each_bundle_to_its_nodes() -> None:
    nodes = index_of(
        view(b"a", {"CPU": 8}, labels={"zone": "x"}), view(b"b", {"CPU": 8}, labels={"zone": "y"})
    )
    bundles = [bundle({"CPU": 1}, zone="y"), bundle({"CPU": 1}, zone="x")]
    assert place_bundles(bundles, PACK, nodes).node_ids == (b"b", b"a")
    assert place_bundles(bundles, STRICT_PACK, nodes).fit is Fit.NEVER
    assert place_bundles([bundle({"CPU": 1}, zone="z")], PACK, nodes).fit is Fit.NEVER


def test_nodes_with_devices_are_left_to_those_who_need_them() -> None:
    nodes = index_of(view(b"a", {"CPU": 2, "GPU": 1}), view(b"b", {"CPU": 8}))
    for strategy in BundleStrategy:
        assert place_bundles(cpus(2), strategy, nodes).node_ids == (b"b",)
    assert place_bundles([bundle({"CPU": 1, "GPU": 1})], PACK, nodes).node_ids == (b"a",)


def test_held_bundles_stay_and_bind_the_others() -> None:
    nodes = index_of(*(view(name, {"CPU": 4}) for name in (b"a", b"b", b"c")))
    for strategy, allowed in ((STRICT_SPREAD, {b"a", b"c"}), (PACK, {b"b"}), (STRICT_PACK, {b"b"})):
        placed = place_bundles(cpus(1, 1), strategy, nodes, held=(b"b", b"")).node_ids
        assert placed[0] == b"b"
        assert placed[1] in allowed
    # The node that holds it is not one that may be chosen now (it is silent).
    answer = place_bundles(cpus(1, 1), STRICT_PACK, nodes, held=(b"z", b""))
    assert answer.fit is Fit.NEVER


def test_strict_pack_prefers_the_node_that_it_is_told() -> None:
    nodes = index_of(*(view(name, {"CPU": 4}) for name in (b"a", b"b", b"c")))
    assert place_bundles(cpus(1), STRICT_PACK, nodes, preferred_id=b"b").node_ids == (b"b",)
    assert place_bundles(cpus(1), STRICT_PACK, nodes, preferred_id=b"x").fit is Fit.NOW


def test_an_index_keeps_up_with_its_nodes() -> None:
    nodes = index_of(view(b"a", {"CPU": 1}), view(b"b", {"CPU": 1}))
    assert place_bundles(cpus(2), PACK, nodes).fit is Fit.NEVER
    nodes.put(view(b"b", {"CPU": 2}))
    assert place_bundles(cpus(2), PACK, nodes).node_ids == (b"b",)
    nodes.discard(b"b")
    nodes.check_invariants()
    assert place_bundles(cpus(2), PACK, nodes).fit is Fit.NEVER


# ---- against all possible placements ----


def is_valid(
    bundles: Sequence[BundleRequest],
    strategy: BundleStrategy,
    views: Sequence[NodeView],
    placed: Sequence[bytes],
    held: Sequence[bytes],
) -> bool:
    by_id = {one.node_id: one for one in views}
    for at, kept in zip(placed, held, strict=True):
        if kept and at != kept:
            return False
    for node_id in set(placed):
        fresh = [
            b.resources
            for b, at, kept in zip(bundles, placed, held, strict=True)
            if at == node_id and not kept
        ]
        if not ResourceSet.total_of(fresh).fits_in(by_id[node_id].available):
            return False
    if strategy is STRICT_PACK and len(set(placed)) > 1:
        return False
    if strategy is STRICT_SPREAD and len(set(placed)) < len(placed):
        return False
    return all(
        kept or one.selector.matches(by_id[at].labels)
        for one, at, kept in zip(bundles, placed, held, strict=True)
    )


def oracle(
    bundles: Sequence[BundleRequest],
    strategy: BundleStrategy,
    views: Sequence[NodeView],
    held: Sequence[bytes],
) -> list[tuple[bytes, ...]]:
    """Every valid placement."""
    return [
        placed
        for placed in itertools.product([one.node_id for one in views], repeat=len(bundles))
        if is_valid(bundles, strategy, views, placed, held)
    ]


def random_case(
    rng: random.Random,
) -> tuple[list[BundleRequest], list[NodeView], list[bytes]]:
    views = []
    for number in range(rng.randint(1, 4)):
        total = {"CPU": rng.randint(1, 6), "GPU": rng.choice([0, 0, 1, 2])}
        free = {name: rng.randint(0, units) for name, units in total.items()}
        views.append(view(bytes([97 + number]), free, total, {"zone": rng.choice("xy")}))
    bundles = []
    for _ in range(rng.randint(1, 5)):
        amounts = {"CPU": rng.randint(0, 3), "GPU": rng.choice([0, 0, 0, 1])}
        if not any(amounts.values()):
            amounts["CPU"] = 1
        selector = rng.choice([{}, {}, {"zone": "x"}, {"zone": "!x"}])
        bundles.append(bundle(amounts, **selector))
    held = [b""] * len(bundles)
    if rng.random() < 0.2:
        held[rng.randrange(len(bundles))] = rng.choice(views).node_id
    return bundles, views, held


@pytest.mark.invariant("I13")
@pytest.mark.parametrize("strategy", BundleStrategy)
@pytest.mark.parametrize("seed", range(5))
def test_small_groups_are_placed_exactly_when_that_is_possible(
    strategy: BundleStrategy, seed: int
) -> None:
    rng = random.Random(seed)
    for _ in range(150):
        bundles, views, held = random_case(rng)
        answer = place_bundles(bundles, strategy, index_of(*views), held=held)
        possible = oracle(bundles, strategy, views, held)
        case = (bundles, views, held, answer)
        if answer.fit is Fit.NOW:
            assert is_valid(bundles, strategy, views, answer.node_ids, held), case
        else:
            assert possible == [], case
        if answer.fit is Fit.NOW and strategy is PACK and any(len(set(p)) == 1 for p in possible):
            assert len(set(answer.node_ids)) == 1, case
        if answer.fit is Fit.NOW and strategy is SPREAD:
            most = max(len(set(p)) for p in possible)
            assert most < len(bundles) or len(set(answer.node_ids)) == most, case
        if answer.fit is Fit.NEVER and not any(held):
            idle = [view(one.node_id, dict(one.total), labels=dict(one.labels)) for one in views]
            assert oracle(bundles, strategy, idle, held) == [], case


def test_a_thousand_groups_on_ten_thousand_nodes_look_at_few_of_them() -> None:
    """The work is counted: classes of nodes that were looked at, not nodes."""
    nodes = NodeIndex()
    for number in range(10_000):
        total = {"CPU": 64, f"node:{number}": 1, "memory": number}
        nodes.put(view(number.to_bytes(4, "big"), total))
    bundles = cpus(1, 1, 2)
    for _ in range(1_000):
        placed = place_bundles(bundles, PACK, nodes)
        assert placed.fit is Fit.NOW
        for node_id, one in zip(placed.node_ids, bundles, strict=True):
            before = nodes.get(node_id)
            assert before is not None
            nodes.put(before.with_claimed(one.resources))
        assert len(nodes.classes(("CPU",), is_idle=False)) <= 65
    nodes.check_invariants()


# ---- why a group waits ----


def why(bundles: Sequence[BundleRequest], strategy: BundleStrategy, nodes: NodeIndex) -> str:
    return why_bundles_wait(bundles, strategy, nodes, place_bundles(bundles, strategy, nodes).fit)


def test_a_reason_names_what_is_needed_and_the_most_there_is() -> None:
    one, two = {"CPU": 10_000}, {"CPU": 20_000}
    nodes = index_of(view(b"a", one, two), view(b"b", one, two))
    both = [bundle(two), bundle(two)]
    assert why(both, STRICT_PACK, nodes) == (
        "No nodes can ever hold it: it needs CPU 4 on one node;"
        " the most that any node has is CPU 2."
    )
    assert why(both, PACK, nodes) == (
        "It needs CPU 2 on one node for bundle 0; the most that any node has free is CPU 1."
    )
    assert why([bundle(one)] * 3, STRICT_SPREAD, nodes) == (
        "No nodes can ever hold it: it needs CPU 3 in 3 bundles on a node each;"
        " there are 2 nodes, and the most that any node has is CPU 2."
    )
    assert why([bundle(one, zone="x")], PACK, nodes) == (
        "No nodes can ever hold it: it needs a node where zone is x; there is none."
    )
    assert why([bundle(one)], PACK, NodeIndex()) == (
        "It needs CPU 1 on one node, and no node is alive."
    )
