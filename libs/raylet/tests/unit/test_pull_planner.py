"""The pull planner: what is fetched, in which order, from whom, and when it is given up."""

from __future__ import annotations

from typing import Any

import pytest

from skate_raylet.machine import pull_events as on
from skate_raylet.machine.pull_config import PullConfig
from skate_raylet.machine.pull_planner import PullPlanner

NODE = b"this node"
OWNER = b"owner"
GET, WAIT, ARGUMENT = 0, 1, 2


class Desk:
    """Talks to a planner; every step checks the invariants."""

    def __init__(self, **options: Any) -> None:
        self.config = PullConfig(**{"bytes_max": 100, "split_bytes": 1000, **options})
        self.planner = PullPlanner(self.config, NODE)
        self.now_s = 0.0
        self.pull_ids = iter(range(1, 1000))
        for node_id in (b"a", b"b", b"c"):
            self.tell(on.NodeSeen(node_id))

    def tell(self, event: Any, *, after_s: float = 0.0) -> list[Any]:
        self.now_s += after_s
        said = self.planner.handle(event, self.now_s)
        self.planner.check_invariants()
        return said

    def sleep(self) -> list[Any]:
        """Let time pass to the next wakeup."""
        wakeup = self.planner.next_wakeup()
        assert wakeup is not None, "nothing will ever happen"
        self.now_s = wakeup[0]
        return self.tell(on.TimePassed())

    def ask(
        self,
        object_id: bytes,
        *sources: bytes,
        size: int = 10,
        process: bytes = b"p",
        priority: int = GET,
    ) -> list[Any]:
        number = next(self.pull_ids)
        return self.tell(
            on.PullRequested(process, number, object_id, size, OWNER, sources, priority)
        )

    def fetching(self, object_id: bytes, *sources: bytes, size: int = 10) -> list[Any]:
        """Ask, and give room; returns what is ordered then."""
        assert self.ask(object_id, *sources, size=size) == [on.MakeRoom(object_id, size, OWNER)]
        return self.tell(on.RoomMade(object_id))


def test_pull_makes_room_fetches_seals_and_ends() -> None:
    desk = Desk()
    assert desk.ask(b"x", b"a") == [on.MakeRoom(b"x", 10, OWNER)]
    assert desk.tell(on.RoomMade(b"x")) == [on.FetchRange(b"x", 1, b"a", 0, 10, 10)]
    assert desk.tell(on.RangeFetched(b"x", 1)) == [on.SealCopy(b"x")]
    assert desk.tell(on.CopySealed(b"x")) == [on.EndPull(b"p", 1)]
    assert desk.planner.statistics().done_total == 1
    assert desk.planner.next_wakeup() is None


def test_pulls_of_one_object_share_one_transfer() -> None:
    desk = Desk()
    desk.fetching(b"x", b"a")
    assert desk.ask(b"x", b"b", process=b"q") == []
    desk.tell(on.RangeFetched(b"x", 1))
    assert desk.tell(on.CopySealed(b"x")) == [on.EndPull(b"p", 1), on.EndPull(b"q", 2)]


def test_repeated_request_changes_nothing() -> None:
    desk = Desk()
    request = on.PullRequested(b"p", 1, b"x", 10, OWNER, (b"a",), GET)
    assert len(desk.tell(request)) == 1
    assert desk.tell(request) == []


def test_object_that_is_here_already_ends_the_pull() -> None:
    desk = Desk()
    desk.ask(b"x", NODE)
    assert desk.tell(on.RoomRefused(b"x", on.RoomRefusal.SEALED)) == [on.EndPull(b"p", 1)]


def test_this_node_as_the_only_source_is_lost_when_its_store_lacks_the_object() -> None:
    desk = Desk()
    said = desk.fetching(b"x", NODE)
    (ended,) = [one for one in said if isinstance(one, on.EndPull)]
    assert (ended.kind, ended.lost_at) == ("lost", (NODE,))


