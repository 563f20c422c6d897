"""Where objects are. Source: SURFACE O16."""

from __future__ import annotations

from typing import Any

from skate.objects import live_core
from skate.session import is_initialized
from skate_worker.object_ref import ObjectRef


def get_object_locations(
    obj_refs: list[ObjectRef[Any]], timeout_ms: int = -1
) -> dict[ObjectRef[Any], dict[str, Any]]:
    """The nodes that hold each object, as its owner knows them.

    Per reference ``{"node_ids": [hex, ...], "object_size": bytes or None, "did_spill": bool}``: no
    nodes for a small value, which is with its owner; size None for one that is not there yet.
    References whose owner does not answer within ``timeout_ms`` (-1: no limit) are left out.

    Raises:
        RuntimeError: there is no session.
        TypeError: something else than a list of references.
    """
    if isinstance(timeout_ms, bool) or not isinstance(timeout_ms, int | float):
        raise TypeError(f"timeout_ms is a number of milliseconds, got {timeout_ms!r}.")
    return _locations(obj_refs, None if timeout_ms < 0 else timeout_ms / 1000)


def get_local_object_locations(
    obj_refs: list[ObjectRef[Any]],
) -> dict[ObjectRef[Any], dict[str, Any]]:
    """As :func:`get_object_locations`, of what this process knows without asking anyone.

    Raises:
        RuntimeError: there is no session.
        TypeError: something else than a list of references.
    """
    return _locations(obj_refs, 0.0)


def _locations(refs: Any, timeout_s: float | None) -> dict[ObjectRef[Any], dict[str, Any]]:
    if not is_initialized():
        raise RuntimeError("There is no session; call skate.init() first.")
    if not isinstance(refs, list) or not all(isinstance(ref, ObjectRef) for ref in refs):
        raise TypeError("Locations are known of a list of ObjectRefs.")
    if not refs:
        return {}
    found = live_core(refs).locations(refs, timeout_s)
    return {
        ref: {
            "node_ids": [node_id.hex() for node_id in where.node_ids],
            "object_size": where.size_bytes,
            "did_spill": where.did_spill,
        }
        for ref in refs
        if (where := found.get(ref.binary())) is not None
    }
