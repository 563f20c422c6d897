"""Control over objects that most programs never need: memory is freed when references go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from skate.objects import live_core
from skate_worker.object_ref import ObjectRef

__all__ = ["free"]


def free(object_refs: ObjectRef[Any] | Sequence[ObjectRef[Any]], local_only: bool = False) -> None:
    """Delete the values of objects now, although references to them exist.

    Every copy goes, in every store and process; a later ``get``, here or elsewhere, raises
    ``ObjectFreedError``. Objects whose task has not finished are left alone. The order to an owner
    in another process is sent, not awaited.

    Args:
        object_refs: One reference or a list of them.
        local_only: Delete only what this node's store holds.

    Raises:
        TypeError: something else than references.
    """
    refs: Any = [object_refs] if isinstance(object_refs, ObjectRef) else object_refs
    if not isinstance(refs, list | tuple):
        raise TypeError(f"free() takes a list of ObjectRefs, got {type(refs).__name__}.")
    for ref in refs:
        if not isinstance(ref, ObjectRef):
            raise TypeError(
                f"free() takes a list of ObjectRefs, but the list has {type(ref).__name__}."
            )
    if refs:
        live_core(list(refs)).free(refs, is_local_only=local_only)
