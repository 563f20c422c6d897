from __future__ import annotations

from collections.abc import Iterator

import pytest

from skate_object_store.constants import (
    CREATE_WAIT_S,
    RESTORE_ANSWER_S,
    RESTORE_WAIT_S,
    SPILL_RETRY_S,
)
from skate_object_store.machine import spill_book
from skate_object_store.machine.facts import FullReason, ObjectState
from skate_object_store.machine.records import (
    Created,
    CreateExists,
    CreateRefused,
    CreateRequest,
    DeleteFile,
    Effect,
    GetLost,
    GetUnrestored,
    Got,
    GotPart,
    Place,
    ReadBack,
    Ready,
    SpillFailure,
    WriteBatch,
)
from skate_object_store.machine.table import ObjectTable
from skate_object_store.spill_config import SpillConfig

CAPACITY = 10_240
WRITER, READER, OTHER = 1, 2, 3
DISK_FULL = SpillFailure("95% full", is_disk_full=True)


class World:
    """A table that spills, three clients, a clock set by hand, and a disk that does as told."""

    def __init__(self, **config: object) -> None:
        options: dict[str, object] = {"min_batch_bytes": 3000, **config}
        spill = SpillConfig(directories=("d",), **options)  # type: ignore[arg-type]
        self.table = ObjectTable(CAPACITY, spill)
        self.now_s = 100.0
        self.request = 0
        for client in (WRITER, READER, OTHER):
            self.table.connect(client)

    def create(
        self,
        object_id: bytes,
        size: int = 1024,
        *,
        owner: bytes = b"",
        evictable: bool = False,
        wait_s: float | None = None,
    ) -> list[Effect]:
        self.request += 1
        deadline_s = self.now_s + (CREATE_WAIT_S if wait_s is None else wait_s)
        wish = CreateRequest(
            WRITER, self.request, object_id, size, owner, evictable, deadline_s, wait_s is None
        )
        return self.table.create(wish, self.now_s)

    def put(self, object_id: bytes, size: int = 1024, **options: object) -> list[Effect]:
        *before, created = self.create(object_id, size, **options)  # type: ignore[arg-type]
        assert isinstance(created, Created), created
        return before + self.seal(created)

    def seal(self, created: Created) -> list[Effect]:
        return self.table.seal(WRITER, created.serial, self.now_s, keeps_pin=False)

    def fill(self, count: int = 8, **options: object) -> None:
        """Primary objects a, b, c, ... of a tenth of the capacity each."""
        for number in range(count):
            assert self.put(bytes([97 + number]), **options) == []

    def get(self, *object_ids: bytes, client: int = READER, timeout_s: float = 0) -> list[Effect]:
        self.request += 1
        deadline_s = self.now_s + timeout_s
        return self.table.get(client, self.request, object_ids, self.now_s, deadline_s)

    def wait(self, *object_ids: bytes) -> list[Effect]:
        self.request += 1
        return self.table.wait(READER, self.request, object_ids, 99, self.now_s, self.now_s)

    def release_all(self, effects: list[Effect], client: int = READER) -> list[Effect]:
        (got,) = effects
        assert isinstance(got, Got)
        pins = [(copy.serial, 1) for copy in got.copies if copy is not None]
        return self.table.release(client, pins, self.now_s)

    def write(
        self,
        batch: Effect,
        *,
        failure: SpillFailure | None = None,
        count: int | None = None,
        room_bytes: int | None = None,
    ) -> list[Effect]:
        """The disk has written a batch, or its first ``count`` objects."""
        assert isinstance(batch, WriteBatch)
        key = f"file {batch.number}"
        places: dict[int, Place] = {}
        for item in batch.items[: 0 if failure and count is None else count]:
            places[item.serial] = Place(key, len(places), item.size_bytes, 7)
        return self.table.spill_ended(batch.number, key, places, failure, room_bytes, self.now_s)

    def read(self, effects: list[Effect]) -> list[Effect]:
        """The range of a restore has its pages, and the disk has read into it."""
        return self.table.restored(self.begin_reading(effects).serial, self.now_s)

    def begin_reading(self, effects: list[Effect]) -> ReadBack:
        created = effects[-1]
        assert isinstance(created, Created)
        (read,) = self.table.read_back(created, self.now_s)
        assert isinstance(read, ReadBack)
        return read

    def put_on_disk(self, *object_ids: bytes, size: int = 1024, owner: bytes = b"") -> None:
        """These objects are on disk only, in one file."""
        for object_id in object_ids:
            self.put(object_id, size, owner=owner)
        *_, batch = self.create(b"\xff", CAPACITY, wait_s=1.0)
        (created,) = [e for e in self.write(batch) if isinstance(e, Created)]
        states = self.states()
        assert all(states[object_id] is ObjectState.SPILLED for object_id in object_ids)
        self.table.abort(WRITER, created.serial, self.now_s)

    def states(self) -> dict[bytes, ObjectState]:
        return {record.object_id: record.state for record in self.table.objects(self.now_s, 100)}


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.table.check_invariants()


