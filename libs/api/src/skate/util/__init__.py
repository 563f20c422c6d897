"""Smaller services around the core API, each loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from skate.session import require_session
from skate_worker.current import current_core
from skate_worker.serialization import deregister_serializer, register_serializer

# The type checker's reading of the same table; a test compares the two.
if TYPE_CHECKING:
    from skate.util.actor_group import ActorGroup as ActorGroup
    from skate.util.actor_pool import ActorPool as ActorPool
    from skate.util.check_serialize import inspect_serializability as inspect_serializability
    from skate.util.debug import disable_log_once_globally as disable_log_once_globally
    from skate.util.debug import enable_periodic_logging as enable_periodic_logging
    from skate.util.debug import log_once as log_once
    from skate.util.executor import SkateExecutor as SkateExecutor
    from skate.util.helpers import as_completed as as_completed
    from skate.util.helpers import map_unordered as map_unordered
    from skate.util.placement_group import (
        get_current_placement_group as get_current_placement_group,
    )
    from skate.util.placement_group import get_placement_group as get_placement_group
    from skate.util.placement_group import placement_group as placement_group
    from skate.util.placement_group import placement_group_table as placement_group_table
    from skate.util.placement_group import remove_placement_group as remove_placement_group
    from skate.util.services import get_node_ip_address as get_node_ip_address

_MODULE_OF = {
    "ActorGroup": "actor_group",
    "ActorPool": "actor_pool",
    "SkateExecutor": "executor",
    "as_completed": "helpers",
    "disable_log_once_globally": "debug",
    "enable_periodic_logging": "debug",
    "get_current_placement_group": "placement_group",
    "get_node_ip_address": "services",
    "get_placement_group": "placement_group",
    "inspect_serializability": "check_serialize",
    "log_once": "debug",
    "map_unordered": "helpers",
    "placement_group": "placement_group",
    "placement_group_table": "placement_group",
    "remove_placement_group": "placement_group",
}
_SUBMODULES = (
    "actor_group",
    "actor_pool",
    "debug",
    "joblib",
    "metrics",
    "multiprocessing",
    "queue",
    "scheduling_strategies",
    "state",
)

__all__ = [  # noqa: PLE0604 - every name is in the table, and the table is the one place
    "deregister_serializer",
    "list_named_actors",
    "register_serializer",
    *_MODULE_OF,
    *_SUBMODULES,
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is not None:
        value = getattr(import_module(f"skate.util.{module}"), name)
    elif name in _SUBMODULES:
        value = import_module(f"skate.util.{name}")
    else:
        raise AttributeError(f"module 'skate.util' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """The names of the live actors of this namespace that have one.

    With ``all_namespaces`` one ``{"name": ..., "namespace": ...}`` each, of every namespace.
    Actors that restart are included, dead ones are not.
    """
    core = current_core() or require_session()
    named = [actor for actor in core.actors() if actor.name and actor.state != "DEAD"]
    if all_namespaces:
        return [{"name": actor.name, "namespace": actor.namespace} for actor in named]
    return [actor.name for actor in named if actor.namespace == core.namespace]
