"""The binary identifiers of everything Skate names, and how one embeds another.

An id is its bytes: each class is a ``bytes`` subclass, so hashing, equality, ordering and pickling
run at C speed and an id can be written to a frame or used as a dictionary key without conversion.
The price is that ids of two classes with the same bytes compare equal; no two classes share a
meaning for the same bytes, because the longer ids embed the shorter ones.

Layout (big end first; sizes in bytes)::

    JobID             4   counter, one per driver, handed out by the GCS
    ActorID          16   unique 12 | JobID 4
    TaskID           24   unique 8  | ActorID 16     (a plain task's ActorID has a nil unique part)
    ObjectID         28   TaskID 24 | index 4        (1.. returns; 2**31.. values that the task put)
    PlacementGroupID 18   unique 14 | JobID 4
    UniqueID         28   random; NodeID and WorkerID are UniqueIDs

Source: SURFACE row I16, which restates Ray's id specification.
"""

from __future__ import annotations

import itertools
import os
from typing import ClassVar, Self

_NIL_BYTE = b"\xff"


class BaseID(bytes):
    """A fixed-size identifier. Raises ``ValueError`` for bytes of the wrong length."""

    __slots__ = ()
    SIZE: ClassVar[int] = 0

    def __new__(cls, binary: bytes) -> Self:
        """Take the bytes of an id; ``ValueError`` when they are not ``SIZE`` long."""
        if len(binary) != cls.SIZE:
            raise ValueError(
                f"{cls.__name__} takes {cls.SIZE} bytes, got {len(binary)};"
                f" use {cls.__name__}.from_hex() for a hex string."
            )
        return bytes.__new__(cls, binary)

    @classmethod
    def nil(cls) -> Self:
        """The id that names nothing (all bits set)."""
        return bytes.__new__(cls, _NIL_BYTE * cls.SIZE)

    @classmethod
    def from_random(cls) -> Self:
        """A fresh id from the operating system's random source."""
        return bytes.__new__(cls, os.urandom(cls.SIZE))

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """Parse ``2 * SIZE`` hex digits. Raises ``ValueError`` for anything else."""
        try:
            return cls(bytes.fromhex(text))
        except ValueError as error:
            raise ValueError(f"{text!r} is not a {cls.__name__}: {error}") from None

    @classmethod
    def size(cls) -> int:
        """Length in bytes."""
        return cls.SIZE

    def binary(self) -> bytes:
        """The plain bytes."""
        return bytes(self)

    def is_nil(self) -> bool:
        """Whether this is the id that names nothing."""
        return self == _NIL_BYTE * len(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hex()})"

    def __str__(self) -> str:
        return self.hex()

    def __reduce__(self) -> tuple[type[Self], tuple[bytes]]:
        return type(self), (bytes(self),)


class JobID(BaseID):
    """A driver's run. Numbered by the GCS in order of arrival, from 1."""

    __slots__ = ()
    SIZE: ClassVar[int] = 4

    @classmethod
    def from_int(cls, number: int) -> JobID:
        """The job with this number, ``0 <= number < 2**32 - 1``."""
        return cls(number.to_bytes(4, "big"))

    def to_int(self) -> int:
        """This job's number."""
        return int.from_bytes(self, "big")


class ActorID(BaseID):
    """An actor: 12 random bytes, then the job that created it."""

    __slots__ = ()
    SIZE: ClassVar[int] = 16

    @classmethod
    def of(cls, job_id: JobID) -> ActorID:
        """A fresh actor id of this job."""
        return cls(os.urandom(12) + job_id)

    @classmethod
    def nil_of(cls, job_id: JobID) -> ActorID:
        """The actor part of a plain task's id: no actor, but the job is known."""
        return cls(_NIL_BYTE * 12 + job_id)

    def job_id(self) -> JobID:
        """The job that created the actor."""
        return JobID(self[12:])


class TaskID(BaseID):
    """One task or actor call, across all its attempts."""

    __slots__ = ()
    SIZE: ClassVar[int] = 24

    @classmethod
    def of_actor(cls, actor_id: ActorID) -> TaskID:
        """A fresh id for a call of this actor. Bulk submitters use :class:`TaskIdSource`."""
        return cls(os.urandom(8) + actor_id)

    @classmethod
    def of_job(cls, job_id: JobID) -> TaskID:
        """A fresh id for a plain task of this job. Bulk submitters use :class:`TaskIdSource`."""
        return cls(os.urandom(8) + ActorID.nil_of(job_id))

    def actor_id(self) -> ActorID:
        """The actor called; its unique part is nil for a plain task."""
        return ActorID(self[8:])

    def job_id(self) -> JobID:
        """The job that submitted the task."""
        return JobID(self[20:])

    def is_actor_task(self) -> bool:
        """Whether the task is a call of an actor."""
        return self[8:20] != _NIL_BYTE * 12


class ObjectID(BaseID):
    """One value: the task that made it and the value's index."""

    __slots__ = ()
    SIZE: ClassVar[int] = 28
    FIRST_PUT_INDEX: ClassVar[int] = 1 << 31

    @classmethod
    def of_return(cls, task_id: TaskID, index: int) -> ObjectID:
        """The ``index``-th return of a task, ``1 <= index < 2**31``."""
        return cls(task_id + index.to_bytes(4, "big"))

    @classmethod
    def of_put(cls, task_id: TaskID, index: int) -> ObjectID:
        """The ``index``-th value that a task put, ``0 <= index < 2**31``."""
        return cls(task_id + (index + cls.FIRST_PUT_INDEX).to_bytes(4, "big"))

    def task_id(self) -> TaskID:
        """The task that returned or put the value."""
        return TaskID(self[:24])

    def job_id(self) -> JobID:
        """The job that the value belongs to."""
        return JobID(self[20:24])

    # It hides bytes.index, which looks for a byte: nobody searches inside an id.
    def index(self) -> int:  # type: ignore[override]
        """Position among the task's returns (from 1) or puts (from ``FIRST_PUT_INDEX``)."""
        return int.from_bytes(self[24:], "big")

    def is_put(self) -> bool:
        """Whether the value was put rather than returned; a put has no lineage."""
        return self[24] >= 0x80


class UniqueID(BaseID):
    """28 random bytes."""

    __slots__ = ()
    SIZE: ClassVar[int] = 28


class NodeID(UniqueID):
    """One life of a node; a node that returns gets a new id."""

    __slots__ = ()


class WorkerID(UniqueID):
    """One process that owns objects: a worker or a driver."""

    __slots__ = ()


class PlacementGroupID(BaseID):
    """A placement group: 14 random bytes, then the job that created it."""

    __slots__ = ()
    SIZE: ClassVar[int] = 18

    @classmethod
    def of(cls, job_id: JobID) -> PlacementGroupID:
        """A fresh placement-group id of this job."""
        return cls(os.urandom(14) + job_id)

    def job_id(self) -> JobID:
        """The job that created the group."""
        return JobID(self[14:])


class TaskIdSource:
    """Fresh task ids without a system call each: a random 64-bit start, then a counter.

    Two sources collide with probability about ``n * m / 2**64`` after ``n`` and ``m`` ids. Safe to
    use from several threads; must be made anew after a fork.
    """

    __slots__ = ("_next",)

    def __init__(self) -> None:
        start = int.from_bytes(os.urandom(8), "big")
        self._next = itertools.count(start).__next__

    def of(self, suffix: bytes) -> TaskID:
        """A fresh id that ends in ``suffix``: an actor's id, or ``ActorID.nil_of(job)``."""
        unique = (self._next() & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "big")
        return bytes.__new__(TaskID, unique + suffix)