def ids_of(world: World, batch: Effect) -> list[bytes]:
    assert isinstance(batch, WriteBatch)
    by_serial = {e.copy.serial: e.object_id for e in world.table._inventory._entries.values()}
    return [by_serial[item.serial] for item in batch.items]


def test_nothing_is_spilled_below_the_threshold(world: World) -> None:
    world.fill(8)
    assert world.table.statistics().spilling_objects == 0


def test_threshold_starts_a_batch_of_the_least_recently_used(world: World) -> None:
    world.fill(8)
    world.release_all(world.get(b"a"))
    (batch,) = world.put(b"i")
    assert ids_of(world, batch) == [b"b", b"c", b"d"]
    assert world.write(batch) == []
    assert world.states()[b"b"] is ObjectState.EVICTABLE
    assert world.states()[b"a"] is ObjectState.PRIMARY


def test_viewed_objects_are_not_spilled(world: World) -> None:
    world.fill(8)
    world.get(b"a", b"b", b"c")
    (batch,) = world.put(b"i")
    assert ids_of(world, batch) == [b"d", b"e", b"f"]


def test_batch_holds_no_more_objects_than_may_be_fused() -> None:
    world = World(fuse_max=1)
    world.fill(8)
    (batch,) = world.put(b"i")
    assert ids_of(world, batch) == [b"a"]


def test_what_is_on_disk_counts_as_kept(world: World) -> None:
    world.put_on_disk(b"a", b"b")
    world.request += 1
    (ready,) = world.table.keep(READER, world.request, [b"nobody", b"a", b"b"], world.now_s)
    assert isinstance(ready, Ready)
    assert ready.positions == (1, 2)
    assert world.states() == {b"a": ObjectState.SPILLED, b"b": ObjectState.SPILLED}


def test_evictable_copies_go_before_anything_is_spilled(world: World) -> None:
    world.fill(8, evictable=True)
    world.put(b"primary", 4096)
    assert world.table.statistics().spilling_objects == 0
    assert world.table.statistics().evicted_total > 0


def test_create_waits_for_a_batch_and_is_granted_after_it(world: World) -> None:
    world.fill(8)
    (batch,) = world.create(b"big", 3000)
    *freed, created = world.write(batch)
    assert isinstance(created, Created)
    assert len(freed) == 3
    assert world.states()[b"a"] is ObjectState.SPILLED


def test_create_waits_for_several_batches_if_one_is_not_enough(world: World) -> None:
    world.fill(8)
    (batch,) = world.create(b"big", 8192)
    for _ in range(2):
        (batch,) = [effect for effect in world.write(batch) if isinstance(effect, WriteBatch)]
    assert isinstance(world.write(batch)[-1], Created)


def test_create_that_may_not_wait_is_refused(world: World) -> None:
    world.fill(8)
    (refused,) = world.create(b"big", 3000, wait_s=0.0)
    assert isinstance(refused, CreateRefused)


def test_create_is_refused_at_once_when_views_hold_everything(world: World) -> None:
    world.fill(8)
    world.get(*(bytes([97 + number]) for number in range(8)))
    (refused,) = world.create(b"big", 3000)
    assert isinstance(refused, CreateRefused)
    assert refused.fullness.reason is FullReason.NO_ROOM
    assert {holder.pins for holder in refused.fullness.holders} == {1}


