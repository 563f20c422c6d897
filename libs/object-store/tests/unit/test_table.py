from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from skate_object_store.machine.facts import Copy, FullReason
from skate_object_store.machine.records import (
    ClientMisuseError,
    Created,
    CreateExists,
    CreateRefused,
    CreateRequest,
    Effect,
    Freed,
    Got,
    Ready,
)
from skate_object_store.machine.table import ObjectTable

CAPACITY = 1 << 16
WRITER, READER, OTHER = 1, 2, 3


class World:
    """A table with three clients, a clock set by hand, and every effect accounted for."""

    def __init__(self) -> None:
        self.table = ObjectTable(CAPACITY)
        self.now_s = 100.0
        self._request = 0
        for client in (WRITER, READER, OTHER):
            self.table.connect(client)

    def create(
        self,
        object_id: bytes,
        size: int = 100,
        *,
        client: int = WRITER,
        owner: bytes = b"",
        evictable: bool = False,
        wait_s: float = 0.0,
    ) -> list[Effect]:
        self._request += 1
        return self.table.create(
            CreateRequest(
                client, self._request, object_id, size, owner, evictable, self.now_s + wait_s
            ),
            self.now_s,
        )

    def put(self, object_id: bytes, size: int = 100, **options: object) -> Created:
        created = self.create(object_id, size, **options)[-1]  # type: ignore[arg-type]
        assert isinstance(created, Created)
        self.seal(created)
        return created

    def seal(self, created: Created, *, keeps_pin: bool = False) -> list[Effect]:
        return self.table.seal(created.wish.client, created.serial, self.now_s, keeps_pin=keeps_pin)

    def get(self, *object_ids: bytes, client: int = READER, timeout_s: float = 0.0) -> list[Effect]:
        self._request += 1
        deadline_s = self.now_s + timeout_s
        return self.table.get(client, self._request, object_ids, self.now_s, deadline_s)

    def wait(self, *object_ids: bytes, wanted: int = 1, timeout_s: float = 0.0) -> list[Effect]:
        self._request += 1
        deadline_s = self.now_s + timeout_s
        return self.table.wait(READER, self._request, object_ids, wanted, self.now_s, deadline_s)

    def release(self, serial: int, count: int = 1, *, client: int = READER) -> list[Effect]:
        return self.table.release(client, [(serial, count)], self.now_s)

    def delete(self, *object_ids: bytes) -> list[Effect]:
        return self.table.delete(object_ids, self.now_s)

    def keep(self, *object_ids: bytes, client: int = READER) -> list[Effect]:
        self._request += 1
        return self.table.keep(client, self._request, object_ids, self.now_s)

    def copies(self, effects: list[Effect]) -> tuple[Copy | None, ...]:
        (got,) = effects
        assert isinstance(got, Got)
        return got.copies

    def used(self) -> int:
        return self.table.allocator.used_bytes


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.table.check_invariants()


