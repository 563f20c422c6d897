"""``init`` and ``shutdown``: arguments, one session at a time, interrupts, signals, forks."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import skate
from libs.api.tests.unit.recording_core import RecordingCore
from skate import session
from skate.init_options import parse_init_options
from skate_node import ClusterNotFoundError
from skate_worker import current
from skate_worker.core import CoreWorker
from skate_worker.errors import NotInitializedError


class World:
    """The nodes that were started and the connections that were made."""

    def __init__(self) -> None:
        self.started: list[Any] = []
        self.stopped: list[Any] = []
        self.cores: list[RecordingCore] = []
        self.running: Any = None
        self.on_start: Callable[[], None] = lambda: None
        self.on_connect: Callable[[], None] = lambda: None

    def start_node(self, options: Any, *, meanwhile: Callable[[], None]) -> Any:
        self.on_start()
        meanwhile()
        node = facts("unix:/own")
        node.options = options
        node.stop = lambda: self.stopped.append(node)
        self.started.append(node)
        return node

    def find_node(self, address: str, temp_dir: Any = None) -> Any:
        if self.running is None:
            raise ClusterNotFoundError(address)
        return self.running

    def connect(self, **arguments: Any) -> Any:
        self.on_connect()
        core = RecordingCore()
        core.arguments = arguments  # type: ignore[attr-defined]
        self.cores.append(core)
        return core

    def is_clean(self) -> bool:
        return len(self.started) == len(self.stopped) and all(c.is_closed for c in self.cores)


def facts(address: str) -> SimpleNamespace:
    return SimpleNamespace(
        gcs_endpoint=address,
        stream_endpoint="unix:/stream",
        store_endpoint="unix:/store",
        metrics_endpoint="http://127.0.0.1:8080/metrics",
        session_dir="/sessions/s",
        ip_address="10.0.0.7",
        token="secret",
        token_path="/sessions/s/token",
    )


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = World()
    monkeypatch.setattr("skate_node.start_node", made.start_node)
    monkeypatch.setattr("skate_node.find_node", made.find_node)
    monkeypatch.setattr("skate_rpc.tokens.read_token_file", lambda path: "read")
    monkeypatch.setattr(CoreWorker, "connect_driver", made.connect)
    yield made
    skate.shutdown()
    assert made.is_clean()


# ---- arguments ----


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"num_cpu": 1}, RuntimeError, "Did you mean 'num_cpus'"),
        ({"nonsense": 1}, RuntimeError, "nonsense"),
        ({"allow_multiple": True}, RuntimeError, "allow_multiple"),
        ({"local_mode": True}, RuntimeError, "local_mode"),
        ({"storage": "/x"}, RuntimeError, "storage"),
        ({"resources": {"CPU": 1}}, ValueError, "num_cpus"),
        ({"resources": {"a": -1}}, ValueError, "negative"),
        ({"num_cpus": -1}, ValueError, "num_cpus"),
        ({"num_cpus": "2"}, TypeError, "num_cpus"),
        ({"object_store_memory": 10}, ValueError, "object_store_memory"),
        ({"labels": {"a": 1}}, TypeError, "labels"),
        ({"namespace": ""}, ValueError, "namespace"),
        ({"namespace": 3}, TypeError, "namespace"),
        ({"log_to_driver": "yes"}, TypeError, "log_to_driver"),
        ({"runtime_env": {"pip": []}}, ValueError, "'pip' is not supported yet"),
        ({"runtime_env": {"env_vars": {"A": 1}}}, TypeError, "strings"),
        ({"_temp_dir": "relative"}, ValueError, "absolute"),
        ({"_system_config": "x"}, TypeError, "dict"),
        ({"_system_config": {"a": 1}}, ValueError, "_system_config"),
        ({"include_dashboard": True}, ValueError, "include_dashboard"),
        ({"job_config": object()}, ValueError, "job_config"),
        ({"object_spilling_directory": "x"}, ValueError, "spill_dir"),
        ({"address": 3}, TypeError, "address"),
    ],
)
def test_init_refuses_wrong_options(
    world: World, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        skate.init(**options)

    assert world.started == []
    assert not skate.is_initialized()


@pytest.mark.parametrize(
    "option",
    [
        {"num_cpus": 1},
        {"num_gpus": 1},
        {"resources": {"a": 1}},
        {"labels": {"a": "b"}},
        {"object_store_memory": 1 << 30},
        {"object_spilling_directory": "/x"},
        {"_node_name": "n"},
    ],
    ids=lambda option: next(iter(option)),
)
def test_init_with_address_refuses_options_of_a_node(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        skate.init("10.0.0.1:6379", **option)


def test_init_options_that_ask_for_nothing_are_accepted() -> None:
    options = parse_init_options(
        {
            "local_mode": False,
            "include_dashboard": False,
            "dashboard_port": 8265,
            "configure_logging": True,
            "_system_config": {},
        }
    )

    assert options.may_start


def test_logs_are_shown_unless_an_argument_or_the_environment_says_no(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert parse_init_options({}).shows_logs
    assert not parse_init_options({"log_to_driver": False}).shows_logs
    monkeypatch.setenv("SKATE_LOG_TO_DRIVER", "0")
    assert not parse_init_options({"log_to_driver": True}).shows_logs


def test_shutdown_waits_for_the_last_lines_only_if_they_are_shown(world: World) -> None:
    for shows_logs in (True, False):
        skate.init(log_to_driver=shows_logs)
        skate.shutdown()
        assert [call[0] for call in world.cores[-1].calls] == ["flush_logs"] * shows_logs


def test_tracing_follows_the_standard_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not parse_init_options({}).node.is_tracing
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    assert parse_init_options({}).node.is_tracing
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert not parse_init_options({}).node.is_tracing


# ---- which cluster ----


def test_init_without_address_starts_a_node_when_none_runs(world: World) -> None:
    context = skate.init(num_cpus=2, resources={"a": 1}, namespace="ns")

    assert len(world.started) == 1
    assert world.started[0].options.num_cpus == 2
    arguments = world.cores[0].arguments  # type: ignore[attr-defined]
    assert arguments["raylet_endpoint"] == "unix:/stream"
    assert arguments["token"] == "secret"
    assert arguments["namespace"] == "ns"
    assert context.address_info["address"] == "unix:/own"
    assert context.address_info["metrics_export_port"] == 8080
    assert skate.is_initialized()


def test_init_without_address_joins_a_running_cluster(world: World) -> None:
    world.running = facts("127.0.0.1:6379")

    assert skate.init().address_info["address"] == "127.0.0.1:6379"
    assert world.started == []
    assert world.cores[0].arguments["token"] == "read"  # type: ignore[attr-defined]


def test_init_with_options_of_a_node_starts_one_beside_a_running_cluster(world: World) -> None:
    world.running = facts("127.0.0.1:6379")

    skate.init(num_cpus=1)

    assert len(world.started) == 1


def test_init_local_starts_a_node_whatever_runs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.running = facts("127.0.0.1:6379")
    monkeypatch.setenv("SKATE_ADDRESS", "10.0.0.9:1")

    skate.init("local")

    assert len(world.started) == 1


def test_init_auto_without_a_cluster_raises_connection_error(world: World) -> None:
    with pytest.raises(ConnectionError):
        skate.init("auto")


@pytest.mark.parametrize("address", [None, "auto"])
def test_address_variable_is_used(
    world: World, monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    asked: list[str] = []
    monkeypatch.setenv("SKATE_ADDRESS", "10.0.0.9:1")

    def find_node(wanted: str, temp_dir: Any = None) -> Any:
        asked.append(wanted)
        return facts(wanted)

    monkeypatch.setattr("skate_node.find_node", find_node)

    skate.init(address)

    assert asked == ["10.0.0.9:1"]


def test_explicit_address_wins_over_the_variable(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKATE_ADDRESS", "10.0.0.9:1")

    assert parse_init_options({"address": "10.0.0.1:2"}).address == "10.0.0.1:2"


# ---- one session ----


def test_second_init_raises_unless_told_to_ignore(world: World) -> None:
    first = skate.init()

    with pytest.raises(RuntimeError, match="ignore_reinit_error"):
        skate.init()
    assert skate.init(ignore_reinit_error=True) is first
    assert len(world.started) == 1


def test_shutdown_is_idempotent_and_init_works_again(world: World) -> None:
    skate.shutdown()
    for _ in range(3):
        skate.init()
        skate.shutdown()
        skate.shutdown()
        assert world.is_clean()
    assert not skate.is_initialized()
    assert len(world.started) == 3


def test_failed_connection_stops_the_node(world: World) -> None:
    def fail() -> None:
        raise ConnectionError("no")

    world.on_connect = fail
    with pytest.raises(ConnectionError, match="no"):
        skate.init()

    assert world.is_clean()
    assert not skate.is_initialized()


def test_session_whose_node_died_is_replaced_by_the_next_init(world: World) -> None:
    skate.init()
    world.cores[0].arguments["on_raylet_lost"]("killed")  # type: ignore[attr-defined]

    assert not skate.is_initialized()
    skate.init()
    assert skate.is_initialized()
    assert world.cores[0].is_closed
    assert len(world.started) == 2


def test_workers_search_modules_where_the_driver_does(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend("relative")
    skate.init()

    sent = world.cores[0].arguments["sys_path"]  # type: ignore[attr-defined]
    assert sent[0] == os.path.join(os.getcwd(), "relative")
    assert all(os.path.isabs(entry) for entry in sent)


def test_context_is_a_mapping_and_ends_the_session(world: World) -> None:
    with skate.init() as context:
        assert set(context) >= {"address", "session_dir", "node_id", "webui_url"}
        with pytest.warns(DeprecationWarning, match="address_info"):
            assert context["address"] == "unix:/own"
        assert context.dashboard_url == ""
    assert not skate.is_initialized()

    skate.init()
    context.disconnect()
    assert skate.is_initialized()


def test_driver_joins_at_the_address_of_its_node(world: World) -> None:
    skate.init()

    assert world.cores[0].arguments["ip_address"] == "10.0.0.7"


def test_session_environment_reaches_tasks_and_not_this_process(world: World) -> None:
    before = dict(os.environ)
    skate.init(runtime_env={"env_vars": {"A": "1"}})
    work = skate.remote(runtime_env={"env_vars": {"B": "2"}})(lambda: None)
    work.remote()

    given = dict(world.cores[0].calls[0][4].env_vars)
    assert (given["A"], given["B"]) == ("1", "2")
    assert skate.get_runtime_context().runtime_env == {"env_vars": {"A": "1"}}
    assert dict(os.environ) == before


def test_auto_init_starts_one_session_for_many_threads(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SKATE_ENABLE_AUTO_CONNECT")
    work = skate.remote(lambda: None)
    threads = [threading.Thread(target=work.remote) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(world.started) == 1
    assert len(world.cores[0].calls) == 8


def test_worker_neither_inits_nor_shuts_down(world: World, core: RecordingCore) -> None:
    core.is_driver = False

    with pytest.raises(RuntimeError):
        skate.init()
    assert skate.init(ignore_reinit_error=True).address_info["address"] == "unix:/gcs"
    with pytest.raises(RuntimeError, match="driver"):
        skate.shutdown()


# ---- interrupts and signals ----


def interrupt() -> None:
    """Ctrl-C, from whatever thread."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


