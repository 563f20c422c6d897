"""Each message of the task plane is handed to its handler twice: the second time nothing happens.

For each kind there is a situation in which the first has an effect, and, where there can be, one in
between in which a second would have another: a task that was given back is here again, a fetch that
was stopped began anew. The process is the simulation's, with the product's own submitters, and what
is compared is a picture of all its tables and of all that it sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from repetition_stage import DATA, ELSEWHERE, INNER, TASK, THING, Scene, Stage, staged

from skate_rpc.repeats import Repeat
from skate_rpc.serials import Received
from skate_worker.generator_returns import STREAMING, encode_returns
from skate_worker.machine.fetches import Outcome
from skate_worker.machine.references import INLINE, STORED
from skate_worker.object_control import Question
from skate_worker.serialization import serialize
from skate_worker.task_messages import MESSAGES, WITH_SERIAL
from skate_worker.task_protocol import (
    AskCopy,
    AskLocations,
    AskObject,
    Borrow,
    BorrowKnown,
    Cancel,
    CopyMade,
    CopySources,
    EndBorrow,
    FreeObjects,
    FreeReturns,
    GiveObject,
    Hello,
    ItemReturned,
    ItemsTaken,
    LeaseBegins,
    Leaving,
    Location,
    Locations,
    ObjectsFreed,
    ObjectValue,
    PullStopped,
    PushCall,
    PushTask,
    Returned,
    StopStream,
    TakeBack,
    TaskDone,
    TaskReturned,
    TasksGivenBack,
)

SCENES: dict[type, Callable[[Stage], Scene]] = {}
Play = Callable[[Stage], Scene]


def scene(kind: type) -> Callable[[Play], Play]:
    def note(play: Play) -> Play:
        SCENES[kind] = play
        return play

    return note


# ---- the borrowing protocol ----


@scene(AskObject)
def _(stage: Stage) -> Scene:
    thing, inner = stage.own(THING), stage.own(INNER)
    thing.contained = [inner]
    inner.pins += 1
    return Scene(AskObject(THING))


@scene(ObjectValue)
def _(stage: Stage) -> Scene:
    stage.receiver.ownership.watch(stage.borrow(THING), lambda entry: None)
    ((_, asked),) = stage.receiver.ownership._asks
    return Scene(ObjectValue(THING, DATA, contained=[stage.reference(INNER)], asked=asked))


@scene(Borrow)
def _(stage: Stage) -> Scene:
    stage.own(THING)
    return Scene(Borrow(1, [THING]))


@scene(BorrowKnown)
def _(stage: Stage) -> Scene:
    stage.borrow(THING)
    stage.receiver.ownership.tell_untold(None, lambda: None)
    (number,) = stage.receiver.ownership._borrows
    return Scene(BorrowKnown(number))


@scene(EndBorrow)
def _(stage: Stage) -> Scene:
    stage.own(THING)
    stage.say(Borrow(1, [THING]))
    stage.say(Borrow(2, [THING]))
    return Scene(EndBorrow([THING]))


# ---- about objects ----


@scene(FreeObjects)
def _(stage: Stage) -> Scene:
    stage.own(INNER)
    stage.receiver.ownership.table.own(THING)  # not ready: left alone

    def is_made() -> None:
        stage.receiver.ownership.settle(stage.receiver.ownership.table.entries[THING], INLINE, DATA)

    return Scene(FreeObjects([THING, INNER]), is_made)


@scene(ObjectsFreed)
def _(stage: Stage) -> Scene:
    stage.borrow(THING).settle(INLINE, DATA)
    return Scene(ObjectsFreed([THING]))


@scene(AskLocations)
def _(stage: Stage) -> Scene:
    stage.own(THING, STORED)
    return Scene(AskLocations(1, [THING]))


@scene(Locations)
def _(stage: Stage) -> Scene:
    question = Question(2)
    stage.receiver._questions = {
        1: (stage.sender.worker_id, question),
        2: (b"another", question),
    }
    return Scene(Locations(1, [Location(THING, [ELSEWHERE], 100)]))


@scene(GiveObject)
def _(stage: Stage) -> Scene:
    give = GiveObject(1, THING, DATA, contained=[stage.reference(INNER)])
    return Scene(give, lambda: stage.say(EndBorrow([THING])))


@scene(AskCopy)
def _(stage: Stage) -> Scene:
    stage.own(THING, STORED)
    here = stage.sender.node_id
    return Scene(AskCopy(THING, here), lambda: stage.say(CopyMade(THING, here)))


@scene(CopySources)
def _(stage: Stage) -> Scene:
    def never(outcome: Outcome) -> None:
        raise AssertionError(outcome)

    fetching = stage.receiver.plane.fetching
    fetching.start(THING, stage.as_owner, 100, never)
    stage.settle_loops()
    return Scene(CopySources(THING, [ELSEWHERE], 100))


@scene(CopyMade)
def _(stage: Stage) -> Scene:
    entry = stage.own(THING, STORED)
    here = b"h" * 28
    stage.say(AskCopy(THING, here))
    directory = stage.receiver.plane.directory

    def is_lost() -> None:
        directory.lost_at(entry.object_id, [here], here, is_precious=False)

    return Scene(CopyMade(THING, here), is_lost)


@scene(PullStopped)
def _(stage: Stage) -> Scene:
    stage.own(THING, STORED)
    stage.say(AskCopy(THING, b"h" * 28))
    return Scene(PullStopped(THING), lambda: stage.say(AskCopy(THING, b"h" * 28)))


# ---- owner to executor ----


@scene(PushTask)
def _(stage: Stage) -> Scene:
    return Scene(PushTask(TASK, b"f", b"", "task"), lambda: stage.say(TakeBack(1)))


@scene(PushCall)
def _(stage: Stage) -> Scene:
    return Scene(PushCall(TASK, "call", b"", "call"))


@scene(TakeBack)
def _(stage: Stage) -> Scene:
    for number in range(3):
        stage.push(task_id=bytes([number]) * 24)
    return Scene(TakeBack(1))


@scene(Cancel)
def _(stage: Stage) -> Scene:
    stage.push()
    return Scene(Cancel(TASK), lambda: stage.push(attempt=1))


@scene(LeaseBegins)
def _(stage: Stage) -> Scene:
    return Scene(LeaseBegins({"CPU": 1}), lambda: stage.say(LeaseBegins({"CPU": 2})))


@scene(FreeReturns)
def _(stage: Stage) -> Scene:
    outcomes = stage.receiver.outcomes
    assert outcomes is not None
    entry = stage.own(THING)
    entry.pins += 2
    for attempt in (0, 1):  # the task was run again here, because what it returned was lost
        outcomes._pins[TASK, attempt] = (stage.sender.worker_id, [entry])
    return Scene(FreeReturns(TASK, 0))


@scene(ItemsTaken)
def _(stage: Stage) -> Scene:
    stage.produce(0)
    return Scene(ItemsTaken(TASK, 3), lambda: stage.produce(1))


@scene(StopStream)
def _(stage: Stage) -> Scene:
    stage.produce(0)
    return Scene(StopStream(TASK), lambda: stage.produce(1))


# ---- executor to owner ----


@scene(TaskDone)
def _(stage: Stage) -> Scene:
    return Scene(TaskDone(stage.submit(), DATA))


@scene(TaskReturned)
def _(stage: Stage) -> Scene:
    task_id = stage.submit(retry_exceptions=True)
    failed = Returned(serialize(ValueError(), is_error=True).to_bytes(), is_error=True)
    return Scene(TaskReturned(task_id, [failed], is_error=True))  # and it is there again


@scene(TasksGivenBack)
def _(stage: Stage) -> Scene:
    return Scene(TasksGivenBack([stage.submit()]))  # and it is there again


@scene(Leaving)
def _(stage: Stage) -> Scene:
    stage.submit()
    return Scene(Leaving("max_calls"))


@scene(ItemReturned)
def _(stage: Stage) -> Scene:
    task_id = stage.submit(num_returns=encode_returns(STREAMING))
    return Scene(ItemReturned(task_id, 0, Returned(DATA, contained=[stage.reference(INNER)])))


# ---- the tests ----


def play(stage: Stage, kind: type) -> tuple[Any, Any, Any, Any]:
    """Pictures: at first, after the message, after what came between, after the repetition."""
    message, between = SCENES[kind](stage)
    assert type(message) is kind
    if kind in WITH_SERIAL:
        stage.to_receiver.stamp(message)
    at_first = stage.picture()
    stage.hear(message)
    after = stage.picture()
    between()
    before_again = stage.picture()
    stage.hear(message)
    return at_first, after, before_again, stage.picture()


KINDS = [kind for kind in MESSAGES if kind is not Hello]  # which is for the connection


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.invariant("I25")
def test_message_has_an_effect_and_its_repetition_none(kind: type) -> None:
    assert kind in SCENES, f"no scene repeats {kind.__name__}"
    with staged() as stage:
        at_first, after, before_again, again = play(stage, kind)
    assert after != at_first
    if MESSAGES[kind].repeat is Repeat.READ_ONLY:
        assert again[0] == at_first[0]  # it is answered again, and that is all
    else:
        assert again == before_again


@pytest.mark.parametrize("kind", sorted(WITH_SERIAL, key=str), ids=lambda kind: kind.__name__)
@pytest.mark.invariant("I25")
def test_repetition_that_no_serial_gives_away_has_an_effect(kind: type) -> None:
    """Otherwise the test above would show nothing, or the serial would be for nothing."""
    with (
        staged() as stage,
        mock.patch("skate_worker.membership.WITH_SERIAL", frozenset()),
        mock.patch.object(Received, "new_of", lambda self, work: work),
    ):
        _, _, before_again, again = play(stage, kind)
    assert again != before_again


def test_second_hello_changes_nothing() -> None:
    with staged() as stage:
        line = stage.to_receiver.connection
        before = stage.picture(), dict(stage.sender.peers._peers)
        hello = Hello(stage.receiver.worker_id, stage.receiver.endpoint)
        stage.sender.peers._on_messages(line, [hello])
        assert (stage.picture(), dict(stage.sender.peers._peers)) == before
