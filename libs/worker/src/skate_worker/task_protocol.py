"""What owners and executors say to each other over the stream.

Every struct is an array on the wire: fields may only be appended, each with a default. Ids are raw
bytes. A ``serial`` (``skate_rpc.serials``) is given by ``Peer.stamp`` to each message that must not
act twice and that nothing else in it tells from its repetition; which key each message has is
listed in ``task_messages``. Before it: ``skate_rpc.stream``. After it: submission on one side,
execution on the other.
"""

from __future__ import annotations

import msgspec


class TaskMessage(msgspec.Struct, array_like=True, tag_field="t", gc=False):
    """Base of every message below; the tag is the class's number."""


class StoredAt(msgspec.Struct, array_like=True, gc=False):
    """Where a stored value is, and whom to ask for other copies of it."""

    node_id: bytes
    size_bytes: int
    owner_id: bytes
    owner_endpoint: str
    owner_node: bytes = b""


class Resolved(msgspec.Struct, array_like=True, gc=False):
    """The value of a reference that stood at the top level of the arguments."""

    position: int | str
    data: bytes  # the serialised value; empty when it is in a store
    object_id: bytes = b""  # set when the value is in a store
    stored_at: StoredAt | None = None


class Reference(msgspec.Struct, array_like=True, gc=False):
    """A reference inside a value."""

    object_id: bytes
    owner_id: bytes
    owner_endpoint: str
    owner_node: bytes = b""


class Returned(msgspec.Struct, array_like=True, gc=False):
    """One return value of a task."""

    data: bytes  # the serialised value or error; empty when it is in the store
    size_bytes: int = 0
    contained: list[Reference] = []
    is_error: bool = False
    node_id: bytes = b""  # whose store holds it, when it is in one


# ---- any process to any process ----


class Hello(TaskMessage, tag=1):
    """First on a connection: who connects. Lets the acceptor use the connection too."""

    worker_id: bytes
    endpoint: str
    node_id: bytes = b""


class AskObject(TaskMessage, tag=2):
    """To an owner: send :class:`ObjectValue` once the object is settled."""

    object_id: bytes
    serial: int = 0


class ObjectValue(TaskMessage, tag=3):
    """From an owner. One of ``data``, ``is_stored`` or ``failure``.

    ``node_id`` is the store that holds a stored value; empty when no copy is left: who needs one
    asks for locations, upon which it is made again.
    """

    object_id: bytes
    data: bytes = b""
    is_error: bool = False
    node_id: bytes = b""
    size_bytes: int = 0
    failure: str = ""  # "freed": the owner no longer has it
    contained: list[Reference] = []
    is_stored: bool = False
    asked: int = 0  # the serial of the question that this answers


class Borrow(TaskMessage, tag=4):
    """To an owner: the sender holds these. Answered by :class:`BorrowKnown` of that number."""

    number: int
    object_ids: list[bytes]
    serial: int = 0


class BorrowKnown(TaskMessage, tag=5):
    """From an owner: the registration stands; whatever kept the object alive meanwhile may go."""

    number: int


class EndBorrow(TaskMessage, tag=6):
    """To an owner: the sender holds these no more (one registration each)."""

    object_ids: list[bytes]
    serial: int = 0


# ---- about objects, beside the borrowing protocol ----


class FreeObjects(TaskMessage, tag=48):
    """To an owner: delete the values of these objects, whoever still refers to them."""

    object_ids: list[bytes]
    serial: int = 0


class ObjectsFreed(TaskMessage, tag=49):
    """From an owner to a borrower: these values are gone for good; a ``get`` raises."""

    object_ids: list[bytes]


class AskLocations(TaskMessage, tag=50):
    """To an owner: where are these? Answered by :class:`Locations` of that number."""

    number: int
    object_ids: list[bytes]


class Location(msgspec.Struct, array_like=True, gc=False):
    """What an owner knows of where an object is."""

    object_id: bytes
    node_ids: list[bytes]  # whose stores hold it; empty for a small value
    size_bytes: int = -1  # -1: it is not there yet


class Locations(TaskMessage, tag=51):
    """From an owner: the objects asked for that it knows."""

    number: int
    rows: list[Location]


class GiveObject(TaskMessage, tag=52):
    """To an actor's process: own this object, whose value the sender has made.

    The sender is a borrower of it from then on, and has registered the receiver as borrower of what
    is its own inside. Answered by :class:`Locations` of that number once all owners of what is
    inside know the receiver.
    """

    number: int
    object_id: bytes
    data: bytes = b""  # the value; empty: it lies in the store of ``node_id``
    node_id: bytes = b""
    size_bytes: int = 0
    contained: list[Reference] = []
    site: str = ""  # the line that put it
    serial: int = 0


# ---- copies of stored objects: any process to an owner, and its answer ----


class AskCopy(TaskMessage, tag=64):
    """To an owner: from which nodes may a process on ``node_id`` pull the object?

    Answered by :class:`CopySources`, once or, when it has to wait, twice. The puller then says
    :class:`CopyMade` or :class:`PullStopped`, or asks again with the nodes that did not have it.
    """

    object_id: bytes
    node_id: bytes
    lost_at: list[bytes] = []
    why_lost: str = ""
    serial: int = 0


