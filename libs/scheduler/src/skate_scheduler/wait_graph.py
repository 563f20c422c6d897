"""Who waits for whom in a circle: tasks that can only end when they themselves have ended.

A task that waits does so at a *gate*: for values that other tasks make, for its turn at an actor,
or for resources. The tasks that are *stuck* are the largest set of waiting ones none of which could
go on even if every task outside the set ended at once and gave back what it holds. All that is not
known (a task of which nobody reports, a request that no node could hold, which a new node may) can
go on, so what is called stuck is stuck, as far as the state given is one of a single moment.

Comes after the snapshot of a cluster's waits; a report of stuck tasks, with a circle among them,
comes of it. Source: the AND-OR model of Chandy, Misra and Haas, "Distributed deadlock detection"
(1983), with resources as k-out-of-n gates.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from skate_scheduler.resources import ResourceSet


@dataclass(frozen=True, slots=True)
class Values:
    """``needed`` of these tasks must end; a task stands here once for each value awaited of it."""

    makers: tuple[bytes, ...]
    needed: int


@dataclass(frozen=True, slots=True)
class Turn:
    """The call stands in an actor's line, behind the calls that run there."""

    actor_id: bytes


@dataclass(frozen=True, slots=True)
class Room:
    """Some node must have this much free."""

    needs: ResourceSet
    node_ids: tuple[bytes, ...] = ()  # where it may run; none named: anywhere


Gate = Values | Turn | Room


@dataclass(frozen=True, slots=True)
class ActorLine:
    """An actor: at most ``slots`` calls at a time, and those that run now."""

    slots: int
    running: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Hold:
    """Resources of a node that are free again once all of these tasks have ended."""

    node_id: bytes
    resources: ResourceSet
    tasks: tuple[bytes, ...]


@dataclass(slots=True)
class WaitState:
    """What waits in a cluster at one moment. Tasks that are not in ``gates`` go on."""

    gates: dict[bytes, Gate] = field(default_factory=dict)
    actors: dict[bytes, ActorLine] = field(default_factory=dict)
    totals: dict[bytes, ResourceSet] = field(default_factory=dict)  # of nodes
    holds: list[Hold] = field(default_factory=list)


def find_stuck(state: WaitState) -> dict[bytes, None]:
    """The stuck tasks, in the order of ``state.gates``.

    O(waits + gates x nodes for those that wait for room, each time a holder goes on).
    """
    stuck = dict.fromkeys(state.gates)
    dependents = _dependents(state)
    queue = deque(state.gates)
    while queue:
        task_id = queue.popleft()
        if task_id in stuck and _can_go_on(task_id, state, stuck):
            del stuck[task_id]
            queue.extend(waiter for waiter in dependents.get(task_id, ()) if waiter in stuck)
    return stuck


def find_circles(state: WaitState, stuck: Mapping[bytes, None] | None = None) -> list[list[bytes]]:
    """Circles among the stuck tasks, each once: every member waits for the next, the last one for
    the first. Every stuck task leads to one of them.
    """
    if stuck is None:
        stuck = find_stuck(state)
    circles: list[list[bytes]] = []
    seen: dict[bytes, None] = {}
    for start in stuck:
        path: dict[bytes, None] = {}
        task_id = start
        while task_id not in seen and task_id not in path:
            path[task_id] = None
            task_id = blockers(task_id, state, stuck)[0]
        if task_id in path:
            members = list(path)
            circles.append(members[members.index(task_id) :])
        seen |= path
    return circles


def blockers(task_id: bytes, state: WaitState, stuck: Mapping[bytes, None]) -> list[bytes]:
    """The stuck tasks that a stuck task waits for; at least one."""
    gate = state.gates[task_id]
    match gate:
        case Values(makers):
            found: Iterable[bytes] = makers
        case Turn(actor_id):
            found = state.actors[actor_id].running
        case Room(needs):
            nodes = dict.fromkeys(_nodes_for(gate, state))
            found = (
                holder
                for hold in state.holds
                if hold.node_id in nodes and any(name in hold.resources for name in needs)
                for holder in hold.tasks
            )
    return [one for one in dict.fromkeys(found) if one in stuck]


def _can_go_on(task_id: bytes, state: WaitState, stuck: Mapping[bytes, None]) -> bool:
    gate = state.gates[task_id]
    match gate:
        case Values(makers, needed):
            return sum(maker not in stuck for maker in makers) >= min(needed, len(makers))
        case Turn(actor_id):
            line = state.actors.get(actor_id)
            return line is None or sum(one in stuck for one in line.running) < line.slots
        case Room(needs):
            nodes = _nodes_for(gate, state)
            return not nodes or any(
                needs.fits_in(_without_stuck(node_id, state, stuck)) for node_id in nodes
            )


def _nodes_for(gate: Room, state: WaitState) -> list[bytes]:
    """The nodes that could hold the request if they were idle."""
    return [
        node_id
        for node_id, total in state.totals.items()
        if gate.needs.fits_in(total) and (not gate.node_ids or node_id in gate.node_ids)
    ]


def _without_stuck(node_id: bytes, state: WaitState, stuck: Mapping[bytes, None]) -> ResourceSet:
    """What the node would have free if all that can go on had ended."""
    held = [
        hold.resources
        for hold in state.holds
        if hold.node_id == node_id and any(one in stuck for one in hold.tasks)
    ]
    return state.totals[node_id].minus(ResourceSet.total_of(held))


def _dependents(state: WaitState) -> dict[bytes, list[bytes]]:
    """For each task those whose gates may open when it goes on."""
    found: dict[bytes, list[bytes]] = {}
    turns: dict[bytes, list[bytes]] = {}
    rooms: list[bytes] = []
    for task_id, gate in state.gates.items():
        match gate:
            case Values(makers):
                for maker in dict.fromkeys(makers):
                    found.setdefault(maker, []).append(task_id)
            case Turn(actor_id):
                turns.setdefault(actor_id, []).append(task_id)
            case Room():
                rooms.append(task_id)
    for actor_id, waiters in turns.items():
        line = state.actors.get(actor_id)
        for running in () if line is None else line.running:
            found.setdefault(running, []).extend(waiters)
    if rooms:
        for holder in dict.fromkeys(one for hold in state.holds for one in hold.tasks):
            found.setdefault(holder, []).extend(rooms)
    return found
