"""Turning Python values into bytes and back, without copying large buffers.

Before it: user values, and the references that it collects on the way. After it: the bytes that a
task carries, or the parts that are scattered into the object store. Small plain values take a
path through the C pickler alone; everything else goes through cloudpickle with out-of-band
buffers.
"""

from __future__ import annotations

from skate_worker.pickler import (
    deregister_serializer,
    register_reference_type,
    register_serializer,
)
from skate_worker.serialization.arguments import (
    ALL_ARGUMENTS,
    EMPTY_ARGUMENTS,
    INLINE_LIMIT_BYTES,
    deserialize_args,
    register_argument_reference,
    serialize_args,
)
from skate_worker.serialization.wire import (
    ErrorValue,
    Serialized,
    deserialize,
    is_error,
    serialize,
)

__all__ = [
    "ALL_ARGUMENTS",
    "EMPTY_ARGUMENTS",
    "INLINE_LIMIT_BYTES",
    "ErrorValue",
    "Serialized",
    "deregister_serializer",
    "deserialize",
    "deserialize_args",
    "is_error",
    "register_argument_reference",
    "register_reference_type",
    "register_serializer",
    "serialize",
    "serialize_args",
]