def test_failed_write_keeps_the_objects_and_refuses_the_create(world: World) -> None:
    world.fill(8)
    (batch,) = world.create(b"big", 3000)
    (refused,) = world.write(batch, failure=DISK_FULL)
    assert isinstance(refused, CreateRefused)
    assert refused.fullness.reason is FullReason.DISK_FULL
    assert refused.fullness.detail == "95% full"
    assert set(world.states().values()) == {ObjectState.PRIMARY}
    assert world.table.statistics().spill_failures_total == 1


def test_create_that_waits_tries_again_after_a_failed_write(world: World) -> None:
    world.fill(8)
    (batch,) = world.create(b"big", 3000, wait_s=5.0)
    assert world.write(batch, failure=DISK_FULL) == []
    wakeup = world.table.next_wakeup()
    assert wakeup is not None
    assert (wakeup.at_s, wakeup.reason) == (world.now_s + SPILL_RETRY_S, "spill")
    world.now_s = wakeup.at_s
    (batch,) = world.table.expire(world.now_s)
    assert isinstance(world.write(batch)[-1], Created)


def test_deleted_file_lets_the_next_create_try_at_once(world: World) -> None:
    world.put_on_disk(b"x", b"y")
    world.fill(8)
    (batch,) = world.create(b"big", 3000)
    world.write(batch, failure=DISK_FULL)
    assert isinstance(world.create(b"big", 3000)[0], CreateRefused)
    assert world.table.delete([b"x", b"y"], world.now_s) == [DeleteFile("file 1")]
    assert isinstance(world.create(b"big", 3000)[0], WriteBatch)


def test_part_of_a_batch_that_was_written_is_spilled(world: World) -> None:
    world.fill(8)
    (batch,) = world.create(b"big", 3000)
    *_, refused = world.write(batch, failure=DISK_FULL, count=1)
    assert isinstance(refused, CreateRefused)
    assert world.states()[b"a"] is ObjectState.EVICTABLE
    assert world.states()[b"b"] is ObjectState.PRIMARY


def test_disk_that_is_nearly_full_leaves_room_in_memory_to_read_from_it(world: World) -> None:
    world.fill(8)
    (batch,) = world.create(b"big", 3000, wait_s=30)
    *_, created = world.write(batch, room_bytes=100)
    assert isinstance(created, Created)
    world.seal(created)
    (batch,) = world.create(b"x", 1024)
    *_, refused = world.write(batch, failure=DISK_FULL, room_bytes=100)
    assert isinstance(refused, CreateRefused), "2048 bytes are free, and kept for restores"
    assert refused.fullness.reason is FullReason.DISK_FULL
    viewed = world.read(world.get(b"a"))
    for name in (b"b", b"c"):
        world.release_all(world.read(world.get(name)))
    world.release_all(viewed)


def test_object_stays_readable_while_it_is_written(world: World) -> None:
    world.fill(8)
    (batch,) = world.create(b"big", 3000, wait_s=9.0)
    effects = world.get(b"a")
    assert world.states()[b"a"] is ObjectState.PRIMARY
    assert not [e for e in world.write(batch) if isinstance(e, Created)], "a is still viewed"
    assert world.states()[b"a"] is ObjectState.EVICTABLE
    world.release_all(effects)


def test_object_deleted_while_it_is_written_is_freed_after_and_not_kept(world: World) -> None:
    world.fill(8)
    (batch,) = world.put(b"i")
    assert world.table.delete([b"a", b"b", b"c"], world.now_s) == []
    effects = world.write(batch)
    assert effects[0] == DeleteFile("file 1")
    assert world.table.statistics().disk_objects == 0
    assert b"a" not in world.states()


def test_owner_tag_reaches_what_is_on_disk(world: World) -> None:
    world.put_on_disk(b"x", owner=b"ann")
    assert world.table.release_owner(b"ann", world.now_s) == [DeleteFile("file 1")]
    assert world.get(b"x")[0] == Got(READER, world.request, (None,))


def test_file_goes_with_its_last_object(world: World) -> None:
    world.put_on_disk(b"x", b"y")
    assert world.table.delete([b"x"], world.now_s) == []
    assert world.table.delete([b"y"], world.now_s) == [DeleteFile("file 1")]


