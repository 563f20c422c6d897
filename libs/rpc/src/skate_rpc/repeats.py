"""What happens when a call or a message reaches its handler twice: the classes, and one row a kind.

Three tables are made of these, and a kind that is missing in its table fails a test, so that adding
one makes its author decide: ``skate_rpc.methods`` (gRPC), ``skate_rpc.node_messages`` (a process
and its raylet) and ``skate_worker.task_messages`` (processes among each other).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any


class Repeat(enum.Enum):
    """What happens when a call or a message reaches its handler twice."""

    READ_ONLY = "read only"
    """Nothing changes: repeated freely."""
    IDEMPOTENT = "idempotent"
    """The second has no effect beyond the first: repeated freely."""
    CONDITIONAL = "conditional"
    """Idempotent for some arguments; the client's method says which, and retries only those."""
    ONCE = "at most once"
    """It would have an effect each time, so the receiver keeps the key and drops what has come."""


@dataclass(frozen=True, slots=True)
class Message:
    """One kind of message of a stream protocol."""

    kind: type[Any]
    repeat: Repeat
    key: str
    """What makes a repetition recognisable; empty for a read."""