def test_bytes_under_way_stay_within_the_bound_but_one_larger_object_comes() -> None:
    desk = Desk(bytes_max=100)
    assert desk.ask(b"big", b"a", size=500) == [on.MakeRoom(b"big", 500, OWNER)]
    assert desk.ask(b"x", b"a", size=60) == []
    assert desk.ask(b"y", b"a", size=60) == []
    desk.tell(on.RoomMade(b"big"))
    desk.tell(on.RangeFetched(b"big", 1))
    said = desk.tell(on.CopySealed(b"big"))
    assert said == [on.EndPull(b"p", 1), on.MakeRoom(b"x", 60, OWNER)]


def test_node_to_which_it_is_on_its_way_is_asked_and_the_others_stand_in_for_it() -> None:
    desk = Desk(split_bytes=100, piece_bytes=50)
    desk.tell(on.PullRequested(b"p", 1, b"x", 100, OWNER, (b"b", b"c"), GET, (b"a",)))
    # Of one piece: the others, which serve somebody already, are left alone.
    assert desk.tell(on.RoomMade(b"x")) == [
        on.FetchRange(b"x", 1, b"a", 0, 100, 100, is_arriving=True)
    ]
    assert desk.tell(on.RangeFailed(b"x", 1, 70, "it has stopped")) == []
    assert desk.sleep() == [on.FetchRange(b"x", 2, b"a", 70, 30, 100, is_arriving=True)]
    said = desk.tell(on.RangeFailed(b"x", 2, 0, "it does not have it", is_absent=True))
    assert said == [on.FetchRange(b"x", 3, b"b", 70, 30, 100)]


def test_node_to_which_it_was_on_its_way_is_one_with_a_copy_when_it_is_named_as_that() -> None:
    desk = Desk()
    desk.tell(on.PullRequested(b"p", 1, b"x", 10, OWNER, (b"b",), GET, (b"a",)))
    desk.ask(b"x", b"a", process=b"q")
    assert desk.tell(on.RoomMade(b"x")) == [on.FetchRange(b"x", 1, b"a", 0, 10, 10)]


def test_get_goes_before_wait_before_arguments_and_each_in_order() -> None:
    desk = Desk(transfers_max=1)
    desk.ask(b"first", b"a")
    for name, priority in (
        (b"x1", ARGUMENT),
        (b"w1", WAIT),
        (b"g1", GET),
        (b"x2", ARGUMENT),
        (b"g2", GET),
    ):
        assert desk.ask(name, b"a", priority=priority) == []
    order = []
    said = desk.tell(on.RoomRefused(b"first", on.RoomRefusal.SEALED))
    while rooms := [one.object_id for one in said if isinstance(one, on.MakeRoom)]:
        order += rooms
        said = desk.tell(on.RoomRefused(rooms[0], on.RoomRefusal.SEALED))
    assert order == [b"g1", b"g2", b"w1", b"x1", b"x2"]


def test_argument_that_somebody_gets_goes_first() -> None:
    desk = Desk(transfers_max=1)
    desk.ask(b"first", b"a")
    desk.ask(b"x", b"a", priority=ARGUMENT)
    desk.ask(b"y", b"a", priority=ARGUMENT)
    desk.ask(b"y", b"a", priority=GET)
    said = desk.tell(on.RoomRefused(b"first", on.RoomRefusal.SEALED))
    assert on.MakeRoom(b"y", 10, OWNER) in said


def test_pull_without_room_steps_aside_for_others_and_ends_full() -> None:
    desk = Desk(bytes_max=100, room_wait_s=1.0, retry_pause_s=0.3)
    desk.ask(b"x", b"a", size=90, priority=ARGUMENT)
    assert desk.ask(b"y", b"a", size=90) == []
    said = desk.tell(on.RoomRefused(b"x", on.RoomRefusal.FULL, "no room"))
    assert said == [on.MakeRoom(b"y", 90, OWNER)]
    desk.tell(on.RoomRefused(b"y", on.RoomRefusal.SEALED))
    said = []
    while on.MakeRoom(b"x", 90, OWNER) in (said := desk.sleep()):
        said = desk.tell(on.RoomRefused(b"x", on.RoomRefusal.FULL, "no room"))
        if said:
            break
    assert said == [on.EndPull(b"p", 1, "full", "no room")]
    assert 1.0 <= desk.now_s <= 1.5


