"""Smaller services around the core API."""

from __future__ import annotations

from typing import Any

from skate.session import require_session
from skate_worker.current import current_core
from skate_worker.serialization import deregister_serializer, register_serializer

__all__ = ["deregister_serializer", "list_named_actors", "register_serializer"]


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
