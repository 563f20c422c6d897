"""The actor's lifecycle, as tables; every change of state goes through :func:`next_state`.

An actor is at its owner until the owner has resolved what the constructor needs
(DEPENDENCIES_UNREADY), then at the GCS, which has it started on a node (PENDING_CREATION), possibly
again (RESTARTING), and keeps its row for a while after its end (DEAD). The README's diagram is
drawn from ``TRANSITIONS``.

Source: SURFACE rows A13, A24, A25, A32, A39, S7.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from skate_gcs.machine.records import ActorState, DeathCause, DeathKind


class Trigger(Enum):
    """What moves an actor from state to state."""

    REGISTERED = "registered"  # its owner handed it over
    STARTED = "started"  # a worker ran the constructor
    LOST = "lost"  # its process or node ended, or kill(no_restart=False), and it may come again
    MOVED = "moved"  # its node died before it started there; costs no restart
    ENDED = "ended"  # it is over: see FINAL_KINDS, and restarts used up


TRANSITIONS: Final[dict[ActorState, dict[Trigger, ActorState]]] = {
    ActorState.DEPENDENCIES_UNREADY: {
        Trigger.REGISTERED: ActorState.PENDING_CREATION,
        Trigger.ENDED: ActorState.DEAD,
    },
    ActorState.PENDING_CREATION: {
        Trigger.STARTED: ActorState.ALIVE,
        Trigger.MOVED: ActorState.PENDING_CREATION,
        Trigger.LOST: ActorState.RESTARTING,
        Trigger.ENDED: ActorState.DEAD,
    },
    ActorState.ALIVE: {
        Trigger.LOST: ActorState.RESTARTING,
        Trigger.ENDED: ActorState.DEAD,
    },
    ActorState.RESTARTING: {
        Trigger.STARTED: ActorState.ALIVE,
        Trigger.MOVED: ActorState.RESTARTING,
        Trigger.LOST: ActorState.RESTARTING,
        Trigger.ENDED: ActorState.DEAD,
    },
    ActorState.DEAD: {},
}

FINAL_KINDS: Final[frozenset[DeathKind]] = frozenset(
    {
        DeathKind.KILLED_BY_USER,
        DeathKind.JOB_FINISHED,
        DeathKind.OWNER_DIED,
        # The constructor raised: the same arguments would raise again.
        DeathKind.CREATION_FAILED,
        DeathKind.HANDLES_RELEASED,
        DeathKind.INTENDED_EXIT,
        DeathKind.UNSCHEDULABLE,
        DeathKind.PLACEMENT_GROUP_REMOVED,
    }
)
"""After these no restart is tried, whatever ``max_restarts`` says."""


class InvalidTransitionError(RuntimeError):
    """A bug in the GCS: the table has no such change."""

    def __init__(self, state: ActorState, trigger: Trigger) -> None:
        super().__init__(f"an actor can not be {trigger.value} in state {state.name}")
        self.state = state
        self.trigger = trigger

    def __reduce__(self) -> tuple[type[InvalidTransitionError], tuple[ActorState, Trigger]]:
        return type(self), (self.state, self.trigger)


def next_state(state: ActorState, trigger: Trigger) -> ActorState:
    """The state after ``trigger``. Raises :class:`InvalidTransitionError` if the table has none."""
    after = TRANSITIONS[state].get(trigger)
    if after is None:
        raise InvalidTransitionError(state, trigger)
    return after


def may_restart(cause: DeathCause, max_restarts: int, restarts_used: int) -> bool:
    """Whether an actor that was lost for this cause is started again."""
    if cause.kind in FINAL_KINDS:
        return False
    # Leaving with exit code 0 is leaving on purpose.
    if cause.kind is DeathKind.EXITED and cause.exit_code == 0:
        return False
    if cause.kind is DeathKind.NODE_PREEMPTED:
        return max_restarts != 0  # it is not counted, so it may come after the last one too
    return max_restarts < 0 or restarts_used < max_restarts
