"""The process's connection to a cluster: the one ambient value of the runtime.

Set by ``skate.init`` in a driver and by ``run_worker`` in a worker. Everything below the API is
handed the core explicitly; only unpickling a reference and the API's functions look here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skate_worker.core import CoreWorker

current_slot: list[CoreWorker | None] = [None]
_cores_seen = [0]


def current_core() -> CoreWorker | None:
    """The connection of this process, or None."""
    return current_slot[0]


def set_current_core(core: CoreWorker | None) -> None:
    """Make ``core`` the connection of this process."""
    if core is not None and core is not current_slot[0]:
        _cores_seen[0] += 1
    current_slot[0] = core


def is_first_core() -> bool:
    """Whether no connection of this process came before the present one.

    Every reference then belongs to it, and need not be looked at to know.
    """
    return _cores_seen[0] == 1


def require_core() -> CoreWorker:
    """The connection of this process. Raises :class:`NotInitializedError` without one."""
    core = current_slot[0]
    if core is None:
        from skate_worker.errors import NotInitializedError  # noqa: PLC0415 - `init` starts with us

        raise NotInitializedError(
            "Skate is not initialised in this process; call skate.init() first."
        )
    return core