def until_interrupted(action: Callable[[], object]) -> None:
    """Do it; the interrupt may arrive only once the main thread runs again."""
    action()
    threading.Event().wait(5)


@pytest.mark.parametrize("moment", ["on_start", "on_connect"])
def test_interrupt_during_init_leaves_nothing(world: World, moment: str) -> None:
    setattr(world, moment, interrupt)

    with pytest.raises(KeyboardInterrupt):
        until_interrupted(skate.init)

    skate.shutdown()
    assert world.is_clean()
    assert current.current_core() is None


def test_interrupt_during_shutdown_completes_it(world: World) -> None:
    skate.init()
    core = world.cores[0]
    close = core.close

    def interrupted_close() -> None:
        interrupt()
        close()

    core.close = interrupted_close  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        until_interrupted(skate.shutdown)

    assert world.is_clean()
    assert not skate.is_initialized()


def test_sigterm_exits_with_15_while_a_session_is_open(world: World) -> None:
    before = signal.getsignal(signal.SIGTERM)
    skate.init()

    with pytest.raises(SystemExit) as caught:
        until_interrupted(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert caught.value.code == 15
    skate.shutdown()
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_handler_of_the_program_stays(world: World) -> None:
    def own(number: int, frame: Any) -> None: ...

    before = signal.signal(signal.SIGTERM, own)
    try:
        skate.init()
        assert signal.getsignal(signal.SIGTERM) is own
        skate.shutdown()
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_init_on_another_thread_leaves_signals_alone(world: World) -> None:
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=skate.init)
    thread.start()
    thread.join()

    assert skate.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is before


def test_fork_of_a_driver_has_no_session(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    skate.init()
    own = session._current
    monkeypatch.setattr(session, "_forked", False)
    monkeypatch.setattr(session, "_current", own)
    core = current.current_core()

    session._in_fork()

    try:
        assert not skate.is_initialized()
        with pytest.raises(NotInitializedError, match="fork"):
            skate.put(1)
    finally:
        session._current = own
        current.set_current_core(core)


def test_cycles_leave_descriptors_threads_environment_and_handlers(world: World) -> None:
    def state() -> tuple[Any, ...]:
        return (
            len(os.listdir("/proc/self/fd")),
            threading.active_count(),
            dict(os.environ),
            signal.getsignal(signal.SIGTERM),
            signal.getsignal(signal.SIGINT),
        )

    skate.init()
    skate.shutdown()
    before = state()
    for _ in range(50):
        skate.init()
        skate.shutdown()

    assert state() == before