def kinds(effects: list[Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def test_create_reserves_and_seal_publishes(world: World) -> None:
    (created,) = world.create(b"a", 100)
    assert isinstance(created, Created)
    assert world.copies(world.get(b"a")) == (None,)
    assert world.seal(created) == []
    assert world.copies(world.get(b"a")) == (Copy(created.serial, created.offset, 100),)


def test_create_of_a_taken_id_is_answered_with_its_state(world: World) -> None:
    (created,) = world.create(b"a")
    assert isinstance(created, Created)
    (answer,) = world.create(b"a", client=OTHER)
    assert answer == CreateExists(OTHER, 2, is_sealed=False)
    world.seal(created)
    (answer,) = world.create(b"a", client=OTHER)
    assert answer == CreateExists(OTHER, 3, is_sealed=True)


def test_seal_by_another_client_is_misuse(world: World) -> None:
    (created,) = world.create(b"a")
    assert isinstance(created, Created)
    with pytest.raises(ClientMisuseError):
        world.table.seal(OTHER, created.serial, world.now_s, keeps_pin=False)


def test_abort_of_what_is_not_being_written_does_nothing(world: World) -> None:
    (created,) = world.create(b"a")
    assert isinstance(created, Created)
    assert world.table.abort(OTHER, created.serial, world.now_s) == []
    world.seal(created)
    assert world.table.abort(WRITER, created.serial, world.now_s) == []
    assert world.table.abort(WRITER, 999, world.now_s) == []
    assert world.wait(b"a") == [Ready(READER, 2, (0,))]


def test_seal_twice_is_misuse(world: World) -> None:
    created = world.put(b"a")
    with pytest.raises(ClientMisuseError):
        world.seal(created)


def test_abort_frees_range_and_id(world: World) -> None:
    (created,) = world.create(b"a")
    assert isinstance(created, Created)
    assert kinds(world.table.abort(WRITER, created.serial, world.now_s)) == ["Freed"]
    assert world.used() == 0
    assert kinds(world.create(b"a")) == ["Created"]


def test_release_of_a_pin_not_held_is_misuse(world: World) -> None:
    created = world.put(b"a")
    with pytest.raises(ClientMisuseError):
        world.release(created.serial)
    world.get(b"a")
    for count in (0, 2, -1):
        with pytest.raises(ClientMisuseError):
            world.release(created.serial, count)
    with pytest.raises(ClientMisuseError):
        world.release(created.serial, client=OTHER)
    assert world.release(created.serial) == []


def test_deleted_object_is_freed_by_the_last_pin(world: World) -> None:
    created = world.put(b"a")
    world.get(b"a", b"a")
    world.get(b"a", client=OTHER)
    assert world.delete(b"a", b"unknown") == []
    assert world.copies(world.get(b"a")) == (None,)
    assert world.release(created.serial, 2) == []
    assert kinds(world.release(created.serial, client=OTHER)) == ["Freed"]


def test_id_can_be_created_again_while_the_old_copy_is_viewed(world: World) -> None:
    old = world.put(b"a")
    world.get(b"a")
    world.delete(b"a")
    new = world.put(b"a")
    assert new.offset != old.offset
    (copy,) = world.copies(world.get(b"a"))
    assert copy is not None
    assert copy.serial == new.serial
    assert kinds(world.release(old.serial)) == ["Freed"]


def test_object_deleted_while_written_is_freed_by_its_seal(world: World) -> None:
    (created,) = world.create(b"a")
    assert isinstance(created, Created)
    world.get(b"a", timeout_s=10)
    assert world.delete(b"a") == []
    assert kinds(world.seal(created)) == ["Freed"]


def test_writer_that_keeps_its_view_holds_a_pin(world: World) -> None:
    (created,) = world.create(b"a")
    assert isinstance(created, Created)
    world.seal(created, keeps_pin=True)
    assert world.delete(b"a") == []
    assert kinds(world.release(created.serial, client=WRITER)) == ["Freed"]


def test_get_is_answered_by_the_last_seal(world: World) -> None:
    (first,) = world.create(b"a")
    (second,) = world.create(b"b")
    assert isinstance(first, Created)
    assert isinstance(second, Created)
    assert world.get(b"b", b"a", b"b", timeout_s=10) == []
    assert world.seal(first) == []
    copies = world.copies(world.seal(second))
    assert [copy and copy.serial for copy in copies] == [second.serial, first.serial, second.serial]
    assert world.release(second.serial, 2) == []
    assert world.table.next_wakeup() is None


def test_get_at_its_deadline_keeps_the_pins_it_reports(world: World) -> None:
    created = world.put(b"a")
    assert world.get(b"a", b"b", timeout_s=5) == []
    wakeup = world.table.next_wakeup()
    assert wakeup is not None
    assert (wakeup.at_s, wakeup.reason) == (105.0, "get or wait")
    assert world.table.expire(104.9) == []
    copy = Copy(created.serial, created.offset, 100)
    assert world.copies(world.table.expire(105.0)) == (copy, None)
    assert world.release(created.serial) == []


def test_cancelled_request_is_answered_once_with_what_there_is(world: World) -> None:
    created = world.put(b"a", CAPACITY // 2)
    world.get(b"a", b"b", timeout_s=math.inf)
    world.wait(b"a", b"b", wanted=2, timeout_s=math.inf)
    world.create(b"big", CAPACITY, client=READER, wait_s=math.inf)
    world.create(b"small", 64, client=OTHER, wait_s=math.inf)
    copy = Copy(created.serial, created.offset, CAPACITY // 2)
    assert world.table.cancel(READER, 2, world.now_s) == [Got(READER, 2, (copy, None))]
    assert world.table.cancel(READER, 3, world.now_s) == [Ready(READER, 3, (0,))]
    assert kinds(world.table.cancel(READER, 4, world.now_s)) == ["CreateRefused", "Created"]
    for request in (2, 3, 4, 99):
        assert world.table.cancel(READER, request, world.now_s) == []
    assert world.release(created.serial) == []


def test_wait_counts_distinct_positions_and_pins_nothing(world: World) -> None:
    world.put(b"a", evictable=True)
    assert world.wait(b"x", b"a", b"a", wanted=2) == [Ready(READER, 2, (1, 2))]
    assert world.wait(b"x", b"a", wanted=2, timeout_s=1) == []
    assert world.table.expire(200.0) == [Ready(READER, 3, (1,))]
    assert world.table.statistics().evictable_bytes > 0


def test_wait_for_more_than_there_are_is_bounded_by_the_list(world: World) -> None:
    world.put(b"a")
    assert world.wait(b"a", wanted=99) == [Ready(READER, 2, (0,))]
    assert world.wait(b"b", wanted=0) == [Ready(READER, 3, ())]


def test_eviction_takes_the_least_recently_used_first(world: World) -> None:
    first = world.put(b"a", CAPACITY // 4, evictable=True)
    world.put(b"b", CAPACITY // 4, evictable=True)
    world.put(b"c", CAPACITY // 4)
    world.get(b"a")
    world.release(first.serial)
    world.put(b"d", CAPACITY // 4)
    effects = world.create(b"e", CAPACITY // 4)
    assert kinds(effects) == ["Freed", "Created"]
    assert world.wait(b"a", b"b", b"c", wanted=3) == [Ready(READER, 7, (0, 2))]
    assert world.table.statistics().evicted_total == 1


def test_primary_and_viewed_copies_are_not_evicted(world: World) -> None:
    world.put(b"primary", CAPACITY // 4)
    world.put(b"viewed", CAPACITY // 4, evictable=True)
    world.get(b"viewed")
    world.now_s += 7
    (refused,) = world.create(b"new", CAPACITY * 3 // 4)
    assert isinstance(refused, CreateRefused)
    full = refused.fullness
    assert full.reason is FullReason.NO_ROOM
    assert (full.requested_bytes, full.capacity_bytes) == (CAPACITY * 3 // 4, CAPACITY)
    assert {holder.object_id: holder.pins for holder in full.holders} == {
        b"primary": 0,
        b"viewed": 1,
    }
    assert {holder.age_s for holder in full.holders} == {7.0}


def test_kept_copy_is_not_evicted_and_keeping_may_be_repeated(world: World) -> None:
    world.put(b"kept", CAPACITY // 2, evictable=True)
    world.put(b"other", CAPACITY // 4, evictable=True)
    for _ in range(2):
        (ready,) = world.keep(b"kept", b"nobody")
        assert isinstance(ready, Ready)
        assert ready.positions == (0,)
    assert isinstance(world.create(b"large", CAPACITY * 3 // 4)[-1], CreateRefused)
    assert isinstance(world.create(b"fits", CAPACITY // 2)[-1], Created)
    assert None not in world.copies(world.get(b"kept"))


def test_kept_copy_stays_when_its_last_view_ends(world: World) -> None:
    created = world.put(b"kept", CAPACITY // 2, evictable=True)
    world.get(b"kept")
    world.keep(b"kept")
    world.release(created.serial)
    assert isinstance(world.create(b"large", CAPACITY * 3 // 4)[-1], CreateRefused)
    assert "Freed" in kinds(world.delete(b"kept"))


def test_copy_that_is_still_written_can_not_be_kept_yet(world: World) -> None:
    created = world.create(b"a", evictable=True)[-1]
    assert isinstance(created, Created)
    (before,) = world.keep(b"a")
    world.seal(created)
    (after,) = world.keep(b"a")
    assert isinstance(before, Ready)
    assert isinstance(after, Ready)
    assert (before.positions, after.positions) == ((), (0,))


def test_nothing_is_evicted_for_an_object_that_cannot_fit_anyway(world: World) -> None:
    world.put(b"primary", CAPACITY // 2)
    world.put(b"copy", CAPACITY // 4, evictable=True)
    (refused,) = world.create(b"new", CAPACITY * 3 // 4)
    assert isinstance(refused, CreateRefused)
    assert world.table.statistics().evicted_total == 0


def test_object_larger_than_the_store_is_refused_at_once(world: World) -> None:
    (refused,) = world.create(b"huge", CAPACITY + 1, wait_s=math.inf)
    assert isinstance(refused, CreateRefused)
    assert refused.fullness.reason is FullReason.TOO_LARGE


def test_holders_are_the_biggest_first_and_bounded(world: World) -> None:
    for number in range(20):
        world.put(b"%02d" % number, 64 * (number + 1), owner=b"me")
    (refused,) = world.create(b"new", CAPACITY)
    assert isinstance(refused, CreateRefused)
    sizes = [holder.size_bytes for holder in refused.fullness.holders]
    assert sizes == [64 * number for number in range(20, 10, -1)]
    assert refused.fullness.holders[0].owner == b"me"


def test_waiting_creates_are_served_in_order(world: World) -> None:
    world.put(b"old", CAPACITY)
    assert world.create(b"big", CAPACITY // 2, wait_s=10) == []
    assert world.create(b"small", 100, wait_s=5) == []
    effects = world.delete(b"old")
    assert kinds(effects) == ["Freed", "Created", "Created"]
    assert [effect.wish.object_id for effect in effects if isinstance(effect, Created)] == [
        b"big",
        b"small",
    ]


def test_small_create_that_waits_does_not_overtake_a_large_one(world: World) -> None:
    old = world.put(b"old", CAPACITY // 2)
    world.get(b"old")
    assert world.create(b"big", CAPACITY, wait_s=10) == []
    assert world.create(b"patient", 100, wait_s=10) == []
    assert kinds(world.create(b"hasty", 100)) == ["Created"]
    world.delete(b"old", b"hasty")
    assert kinds(world.release(old.serial)) == ["Freed"], "the hasty one is still being written"


def test_waiting_create_is_refused_at_its_deadline_and_the_next_is_tried(world: World) -> None:
    world.put(b"old", CAPACITY // 2)
    assert world.create(b"big", CAPACITY, wait_s=5) == []
    assert world.create(b"small", 100, wait_s=10) == []
    wakeup = world.table.next_wakeup()
    assert wakeup is not None
    assert wakeup.reason == "create"
    world.now_s += 5
    assert kinds(world.table.expire(world.now_s)) == ["CreateRefused", "Created"]


def test_waiting_create_whose_id_appears_is_told_so(world: World) -> None:
    world.put(b"old", CAPACITY - 1024)
    assert world.create(b"a", 2000, wait_s=5) == []
    (created,) = world.create(b"a", 64)
    assert isinstance(created, Created)
    assert world.seal(created) == [CreateExists(WRITER, 2, is_sealed=True)]


def test_dead_client_leaves_nothing_but_sealed_objects(world: World) -> None:
    world.put(b"sealed")
    world.create(b"half")
    read = world.put(b"read", client=OTHER)
    world.get(b"read", client=WRITER)
    world.get(b"sealed", b"never", client=WRITER, timeout_s=math.inf)
    world.create(b"waiting", CAPACITY, wait_s=math.inf)
    world.delete(b"read")
    effects = world.table.client_gone(WRITER, world.now_s)
    assert kinds(effects) == ["Freed", "Freed"]
    assert Freed(read.offset, 128) in effects
    assert world.wait(b"sealed", b"half", wanted=2) == [Ready(READER, 7, (0,))]
    assert world.table.statistics().pinned_bytes == 0
    assert world.table.statistics().waiting_requests == 0


def test_dead_clients_room_goes_to_a_waiting_create(world: World) -> None:
    world.create(b"half", CAPACITY)
    assert world.create(b"waiting", 100, client=OTHER, wait_s=9) == []
    effects = world.table.client_gone(WRITER, world.now_s)
    assert kinds(effects) == ["Freed", "Created"]


def test_dead_owner_takes_its_objects_along(world: World) -> None:
    world.put(b"a", owner=b"dead")
    viewed = world.put(b"b", owner=b"dead")
    world.put(b"c", owner=b"alive")
    world.put(b"d")
    world.get(b"b")
    assert kinds(world.table.release_owner(b"dead", world.now_s)) == ["Freed"]
    assert world.wait(b"a", b"b", b"c", b"d", wanted=4) == [Ready(READER, 6, (2, 3))]
    assert kinds(world.release(viewed.serial)) == ["Freed"]
    assert world.table.release_owner(b"dead", world.now_s) == []


def test_range_without_pages_is_taken_back(world: World) -> None:
    (created,) = world.create(b"a")
    assert isinstance(created, Created)
    freed, refused = world.table.machine_short(created, world.now_s)
    assert isinstance(freed, Freed)
    assert isinstance(refused, CreateRefused)
    assert refused.fullness.reason is FullReason.MACHINE_SHORT
    assert kinds(world.create(b"a")) == ["Created"]


def test_statistics_account_for_every_byte(world: World) -> None:
    world.put(b"primary", 64)
    world.put(b"evictable", 128, evictable=True)
    world.put(b"viewed", 256)
    world.get(b"viewed")
    world.put(b"deleted", 512)
    world.get(b"deleted")
    world.delete(b"deleted")
    world.create(b"unsealed", 1024)
    counts = world.table.statistics()
    assert counts.used_bytes == 64 + 128 + 256 + 512 + 1024
    assert counts.primary_bytes == 64 + 256 + 512
    assert counts.evictable_bytes == 128
    assert counts.pinned_bytes == 256 + 512
    assert counts.deleted_bytes == 512
    assert counts.unsealed_bytes == 1024
    assert (counts.objects, counts.created_total, counts.clients) == (5, 5, 3)
    assert counts.largest_free_bytes == CAPACITY - counts.used_bytes
