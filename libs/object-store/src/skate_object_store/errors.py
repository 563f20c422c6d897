"""What the store raises. Every error holds its fields, builds its own message, and pickles.

By blame: :class:`ObjectExistsError`, :class:`ObjectNotFoundError` and
:class:`StoreAuthenticationError` are the caller's; :class:`StoreFullError`,
:class:`SpillReadError`, :class:`SpilledObjectLostError` and :class:`StoreClosedError` are the
world's;
:class:`StoreProtocolError` is a bug or a foreign program on the socket.
"""

from __future__ import annotations

from skate_core_ids import SkateError
from skate_object_store.machine.facts import Fullness, FullReason, Holder

_REASONS = {
    FullReason.TOO_LARGE: "the object is larger than the store",
    FullReason.NO_ROOM: "what is held leaves no room",
    FullReason.MACHINE_SHORT: "the machine has no memory left to back it",
    FullReason.DISK_FULL: "neither memory nor the disk for spilled objects has room left",
    FullReason.SPILL_FAILED: "memory is full and objects cannot be spilled",
}
_NEXT_STEPS = {
    FullReason.TOO_LARGE: "Split the object, or start the store with more capacity.",
    FullReason.NO_ROOM: "Drop references to objects that are done with, or enlarge the store.",
    FullReason.MACHINE_SHORT: "End other programs on the machine, or shrink the store.",
    FullReason.DISK_FULL: "Free the disk, drop references, or spill to another place.",
    FullReason.SPILL_FAILED: "See to the place that objects are spilled to, or drop references.",
}


class StoreError(SkateError):
    """Base of the store's errors."""


class StoreFullError(StoreError):
    """There is no room for an object: says why, and who holds the most."""

    def __init__(self, object_id: bytes, fullness: Fullness) -> None:
        super().__init__(object_id, fullness)
        self.object_id = object_id
        self.fullness = fullness

    @property
    def reason(self) -> FullReason:
        """Why there is no room."""
        return self.fullness.reason

    @property
    def holders(self) -> tuple[Holder, ...]:
        """The biggest objects that cannot be evicted, biggest first."""
        return self.fullness.holders

    def __str__(self) -> str:
        full = self.fullness
        headline = (
            f"object {self.object_id.hex()} needs {_bytes(full.requested_bytes)}, and"
            f" {_REASONS[full.reason]}: {_bytes(full.used_bytes)} of"
            f" {_bytes(full.capacity_bytes)} used, {_bytes(full.evictable_bytes)} of it evictable."
            f" {_NEXT_STEPS[full.reason]}"
        )
        lines = [headline]
        if full.detail:
            lines.append(f"Spilling: {full.detail}")
        if full.holders:
            lines.append("Biggest holders:")
            lines += (f"  {_describe(holder)}" for holder in full.holders)
        return "\n".join(lines)


class OutOfDiskError(StoreFullError):
    """There is no room for an object, neither in memory nor on the disk for spilled ones."""


def full_error(object_id: bytes, fullness: Fullness) -> StoreFullError:
    """The error for a refusal: its class tells a full disk from full memory."""
    if fullness.reason in (FullReason.DISK_FULL, FullReason.SPILL_FAILED):
        return OutOfDiskError(object_id, fullness)
    return StoreFullError(object_id, fullness)


class SpillReadError(StoreError):
    """An object on disk could not be read back this time; another get tries again."""

    def __init__(self, object_id: bytes, cause: str) -> None:
        super().__init__(object_id, cause)
        self.object_id = object_id
        self.cause = cause

    def __str__(self) -> str:
        return (
            f"object {self.object_id.hex()} is on disk and could not be read back: {self.cause}."
            " See to the place that objects are spilled to, and get it again."
        )


class SpilledObjectLostError(StoreError):
    """An object that was spilled to disk cannot be read back; its bytes are gone or changed."""

    def __init__(self, object_id: bytes, cause: str) -> None:
        super().__init__(object_id, cause)
        self.object_id = object_id
        self.cause = cause

    def __str__(self) -> str:
        return f"object {self.object_id.hex()} was spilled and cannot be read back: {self.cause}."


class ObjectExistsError(StoreError):
    """An object with this id is there already, or is being written."""

    def __init__(self, object_id: bytes, is_sealed: bool) -> None:
        super().__init__(object_id, is_sealed)
        self.object_id = object_id
        self.is_sealed = is_sealed

    def __str__(self) -> str:
        state = "is in the store" if self.is_sealed else "is being written"
        return f"object {self.object_id.hex()} {state} already; an object is written once."


class ObjectNotFoundError(StoreError):
    """This client is not writing an object with this id, so it cannot seal or abort it."""

    def __init__(self, object_id: bytes) -> None:
        super().__init__(object_id)
        self.object_id = object_id

    def __str__(self) -> str:
        return f"object {self.object_id.hex()} is not being written by this client."


class StoreClosedError(StoreError):
    """The client or its server is closed: by whom, and why."""

    def __init__(self, endpoint: str, reason: str) -> None:
        super().__init__(endpoint, reason)
        self.endpoint = endpoint
        self.reason = reason

    def __str__(self) -> str:
        return f"the connection to the object store at {self.endpoint} is closed: {self.reason}."


class StoreTimeoutError(StoreError, TimeoutError):
    """The server did not answer in time: stopped, or starved. The connection stays open."""

    def __init__(self, endpoint: str, timeout_s: float) -> None:
        super().__init__(endpoint, timeout_s)
        self.endpoint = endpoint
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        return (
            f"the object store at {self.endpoint} did not answer within {self.timeout_s:g} s;"
            " see whether its process is stopped or the machine is overloaded."
        )


class StoreProtocolError(StoreError):
    """The other side sent what this version does not understand."""

    def __init__(self, endpoint: str, reason: str) -> None:
        super().__init__(endpoint, reason)
        self.endpoint = endpoint
        self.reason = reason

    def __str__(self) -> str:
        return f"the object store at {self.endpoint} broke the protocol: {self.reason}."


class StoreAuthenticationError(StoreError):
    """The store did not admit this process, or did not prove itself to it."""

    def __init__(self, endpoint: str, reason: str) -> None:
        super().__init__(endpoint, reason)
        self.endpoint = endpoint
        self.reason = reason

    def __str__(self) -> str:
        return f"not admitted to the object store at {self.endpoint}: {self.reason}."


def _bytes(count: int) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def _describe(holder: Holder) -> str:
    if not holder.is_sealed:
        state = "being written"
    elif holder.is_deleted:
        state = f"deleted, kept by {holder.pins} views"
    else:
        state = f"primary copy, {holder.pins} views"
    owner = holder.owner.hex() or "none"
    return (
        f"{holder.object_id.hex()}: {_bytes(holder.size_bytes)}, owner {owner}, {state},"
        f" for {holder.age_s:.1f} s" + (f", made at {holder.note}" if holder.note else "")
    )
