"""Circles of waits: by hand, and against a simulation that lets everything end that can."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skate_scheduler.resources import ResourceSet
from skate_scheduler.wait_graph import (
    ActorLine,
    Hold,
    Room,
    Turn,
    Values,
    WaitState,
    blockers,
    find_circles,
    find_stuck,
)

NODE, OTHER = b"node", b"other"


def gpus(count: int) -> ResourceSet:
    return ResourceSet({"GPU": count})


def stuck(state: WaitState) -> list[bytes]:
    return list(find_stuck(state))


def test_two_actors_that_call_each_other_are_a_circle() -> None:
    state = WaitState(
        gates={
            b"a1": Values((b"b2",), 1),
            b"b1": Values((b"a2",), 1),
            b"a2": Turn(b"A"),
            b"b2": Turn(b"B"),
        },
        actors={b"A": ActorLine(1, (b"a1",)), b"B": ActorLine(1, (b"b1",))},
    )
    assert sorted(stuck(state)) == [b"a1", b"a2", b"b1", b"b2"]
    assert find_circles(state) == [[b"a1", b"b2", b"b1", b"a2"]]


def test_actor_that_calls_itself_is_a_circle_unless_it_has_a_free_slot() -> None:
    gates = {b"a1": Values((b"a2",), 1), b"a2": Turn(b"A")}
    busy = WaitState(dict(gates), {b"A": ActorLine(1, (b"a1",))})
    assert find_circles(busy) == [[b"a1", b"a2"]]
    roomy = WaitState(dict(gates), {b"A": ActorLine(2, (b"a1",))})
    assert stuck(roomy) == []


def test_task_that_holds_what_its_child_needs_is_stuck() -> None:
    state = WaitState(
        gates={b"parent": Values((b"child",), 1), b"child": Room(gpus(1))},
        totals={NODE: gpus(1)},
        holds=[Hold(NODE, gpus(1), (b"parent",))],
    )
    assert find_circles(state) == [[b"parent", b"child"]]


def test_child_that_another_node_can_hold_or_another_task_gives_way_to_is_not_stuck() -> None:
    gates = {b"parent": Values((b"child",), 1), b"child": Room(gpus(1))}
    hold = Hold(NODE, gpus(1), (b"parent",))
    assert stuck(WaitState(dict(gates), {}, {NODE: gpus(1), OTHER: gpus(1)}, [hold])) == []
    both = [hold, Hold(NODE, gpus(1), (b"busy",))]
    assert stuck(WaitState(dict(gates), {}, {NODE: gpus(2)}, both)) == []
    bound = gates | {b"child": Room(gpus(1), (NODE,))}
    state = WaitState(bound, {}, {NODE: gpus(1), OTHER: gpus(1)}, [hold])
    assert stuck(state) == [b"parent", b"child"]


def test_request_that_no_node_can_hold_is_not_a_deadlock() -> None:
    state = WaitState(
        gates={b"parent": Values((b"child",), 1), b"child": Room(gpus(4))},
        totals={NODE: gpus(1)},
        holds=[Hold(NODE, gpus(1), (b"parent",))],
    )
    assert stuck(state) == []


def test_parents_on_two_nodes_that_wait_for_each_others_room_are_stuck() -> None:
    state = WaitState(
        gates={
            b"p": Values((b"c",), 1),
            b"q": Values((b"d",), 1),
            b"c": Room(gpus(1)),
            b"d": Room(gpus(1)),
        },
        totals={NODE: gpus(1), OTHER: gpus(1)},
        holds=[Hold(NODE, gpus(1), (b"p",)), Hold(OTHER, gpus(1), (b"q",))],
    )
    assert len(stuck(state)) == 4


def test_wait_for_some_of_several_goes_on_when_enough_of_them_do() -> None:
    gates = {b"loop": Values((b"loop",), 1), b"any": Values((b"loop", b"fine"), 1)}
    assert stuck(WaitState(dict(gates))) == [b"loop"]
    gates[b"any"] = Values((b"loop", b"fine"), 2)
    assert stuck(WaitState(gates)) == [b"loop", b"any"]


def test_task_behind_a_circle_is_stuck_and_leads_to_it() -> None:
    state = WaitState(
        {b"behind": Values((b"x",), 1), b"x": Values((b"y",), 1), b"y": Values((b"x",), 1)}
    )
    assert stuck(state) == [b"behind", b"x", b"y"]
    assert find_circles(state) == [[b"x", b"y"]]


def test_what_nobody_reports_goes_on() -> None:
    state = WaitState({b"a": Values((b"unknown",), 1), b"b": Turn(b"nobody")})
    assert stuck(state) == []


# ---- against a simulation ----


def ends(state: WaitState, chance: random.Random) -> set[bytes]:
    """The tasks that end when everything that can go on does, one at a time in a random order."""
    waiting = dict(state.gates)
    known = {one for hold in state.holds for one in hold.tasks}
    known |= {one for line in state.actors.values() for one in line.running}
    known |= {one for gate in waiting.values() if isinstance(gate, Values) for one in gate.makers}
    ended = {one for one in known if one not in waiting}
    while True:
        free = dict(state.totals)
        for hold in state.holds:
            if not set(hold.tasks) <= ended:
                free[hold.node_id] = free[hold.node_id].minus(hold.resources)
        able: list[bytes] = []
        for task_id, gate in waiting.items():
            match gate:
                case Values(makers, needed):
                    is_able = sum(one in ended for one in makers) >= min(needed, len(makers))
                case Turn(actor_id):
                    line = state.actors.get(actor_id, ActorLine(1))
                    is_able = sum(one not in ended for one in line.running) < line.slots
                case Room(needs, node_ids):
                    nodes = [
                        node_id
                        for node_id, total in state.totals.items()
                        if needs.fits_in(total) and (not node_ids or node_id in node_ids)
                    ]
                    is_able = not nodes or any(needs.fits_in(free[node_id]) for node_id in nodes)
            if is_able:
                able.append(task_id)
        if not able:
            return ended
        one = chance.choice(able)
        del waiting[one]
        ended.add(one)


TASKS = [bytes([number]) for number in range(12)]
tasks = st.sampled_from(TASKS)
some_tasks = st.lists(tasks, min_size=1, max_size=4).map(tuple)
amounts = st.dictionaries(st.sampled_from(["CPU", "GPU"]), st.integers(1, 3), min_size=1).map(
    ResourceSet
)
node_ids = st.sampled_from([NODE, OTHER])
gates = st.one_of(
    st.builds(Values, some_tasks, st.integers(1, 4)),
    st.builds(Turn, st.sampled_from([b"A", b"B"])),
    st.builds(Room, amounts, st.lists(node_ids, max_size=1).map(tuple)),
)
states = st.builds(
    WaitState,
    st.dictionaries(tasks, gates, max_size=12),
    st.fixed_dictionaries(
        {name: st.builds(ActorLine, st.integers(1, 2), some_tasks) for name in (b"A", b"B")}
    ),
    st.fixed_dictionaries(dict.fromkeys((NODE, OTHER), amounts)),
    st.lists(st.builds(Hold, node_ids, amounts, some_tasks), max_size=5),
)


@pytest.mark.invariant("I1")
@settings(max_examples=150, deadline=None)
@given(states, st.randoms(use_true_random=False))
def test_stuck_are_exactly_those_that_never_end(state: WaitState, chance: random.Random) -> None:
    found = find_stuck(state)
    assert set(found) == set(state.gates) - ends(state, chance)
    assert list(found) == [one for one in state.gates if one in found]


@settings(max_examples=150, deadline=None)
@given(states)
def test_circles_are_real_and_every_stuck_task_leads_to_one(state: WaitState) -> None:
    found = find_stuck(state)
    circles = find_circles(state, found)
    for circle in circles:
        for one, after in zip(circle, [*circle[1:], circle[0]], strict=True):
            assert after in blockers(one, state, found)
    on_circles = [one for circle in circles for one in circle]
    assert len(on_circles) == len(set(on_circles))
    assert bool(found) == bool(circles)
    for start in found:
        one, steps = start, 0
        while one not in on_circles:
            one, steps = blockers(one, state, found)[0], steps + 1
            assert steps <= len(found)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 40), st.randoms(use_true_random=False))
def test_programs_without_circles_are_never_called_stuck(count: int, chance: random.Random) -> None:
    names = [number.to_bytes(2, "big") for number in range(count)]
    state = WaitState()
    for index, name in enumerate(names):
        earlier = names[:index]
        if earlier and chance.random() < 0.8:
            makers = tuple(chance.choices(earlier, k=chance.randint(1, 3)))
            state.gates[name] = Values(makers, chance.randint(1, len(makers)))
    assert find_circles(state) == []
