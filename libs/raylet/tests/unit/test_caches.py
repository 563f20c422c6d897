from __future__ import annotations

from typing import Any

from skate_raylet.service.actor_directory import DEAD_KEPT_MAX, ActorDirectory
from skate_raylet.service.function_cache import FunctionCache
from skate_raylet.service.job_book import Job, JobBook, job_of
from skate_rpc.node_protocol import ActorUpdate, ActorView


class Process:
    def __init__(self) -> None:
        self.actors: dict[bytes, None] = {}
        self.got: list[Any] = []

    def send(self, message: Any) -> None:
        self.got.append(message)


def view(state: str, actor_id: bytes = b"a") -> ActorView:
    return ActorView(actor_id, state)


def test_function_cache_drops_the_least_recently_used() -> None:
    cache = FunctionCache(10)
    cache.put(b"a", b"1234")
    cache.put(b"b", b"1234")
    assert cache.get(b"a") == b"1234"
    cache.put(b"c", b"1234")
    assert (cache.get(b"a"), cache.get(b"b"), cache.get(b"c")) == (b"1234", None, b"1234")


def test_function_cache_keeps_nothing_larger_than_itself_and_counts_replacements_once() -> None:
    cache = FunctionCache(10)
    cache.put(b"a", b"x" * 11)
    assert cache.get(b"a") is None
    for _ in range(5):
        cache.put(b"b", b"x" * 6)
    cache.put(b"c", b"x" * 4)
    assert cache.get(b"b") is not None
    cache.discard(b"b")
    assert cache.get(b"b") is None


def test_directory_tells_the_known_state_and_asks_for_an_unknown_one() -> None:
    asked: list[bytes] = []
    directory = ActorDirectory(asked.append)
    process: Any = Process()
    directory.subscribe(process, b"a")
    assert asked == [b"a"]
    directory.answer(b"a", view("ALIVE"))
    assert process.got == [ActorUpdate(view("ALIVE"))]
    other: Any = Process()
    directory.subscribe(other, b"a")
    assert other.got == [ActorUpdate(view("ALIVE"))]
    assert asked == [b"a"]


def test_directory_an_answer_never_overtakes_an_event() -> None:
    directory = ActorDirectory(lambda actor_id: None)
    process: Any = Process()
    directory.subscribe(process, b"a")
    directory.update(view("DEAD"))
    directory.answer(b"a", view("ALIVE"))
    assert [update.actor.state for update in process.got] == ["DEAD"]


def test_directory_repeated_snapshot_tells_nothing_new() -> None:
    directory = ActorDirectory(lambda actor_id: None)
    process: Any = Process()
    directory.subscribe(process, b"a")
    for _ in range(3):
        directory.update(view("ALIVE"))
    assert len(process.got) == 1


def test_directory_forgotten_process_hears_no_more() -> None:
    directory = ActorDirectory(lambda actor_id: None)
    process: Any = Process()
    directory.subscribe(process, b"a")
    directory.forget(process)
    directory.update(view("ALIVE"))
    assert process.got == []


def test_directory_keeps_a_bounded_number_of_dead_actors() -> None:
    directory = ActorDirectory(lambda actor_id: None)
    for number in range(DEAD_KEPT_MAX + 10):
        directory.update(view("DEAD", b"%d" % number))
    assert directory.get(b"0") is None
    assert directory.get(b"%d" % (DEAD_KEPT_MAX + 9)) is not None


def test_job_book_tells_an_end_once() -> None:
    from skate_rpc.gen.skate.v1 import gcs_pb2

    book = JobBook()
    info = gcs_pb2.JobInfo(job_id=b"j", namespace="n", metadata={"skate:sys_path": '["/x", 3]'})
    assert not book.update(job_of(info))
    assert book.get(b"j") == Job(b"j", "n", ("/x",))
    assert book.finish(b"j")
    assert not book.finish(b"j")
    info.finished = True
    assert not book.update(job_of(info))
    assert book.get(b"j").namespace == "n"
    assert book.get(b"unknown").sys_path == ()