def test_pull_larger_than_the_store_is_full_at_once() -> None:
    desk = Desk()
    desk.ask(b"x", b"a")
    said = desk.tell(on.RoomRefused(b"x", on.RoomRefusal.TOO_LARGE, "never"))
    assert said == [on.EndPull(b"p", 1, "full", "never")]


def test_room_that_is_withdrawn_is_asked_for_again_until_the_pull_ends_full() -> None:
    desk = Desk(room_wait_s=1.0, retry_pause_s=0.5)
    said = desk.fetching(b"x", b"a")
    ends: list[Any] = []
    for attempt in range(1, 10):
        assert isinstance(said[0], on.FetchRange)
        said = desk.tell(on.RoomWithdrawn(b"x", "no memory", b"account"))
        assert said == [on.StopRange(b"x", attempt)]
        assert desk.tell(on.RoomWithdrawn(b"x", "no memory", b"account")) == []
        assert desk.tell(on.RangeFailed(b"x", attempt, 3, "stopped")) == [on.DropCopy(b"x")]
        ends = desk.tell(on.CopyDropped(b"x"), after_s=0.1)
        if ends:
            break
        assert desk.sleep() == [on.MakeRoom(b"x", 10, OWNER)]
        said = desk.tell(on.RoomMade(b"x"))
    assert ends == [on.EndPull(b"p", 1, "full", "no memory", (), b"account")]
    assert 1.0 <= desk.now_s < 2.0


def test_room_withdrawn_after_the_end_changes_nothing() -> None:
    desk = Desk()
    assert desk.tell(on.RoomWithdrawn(b"x", "no memory")) == []
    desk.fetching(b"x", b"a")
    assert desk.tell(on.RangeFetched(b"x", 1)) == [on.SealCopy(b"x")]
    assert desk.tell(on.RoomWithdrawn(b"x", "no memory")) == []
    assert desk.tell(on.CopySealed(b"x")) == [on.EndPull(b"p", 1)]


def test_object_made_anew_while_its_room_is_withdrawn_is_fetched_with_its_own_size() -> None:
    desk = Desk()
    desk.fetching(b"x", b"a", size=10)
    desk.tell(on.RoomWithdrawn(b"x", "no memory"))
    desk.ask(b"x", b"a", size=30)
    assert desk.tell(on.RangeFailed(b"x", 1, 0, "stopped")) == [on.DropCopy(b"x")]
    assert desk.tell(on.CopyDropped(b"x")) == []
    assert desk.sleep() == [on.MakeRoom(b"x", 30, OWNER)]


def test_source_without_the_object_is_not_asked_twice_and_is_named() -> None:
    desk = Desk()
    desk.fetching(b"x", b"a", b"b")
    said = desk.tell(on.RangeFailed(b"x", 1, 0, "it lacks it", is_absent=True))
    assert said == [on.FetchRange(b"x", 2, b"b", 0, 10, 10)]
    desk.tell(on.RangeFetched(b"x", 2))
    assert desk.tell(on.CopySealed(b"x")) == [on.EndPull(b"p", 1, lost_at=(b"a",))]


def test_cut_range_goes_on_from_its_last_byte_at_another_source() -> None:
    desk = Desk()
    desk.fetching(b"x", b"a", b"b")
    said = desk.tell(on.RangeFailed(b"x", 1, 7, "broken"))
    assert said == [on.FetchRange(b"x", 2, b"b", 7, 3, 10)]


