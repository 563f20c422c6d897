"""Actor classes, handles and methods: what is checked and what reaches the runtime."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import cloudpickle
import pytest

import skate
from libs.api.tests.unit.recording_core import RecordingCore, actor_row
from skate.actor import ActorClass, ActorClassInheritanceException, ActorHandle, exit_actor
from skate.actor_state import decode_state
from skate_worker import current
from skate_worker.context import TaskContext
from skate_worker.errors import ActorHandleNotFoundError
from skate_worker.generator_returns import STATIC, STREAMING, decode_returns


class Base:
    def inherited(self, x: int) -> int:
        return x


@skate.remote
class Counter(Base):
    """Counts."""

    start = 5

    def __init__(self, first: int, *, step: int = 1) -> None:
        self.value = first

    def add(self, amount: int = 1) -> int:
        return amount

    @skate.method(num_returns=2, max_task_retries=4, retry_exceptions=[ValueError])
    def both(self) -> tuple[int, int]:
        return 1, 2

    @skate.method
    def bare(self) -> None: ...

    @staticmethod
    def static(x: int) -> int:
        return x

    @classmethod
    def made(cls, x: int) -> int:
        return x

    def stream(self) -> Any:
        yield 1


@skate.remote
class Plain:
    pass


@skate.remote
class Async:
    async def work(self) -> None: ...


def test_creation_uses_one_cpu_to_be_placed_and_none_to_live(core: RecordingCore) -> None:
    Counter.remote(1, step=2)

    kind, class_id, args, kwargs, options = core.calls[0]
    assert (kind, class_id, args, kwargs) == ("create", b"id1", (1,), {"step": 2})
    assert options.class_name == "Counter"
    assert options.placement_resources == (("CPU", 10_000),)
    assert options.running_resources == ()
    assert (options.max_restarts, options.max_task_retries) == (0, 0)
    assert (options.max_concurrency, options.is_async) == (1, False)
    assert not options.is_detached
    assert not options.get_if_exists


def test_actor_that_asks_for_resources_holds_them(core: RecordingCore) -> None:
    Plain.options(num_gpus=1).remote()
    Plain.options(num_cpus=0).remote()

    assert core.calls[0][4].running_resources == (("CPU", 10_000), ("GPU", 10_000))
    assert core.calls[1][4].placement_resources == core.calls[1][4].running_resources == ()


def test_async_class_runs_a_thousand_calls_at_once(core: RecordingCore) -> None:
    Async.remote()
    Async.options(max_concurrency=3).remote()

    assert [(call[4].is_async, call[4].max_concurrency) for call in core.calls] == [
        (True, 1000),
        (True, 3),
    ]


def test_named_detached_actor_is_passed_on(core: RecordingCore) -> None:
    options = {"name": "a", "namespace": "n", "lifetime": "detached", "get_if_exists": True}
    Plain.options(**options, max_restarts=-1).remote()

    given = core.calls[0][4]
    assert (given.name, given.namespace, given.is_detached) == ("a", "n", True)
    assert (given.get_if_exists, given.max_restarts) == (True, -1)


def test_get_if_exists_without_name_raises_at_creation(core: RecordingCore) -> None:
    with pytest.raises(ValueError, match="name"):
        Plain.options(get_if_exists=True).remote()


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2), {}), ((1,), {"z": 1})])
def test_wrong_constructor_arguments_raise_at_creation(
    core: RecordingCore, args: Any, kwargs: Any
) -> None:
    with pytest.raises(TypeError, match=r"Counter\(\)"):
        Counter.remote(*args, **kwargs)
    assert core.calls == []


def test_class_without_constructor_takes_nothing(core: RecordingCore) -> None:
    Plain.remote()
    with pytest.raises(TypeError, match=r"Plain\(\) takes 0"):
        Plain.remote(1)


def test_direct_instantiation_suggests_remote() -> None:
    with pytest.raises(TypeError, match=r"write Counter\.remote"):
        Counter(1)


def test_deriving_from_an_actor_class_is_refused() -> None:
    with pytest.raises(ActorClassInheritanceException):

        class Derived(Counter):  # type: ignore[misc, valid-type]
            pass

    assert issubclass(ActorClassInheritanceException, TypeError)


def test_class_attributes_and_static_methods_are_reachable() -> None:
    assert Counter.start == 5
    assert Counter.static(3) == 3
    assert Counter.made(4) == 4
    assert Counter.__name__ == "Counter"
    assert Counter.__doc__ == "Counts."
    with pytest.raises(AttributeError):
        Counter.nothing  # noqa: B018


def test_exported_class_loads_with_built_in_methods(core: RecordingCore) -> None:
    Counter.remote(1)

    loaded = cloudpickle.loads(cloudpickle.dumps(core.exports[0]))
    instance = loaded(3)
    assert loaded.__name__ == "Counter"
    assert instance.__ray_ready__() is True
    assert instance.__ray_call__(lambda self, x, y=0: (self.value, x, y), 1, y=2) == (3, 1, 2)
    with pytest.raises(SystemExit):
        instance.__ray_terminate__()


def test_unpicklable_class_is_told_with_the_path(core: RecordingCore) -> None:
    import threading

    from skate_worker.inspect_pickle import find_unpicklable

    lock = threading.Lock()

    @skate.remote
    class Holder:
        def work(self) -> Any:
            return lock

    Holder.remote()

    path = find_unpicklable(core.exports[0])
    assert path[-3:] == ["method work()", "closure variable lock", "_thread.lock"]


def test_method_call_reaches_the_runtime(core: RecordingCore) -> None:
    handle = Counter.remote(1)

    assert handle.add.remote(amount=2) == "ref0"

    kind, actor_id, args, kwargs, options = core.calls[1]
    assert (kind, actor_id) == ("call", handle._actor_id)
    assert (args, kwargs) == ((), {"amount": 2})
    assert (options.method, options.name) == ("add", "Counter.add")
    assert (options.num_returns, options.max_task_retries) == (1, 0)


def test_method_options_come_from_decorator_class_and_call(core: RecordingCore) -> None:
    handle = Counter.options(max_task_retries=7).remote(1)
    assert handle.both.remote() == ["ref0", "ref1"]
    handle.add.remote()
    assert handle.both.options(num_returns=0, name="n", max_task_retries=1).remote() is None

    both, add, changed = (call[4] for call in core.calls[1:])
    assert (both.max_task_retries, both.retry_exceptions) == (4, (ValueError,))
    assert add.max_task_retries == 7
    assert (changed.name, changed.max_task_retries) == ("n", 1)


@pytest.mark.parametrize("name", ["inherited", "static", "made"])
def test_inherited_static_and_class_methods_are_methods(core: RecordingCore, name: str) -> None:
    handle = Counter.remote(1)

    getattr(handle, name).remote(3)
    with pytest.raises(TypeError, match=name):
        getattr(handle, name).remote()


def test_method_arguments_are_checked_at_the_call(core: RecordingCore) -> None:
    handle = Counter.remote(1)

    for args, kwargs in (((1, 2), {}), ((), {"z": 1})):
        with pytest.raises(TypeError, match=r"Counter\.add\(\)"):
            handle.add.remote(*args, **kwargs)


def test_generator_method_streams_unless_told_otherwise(core: RecordingCore) -> None:
    handle = Counter.remote(1)

    assert handle.stream.remote() == "ref0"
    assert handle.stream.options(num_returns=2).remote() == ["ref0", "ref1"]
    assert handle.stream.options(_generator_backpressure_num_objects=3).remote() == "ref0"
    assert handle.stream.options(name="other").remote() == "ref0"
    assert [decode_returns(call[4].num_returns) for call in core.calls[1:]] == [
        (STREAMING, 0),
        (STATIC, 2),
        (STREAMING, 3),
        (STREAMING, 0),
    ]


def test_stream_of_a_method_that_does_not_yield_is_refused(core: RecordingCore) -> None:
    class Source:
        @skate.method(num_returns="streaming")
        def one(self) -> int:
            return 1

    with pytest.raises(ValueError, match=r"Source\.one does not yield"):
        skate.remote(Source)
    with pytest.raises(ValueError, match="does not yield"):
        Counter.remote(1).add.options(num_returns="streaming")


def test_bound_is_refused_for_async_actors_only(core: RecordingCore) -> None:
    class Source:
        async def stream(self) -> AsyncIterator[int]:
            yield 1

        def plain(self) -> Iterator[int]:
            yield 1

    class Bounded:
        @skate.method(_generator_backpressure_num_objects=2)
        def stream(self) -> Iterator[int]:
            yield 1

    handle = skate.remote(Source).remote()
    for method in (handle.stream, handle.plain):
        with pytest.raises(ValueError, match="async actor"):
            method.options(_generator_backpressure_num_objects=2)
    bounded = skate.remote(Bounded).remote()
    bounded.stream.remote()
    bounded.stream.options(num_returns="streaming").remote()
    bounded.stream.options(_generator_backpressure_num_objects=-1).remote()
    bounded.stream.options(num_returns=3).remote()
    assert [decode_returns(call[4].num_returns) for call in core.calls[-4:]] == [
        (STREAMING, 2),
        (STREAMING, 2),
        (STREAMING, 0),
        (STATIC, 3),
    ]


def test_unknown_method_raises_attribute_error(core: RecordingCore) -> None:
    handle = Counter.remote(1)

    with pytest.raises(AttributeError, match="Counter has no method 'substract'"):
        handle.substract  # noqa: B018
    assert not hasattr(handle, "__deepcopy__")


def test_calling_a_method_directly_suggests_remote(core: RecordingCore) -> None:
    with pytest.raises(TypeError, match=r"handle\.add\.remote"):
        Counter.remote(1).add(2)


def test_handle_reads_well_and_compares_by_actor(core: RecordingCore) -> None:
    handle = Counter.remote(1)
    again = ActorHandle(core, handle._actor_id, handle._state_bytes, None)  # type: ignore[arg-type]

    assert repr(handle) == f"Actor(Counter, {handle._actor_id.hex()})"
    assert handle == again
    assert hash(handle) == hash(again)
    assert handle != Counter.remote(1)
    assert handle != 3
    assert {"add", "both", "inherited"} <= set(dir(handle))


def test_handle_pickles_with_its_keeper(core: RecordingCore) -> None:
    handle = Counter.remote(1)
    handle._keeper = "keeper"  # type: ignore[assignment]

    again = pickle.loads(pickle.dumps(handle))

    assert again == handle
    assert again._keeper == "keeper"
    assert again.add.remote() == "ref0"


def test_actor_class_pickles_with_its_options(core: RecordingCore) -> None:
    again = cloudpickle.loads(cloudpickle.dumps(Counter.options(num_cpus=2)))

    assert isinstance(again, ActorClass)
    again.remote(1)
    assert core.calls[0][4].placement_resources == (("CPU", 20_000),)


def test_handle_of_an_ended_session_is_refused(core: RecordingCore) -> None:
    handle = Counter.remote(1)
    current.set_current_core(RecordingCore())  # type: ignore[arg-type]

    for use in (handle.add.remote, lambda: skate.kill(handle)):
        with pytest.raises(ActorHandleNotFoundError, match="session that has ended"):
            use()


def test_kill_takes_handles_only(core: RecordingCore) -> None:
    handle = Plain.remote()
    skate.kill(handle)
    skate.kill(handle, no_restart=False)

    assert core.calls[1:] == [("kill", handle._actor_id, True), ("kill", handle._actor_id, False)]
    with pytest.raises(ValueError, match="handle of an actor"):
        skate.kill("actor")  # type: ignore[arg-type]


def test_get_actor_gives_a_weak_handle_with_the_methods(core: RecordingCore) -> None:
    state = Counter.remote(1)._state_bytes
    core.rows = [actor_row(state, name="c"), actor_row(state, name="d", namespace="other")]

    handle = skate.get_actor("c")

    assert handle._keeper is None
    assert handle.both.remote() == ["ref0", "ref1"]
    assert skate.get_actor("d", "other")._actor_id == b"\x01" * 16


@pytest.mark.parametrize(
    ("args", "error", "text"),
    [
        (("",), ValueError, "empty"),
        ((3,), TypeError, "string"),
        (("a", ""), ValueError, "empty"),
        (("a", 3), TypeError, "string"),
        (("missing",), ValueError, "Failed to look up actor with name 'missing'"),
    ],
)
def test_get_actor_with_wrong_arguments_is_refused(
    core: RecordingCore, args: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        skate.get_actor(*args)


def test_list_named_actors_leaves_out_the_dead_and_other_namespaces(core: RecordingCore) -> None:
    core.rows = [
        actor_row(b"", name="a"),
        actor_row(b""),
        actor_row(b"", name="dead", state="DEAD"),
        actor_row(b"", name="again", state="RESTARTING"),
        actor_row(b"", name="far", namespace="other"),
    ]

    assert skate.util.list_named_actors() == ["a", "again"]
    assert {"name": "far", "namespace": "other"} in skate.util.list_named_actors(True)


def test_exit_actor_outside_an_actor_is_refused(core: RecordingCore) -> None:
    with pytest.raises(TypeError, match="inside an actor"):
        exit_actor()
    core.current = TaskContext(actor_id=b"\x01" * 16)
    with pytest.raises(SystemExit):
        exit_actor()


def test_concurrency_groups_are_checked(core: RecordingCore) -> None:
    class Grouped:
        @skate.method(concurrency_group="io")
        def read(self) -> None: ...

        def other(self) -> None: ...

    with pytest.raises(ValueError, match="no concurrency group 'io'"):
        skate.remote(Grouped)
    handle = skate.remote(concurrency_groups={"io": 2})(Grouped).remote()
    assert core.calls[0][4].concurrency_groups == (("io", 2),)
    handle.read.remote()
    handle.other.options(concurrency_group="io").remote()
    assert [call[4].concurrency_group for call in core.calls[1:]] == ["io", "io"]
    with pytest.raises(ValueError, match="no concurrency group 'cpu'"):
        handle.other.options(concurrency_group="cpu")


def test_state_survives_the_wire(core: RecordingCore) -> None:
    state = decode_state(Counter.remote(1)._state_bytes)

    assert state.class_name == "Counter"
    assert state.methods["both"].options.retry_exceptions == (ValueError,)
    assert state.methods["add"].signature.positional == ("amount",)
    assert state.methods["stream"].is_generator


def test_class_with_a_base_in_c_takes_any_arguments(core: RecordingCore) -> None:
    @skate.remote
    class Items(dict[str, int]):
        pass

    Items.remote({"a": 1}, b=2)


def test_current_actor_in_an_actor_is_a_weak_handle(core: RecordingCore) -> None:
    state = Counter.remote(1)._state_bytes
    core.rows = [actor_row(state)]
    context = skate.get_runtime_context()
    with pytest.raises(RuntimeError, match="inside an actor"):
        context.current_actor  # noqa: B018
    core.current = TaskContext(task_id=b"\x02" * 24, name="m", actor_id=b"\x01" * 16)

    assert context.current_actor.add.remote() == "ref0"
    assert context.current_actor._keeper is None
    assert context.get_actor_id() == "01" * 16
    assert context.get_actor_name() == ""


def test_runtime_context_of_a_driver(core: RecordingCore) -> None:
    context = skate.get_runtime_context()

    assert context.get_job_id() == core.job_id.hex()
    assert context.get_node_id() == core.node_id.hex()
    assert context.get_worker_id() == core.worker_id.hex()
    assert context.get_task_id() is None
    assert context.get_actor_id() is None
    assert context.get_actor_name() is None
    assert context.get_assigned_resources() == {}
    assert context.namespace == "here"
    assert context.get_session_name() == "session_1"
    assert context.get() == {
        "job_id": core.job_id.hex(),
        "node_id": core.node_id.hex(),
        "namespace": "here",
    }
    with pytest.raises(RuntimeError):
        context.is_canceled()


def test_nodes_and_resources_are_sums_of_live_nodes(core: RecordingCore) -> None:
    def row(alive: bool, total: dict[str, int], available: dict[str, int]) -> Any:
        return SimpleNamespace(
            node_id=b"\x01" * 28,
            is_alive=alive,
            node_name="n",
            hostname="h",
            ip_address="10.0.0.1",
            stream_endpoint="unix:/s",
            store_endpoint="unix:/o",
            raylet_endpoint="10.0.0.1:77",
            metrics_endpoint="",
            is_head=True,
            total=total,
            available=available,
            labels={"zone": "a"},
            death=None,
            is_suspect=False,
            drain_reason="",
        )

    core.node_rows = [
        row(True, {"CPU": 20_000, "a": 5_000}, {"CPU": 10_000}),
        row(True, {"CPU": 20_000}, {"CPU": 20_000}),
        row(False, {"CPU": 90_000}, {"CPU": 90_000}),
    ]

    assert skate.cluster_resources() == {"CPU": 4.0, "a": 0.5}
    assert skate.available_resources() == {"CPU": 3.0}
    rows = skate.nodes()
    assert [r["Alive"] for r in rows] == [True, True, False]
    assert rows[0]["NodeManagerPort"] == 77
    assert rows[0]["Resources"] == {"CPU": 2.0, "a": 0.5}
    assert rows[2]["Resources"] == {}
    assert rows[0]["Labels"] == {"zone": "a"}
