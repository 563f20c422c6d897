from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

import skate_core_ids
from skate_core_ids import (
    ActorID,
    BaseID,
    JobID,
    NodeID,
    ObjectID,
    PlacementGroupID,
    TaskID,
    TaskIdSource,
    UniqueID,
    WorkerID,
)

SIZES = {
    JobID: 4,
    ActorID: 16,
    TaskID: 24,
    ObjectID: 28,
    PlacementGroupID: 18,
    UniqueID: 28,
    NodeID: 28,
    WorkerID: 28,
}
ID_CLASSES = pytest.mark.parametrize("id_class", SIZES, ids=lambda cls: cls.__name__)

job_numbers = st.integers(min_value=0, max_value=2**32 - 2)
return_indexes = st.integers(min_value=1, max_value=2**31 - 1)
put_indexes = st.integers(min_value=0, max_value=2**31 - 1)


@ID_CLASSES
def test_size_of_each_class_matches_the_layout(id_class: type[BaseID]) -> None:
    assert id_class.size() == SIZES[id_class]
    assert len(id_class.from_random()) == SIZES[id_class]


@ID_CLASSES
def test_id_from_wrong_length_raises_naming_the_class(id_class: type[BaseID]) -> None:
    for length in (0, id_class.SIZE - 1, id_class.SIZE + 1):
        with pytest.raises(ValueError, match=id_class.__name__):
            id_class(b"x" * length)


@ID_CLASSES
def test_id_through_hex_and_binary_is_unchanged(id_class: type[BaseID]) -> None:
    made = id_class.from_random()
    assert id_class.from_hex(made.hex()) == made
    assert id_class(made.binary()) == made
    assert type(made.binary()) is bytes


@ID_CLASSES
@pytest.mark.parametrize("text", ["", "zz", "0", "é"])
def test_id_from_bad_hex_raises_value_error(id_class: type[BaseID], text: str) -> None:
    with pytest.raises(ValueError, match=id_class.__name__):
        id_class.from_hex(text)


@ID_CLASSES
def test_nil_id_is_nil_and_a_random_one_is_not(id_class: type[BaseID]) -> None:
    assert id_class.nil().is_nil()
    assert not id_class(b"\0" * id_class.SIZE).is_nil()


@ID_CLASSES
def test_id_pickled_keeps_class_value_and_hash(id_class: type[BaseID]) -> None:
    made = id_class.from_random()
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        copy = pickle.loads(pickle.dumps(made, protocol))
        assert type(copy) is id_class
        assert copy == made
        assert hash(copy) == hash(made)


@ID_CLASSES
def test_id_shown_gives_hex_and_class(id_class: type[BaseID]) -> None:
    made = id_class.from_random()
    assert str(made) == made.hex()
    assert repr(made) == f"{id_class.__name__}({made.hex()})"


@ID_CLASSES
def test_id_holds_no_attributes(id_class: type[BaseID]) -> None:
    with pytest.raises(AttributeError):
        id_class.nil().note = "x"  # type: ignore[attr-defined]


def test_id_as_dictionary_key_is_found_by_its_bytes() -> None:
    node = NodeID.from_random()
    assert {node: "here"}[bytes(node)] == "here"  # type: ignore[index]


@given(job_numbers)
def test_job_number_survives_the_round_trip(number: int) -> None:
    assert JobID.from_int(number).to_int() == number


def test_job_ids_sort_in_order_of_arrival() -> None:
    jobs = [JobID.from_int(number) for number in (65536, 1, 256, 255, 2)]
    assert [job.to_int() for job in sorted(jobs)] == [1, 2, 255, 256, 65536]


@given(job_numbers, return_indexes)
def test_return_of_actor_call_knows_its_task_actor_and_job(number: int, index: int) -> None:
    job = JobID.from_int(number)
    actor = ActorID.of(job)
    task = TaskID.of_actor(actor)
    returned = ObjectID.of_return(task, index)
    assert returned.task_id() == task
    assert returned.index() == index
    assert not returned.is_put()
    assert task.actor_id() == actor
    assert task.is_actor_task()
    assert returned.job_id() == task.job_id() == actor.job_id() == job


@given(job_numbers, put_indexes)
def test_put_of_plain_task_knows_its_task_and_job(number: int, index: int) -> None:
    job = JobID.from_int(number)
    task = TaskID.of_job(job)
    value = ObjectID.of_put(task, index)
    assert value.is_put()
    assert value.index() == index + ObjectID.FIRST_PUT_INDEX
    assert value.task_id() == task
    assert value.job_id() == task.job_id() == job
    assert not task.is_actor_task()
    assert task.actor_id() == ActorID.nil_of(job)


@given(return_indexes, put_indexes)
def test_return_and_put_of_one_task_never_collide(returned: int, put: int) -> None:
    task = TaskID.of_job(JobID.from_int(1))
    assert ObjectID.of_return(task, returned) != ObjectID.of_put(task, put)


def test_object_index_past_the_limit_raises() -> None:
    task = TaskID.of_job(JobID.from_int(1))
    with pytest.raises(OverflowError):
        ObjectID.of_put(task, 2**31)
    with pytest.raises(OverflowError):
        ObjectID.of_return(task, 2**32)


def test_placement_group_id_knows_its_job() -> None:
    job = JobID.from_int(7)
    assert PlacementGroupID.of(job).job_id() == job


def test_task_id_source_gives_distinct_ids_with_the_given_parent() -> None:
    source = TaskIdSource()
    actor = ActorID.of(JobID.from_int(3))
    made = [source.of(actor) for _ in range(1000)]
    assert len(set(made)) == len(made)
    assert {task.actor_id() for task in made} == {actor}
    assert {len(task) for task in made} == {TaskID.SIZE}
    assert {type(task) for task in made} == {TaskID}


def test_task_id_source_past_64_bits_starts_again_at_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("skate_core_ids.ids.os.urandom", lambda size: b"\xff" * size)
    source = TaskIdSource()
    suffix = ActorID.nil_of(JobID.from_int(1))
    assert source.of(suffix)[:8] == b"\xff" * 8
    assert source.of(suffix)[:8] == b"\0" * 8


def test_two_task_id_sources_differ() -> None:
    suffix = ActorID.nil_of(JobID.from_int(1))
    assert TaskIdSource().of(suffix) != TaskIdSource().of(suffix)


def test_every_exported_name_exists() -> None:
    assert [name for name in skate_core_ids.__all__ if not hasattr(skate_core_ids, name)] == []
