"""What two raylets say to each other about a lease that one asks of the other for its own holder.

::

    borrower (the holder's raylet)            lender (the worker's raylet)
      Sync   at connection: which asks live --->  drops the others, repeats what it said of these
      Ask    --------------------------------->  grants, or ends it after at most ``wait_s``
             <--------------- Granted, Reclaimed
      Kill   --------------------------------->
      Drop   not wanted, returned, holder gone >  forgotten at once
             <--------------------------- Ended  refused or lost; forgotten at once

An *ask* is one attempt to borrow, numbered by the borrower, and names the lease that comes of it
for as long as that lives. Every message may be lost, repeated or overtaken: an ask that the lender
does not know and that is older than the last ``Sync`` is answered by ``Ended``, never begun anew; a
grant that the borrower does not know is answered by ``Drop``.
"""

from __future__ import annotations

import msgspec

from skate_raylet.machine.commands import DeviceIds
from skate_raylet.machine.events import EnvVars
from skate_scheduler import ResourceSet


class Cause(msgspec.Struct, frozen=True):
    """Why something ended. The machines' form of the stream's ``Death``."""

    kind: str
    message: str
    pid: int = 0
    exit_code: int = 0
    signal: int = 0
    log_tail: str = ""


# ---- borrower to lender ----


class Ask(msgspec.Struct, frozen=True):
    """Lend a worker to this holder. Repeating it has what was said of it repeated."""

    ask_id: int
    holder_id: bytes
    job_id: bytes
    resources: ResourceSet
    env_vars: EnvVars
    backlog: int
    waited_s: float  # since the holder asked: old requests go first at the lender too
    wait_s: float  # ended as "busy" when it has no resources after this long
    group_id: bytes = b""  # these two as in ``events.Strategy``
    bundle_index: int = -1


class Drop(msgspec.Struct, frozen=True):
    """The ask, or the lease that it became, is over. ``kind`` not empty: its worker is ended."""

    ask_id: int
    kind: str = ""
    message: str = ""
    discard: bool = False  # the worker may run its exit hooks, and is not used again


class Kill(msgspec.Struct, frozen=True):
    """End the lease's worker; its death is answered by :class:`Ended`."""

    ask_id: int
    message: str


class Sync(msgspec.Struct, frozen=True):
    """The borrower's asks: of those below ``next_ask_id`` exactly ``live`` are not over."""

    next_ask_id: int
    live: tuple[int, ...]


ToLender = Ask | Drop | Kill | Sync


# ---- lender to borrower ----


class Granted(msgspec.Struct, frozen=True):
    """A worker serves the holder."""

    ask_id: int
    lease_id: bytes
    worker_id: bytes
    endpoint: str
    pid: int
    device_ids: DeviceIds = msgspec.field(default_factory=dict)


class Ended(msgspec.Struct, frozen=True):
    """The ask was refused, or its lease is lost.

    ``cause.kind`` of a refusal: "busy" (ask elsewhere, or later), "worker_start_failed", "invalid";
    "unknown" when the lender does not know it (any more).
    """

    ask_id: int
    cause: Cause


class Reclaimed(msgspec.Struct, frozen=True):
    """Others wait at the lender. ``when_idle``: the lease is to be returned at its first pause."""

    ask_id: int
    when_idle: bool = False


ToBorrower = Granted | Ended | Reclaimed
