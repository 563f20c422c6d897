"""Binary ids with embedded parents, and the root error. Standard library only."""

from __future__ import annotations

from skate_core_ids.errors import SkateError
from skate_core_ids.ids import (
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

__all__ = [
    "ActorID",
    "BaseID",
    "JobID",
    "NodeID",
    "ObjectID",
    "PlacementGroupID",
    "SkateError",
    "TaskID",
    "TaskIdSource",
    "UniqueID",
    "WorkerID",
]
