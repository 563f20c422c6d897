"""Sessions that are played by hand: orders of events too rare for random ones to meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from borrowing_world import SimProcess, TaskBody, World, collect, small_limits
from mutations import MUTATIONS
from oracle import Violation

from skate_worker.object_ref import ObjectRef
from skate_worker.specs import TaskOptions


class Script(World):
    """A world in which nothing happens by itself."""

    def __init__(self, count: int) -> None:
        super().__init__(0, count=count)
        self.target: SimProcess
        self.bodies: dict[SimProcess, Callable[[list[ObjectRef[Any]]], Any]] = {}

    def choose_target(self, targets: list[SimProcess]) -> SimProcess:
        return self.target

    def run_body(self, process: SimProcess, body: TaskBody, args: tuple[Any, ...]) -> Any:
        assert process.executor is not None
        assert process.executor._current is not None
        _, message = process.executor._current
        process.running.append(collect(args))
        try:
            value = self.bodies[process](process.running[-1])
            self.oracle.returning(message.task_id, [collect(value)])
            return value
        finally:
            process.running.pop()

    def submit(self, caller: SimProcess, target: SimProcess, args: list[ObjectRef[Any]]) -> None:
        self.target = target
        self.enter(caller, f"submits to {target}")
        caller.tasks.next_args = [ref.binary() for ref in args]
        options = TaskOptions("task", 1, (), 0)
        caller.held += caller.submit_task(caller.function_ids[0], (args,), {}, options)

    def hear(self, process: SimProcess, other: SimProcess) -> None:
        """Everything that ``other`` has sent, and its end if it is dead."""
        for end in list(self.connections):
            if end.process is process and end.other.process is other:
                while end.inbox or end.is_broken:
                    self.enter(process, f"hears from {other}")
                    is_break = not end.inbox
                    end.deliver(1)
                    if is_break:
                        self.connections.remove(end)
                        break
        while process._loop.ready:  # type: ignore[attr-defined]
            callback, args = process._loop.ready.popleft()  # type: ignore[attr-defined]
            callback(*args)
        self.oracle.check_step()

    def rest(self) -> None:
        """Let all else happen that may happen."""
        while self.step_machinery():
            pass


@pytest.fixture(autouse=True)
def _limits() -> Iterator[None]:
    with small_limits():
        yield


def play_death_of_the_owner_of_a_return() -> None:
    """p3 gets a return that holds an object of p1, passes that on to p4, and dies before p1 has
    heard that p3 holds it: only what p2 pinned for p3 covers p4.
    """
    world = Script(4)
    owner, holder, dying, last = world.processes
    world.enter(owner, "puts")
    ref = owner.put([1])
    world.oracle.contents[ref.binary()] = []
    owner.held.append(ref)

    def keep(args: list[ObjectRef[Any]]) -> None:
        holder.held += args

    world.bodies[holder] = keep
    world.submit(owner, holder, [ref])
    del ref
    owner.held.clear()
    world.rest()

    world.bodies[holder] = lambda args: list(holder.held)
    world.submit(dying, holder, [])
    world.hear(holder, dying)
    world._execute(holder)
    holder.held.clear()
    world.hear(dying, holder)
    world.enter(dying, "gets")
    passed = dying.get(dying.held)[0]
    world.submit(dying, last, passed)
    del passed
    world.hear(last, dying)
    for end in world.connections:
        if end.process is owner and end.other.process is dying:
            end.inbox.clear()  # what it told the owner is lost with it
    world.crash(dying)

    def stand_by(args: list[ObjectRef[Any]]) -> None:
        world.hear(holder, dying)
        world.hear(owner, holder)
        world.rest()
        last.held += args

    world.bodies[last] = stand_by
    world._execute(last)
    world.rest()
    world.enter(last, "asks")
    last.wait(last.held, 1, 0)
    world.rest()
    world.enter(last, "gets")
    assert last.get(last.held, 1.0) == [[1]]
    last.held.clear()
    world.settle("empty")


def test_reference_passed_on_by_a_dying_owner_of_a_return_stays_valid() -> None:
    play_death_of_the_owner_of_a_return()


def test_reference_passed_on_by_a_dying_owner_needs_the_grace() -> None:
    with MUTATIONS["pins_for_a_dead_owner_end_at_once"](), pytest.raises(Violation, match="frees"):
        play_death_of_the_owner_of_a_return()
