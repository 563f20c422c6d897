"""``init``, ``shutdown`` and the one session of a driver.

Opening and closing are whole under interrupts (``uninterrupted``): an opening is undone, a closing
completed, and then the interrupt goes on. Source: SURFACE I2-I8, I10.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from skate.context import SessionContext
from skate.import_alias import setup_vars
from skate.runtime_env import EnvVars, inherited, merge
from skate.uninterrupted import note_exit, run_whole
from skate_worker.current import current_core, set_current_core

if TYPE_CHECKING:
    from skate.init_options import InitOptions
    from skate_node import RunningNode
    from skate_worker.core import CoreWorker
    from skate_worker.log_printer import ProgressView

JOB_METADATA_VARIABLE: Final = "SKATE_JOB_METADATA"  # of a submitted job, for its entry point
AUTO_INIT_VARIABLE: Final = "SKATE_ENABLE_AUTO_CONNECT"
SIGTERM_EXIT_CODE: Final = 15
LOGS_FLUSH_S: Final = 0.5  # for the last lines of the workers, when the session ends


class _Session:
    """A driver's connection, and the node that was started for it if one was."""

    def __init__(self, options: InitOptions) -> None:
        self._options = options
        # A job's entry point inherits the environment that the job was submitted with.
        self.env_vars: EnvVars = merge(merge(inherited(), setup_vars()), options.env_vars)
        self.core: CoreWorker | None = None
        self.node: RunningNode | None = None
        self.context: SessionContext | None = None
        self.is_lost = False
        self._is_closed = False

    def open(self) -> None:
        """Find or start the node, and connect. Undoes everything if it fails."""
        try:
            raylet_endpoint, token, facts = self._reach_node()
            from skate_worker.core import CoreWorker  # noqa: PLC0415 - see `_import_runtime`

            self.core = CoreWorker.connect_driver(
                raylet_endpoint=raylet_endpoint,
                token=token,
                namespace=self._options.namespace,
                entrypoint=" ".join(sys.argv),
                metadata=_job_metadata(os.environ),
                sys_path=[os.path.abspath(entry) for entry in sys.path],
                on_raylet_lost=self._note_lost,
                ip_address=facts["ip_address"],
                shows_logs=self._options.shows_logs,
                # '' stands for the folder that this process is in, which a worker may not be.
            )
            self.core.log_printer.make_progress_view = _progress_view
            self.context = _make_context(self.core, facts)
            if self._is_closed:
                raise InterruptedError("init() was interrupted.")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Disconnect, and end a node that was started. An opening under way undoes itself."""
        self._is_closed = True
        core, self.core = self.core, None
        node, self.node = self.node, None
        try:
            if core is not None:
                if self._options.shows_logs and not self.is_lost:
                    core.flush_logs(LOGS_FLUSH_S)
                core.close()
        finally:
            if node is not None:
                node.stop()

    def _note_lost(self, _reason: str) -> None:
        # The runtime fails what is under way; here the next `init` learns that it may start anew.
        self.is_lost = True

    def _reach_node(self) -> tuple[str, str, dict[str, str]]:
        from skate_node import ClusterNotFoundError, find_node, start_node  # noqa: PLC0415

        options = self._options
        record = None
        if options.address:
            record = find_node(options.address, options.temp_dir)
        elif options.may_start:
            try:
                record = find_node("auto", options.temp_dir)
            except ClusterNotFoundError:
                record = None  # Nothing runs, or what ran has crashed: a local cluster is started.
        if record is not None:
            from skate_rpc.tokens import read_token_file  # noqa: PLC0415

            token = read_token_file(record.token_path)
            return record.stream_endpoint, token, _facts(record)
        self.node = start_node(options.node, meanwhile=_import_runtime)
        return self.node.stream_endpoint, self.node.token, _facts(self.node)


def _progress_view() -> ProgressView:
    from skate.experimental.tqdm_skate import display  # noqa: PLC0415 - few programs have bars

    return display()


def _import_runtime() -> None:
    """Import what connects to a node, while the node's daemon imports what it needs itself.

    The less is imported before the daemon is on its way, the sooner both are done.
    """
    from skate_worker import core  # noqa: F401, PLC0415 - a tenth of a second, not for all


_lock = threading.RLock()
_current: _Session | None = None
_installed: list[tuple[Any, Any]] = []  # our SIGTERM handler and the one before it


def init(
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: dict[str, float] | None = None,
    labels: dict[str, str] | None = None,
    object_store_memory: int | None = None,
    ignore_reinit_error: bool = False,
    namespace: str | None = None,
    runtime_env: dict[str, Any] | None = None,
    log_to_driver: bool = True,
    **more: Any,
) -> SessionContext:
    """Start a local cluster and connect to it, or connect to a running one.

    Without ``address``: what ``SKATE_ADDRESS`` names, else a cluster of ``skate start`` on this
    machine, else a new local cluster, which ends with this process. ``"local"`` always starts
    one, ``"auto"`` never.

    Args:
        address: ``host:port`` or ``unix:/path`` of a cluster, ``"auto"``, ``"local"``, or None.
        num_cpus: CPUs of the node that is started; as many as the process may use by default.
        num_gpus: GPUs of that node; those that the driver shows by default.
        resources: Its custom resources by name.
        labels: Facts about it.
        object_store_memory: Bytes of its object store; 30 % of the available memory by default.
        ignore_reinit_error: Return the present session instead of raising when there is one.
        namespace: Where names of actors belong; anonymous by default.
        runtime_env: ``{"env_vars": {...}}`` for everything that this session starts.
        log_to_driver: Print what tasks and actors print, each line behind ``(name pid=N)``;
            ``SKATE_LOG_TO_DRIVER=0`` has the same effect as False.
        **more: Further options of Ray, where they ask for what Skate does anyway.

    Raises:
        RuntimeError: there is a session already, or an option does not exist.
        ValueError, TypeError: an option has a wrong value or does not go with an address.
        ConnectionError: no such cluster.
        NodeStartError: the local cluster did not come up; names the part, and shows its log.
    """
    global _current  # noqa: PLW0603 - a process has one session.
    from skate.init_options import parse_init_options  # noqa: PLC0415 - not for `is_initialized`

    options = parse_init_options(
        {
            "address": address,
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "resources": resources,
            "labels": labels,
            "object_store_memory": object_store_memory,
            "namespace": namespace,
            "runtime_env": runtime_env,
            "log_to_driver": log_to_driver,
            **more,
        }
    )
    with _lock:
        if is_initialized():
            if not ignore_reinit_error:
                raise RuntimeError(
                    "skate.init() was called before in this process; call skate.shutdown() first,"
                    " or pass ignore_reinit_error=True to keep the present session."
                )
            return _present_context()
        shutdown()  # Of a session whose connection was lost.
        session = _Session(options)
        try:
            run_whole(session.open, undo=session.close)
            _current = session
            set_current_core(session.core)
            _watch_process()
            assert session.context is not None
            return session.context
        except BaseException:
            _current = None
            set_current_core(None)
            _restore_sigterm()
            run_whole(session.close)
            raise


def shutdown() -> None:
    """End the session, and the cluster if ``init`` started it. Idempotent; runs at exit anyway.

    Raises:
        RuntimeError: called in a worker, whose session is its job's.
    """
    global _current  # noqa: PLW0603 - a process has one session.
    with _lock:
        session = _current
        core = current_core()
        if session is None:
            if core is not None and not core.is_driver:
                raise RuntimeError("shutdown() can only be called by a driver, not inside a task.")
            return
        _current = None
        set_current_core(None)
        _restore_sigterm()
        run_whole(session.close)


def is_initialized() -> bool:
    """Whether this process has a session, and the session its node."""
    core = current_core()
    is_lost = _current is not None and _current.is_lost
    return core is not None and not core.is_closed and not is_lost


def require_session() -> CoreWorker:
    """The connection of this process; a driver without one starts a local cluster (SURFACE I2).

    Raises:
        NotInitializedError: there is none and this process is a fork of a driver, or
            ``SKATE_ENABLE_AUTO_CONNECT=0`` forbids starting one.
    """
    core = current_core()
    if core is not None:
        return core
    from skate_worker.errors import NotInitializedError  # noqa: PLC0415 - see `_import_runtime`

    if _forked:
        raise NotInitializedError(
            "This process is a fork of one that had a session, which a fork can not use;"
            " start processes with the 'spawn' method, or use tasks."
        )
    if os.environ.get(AUTO_INIT_VARIABLE, "1") == "0":
        raise NotInitializedError(
            f"There is no session, and {AUTO_INIT_VARIABLE}=0 forbids starting one:"
            " call skate.init() first."
        )
    with _lock:
        if current_core() is None:
            init()
        core = current_core()
    assert core is not None
    return core


def base_env_vars() -> EnvVars:
    """What all that this process starts gets: the session's variables, or this worker's."""
    session = _current
    return inherited() if session is None else session.env_vars


def end_session(context: SessionContext) -> None:
    """Shut the session of this context down if it is the present one."""
    with _lock:
        if _current is not None and _current.context is context:
            shutdown()


# ---- the process around the session ----

_forked = False
_is_watched = False


def _watch_process() -> None:
    """Leave at exit, on SIGTERM and in forks; exit and fork hooks are registered once a process."""
    global _is_watched  # noqa: PLW0603 - hooks that can not be taken back.
    if not _is_watched:
        _is_watched = True
        atexit.register(_at_exit)
        os.register_at_fork(after_in_child=_in_fork)
    # A handler of the user's own stays: it decides what SIGTERM means.
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    ):
        _installed.append((_on_sigterm, signal.signal(signal.SIGTERM, _on_sigterm)))


def _on_sigterm(_number: int, _frame: Any) -> None:
    sys.exit(SIGTERM_EXIT_CODE)  # So that exit hooks run, ours among them.


def _restore_sigterm() -> None:
    if not _installed or threading.current_thread() is not threading.main_thread():
        return
    ours, before = _installed.pop()
    if signal.getsignal(signal.SIGTERM) is ours:
        signal.signal(signal.SIGTERM, before)


def _at_exit() -> None:
    note_exit()
    if _current is not None:
        shutdown()


def _in_fork() -> None:
    global _current, _forked, _lock  # noqa: PLW0603 - a fork's copies mean nothing.
    if _current is not None:
        _forked = True
        _current = None
        set_current_core(None)
    _lock = threading.RLock()


# ---- facts ----


def _job_metadata(environment: Any) -> dict[str, str]:
    """What the job was submitted with, if this program is the entry point of one."""
    text = environment.get(JOB_METADATA_VARIABLE)
    return {} if not text else {str(key): str(value) for key, value in json.loads(text).items()}


def _facts(node: Any) -> dict[str, str]:
    # A started node and the record of a running one name these alike.
    return {
        "gcs_address": node.gcs_endpoint,
        "raylet_socket_name": node.stream_endpoint,
        "object_store_address": node.store_endpoint,
        "metrics_endpoint": node.metrics_endpoint,
        "session_dir": node.session_dir,
        "ip_address": node.ip_address,
    }


def _make_context(core: CoreWorker, facts: dict[str, str]) -> SessionContext:
    from skate import __version__  # noqa: PLC0415 - the package's own number

    port = facts["metrics_endpoint"].removeprefix("http://").partition("/")[0].rpartition(":")[2]
    info: dict[str, Any] = {
        "node_ip_address": core.ip,
        "redis_address": None,
        "object_store_address": facts["object_store_address"],
        "raylet_socket_name": facts["raylet_socket_name"],
        "webui_url": "",
        "session_dir": facts["session_dir"],
        "metrics_export_port": int(port) if port.isdigit() else None,
        "gcs_address": facts["gcs_address"],
        "address": facts["gcs_address"],
        "dashboard_agent_listen_port": None,
        "node_id": core.node_id.hex(),
    }
    return SessionContext(info, __version__)


def _present_context() -> SessionContext:
    session = _current
    if session is not None and session.context is not None:
        return session.context
    # In a worker, whose session its raylet opened.
    core = current_core()
    assert core is not None
    facts = {
        "gcs_address": core.gcs_endpoint,
        "raylet_socket_name": "",
        "object_store_address": "",
        "metrics_endpoint": "",
        "session_dir": core.session_dir,
    }
    return _make_context(core, facts)