def test_gets_share_one_restore(world: World) -> None:
    world.put_on_disk(b"x")
    effects = world.get(b"x")
    assert world.get(b"x", client=OTHER) == []
    answers = world.read(effects)
    assert [type(answer) for answer in answers] == [Got, Got]
    assert world.states()[b"x"] is ObjectState.EVICTABLE


def test_restored_object_is_dropped_without_writing_it_again(world: World) -> None:
    world.put_on_disk(b"x")
    world.release_all(world.read(world.get(b"x")))
    assert isinstance(world.create(b"big", CAPACITY)[-1], Created)
    assert world.states()[b"x"] is ObjectState.SPILLED
    assert world.table.statistics().spilled_total == 1


def test_get_without_time_waits_for_the_restore_but_not_for_what_is_missing(world: World) -> None:
    world.put_on_disk(b"x")
    (got,) = world.read(world.get(b"x", b"missing"))
    assert isinstance(got, Got)
    assert [copy is None for copy in got.copies] == [False, True]


def test_get_is_answered_in_part_while_a_restore_takes_long(world: World) -> None:
    world.put_on_disk(b"x")
    world.put(b"y")
    effects = world.get(b"y", b"x")
    world.now_s += RESTORE_ANSWER_S
    (part,) = world.table.expire(world.now_s)
    assert isinstance(part, GotPart)
    assert part.restoring == (1,)
    assert part.copies[0] is not None
    assert world.get(b"x") == [], "it joins the restore that is under way"
    (got,) = world.read(effects)
    assert isinstance(got, Got)


def test_wait_is_content_with_what_is_on_disk(world: World) -> None:
    world.put_on_disk(b"x")
    assert world.wait(b"missing", b"x") == [Ready(READER, world.request, (1,))]
    assert world.states()[b"x"] is ObjectState.SPILLED


def test_create_of_an_id_that_is_on_disk_is_refused(world: World) -> None:
    world.put_on_disk(b"x")
    assert world.create(b"x") == [CreateExists(WRITER, world.request, is_sealed=True)]


def test_restore_makes_room_by_spilling_and_goes_before_creates(world: World) -> None:
    world.put_on_disk(b"x", size=3000)
    world.fill(8)
    (batch,) = world.get(b"x", timeout_s=9.0)
    assert world.create(b"other", 2900, wait_s=9.0) == []
    effects = world.write(batch)
    assert [e.wish.client for e in effects if isinstance(e, Created)] == [0]
    assert isinstance(effects[-1], WriteBatch), "the create is next"


def test_restore_without_room_fails_the_get_and_creates_pass_it(world: World) -> None:
    world.put_on_disk(b"x", size=4096)
    world.fill(8)
    held = world.get(*(bytes([97 + number]) for number in range(8)), client=OTHER)
    assert world.get(b"x", timeout_s=60) == []
    assert isinstance(world.create(b"small", 512)[0], Created)
    world.now_s += RESTORE_WAIT_S
    (failed,) = world.table.expire(world.now_s)
    assert isinstance(failed, GetUnrestored)
    assert failed.fullness.reason is FullReason.NO_ROOM
    assert world.states()[b"x"] is ObjectState.SPILLED
    world.release_all(held, OTHER)
    world.get(b"x")
    assert world.states()[b"x"] is ObjectState.RESTORING, "and is tried anew when asked for"


def test_delete_ends_a_restore_and_those_who_only_wait_for_it(world: World) -> None:
    world.put_on_disk(b"x")
    effects = world.get(b"x")
    read = world.begin_reading(effects)
    *_, answer = world.table.delete([b"x"], world.now_s)
    assert answer == Got(READER, world.request, (None,))
    world.table.restored(read.serial, world.now_s)
    assert world.table.statistics().used_bytes == 0


def test_dead_client_ends_no_restore_that_another_waits_for(world: World) -> None:
    world.put_on_disk(b"x")
    effects = world.get(b"x")
    world.get(b"x", client=OTHER)
    world.table.client_gone(READER, world.now_s)
    (got,) = world.read(effects)
    assert isinstance(got, Got)
    assert got.client == OTHER