def test_only_source_is_tried_twice_then_the_object_is_lost() -> None:
    desk = Desk()
    desk.fetching(b"x", b"a")
    assert desk.tell(on.RangeFailed(b"x", 1, 4, "broken")) == []
    assert desk.sleep() == [on.FetchRange(b"x", 2, b"a", 4, 6, 10)]
    ended, dropped = desk.tell(on.RangeFailed(b"x", 2, 0, "refused"))
    assert (ended.kind, ended.lost_at) == ("lost", (b"a",))
    assert "refused" in ended.message
    assert dropped == on.DropCopy(b"x")


def test_silent_source_is_given_up_and_the_next_sends_the_rest() -> None:
    desk = Desk(stall_s=10.0)
    desk.fetching(b"x", b"a", b"b")
    assert desk.tell(on.RangeProgressed(b"x", 1), after_s=8.0) == []
    assert desk.sleep() == [on.StopRange(b"x", 1)]
    assert desk.now_s == 18.0
    said = desk.tell(on.RangeFailed(b"x", 1, 3, "stopped"))
    assert said == [on.FetchRange(b"x", 2, b"b", 3, 7, 10)]


def test_large_object_is_fetched_in_pieces_from_two_holders() -> None:
    desk = Desk(split_bytes=40, piece_bytes=20, bytes_max=1000)
    said = desk.fetching(b"x", b"a", b"b", b"c", size=50)
    assert said == [
        on.FetchRange(b"x", 1, b"a", 0, 20, 50),
        on.FetchRange(b"x", 2, b"b", 20, 20, 50),
    ]
    (said,) = desk.tell(on.RangeFetched(b"x", 2))
    assert (said.offset, said.length) == (40, 10)
    assert desk.tell(on.RangeFetched(b"x", 3)) == []
    assert desk.tell(on.RangeFetched(b"x", 1)) == [on.SealCopy(b"x")]


def test_least_busy_source_is_asked() -> None:
    desk = Desk()
    desk.fetching(b"x", b"a")
    (fetch,) = desk.fetching(b"y", b"a", b"b")
    assert fetch.node_id == b"b"


def test_busy_source_is_asked_when_one_of_its_ranges_ends() -> None:
    desk = Desk(ranges_per_source_max=1)
    desk.fetching(b"x", b"a")
    assert desk.fetching(b"y", b"a") == []
    said = desk.tell(on.RangeFetched(b"x", 1))
    assert said == [on.SealCopy(b"x"), on.FetchRange(b"y", 2, b"a", 0, 10, 10)]


def test_pull_from_a_dead_node_is_lost_at_once() -> None:
    desk = Desk()
    desk.tell(on.NodeGone(b"a", "it was killed"))
    (ended,) = desk.ask(b"x", b"a")
    assert (ended.kind, ended.lost_at) == ("lost", (b"a",))
    assert "it was killed" in ended.message


def test_death_of_the_sending_node_stops_its_range_and_the_other_goes_on() -> None:
    desk = Desk()
    desk.fetching(b"x", b"a", b"b")
    assert desk.tell(on.NodeGone(b"a", "killed")) == [on.StopRange(b"x", 1)]
    said = desk.tell(on.RangeFailed(b"x", 1, 2, "stopped"))
    assert said == [on.FetchRange(b"x", 2, b"b", 2, 8, 10)]


def test_node_that_is_heard_of_in_time_is_asked() -> None:
    desk = Desk()
    assert desk.fetching(b"x", b"new") == []
    assert desk.tell(on.NodeSeen(b"new"), after_s=1.0) == [
        on.FetchRange(b"x", 1, b"new", 0, 10, 10)
    ]


def test_node_that_is_never_heard_of_is_given_up() -> None:
    desk = Desk(unknown_node_s=3.0)
    assert desk.fetching(b"x", b"new") == []
    ended, _ = desk.sleep()
    assert desk.now_s == 3.0
    assert "not a node of this cluster" in ended.message


