"""Skate: tasks, actors and objects over a cluster. ``import skate as ray`` runs a Ray Core program.

The import loads nothing but this table: each name is loaded from its module on first use, so that a
program that only imports ``skate`` pays a few milliseconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# The type checker's reading of the same table; a test compares the two.
if TYPE_CHECKING:
    from skate import actor as actor
    from skate import cluster_utils as cluster_utils
    from skate import exceptions as exceptions
    from skate import experimental as experimental
    from skate import internal as internal
    from skate import runtime_context as runtime_context
    from skate import util as util
    from skate.actor import get_actor as get_actor
    from skate.actor import kill as kill
    from skate.cluster import available_resources as available_resources
    from skate.cluster import cluster_resources as cluster_resources
    from skate.cluster import drain_node as drain_node
    from skate.cluster import nodes as nodes
    from skate.decorators import method as method
    from skate.decorators import remote as remote
    from skate.objects import cancel as cancel
    from skate.objects import get as get
    from skate.objects import put as put
    from skate.objects import wait as wait
    from skate.runtime_context import get_gpu_ids as get_gpu_ids
    from skate.runtime_context import get_runtime_context as get_runtime_context
    from skate.session import init as init
    from skate.session import is_initialized as is_initialized
    from skate.session import shutdown as shutdown
    from skate_core_ids import ActorID as ActorID
    from skate_core_ids import JobID as JobID
    from skate_core_ids import NodeID as NodeID
    from skate_core_ids import ObjectID as ObjectID
    from skate_core_ids import PlacementGroupID as PlacementGroupID
    from skate_core_ids import TaskID as TaskID
    from skate_core_ids import UniqueID as UniqueID
    from skate_core_ids import WorkerID as WorkerID
    from skate_worker.object_ref import ObjectRef as ObjectRef
    from skate_worker.object_ref_generator import (
        DynamicObjectRefGenerator as DynamicObjectRefGenerator,
    )
    from skate_worker.object_ref_generator import ObjectRefGenerator as ObjectRefGenerator

_IDS = "skate_core_ids"
_MODULE_OF = {
    "ActorID": _IDS,
    "DynamicObjectRefGenerator": "skate_worker.object_ref_generator",
    "JobID": _IDS,
    "NodeID": _IDS,
    "ObjectID": _IDS,
    "ObjectRef": "skate_worker.object_ref",
    "ObjectRefGenerator": "skate_worker.object_ref_generator",
    "PlacementGroupID": _IDS,
    "TaskID": _IDS,
    "UniqueID": _IDS,
    "WorkerID": _IDS,
    "available_resources": "skate.cluster",
    "cancel": "skate.objects",
    "cluster_resources": "skate.cluster",
    "drain_node": "skate.cluster",
    "get": "skate.objects",
    "get_actor": "skate.actor",
    "get_gpu_ids": "skate.runtime_context",
    "get_runtime_context": "skate.runtime_context",
    "init": "skate.session",
    "is_initialized": "skate.session",
    "kill": "skate.actor",
    "method": "skate.decorators",
    "nodes": "skate.cluster",
    "put": "skate.objects",
    "remote": "skate.decorators",
    "shutdown": "skate.session",
    "wait": "skate.objects",
}
_SUBMODULES = (
    "actor",
    "cluster_utils",
    "exceptions",
    "experimental",
    "internal",
    "runtime_context",
    "util",
)

__all__ = [  # noqa: PLE0604 - every name is in the table, and the table is the one place
    "__version__",
    *_MODULE_OF,
    *_SUBMODULES,
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is not None:
        value = getattr(import_module(module), name)
    elif name in _SUBMODULES:
        value = import_module(f"skate.{name}")
    else:
        raise AttributeError(f"module 'skate' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
