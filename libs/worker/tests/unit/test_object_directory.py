"""Who may pull from which copy."""

from __future__ import annotations

import random

import pytest

from skate_worker.machine.object_directory import (
    PULLS_PER_COPY,
    RELAY_MIN_BYTES,
    STRIKES_MAX,
    ObjectDirectory,
    Route,
)

OBJECT = b"object"


def route_of(
    directory: ObjectDirectory, number: int, node: bytes | None = None, size_bytes: int = 0
) -> Route | None:
    name = b"w%d" % number
    return directory.ask(OBJECT, b"home", name, node or b"n%d" % number, size_bytes)


def asked(directory: ObjectDirectory, number: int, node: bytes | None = None) -> list[bytes] | None:
    route = route_of(directory, number, node)
    assert route is None or not route.arriving_at, "small objects are not passed on"
    return None if route is None else route.node_ids


def test_question_about_an_unknown_object_names_its_primary() -> None:
    assert asked(ObjectDirectory(), 1) == [b"home"]


def test_more_askers_than_slots_wait_and_are_served_by_the_first_copy() -> None:
    directory = ObjectDirectory()
    answers = [asked(directory, n) for n in range(4)]
    assert answers == [[b"home"], [b"home"], None, None]
    assert directory.turns(OBJECT) == []
    assert directory.added(OBJECT, b"w0", b"n0")
    turns = directory.turns(OBJECT)
    assert [turn.worker_id for turn in turns] == [b"w2", b"w3"]
    # One slot of the primary was freed, and the new copy has two, and has served less.
    assert [turn.route.node_ids[0] for turn in turns] == [b"n0", b"n0"]
    directory.check_invariants()


def test_asker_on_a_node_that_has_a_copy_is_sent_there() -> None:
    directory = ObjectDirectory()
    asked(directory, 1)
    directory.added(OBJECT, b"w1", b"n1")
    assert asked(directory, 2, b"n1") == [b"n1"]


def test_two_pulls_to_one_node_take_one_slot() -> None:
    directory = ObjectDirectory()
    assert asked(directory, 1, b"same") == [b"home"]
    assert asked(directory, 2, b"same") == [b"home"]
    assert asked(directory, 3) == [b"home"]
    assert asked(directory, 4) is None
    directory.stopped(OBJECT, b"w1")  # the transfer goes on for the second
    assert directory.turns(OBJECT) == []
    directory.stopped(OBJECT, b"w2")
    assert [turn.worker_id for turn in directory.turns(OBJECT)] == [b"w4"]
    directory.check_invariants()


@pytest.mark.parametrize("how", ["stopped", "process", "node"])
def test_slot_is_free_again_when_the_puller_ends(how: str) -> None:
    directory = ObjectDirectory()
    for number in range(3):
        asked(directory, number)
    if how == "stopped":
        directory.stopped(OBJECT, b"w0")
    elif how == "process":
        assert directory.process_died(b"w0") == [OBJECT]
    else:
        assert directory.node_died(b"n0") == [OBJECT]
    assert [turn.worker_id for turn in directory.turns(OBJECT)] == [b"w2"]
    directory.check_invariants()


def test_object_is_an_orphan_when_no_copy_and_no_pull_is_left() -> None:
    directory = ObjectDirectory()
    for number in range(3):
        asked(directory, number)
    directory.node_died(b"home")
    assert not directory.is_orphan(OBJECT)  # two pulls may have been quick enough
    directory.stopped(OBJECT, b"w0")
    directory.stopped(OBJECT, b"w1")
    assert directory.is_orphan(OBJECT)
    assert list(directory.waiting(OBJECT)) == [b"w2"]
    assert asked(directory, 2) == []


def test_copies_of_a_dead_node_are_not_believed() -> None:
    directory = ObjectDirectory()
    directory.node_died(b"home")
    assert asked(directory, 1) == []
    assert directory.copies(b"another", b"home") == []


def test_lost_copy_of_a_precious_object_is_believed_after_repeated_reports() -> None:
    directory = ObjectDirectory()
    for _ in range(STRIKES_MAX - 1):
        assert asked(directory, 1) == [b"home"]
        directory.lost_at(OBJECT, [b"home"], b"n1", is_precious=True)
    assert asked(directory, 1) == [b"home"]
    directory.lost_at(OBJECT, [b"home"], b"n1", is_precious=True)
    assert asked(directory, 1) == []


def test_node_that_says_itself_that_it_has_no_copy_is_believed_at_once() -> None:
    directory = ObjectDirectory()
    assert asked(directory, 1, b"home") == [b"home"]
    directory.lost_at(OBJECT, [b"home"], b"home", is_precious=True)
    assert asked(directory, 1, b"home") == []


