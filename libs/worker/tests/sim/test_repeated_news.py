"""Each message of the raylet is handed to a process twice: the second time nothing happens.

As ``test_repeated_messages``, for the line to the raylet.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from repetition_stage import ELSEWHERE, THING, Scene, Stage, staged

from skate_rpc import node_protocol as node
from skate_rpc.node_messages import MESSAGES, WITH_SERIAL, stamp
from skate_rpc.repeats import Repeat
from skate_rpc.serials import Serials
from skate_worker.machine.fetches import Outcome
from skate_worker.machine.references import STORED
from skate_worker.node_client import _Call
from skate_worker.task_protocol import AskCopy, CopyMade, CopySources

ACTOR = b"a" * 16
GROUP = b"g" * 18
KINDS = typing.get_args(node.FromRaylet)
Play = Callable[[Stage, Callable[[Any], None]], Scene]


def granted(stage: Stage, tell: Any) -> Scene:
    return Scene(stage.request())


def refused(stage: Stage, tell: Any) -> Scene:
    request_id = stage.request().request_id
    refusal = node.LeaseRefused(request_id, "invalid", "it is")
    return Scene(refusal, stage.request)


def warned(stage: Stage, tell: Any) -> Scene:
    request_id = stage.request().request_id
    return Scene(node.LeaseWarning(request_id, "It needs 3 CPUs, and no node has more than 2."))


def lost(stage: Stage, tell: Any) -> Scene:
    stage.submit()
    return Scene(node.LeaseLost(b"lease", node.Death("exited", "it ended")))


def reclaimed(stage: Stage, tell: Any) -> Scene:
    stage.submit()
    return Scene(node.ReclaimLease(b"lease"))


def replied(stage: Stage, tell: Any) -> Scene:
    stage.receiver.line._calls[1] = _Call(stage.told.append)
    return Scene(node.ControlReply(1, b""))


def updated(stage: Stage, tell: Any) -> Scene:
    stage.receiver.actor_calls.calls_of(ACTOR)
    alive = node.ActorView(
        ACTOR, "ALIVE", 1, stage.sender.endpoint, stage.sender.worker_id, stage.sender.node_id
    )
    restarting = node.ActorView(ACTOR, "RESTARTING")
    return Scene(node.ActorUpdate(restarting), lambda: tell(node.ActorUpdate(alive)))


def pull_ended(stage: Stage, tell: Any) -> Scene:
    def arrived(outcome: Outcome) -> None:
        stage.told.append(outcome)

    fetching = stage.receiver.plane.fetching
    fetching.start(THING, stage.as_owner, 100, arrived)
    stage.settle_loops()
    stage.hear(CopySources(THING, [ELSEWHERE], 100))
    return Scene(node.PullEnded(1))


def kept(stage: Stage, tell: Any) -> Scene:
    stage.own(THING, STORED)
    here = b"h" * 28

    def copied() -> None:
        stage.say(AskCopy(THING, here))
        stage.say(CopyMade(THING, here))

    copied()
    return Scene(node.CopiesKept(here, [], [THING]), copied)


def worker_died(stage: Stage, tell: Any) -> Scene:
    stage.borrow(THING).settle(STORED, None)
    death = node.Death("exited", "it ended")
    return Scene(node.WorkerDied(stage.sender.worker_id, death))


def node_died(stage: Stage, tell: Any) -> Scene:
    stage.own(THING, STORED)
    return Scene(node.NodeDied(ELSEWHERE, node.Death("node_lost", "it burnt")))


def placed(stage: Stage, tell: Any) -> Scene:
    stage.kept.append(stage.receiver.placement_groups.ready(GROUP, "handle"))

    def group(state: str) -> node.PlacementGroupView:
        return node.PlacementGroupView(GROUP, state)

    created = node.PlacementGroupUpdate(group("CREATED"))
    return Scene(created, lambda: tell(node.PlacementGroupUpdate(group("RESCHEDULING"))))


def flushed(stage: Stage, tell: Any) -> Scene:
    stage.receiver.log_printer.begin_flush()
    return Scene(node.LogsFlushed(1))


SCENES: dict[type, Play] = {
    node.ProcessRegistered: lambda stage, tell: Scene(node.ProcessRegistered(b"n" * 28)),
    node.LeaseGranted: granted,
    node.LeaseRefused: refused,
    node.LeaseWarning: warned,
    node.LeaseLost: lost,
    node.ReclaimLease: reclaimed,
    node.ControlReply: replied,
    node.CreateActor: lambda stage, tell: Scene(node.CreateActor(ACTOR, 0, b"")),
    node.ActorUpdate: updated,
    node.ExitNow: lambda stage, tell: Scene(node.ExitNow("the job ended")),
    node.WorkerDied: worker_died,
    node.PullEnded: pull_ended,
    node.NodeDied: node_died,
    node.CopiesKept: kept,
    node.AskObjects: lambda stage, tell: Scene(node.AskObjects(1, 10)),
    node.AskWaits: lambda stage, tell: Scene(node.AskWaits(1, 10)),
    node.PlacementGroupUpdate: placed,
    node.LogLines: lambda stage, tell: Scene(node.LogLines(1, "f", 7, "", False, ["line"])),
    node.LogsFlushed: flushed,
}


def play(stage: Stage, kind: type) -> tuple[Any, Any, Any, Any]:
    """Pictures: at first, after the message, after what came between, after the repetition."""
    line = Serials()

    def tell(message: Any) -> None:
        stage.be_told(stamp(message, line))

    message, between = SCENES[kind](stage, tell)
    assert type(message) is kind
    stamp(message, line)
    at_first = stage.picture()
    stage.be_told(message)
    after = stage.picture()
    between()
    before_again = stage.picture()
    stage.be_told(message)
    return at_first, after, before_again, stage.picture()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.invariant("I25")
def test_news_have_an_effect_and_their_repetition_none(kind: type) -> None:
    assert kind in SCENES, f"no scene repeats {kind.__name__}"
    with staged() as stage:
        at_first, after, before_again, again = play(stage, kind)
    assert after != at_first
    if MESSAGES[kind].repeat is Repeat.READ_ONLY:
        assert again[:2] == at_first[:2]  # it is answered again, and that is all
    else:
        assert again == before_again


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind in WITH_SERIAL], ids=lambda kind: kind.__name__
)
@pytest.mark.invariant("I25")
def test_repetition_that_no_serial_gives_away_has_an_effect(kind: type) -> None:
    """Otherwise the test above would show nothing, or the serial would be for nothing."""
    with staged() as stage, mock.patch("skate_worker.node_client.is_new", return_value=True):
        _, _, before_again, again = play(stage, kind)
    assert again != before_again
