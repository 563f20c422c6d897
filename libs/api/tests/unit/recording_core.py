"""A runtime that records what the API asks of it, in the place of a cluster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from skate_core_ids import ActorID, JobID, NodeID, WorkerID
from skate_worker.context import TaskContext
from skate_worker.generator_returns import references_of
from skate_worker.log_printer import LogPrinter


class RecordingCore:
    """Answers every call at once and keeps it; references are strings."""

    def __init__(self) -> None:
        self.worker_id = WorkerID.from_random()
        self.node_id = NodeID.from_random()
        self.job_id = JobID.from_int(7)
        self.namespace = "here"
        self.session_dir = "/sessions/session_1"
        self.gcs_endpoint = "unix:/gcs"
        self.ip = "127.0.0.1"
        self.is_driver = True
        self.is_closed = False
        self.was_restarted = False
        self.binding: object = self.worker_id
        self.group_id = b""
        self.captured_group = b""
        self.placement_groups = RecordingGroups(self)
        self.actor_name = ""
        self.current = TaskContext()
        self.calls: list[tuple[Any, ...]] = []
        self.exports: list[Any] = []
        self.rows: list[Any] = []
        self.node_rows: list[Any] = []
        self.log_printer = LogPrinter(lambda taken: None)

    def flush_logs(self, timeout_s: float) -> bool:
        self.calls.append(("flush_logs", timeout_s))
        return True

    def export(self, value: Any) -> bytes:
        self.exports.append(value)
        return b"id%d" % len(self.exports)

    def submit_task(self, function_id: bytes, args: Any, kwargs: Any, options: Any) -> list[Any]:
        self.calls.append(("task", function_id, args, kwargs, options))
        return [f"ref{index}" for index in range(references_of(options.num_returns))]

    def create_actor(self, class_id: bytes, args: Any, kwargs: Any, options: Any) -> Any:
        self.calls.append(("create", class_id, args, kwargs, options))
        return ActorID.of(self.job_id), True, None

    def submit_actor_task(self, actor_id: bytes, args: Any, kwargs: Any, options: Any) -> list[Any]:
        self.calls.append(("call", actor_id, args, kwargs, options))
        return [f"ref{index}" for index in range(references_of(options.num_returns))]

    def named_actor(self, name: str, namespace: str) -> Any:
        wanted = (name, namespace or self.namespace)
        return next((row for row in self.rows if (row.name, row.namespace) == wanted), None)

    def actors(self) -> list[Any]:
        return self.rows

    def nodes(self) -> list[Any]:
        return self.node_rows

    def kill_actor(self, actor_id: bytes, no_restart: bool) -> bool:
        self.calls.append(("kill", actor_id, no_restart))
        return True

    def exit_actor(self, reason: str) -> None:
        raise SystemExit(reason)

    def close(self) -> None:
        self.is_closed = True


class RecordingGroups:
    """The placement groups of a recording core: registered at once, and never placed."""

    def __init__(self, core: RecordingCore) -> None:
        self._core = core
        self.views_by_name: dict[str, Any] = {}

    def create(self, creation: Any) -> None:
        self._core.calls.append(("create_group", creation))

    def remove(self, group_id: bytes, *, waits: bool) -> None:
        self._core.calls.append(("remove_group", group_id, waits))

    def await_registered(self, group_id: bytes) -> None:
        self._core.calls.append(("await_registered", group_id))

    def ready(self, group_id: bytes, handle: Any) -> str:
        self._core.calls.append(("ready", group_id, handle))
        return "ready-ref"

    def view(self, group_id: bytes) -> Any:
        return next((v for v in self.views() if v.group_id == group_id), None)

    def named(self, name: str) -> Any:
        return self.views_by_name.get(name)

    def views(self) -> list[Any]:
        return list(self.views_by_name.values())


def actor_row(handle_state: bytes, **more: Any) -> SimpleNamespace:
    """An actor as the control plane lists it."""
    row = {
        "actor_id": b"\x01" * 16,
        "name": "",
        "namespace": "here",
        "state": "ALIVE",
        "handle_state": handle_state,
    }
    return SimpleNamespace(**{**row, **more})
