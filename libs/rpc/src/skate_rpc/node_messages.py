"""Every message between a process and its raylet: what happens when it comes twice, and by what
that is known.

A message with a serial goes to one receiver: whoever tells the same to several makes one for each,
as ``ActorDirectory`` does. What ``ControlCall`` calls is repeated or not as one message; the calls
that the raylet makes of it are retried by ``skate_rpc.methods``.

Before it: ``node_protocol``. After it: the worker's ``node_client`` and the raylet's
``process_server``, which drop the repetitions of what carries a serial, and the handlers, which
know theirs by the other keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from skate_rpc import node_protocol as node
from skate_rpc.repeats import Message, Repeat
from skate_rpc.serials import Serials

M = TypeVar("M")

_READ = Repeat.READ_ONLY
_IDEMPOTENT = Repeat.IDEMPOTENT
_ONCE = Repeat.ONCE
SERIAL = "the sender's serial on this line"

_TABLE = (
    # Process to raylet.
    Message(node.RegisterProcess, _ONCE, "the connection"),
    Message(node.RequestLease, _ONCE, SERIAL),
    Message(node.CancelLeaseRequest, _ONCE, "request_id, which is not used again"),
    Message(node.TellBacklog, _ONCE, SERIAL),  # an old number must not replace a newer one
    Message(node.ReturnLease, _ONCE, "lease_id"),
    Message(node.Blocked, _ONCE, SERIAL),  # late ones would lend what is used again
    Message(node.Unblocked, _ONCE, SERIAL),
    Message(node.ControlCall, _ONCE, SERIAL),
    Message(node.KillWorker, _IDEMPOTENT, "lease_id"),
    Message(node.ActorCreated, _IDEMPOTENT, "actor_id and incarnation"),
    Message(node.ActorCreationFailed, _ONCE, "actor_id and incarnation"),
    Message(node.Exiting, _IDEMPOTENT, "the process"),
    Message(node.TaskEvents, _ONCE, SERIAL),
    Message(node.UserMetrics, _ONCE, SERIAL),
    Message(node.SubscribeActor, _ONCE, SERIAL),
    Message(node.UnsubscribeActor, _ONCE, SERIAL),
    Message(node.PullObject, _ONCE, SERIAL),
    Message(node.CancelPull, _ONCE, "pull_id, which is not used again"),
    Message(node.ObjectsReport, _ONCE, "the number of the question"),
    Message(node.WaitsReport, _ONCE, "the number of the question"),
    Message(node.DeleteCopies, _ONCE, SERIAL),  # an object may be made again, with its id
    Message(node.KeepCopies, _ONCE, SERIAL),
    Message(node.KnowOwner, _IDEMPOTENT, "owner_id and node_id"),
    Message(node.SubscribePlacementGroup, _IDEMPOTENT, "group_id"),  # it is told again
    Message(node.LogsTaken, _IDEMPOTENT, "number: the highest counts"),
    Message(node.FlushLogs, _READ, ""),
    # Raylet to process.
    Message(node.ProcessRegistered, _IDEMPOTENT, "the connection"),
    Message(node.LeaseGranted, _ONCE, SERIAL),  # one that nobody asked for is returned
    Message(node.LeaseRefused, _ONCE, "request_id"),
    Message(node.LeaseWarning, _ONCE, SERIAL),
    Message(node.LeaseLost, _ONCE, "lease_id"),
    Message(node.ReclaimLease, _IDEMPOTENT, "lease_id"),
    Message(node.ControlReply, _ONCE, "call_id"),
    Message(node.CreateActor, _ONCE, SERIAL),
    Message(node.ActorUpdate, _ONCE, SERIAL),  # an old state must not replace a newer one
    Message(node.ExitNow, _IDEMPOTENT, "the process"),
    Message(node.WorkerDied, _IDEMPOTENT, "worker_id"),
    Message(node.PullEnded, _ONCE, "pull_id"),
    Message(node.NodeDied, _IDEMPOTENT, "node_id"),
    Message(node.CopiesKept, _ONCE, SERIAL),
    Message(node.AskObjects, _READ, ""),
    Message(node.AskWaits, _READ, ""),
    Message(node.PlacementGroupUpdate, _ONCE, SERIAL),  # as ActorUpdate
    Message(node.LogLines, _ONCE, SERIAL),
    Message(node.LogsFlushed, _ONCE, "number"),
)

MESSAGES: Mapping[type[Any], Message] = {message.kind: message for message in _TABLE}
"""By the message's class."""

WITH_SERIAL = frozenset(m.kind for m in _TABLE if m.key is SERIAL)
"""What the receivers hand on once a serial."""


def stamp(message: M, line: Serials) -> M:
    """Give a message its serial, if its kind has one. To be called for each that is sent."""
    if type(message) in WITH_SERIAL:
        message.serial = next(line.sent)  # type: ignore[attr-defined]
    return message


def is_new(message: Any, line: Serials) -> bool:
    """Whether a message that came is to be handled: no repetition of one with a serial."""
    return type(message) not in WITH_SERIAL or line.received.is_new(message.serial)