def test_cancelled_pull_ends_its_transfer_when_nobody_else_waits() -> None:
    desk = Desk()
    desk.fetching(b"x", b"a")
    desk.ask(b"x", b"a", process=b"q")
    (ended,) = desk.tell(on.PullCancelled(b"p", 1))
    assert (ended.process_id, ended.kind) == (b"p", "cancelled")
    ended, stopped = desk.tell(on.PullCancelled(b"q", 2))
    assert (ended.process_id, stopped) == (b"q", on.StopRange(b"x", 1))
    assert desk.tell(on.RangeFailed(b"x", 1, 0, "stopped")) == [on.DropCopy(b"x")]
    assert desk.tell(on.CopyDropped(b"x")) == []


def test_cancel_of_a_pull_that_ended_changes_nothing() -> None:
    desk = Desk()
    desk.ask(b"x", NODE)
    desk.tell(on.RoomRefused(b"x", on.RoomRefusal.SEALED))
    assert desk.tell(on.PullCancelled(b"p", 1)) == []


def test_end_of_a_process_cancels_its_pulls_silently() -> None:
    desk = Desk(transfers_max=1)
    desk.fetching(b"x", b"a")
    desk.ask(b"y", b"a")
    assert desk.tell(on.ProcessGone(b"p")) == [on.StopRange(b"x", 1)]
    desk.tell(on.RangeFailed(b"x", 1, 0, "stopped"))
    assert desk.tell(on.CopyDropped(b"x")) == []
    assert desk.planner.statistics().queued == 0


def test_pull_asked_for_while_its_transfer_is_being_dropped_starts_anew() -> None:
    desk = Desk()
    desk.fetching(b"x", b"a")
    desk.tell(on.PullCancelled(b"p", 1))
    assert desk.ask(b"x", b"a") == []
    assert desk.tell(on.RangeFailed(b"x", 1, 0, "stopped")) == [on.DropCopy(b"x")]
    assert desk.tell(on.CopyDropped(b"x")) == [on.MakeRoom(b"x", 10, OWNER)]


def test_source_that_was_lost_gets_another_chance_in_the_next_transfer() -> None:
    desk = Desk()
    desk.fetching(b"x", b"a")
    ended, _ = desk.tell(on.RangeFailed(b"x", 1, 0, "absent", is_absent=True))
    assert ended.kind == "lost"
    desk.ask(b"x", b"a")
    assert desk.tell(on.CopyDropped(b"x")) == [on.MakeRoom(b"x", 10, OWNER)]
    (fetch,) = desk.tell(on.RoomMade(b"x"))
    assert fetch.node_id == b"a"


def test_object_made_anew_with_another_size_is_fetched_with_that_size() -> None:
    desk = Desk()
    desk.fetching(b"x", b"a")
    ended, _ = desk.tell(on.RangeFailed(b"x", 1, 0, "absent", is_absent=True))
    assert ended.kind == "lost"
    desk.ask(b"x", b"b", size=7)
    assert desk.tell(on.CopyDropped(b"x")) == [on.MakeRoom(b"x", 7, OWNER)]


def test_death_of_the_owner_ends_its_pulls() -> None:
    desk = Desk(transfers_max=1)
    desk.fetching(b"x", b"a")
    desk.ask(b"y", b"a")
    said = desk.tell(on.OwnerGone(OWNER, "exit code 1"))
    ends = [one for one in said if isinstance(one, on.EndPull)]
    assert [(end.pull_id, end.kind) for end in ends] == [(1, "lost"), (2, "lost")]
    assert all("owner died" in end.message for end in ends)


@pytest.mark.parametrize("problem", ["the store is closed"])
def test_copy_that_can_not_be_sealed_is_told(problem: str) -> None:
    desk = Desk()
    desk.fetching(b"x", b"a")
    desk.tell(on.RangeFetched(b"x", 1))
    assert desk.tell(on.CopySealed(b"x", problem)) == [on.EndPull(b"p", 1, "full", problem)]