def test_forgotten_object_names_the_nodes_of_copies_and_pulls() -> None:
    directory = ObjectDirectory()
    asked(directory, 1)
    directory.added(OBJECT, b"w1", b"n1")
    asked(directory, 2)
    assert set(directory.forget(OBJECT, b"home")) == {b"home", b"n1", b"n2"}
    assert directory.forget(OBJECT, b"home") == [b"home"]
    assert not directory.added(OBJECT, b"w2", b"n2")


def test_copies_serve_in_turn_so_that_the_first_holder_does_not_serve_most() -> None:
    directory = ObjectDirectory()
    served: list[bytes] = []
    for number in range(8):
        sources = asked(directory, number)
        assert sources
        served.append(sources[0])
        directory.added(OBJECT, b"w%d" % number, b"n%d" % number)
    assert max(map(served.count, served)) == 1


def test_large_object_is_passed_on_by_nodes_to_which_it_is_on_its_way() -> None:
    directory = ObjectDirectory()
    routes = [route_of(directory, n, size_bytes=RELAY_MIN_BYTES) for n in range(7)]
    assert routes[:2] == [Route([b"home"])] * 2
    relayed = [route.arriving_at for route in routes[2:] if route is not None]
    assert relayed == [(b"n0",), (b"n1",), (b"n0",), (b"n1",), (b"n2",)]
    assert all(route is not None and route.node_ids == [b"home"] for route in routes)
    directory.check_invariants()
    # It serves on as a copy, with the slots that it has given.
    directory.added(OBJECT, b"w0", b"n0")
    directory.check_invariants()
    directory.stopped(OBJECT, b"w2")
    directory.check_invariants()
    assert route_of(directory, 9, size_bytes=RELAY_MIN_BYTES) in (
        Route([b"home", b"n0"]),
        Route([b"n0", b"home"]),
    )


def test_node_whose_own_source_is_gone_passes_nothing_on() -> None:
    directory = ObjectDirectory()
    for number in range(3):
        route_of(directory, number, size_bytes=RELAY_MIN_BYTES)
    directory.node_died(b"home")
    assert route_of(directory, 3, size_bytes=RELAY_MIN_BYTES) is None
    directory.check_invariants()
    directory.added(OBJECT, b"w2", b"n2")
    (turn,) = directory.turns(OBJECT)
    assert turn.route == Route([b"n2"])


def test_node_that_proved_not_to_get_it_is_not_named_again() -> None:
    directory = ObjectDirectory()
    for number in range(2):
        route_of(directory, number, size_bytes=RELAY_MIN_BYTES)
    route = directory.ask(OBJECT, b"home", b"w5", b"n5", RELAY_MIN_BYTES, [b"n0"])
    assert route == Route([b"home"], (b"n1",))


@pytest.mark.parametrize("size_bytes", [0, RELAY_MIN_BYTES])
@pytest.mark.parametrize("seed", range(200))
def test_random_broadcast_serves_everybody_within_the_slots(seed: int, size_bytes: int) -> None:
    rng = random.Random(seed)
    directory = ObjectDirectory()
    pulling: dict[int, bytes] = {}
    done: set[int] = set()
    left = list(range(20))
    dead: set[bytes] = set()

    def first(route: Route) -> bytes:
        return [*route.arriving_at, *route.node_ids][0]

    def take_turns() -> None:
        for turn in directory.turns(OBJECT):
            pulling[int(turn.worker_id[1:])] = first(turn.route)

    while left or pulling:
        if left and rng.random() < 0.5:
            number = left.pop()
            route = route_of(directory, number, size_bytes=size_bytes)
            if route is not None and route.node_ids:
                pulling[number] = first(route)
        elif pulling:
            number = rng.choice(sorted(pulling))
            source = pulling.pop(number)
            if source in dead:
                directory.lost_at(OBJECT, [source], b"n%d" % number, is_precious=False)
                route = directory.ask(
                    OBJECT, b"home", b"w%d" % number, b"n%d" % number, size_bytes, [source]
                )
                if route is not None and route.node_ids:
                    pulling[number] = first(route)
            elif any(source == b"n%d" % other for other in pulling):
                pulling[number] = source  # what it gets comes from one that has not all yet
            elif rng.random() < 0.1:
                directory.process_died(b"w%d" % number)
            else:
                directory.added(OBJECT, b"w%d" % number, b"n%d" % number)
                done.add(number)
        if done and rng.random() < 0.03:
            victim = done.pop()
            dead.add(b"n%d" % victim)
            directory.node_died(b"n%d" % victim)
        take_turns()
        directory.check_invariants()
        busy = list(pulling.values())
        assert all(busy.count(source) <= PULLS_PER_COPY for source in busy)
    assert not directory.waiting(OBJECT)
