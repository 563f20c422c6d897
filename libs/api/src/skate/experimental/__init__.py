"""Calls whose shape may still change."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from skate.experimental.locations import get_local_object_locations, get_object_locations

if TYPE_CHECKING:
    from skate.experimental import tqdm_skate as tqdm_skate

__all__ = ["get_local_object_locations", "get_object_locations", "tqdm_skate"]


def __getattr__(name: str) -> Any:
    # On first use: few programs have progress bars. Under Ray's name for programs of Ray's.
    if name not in ("tqdm_skate", "tqdm_ray"):
        raise AttributeError(f"module 'skate.experimental' has no attribute {name!r}")
    return import_module("skate.experimental.tqdm_skate")