def test_dead_client_takes_a_restore_that_waits_for_room_along(world: World) -> None:
    world.put_on_disk(b"x", size=4096)
    world.fill(8)
    world.get(*(bytes([97 + number]) for number in range(8)), client=OTHER)
    world.get(b"x")
    world.table.client_gone(READER, world.now_s)
    assert world.table.statistics().restoring_objects == 0
    assert world.states()[b"x"] is ObjectState.SPILLED


def test_damaged_object_is_lost_until_it_is_made_anew(world: World) -> None:
    world.put_on_disk(b"x")
    world.put(b"y")
    read = world.begin_reading(world.get(b"y", b"x"))
    effects = world.table.restore_failed(read.serial, "torn", world.now_s, is_lost=True)
    assert GetLost(READER, world.request, b"x", "torn") in effects
    assert world.table.statistics().pinned_bytes == 0, "the get keeps no pin on y"
    assert world.get(b"x") == [GetLost(READER, world.request, b"x", "torn")]
    assert world.states()[b"x"] is ObjectState.LOST
    assert world.wait(b"x") == [Ready(READER, world.request, ())]
    world.put(b"x")
    assert isinstance(world.get(b"x")[0], Got)
    assert world.table.statistics().lost_objects == 0


def test_oldest_loss_is_forgotten_when_there_are_very_many(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill_book, "LOST_KEPT_MAX", 1)
    for name in (b"x", b"y"):
        world.put_on_disk(name)
        read = world.begin_reading(world.get(name))
        world.table.restore_failed(read.serial, "torn", world.now_s, is_lost=True)
        world.table.check_invariants()
    assert world.table.statistics().lost_objects == 1
    assert isinstance(world.get(b"y")[0], GetLost)
    assert world.get(b"x") == [Got(READER, world.request, (None,))]


def test_object_that_could_not_be_read_is_tried_again_by_the_next_get(world: World) -> None:
    world.put_on_disk(b"x")
    read = world.begin_reading(world.get(b"x"))
    effects = world.table.restore_failed(read.serial, "timeout", world.now_s, is_lost=False)
    assert effects[-1] == GetLost(READER, world.request, b"x", "timeout", is_final=False)
    assert isinstance(world.read(world.get(b"x"))[-1], Got)


def test_restore_that_the_machine_has_no_pages_for_fails_the_get(world: World) -> None:
    world.put_on_disk(b"x")
    (created,) = world.get(b"x")
    assert isinstance(created, Created)
    *_, failed = world.table.machine_short(created, world.now_s)
    assert isinstance(failed, GetUnrestored)
    assert failed.fullness.reason is FullReason.MACHINE_SHORT


def test_objects_are_listed_once_with_state_note_and_views(world: World) -> None:
    world.put_on_disk(b"x", size=3000)
    wish = CreateRequest(WRITER, 999, b"n", 2000, b"ann", False, 0, note="job.py:7")
    (created,) = world.table.create(wish, world.now_s)
    world.now_s += 5
    (writing,) = [r for r in world.table.objects(world.now_s, 9) if r.object_id == b"n"]
    assert (writing.state, writing.note, writing.owner) == (ObjectState.WRITING, "job.py:7", b"ann")
    assert writing.age_s == 5
    assert isinstance(created, Created)
    world.seal(created)
    world.get(b"n")
    world.table.delete([b"n"], world.now_s)
    biggest, deleted = world.table.objects(world.now_s, 9)
    assert (biggest.object_id, biggest.state) == (b"x", ObjectState.SPILLED)
    assert (deleted.state, deleted.pins) == (ObjectState.DELETED, 1)
    assert world.table.objects(world.now_s, 1) == [biggest]


def test_restored_object_keeps_its_age_owner_and_note(world: World) -> None:
    wish = CreateRequest(WRITER, 999, b"n", 2000, b"ann", False, 0, note="job.py:7")
    (created,) = world.table.create(wish, world.now_s)
    assert isinstance(created, Created)
    world.seal(created)
    world.put_on_disk()
    world.now_s += 5
    world.read(world.get(b"n"))
    (record,) = world.table.objects(world.now_s, 9)
    assert (record.age_s, record.owner, record.note) == (5, b"ann", "job.py:7")
    assert record.is_on_disk
