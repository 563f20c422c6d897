from __future__ import annotations

import pytest

from skate_gcs.machine.actor_states import (
    FINAL_KINDS,
    TRANSITIONS,
    InvalidTransitionError,
    Trigger,
    may_restart,
    next_state,
)
from skate_gcs.machine.clock import Timers
from skate_gcs.machine.records import ActorState, DeathCause, DeathKind
from skate_rpc.gen.skate.v1 import common_pb2, gcs_pb2


def test_every_state_has_a_row_and_is_reachable():
    assert list(TRANSITIONS) == list(ActorState)
    reached = {after for row in TRANSITIONS.values() for after in row.values()}
    assert reached == set(ActorState) - {ActorState.DEPENDENCIES_UNREADY}


def test_death_is_final():
    assert TRANSITIONS[ActorState.DEAD] == {}
    with pytest.raises(InvalidTransitionError, match="started in state DEAD"):
        next_state(ActorState.DEAD, Trigger.STARTED)


@pytest.mark.parametrize("kind", DeathKind, ids=lambda kind: kind.name)
def test_restarts_are_bounded_and_final_causes_allow_none(kind):
    cause = DeathCause(kind, exit_code=1)
    assert may_restart(cause, 0, 0) is False
    # A node that had to go is nobody's fault: not counted, so also after the last counted one.
    assert may_restart(cause, 2, 2) is (kind is DeathKind.NODE_PREEMPTED)
    assert may_restart(cause, 2, 1) is (kind not in FINAL_KINDS)
    assert may_restart(cause, -1, 10**9) is (kind not in FINAL_KINDS)


def test_numbers_are_those_of_the_protocol():
    kinds = dict(common_pb2.DeathCause.Kind.items())
    assert {f"KIND_{kind.name}": kind.value for kind in DeathKind} == kinds
    states = {name: number for name, number in gcs_pb2.ActorState.items() if number}
    assert {f"ACTOR_STATE_{state.name}": state.value for state in ActorState} == states


def test_timers_pop_in_order_and_only_once():
    timers = Timers()
    for key, at_s in (("b", 2.0), ("a", 1.0), ("c", 3.0), ("a", 4.0), ("x", 0.5)):
        timers.set(key, at_s)
    timers.cancel("x")
    timers.cancel("never set")
    assert timers.next_s() == 2.0
    assert timers.pop_due(1.9) is None
    assert [timers.pop_due(9.0) for _ in range(4)] == ["b", "c", "a", None]
    assert timers.next_s() is None
    assert len(timers) == 0
