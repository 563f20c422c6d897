"""Who and where the running code is: ``skate.get_runtime_context()``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from skate.actor_handle import ActorHandle
from skate.runtime_env import as_runtime_env
from skate.session import base_env_vars, require_session
from skate_core_ids import ActorID
from skate_scheduler import from_units
from skate_worker.current import current_core

if TYPE_CHECKING:
    from skate_worker.core import CoreWorker


class RuntimeContext:
    """Ids are hex strings; what does not apply (a driver's task) is None."""

    def __init__(self, core: CoreWorker) -> None:
        self._core = core

    def get_job_id(self) -> str:
        """The job that the running code belongs to."""
        return self._core.job_id.hex()

    def get_node_id(self) -> str:
        """The node of this process."""
        return self._core.node_id.hex()

    def get_worker_id(self) -> str:
        """This process."""
        return self._core.worker_id.hex()

    def get_task_id(self) -> str | None:
        """The running task or call; None in a driver."""
        return self._core.current.task_id.hex() or None

    def get_task_name(self) -> str | None:
        """The running task's name, as its options gave it; None in a driver."""
        return self._core.current.name or None

    def get_task_function_name(self) -> str | None:
        """The running task's function; None in a driver."""
        return self._core.current.function_name or None

    def get_actor_id(self) -> str | None:
        """The actor that this is; None outside actors."""
        return self._core.current.actor_id.hex() or None

    def get_actor_name(self) -> str | None:
        """The actor's name, empty when it has none; None outside actors."""
        return self._core.actor_name if self._core.current.actor_id else None

    def get_assigned_resources(self) -> dict[str, float]:
        """What the running task holds; empty in a driver."""
        held = self._core.current.resources
        return {name: from_units(amount) for name, amount in held.items()}

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """The devices of the running task or actor by resource, as their drivers name them.

        ``{"GPU": ["0"], "TPU": [], "neuron_cores": []}``; no entries in a driver program.
        """
        executor = self._core.executor
        if executor is None:
            return {}
        return {resource: list(names) for resource, names in executor.device_names.items()}

    def get_placement_group_id(self) -> str | None:
        """The placement group that the running task or actor is in; None outside of one."""
        return self._core.group_id.hex() or None

    @property
    def should_capture_child_tasks_in_placement_group(self) -> bool:
        """Whether what the running code starts goes into its placement group."""
        return bool(self._core.captured_group)

    def get_runtime_env_string(self) -> str:
        """The runtime environment as JSON."""
        import json  # noqa: PLC0415 - rarely asked for

        return json.dumps(self.runtime_env, sort_keys=True)

    def get_session_name(self) -> str:
        """The name of the cluster's session folder on this node."""
        return os.path.basename(self._core.session_dir)

    def get_temp_dir(self) -> str:
        """Where the session folders are."""
        return os.path.dirname(self._core.session_dir)

    def get_attempt_number(self) -> int:
        """0 at the first attempt of the running task, one more at each retry."""
        return self._core.current.attempt

    def is_canceled(self) -> bool:
        """Whether the running task was asked to stop. Raises ``RuntimeError`` in a driver."""
        task = self._core.current
        if not task.task_id:
            raise RuntimeError("is_canceled() can only be asked inside a task or a call.")
        return task.is_cancelled

    @property
    def namespace(self) -> str:
        """Where names of actors are looked up by default."""
        return self._core.namespace

    @property
    def gcs_address(self) -> str:
        """The address of the cluster."""
        return self._core.gcs_endpoint

    @property
    def runtime_env(self) -> dict[str, Any]:
        """The runtime environment that was asked for, inherited parts included."""
        return as_runtime_env(base_env_vars())

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether this actor was restarted. Raises ``RuntimeError`` outside actors."""
        self._require_actor()
        return self._core.was_restarted

    @property
    def current_actor(self) -> ActorHandle[Any]:
        """A weak handle to the actor that this is. Raises ``RuntimeError`` outside actors."""
        actor_id = self._require_actor()
        for actor in self._core.actors():
            if actor.actor_id == actor_id:
                return ActorHandle(self._core, ActorID(actor_id), actor.handle_state, None)
        raise RuntimeError(f"The cluster does not know the actor {actor_id.hex()}.")

    def get(self) -> dict[str, Any]:
        """The main ids in one dict."""
        context: dict[str, Any] = {
            "job_id": self.get_job_id(),
            "node_id": self.get_node_id(),
            "namespace": self.namespace,
        }
        if self.get_task_id() is not None:
            context["task_id"] = self.get_task_id()
        if self.get_actor_id() is not None:
            context["actor_id"] = self.get_actor_id()
        return context

    def _require_actor(self) -> bytes:
        actor_id = self._core.current.actor_id
        if not actor_id:
            raise RuntimeError("This can only be asked inside an actor.")
        return actor_id


def get_gpu_ids() -> list[int] | list[str]:
    """The GPUs of the running task or actor: numbers, or names where the node lists them by name.

    Empty in a driver program. Starts a session if there is none, as ``get_runtime_context``.
    """
    names = get_runtime_context().get_accelerator_ids().get("GPU", [])
    if all(name.isdecimal() for name in names):
        return [int(name) for name in names]
    return names


def get_runtime_context() -> RuntimeContext:
    """Who and where the running code is. Starts a local cluster if there is no session."""
    return RuntimeContext(current_core() or require_session())