class CopySources(TaskMessage, tag=65):
    """From an owner: pull from these, the best first. None, and no ``data`` or ``failure``: wait,
    the object is being made or its copies serve others.
    """

    object_id: bytes
    node_ids: list[bytes] = []
    size_bytes: int = 0
    data: bytes = b""  # the object is small, or an error, and this is it
    is_error: bool = False
    failure: str = ""  # "freed": the owner no longer has it
    arriving_at: list[bytes] = []  # a copy is on its way to these: ask them, the others stand in


class CopyMade(TaskMessage, tag=66):
    """To an owner: there is a copy on this node now."""

    object_id: bytes
    node_id: bytes
    serial: int = 0


class PullStopped(TaskMessage, tag=67):
    """To an owner: this process neither pulls nor waits any more."""

    object_id: bytes
    serial: int = 0


# ---- owner to executor ----


class PushTask(TaskMessage, tag=16):
    """Run a plain task."""

    task_id: bytes
    function_id: bytes
    args: bytes
    name: str
    num_returns: int = 1
    resolved: list[Resolved] = []
    attempt: int = 0
    trace_parent: str = ""
    max_calls: int = 0
    kept_returns: list[int] = []  # run again for its other returns: these exist and stay
    serial: int = 0


class PushCall(TaskMessage, tag=17):
    """Run a method of the actor that the executor is."""

    task_id: bytes
    method: str
    args: bytes
    name: str
    num_returns: int = 1
    resolved: list[Resolved] = []
    attempt: int = 0
    trace_parent: str = ""
    concurrency_group: str = ""
    is_retriable: bool = False  # report its result at once, or a death would run it again
    kept_returns: list[int] = []
    serial: int = 0


class TakeBack(TaskMessage, tag=18):
    """Give back up to ``count`` tasks that have not started, the youngest first."""

    count: int
    serial: int = 0


class Cancel(TaskMessage, tag=19):
    """Stop this task: drop it if queued, interrupt it if it runs."""

    task_id: bytes
    is_recursive: bool = True
    serial: int = 0


class LeaseBegins(TaskMessage, tag=21):
    """First on a new lease: what its tasks may use, in units of 1e-4."""

    resources: dict[str, int]
    serial: int = 0
    placement_group_id: bytes = b""  # they run inside this group
    captures: bool = False  # and so does what they start
    resource_ids: dict[str, list[tuple[int, int]]] = {}  # devices of the node, and units of each


class FreeReturns(TaskMessage, tag=20):
    """The owner holds what the returns of this task contain; the executor's pins may go.

    For an item of a stream ``task_id`` is the item's object id.
    """

    task_id: bytes
    attempt: int = 0


class ItemsTaken(TaskMessage, tag=22):
    """So many items of a stream were consumed: its producer may have paused for them."""

    task_id: bytes
    consumed: int
    serial: int = 0


class StopStream(TaskMessage, tag=23):
    """Nobody will read more of this stream: its generator is to be closed at its next yield."""

    task_id: bytes
    serial: int = 0


# ---- executor to owner ----


class TaskDone(TaskMessage, tag=32):
    """One inline return without references: the common case."""

    task_id: bytes
    data: bytes
    run_us: int = 0
    attempt: int = 0


class TaskReturned(TaskMessage, tag=33):
    """Any other success, and failure in user code (every return is then the same error)."""

    task_id: bytes
    returns: list[Returned]
    run_us: int = 0
    is_error: bool = False  # user code raised: may be retried by retry_exceptions
    holds_pins: bool = False  # answer with FreeReturns
    is_cancelled: bool = False
    items: int = -1  # how many items a stream had; -1: the task is none
    attempt: int = 0


class TasksGivenBack(TaskMessage, tag=34):
    """These tasks never started. ``is_blocked``: the running task waits in get or wait, so push no
    more until its outcome came.
    """

    task_ids: list[bytes]
    is_blocked: bool = False
    serial: int = 0


class Leaving(TaskMessage, tag=35):
    """Last from a worker that ends on purpose.

    What it was sent and did not answer never started, except for ``running_task``, which asked for
    the end (empty: none did).
    """

    reason: str
    running_task: bytes = b""


class ItemReturned(TaskMessage, tag=36):
    """A stream yielded. Items of one attempt come in order, and before the task's outcome."""

    task_id: bytes
    index: int
    value: Returned
    attempt: int = 0
    holds_pins: bool = False  # answer with FreeReturns of the item's id
    serial: int = 0


AnyMessage = (
    Hello
    | AskObject
    | ObjectValue
    | Borrow
    | BorrowKnown
    | EndBorrow
    | FreeObjects
    | ObjectsFreed
    | AskLocations
    | Locations
    | GiveObject
    | AskCopy
    | CopySources
    | CopyMade
    | PullStopped
    | PushTask
    | PushCall
    | TakeBack
    | Cancel
    | FreeReturns
    | LeaseBegins
    | ItemsTaken
    | StopStream
    | TaskDone
    | TaskReturned
    | TasksGivenBack
    | Leaving
    | ItemReturned
)


class CreationTask(msgspec.Struct, array_like=True):
    """How to make an actor. Travels through the GCS as opaque bytes and is opened by the worker
    alone.
    """

    class_id: bytes
    args: bytes
    name: str
    resolved: list[Resolved] = []
    max_concurrency: int = 1
    is_async: bool = False
    concurrency_groups: list[tuple[str, int]] = []
    actor_name: str = ""
    namespace: str = ""
    trace_parent: str = ""
    max_restarts: int = 0
    resources: dict[str, int] = {}
    placement_group_id: bytes = b""  # these two as in LeaseBegins
    captures: bool = False
