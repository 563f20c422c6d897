"""Every message of the task plane: what happens when it comes twice, and by what that is known.

The stream keeps what it is given and gives it once, as long as its socket lives. That no handler
relies on this is so that a line may be mended, or a message sent again, without another look at
each of them. ``tests/sim/test_borrowing`` delivers messages again at random and compares with
reachability, and ``tests/sim/test_repeated_messages`` hands each kind to its handler twice.

Before it: ``task_protocol``. After it: ``membership``, which drops the repetitions of what carries
a serial, and the handlers, which know theirs by the other keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skate_rpc.repeats import Message, Repeat
from skate_worker.task_protocol import (
    AskCopy,
    AskLocations,
    AskObject,
    Borrow,
    BorrowKnown,
    Cancel,
    CopyMade,
    CopySources,
    EndBorrow,
    FreeObjects,
    FreeReturns,
    GiveObject,
    Hello,
    ItemReturned,
    ItemsTaken,
    LeaseBegins,
    Leaving,
    Locations,
    ObjectsFreed,
    ObjectValue,
    PullStopped,
    PushCall,
    PushTask,
    StopStream,
    TakeBack,
    TaskDone,
    TaskReturned,
    TasksGivenBack,
)

_READ = Repeat.READ_ONLY
_IDEMPOTENT = Repeat.IDEMPOTENT
_ONCE = Repeat.ONCE
SERIAL = "the sender's worker_id and serial"

_TABLE = (
    Message(Hello, _IDEMPOTENT, "the connection, which has one peer"),
    # The borrowing protocol. Registrations are counted, so none may be made or ended twice.
    Message(AskObject, _ONCE, SERIAL),  # an answer registers the asker for what the value holds
    Message(ObjectValue, _ONCE, "the owner's worker_id and the serial of the question"),
    Message(Borrow, _ONCE, SERIAL),
    Message(BorrowKnown, _ONCE, "the number of the Borrow"),
    Message(EndBorrow, _ONCE, SERIAL),
    # About objects. What says that something *is* so must not be heard when it is so no more.
    Message(FreeObjects, _ONCE, SERIAL),  # it leaves alone what is not ready yet
    Message(ObjectsFreed, _IDEMPOTENT, "object_id: freed is freed for good"),
    Message(AskLocations, _READ, ""),
    Message(Locations, _ONCE, "the number of the question"),
    Message(GiveObject, _ONCE, SERIAL),
    Message(AskCopy, _ONCE, SERIAL),
    Message(CopySources, _IDEMPOTENT, "object_id and the stage of the fetch"),
    Message(CopyMade, _ONCE, SERIAL),
    Message(PullStopped, _ONCE, SERIAL),
    # Owner to executor.
    Message(PushTask, _ONCE, SERIAL),  # one given back comes again with the same attempt
    Message(PushCall, _ONCE, SERIAL),
    Message(TakeBack, _ONCE, SERIAL),
    Message(Cancel, _ONCE, SERIAL),
    Message(LeaseBegins, _ONCE, SERIAL),
    Message(FreeReturns, _ONCE, "task_id and attempt"),
    Message(ItemsTaken, _ONCE, SERIAL),
    Message(StopStream, _ONCE, SERIAL),
    # Executor to owner.
    Message(TaskDone, _ONCE, "task_id and attempt"),
    Message(TaskReturned, _ONCE, "task_id and attempt"),
    Message(TasksGivenBack, _ONCE, SERIAL),
    Message(Leaving, _ONCE, "the lease, which it ends"),
    Message(ItemReturned, _ONCE, SERIAL),
)

MESSAGES: Mapping[type[Any], Message] = {message.kind: message for message in _TABLE}
"""By the message's class."""

WITH_SERIAL = frozenset(m.kind for m in _TABLE if m.key is SERIAL)
"""What ``membership`` hands on once a serial."""
