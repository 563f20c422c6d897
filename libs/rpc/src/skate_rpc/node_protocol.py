"""What a worker or driver and its node's raylet say to each other over the stream.

These are control messages, but on the path of every lease and of every blocking ``get``, so they
use the stream (about 70 us a round trip) and not gRPC (about 450 us), and a worker needs no gRPC at
all: a message that is meant for the GCS goes to the raylet, which calls the GCS for it.

Every struct is an array on the wire: fields may only be appended, each with a default. A ``serial``
is given to each message that must not act twice and that nothing else in it tells from its
repetition (``node_messages``, ``serials``), by whoever writes to the line.
Amounts of resources are in units of 1e-4. Ids are raw bytes (layouts: ``libs/core-ids``).
"""

from __future__ import annotations

import msgspec

from skate_rpc.object_report import ObjectRow
from skate_rpc.wait_report import BlockedRow, RunRow, TaskRow


class NodeMessage(msgspec.Struct, array_like=True, tag_field="t", gc=False):
    """Base of every message below; the tag is the class's number."""


# Priorities of pulls: a lower number goes first.
PULL_FOR_GET = 0
PULL_FOR_WAIT = 1
PULL_FOR_ARGUMENT = 2

LOG_LINES_UNDER_WAY_MAX = 16
# A line of a worker's output that begins so names who prints what follows, and is not shown.
LOG_NAME_MARK = "\x1e"


Condition = tuple[str, int, tuple[str, ...]]
"""On a node's label: its key, the operator (numbers of gcs.proto), the values."""


class LabelRules(msgspec.Struct, array_like=True, frozen=True):
    """Which nodes a request wants, by their labels."""

    selectors: tuple[tuple[Condition, ...], ...] = ()  # one must match; none: any node does
    preferred: tuple[Condition, ...] = ()  # of those, nodes that match this too come first


# ---- process to raylet ----


class RegisterProcess(NodeMessage, tag=1):
    """The first message of a process. Answered by :class:`ProcessRegistered`."""

    worker_id: bytes
    pid: int
    endpoint: str  # where it listens for the task plane: "unix:/path"
    is_driver: bool
    startup_id: int = 0  # workers: the number given at fork; 0 for drivers
    namespace: str = ""  # drivers: "" asks for an anonymous namespace
    entrypoint: str = ""  # drivers: the command line, for people
    metadata: dict[str, str] = {}
    sys_path: list[str] = []  # drivers: where workers of the job look for modules (SURFACE I15)
    wants_logs: bool = False  # drivers: send what the job's workers print


class RequestLease(NodeMessage, tag=2):
    """Ask for a worker. Answered by :class:`LeaseGranted` or :class:`LeaseRefused`."""

    request_id: int  # the process's own counter
    resources: dict[str, int]
    env_vars: dict[str, str] = {}
    backlog: int = 0  # tasks for which no worker is asked yet, as in TellBacklog
    trace_parent: str = ""
    is_spread: bool = False  # the nodes take turns
    node_id: bytes = b""  # this node, if it is not empty
    is_soft: bool = False  # with ``node_id``: any node once that one is dead or too small
    is_impatient: bool = False  # with ``node_id``: a busy node is like one that is too small
    labels: LabelRules | None = None
    # Nodes and the bytes of arguments that they hold, most first: better than others with room.
    near: list[tuple[bytes, int]] = []
    placement_group_id: bytes = b""  # inside this group's bundles
    bundle_index: int = -1  # with ``placement_group_id``: in this one; -1: in any with room
    serial: int = 0


class CancelLeaseRequest(NodeMessage, tag=3):
    """Withdraw a request; a grant may already be on its way and must then be returned."""

    request_id: int


class TellBacklog(NodeMessage, tag=17):
    """How many tasks wait for a worker that none is asked for, for reports of demand.

    A process asks for few workers at a time for tasks that are alike, and names the rest at *one*
    of these requests. Sent at most twice a second, and only when it has changed.
    """

    backlogs: list[tuple[int, int]]  # of requests, by id, that have not been answered
    serial: int = 0


class ReturnLease(NodeMessage, tag=4):
    """Give a worker back. ``discard`` retires the worker (it exited or is unfit for reuse)."""

    lease_id: bytes
    discard: bool = False


class Blocked(NodeMessage, tag=5):
    """This worker waits in get or wait: its CPUs may be lent until :class:`Unblocked`."""

    serial: int = 0


class Unblocked(NodeMessage, tag=6):
    """This worker runs again. It does not wait for its CPUs: the node is briefly oversubscribed."""

    serial: int = 0


class ControlCall(NodeMessage, tag=7):
    """A call for the GCS or the raylet. Answered by :class:`ControlReply` with the same id.

    ``method`` is one of ``CONTROL_METHODS``; ``body`` is the msgpack encoding of its request
    struct.
    """

    call_id: int
    method: str
    body: bytes
    serial: int = 0


class KillWorker(NodeMessage, tag=8):
    """Kill a worker leased to this process (``cancel(force=True)``); answered by
    :class:`LeaseLost`.
    """

    lease_id: bytes
    reason: str


class ActorCreated(NodeMessage, tag=9):
    """An actor's worker: the constructor ran."""

    actor_id: bytes
    incarnation: int


class ActorCreationFailed(NodeMessage, tag=10):
    """An actor's worker: the constructor raised. The worker exits afterwards."""

    actor_id: bytes
    incarnation: int
    error: bytes  # pickled, opaque to the control plane
    message: str


class Exiting(NodeMessage, tag=11):
    """This worker ends on purpose (``exit_actor``, ``max_calls``); its exit is not a failure."""

    reason: str


class TaskEvents(NodeMessage, tag=12):
    """A batch of task events for spans and metrics; sent only while tracing is on."""

    events: list[TaskEvent]
    serial: int = 0


class UserMetrics(NodeMessage, tag=64):
    """What a program has measured in this process since its last message; sent only when it has."""

    metrics: list[MetricRows]
    serial: int = 0


class SubscribeActor(NodeMessage, tag=13):
    """Send :class:`ActorUpdate` for this actor now (its present state) and at every change."""

    actor_id: bytes
    serial: int = 0


class UnsubscribeActor(NodeMessage, tag=14):
    """Stop :class:`ActorUpdate` for this actor."""

    actor_id: bytes
    serial: int = 0


class PullObject(NodeMessage, tag=15):
    """Bring a copy of an object into this node's store. Answered by :class:`PullEnded`.

    The owner has said which nodes hold it; the raylet tries them, best first.
    """

    pull_id: int  # the process's own counter
    object_id: bytes
    size_bytes: int
    owner_id: bytes  # the copy's tag in the store: it goes when the owner does
    node_ids: list[bytes]
    priority: int = 0  # PULL_FOR_GET, PULL_FOR_WAIT or PULL_FOR_ARGUMENT
    arriving_at: list[bytes] = []  # nodes to ask before those, to which a copy is on its way
    serial: int = 0


class CancelPull(NodeMessage, tag=16):
    """Nobody here waits for this pull any more; :class:`PullEnded` follows, however it went."""

    pull_id: int


class ObjectsReport(NodeMessage, tag=24):
    """The references that this process holds, the largest objects first."""

    number: int  # of :class:`AskObjects`
    rows: list[ObjectRow]
    left_out: int = 0
    left_out_bytes: int = 0


class WaitsReport(NodeMessage, tag=25):
    """The tasks of this process that have not ended, what it runs, and what it waits for."""

    number: int  # of :class:`AskWaits`
    tasks: list[TaskRow]
    left_out: int
    blocked: list[BlockedRow]
    running: list[RunRow]
    actor_id: bytes = b""
    slots: int = 1


class DeleteCopies(NodeMessage, tag=20):
    """From an owner: its objects are released, and these nodes hold copies. Safe to repeat."""

    copies: dict[bytes, list[bytes]]  # node id -> object ids
    serial: int = 0


class KeepCopies(NodeMessage, tag=22):
    """From an owner: the primary copies of these objects are lost, and these are to take their
    place: not to be evicted. Safe to repeat. Answered by :class:`CopiesKept` for each node.
    """

    copies: dict[bytes, list[bytes]]  # node id -> object ids
    serial: int = 0


class KnowOwner(NodeMessage, tag=21):
    """This process deals with an owner on another node, which may have objects in this store.

    When that node dies nobody names the processes that died with it: what they own goes then.
    """

    owner_id: bytes
    node_id: bytes


class LogsTaken(NodeMessage, tag=60):
    """From a driver: it has printed all :class:`LogLines` up to this number."""

    number: int


class FlushLogs(NodeMessage, tag=61):
    """From a driver: send what its workers have printed by now, wherever they are.

    Answered by :class:`LogsFlushed`, behind the lines. A node that can not be reached is not waited
    for; how long the rest is, the driver decides.
    """

    number: int


class SubscribePlacementGroup(NodeMessage, tag=72):
    """Send :class:`PlacementGroupUpdate` for this group now and at every change.

    Who creates a group is subscribed to it.
    """

    group_id: bytes


# ---- raylet to process ----


class ProcessRegistered(NodeMessage, tag=32):
    """The process is known. ``error`` not empty: it was refused and the connection closes."""

    node_id: bytes = b""
    job_id: bytes = b""  # drivers: the new job; workers: the job they were forked for
    namespace: str = ""
    store_endpoint: str = ""
    session_dir: str = ""
    gcs_endpoint: str = ""
    error: str = ""
    is_tracing: bool = False  # task events are wanted


class LeaseGranted(NodeMessage, tag=33):
    """A worker is yours until :class:`ReturnLease` or :class:`LeaseLost`."""

    request_id: int
    lease_id: bytes
    worker_id: bytes
    node_id: bytes
    endpoint: str
    pid: int
    resource_ids: dict[str, list[tuple[int, int]]] = {}  # e.g. {"GPU": [(index, amount)]}
    serial: int = 0


class LeaseRefused(NodeMessage, tag=34):
    """The request can not be granted: the environment or the worker failed to start, or it is
    invalid.
    """

    request_id: int
    kind: str  # "worker_start_failed", "invalid"
    message: str


class LeaseLost(NodeMessage, tag=35):
    """The leased worker died; its running tasks are to be retried or failed with this cause."""

    lease_id: bytes
    cause: Death


class ReclaimLease(NodeMessage, tag=36):
    """Others wait: take back what has not started, finish what runs, and return the lease.

    ``when_idle``: go on, but do not keep the lease through a pause.
    """

    lease_id: bytes
    when_idle: bool = False


class ControlReply(NodeMessage, tag=37):
    """The answer to :class:`ControlCall`. ``error`` says why the call failed, if it did."""

    call_id: int
    body: bytes = b""
    error: str = ""
    error_kind: str = ""  # "not_found", "already_exists", "unavailable", "invalid", "internal"


class CreateActor(NodeMessage, tag=38):
    """To an idle worker: become this actor. Answered by ActorCreated or ActorCreationFailed."""

    actor_id: bytes
    incarnation: int
    creation_task: bytes
    resource_ids: dict[str, list[tuple[int, int]]] = {}
    serial: int = 0


class ActorUpdate(NodeMessage, tag=39):
    """The state of an actor that this process subscribed to."""

    actor: ActorView
    serial: int = 0


class ExitNow(NodeMessage, tag=40):
    """To a worker: end in an orderly way (run exit hooks) within ``grace_s``; then it is killed."""

    reason: str
    grace_s: float = 5.0


class WorkerDied(NodeMessage, tag=41):
    """Some process of the cluster died: owners drop its borrows, borrowers fail its objects."""

    worker_id: bytes
    cause: Death


class PullEnded(NodeMessage, tag=42):
    """The outcome of :class:`PullObject`. ``kind`` empty: the copy is in this node's store."""

    pull_id: int
    kind: str = ""  # "lost": no source has it; "full": no room here; "cancelled"
    message: str = ""  # why, for a person
    lost_at: list[bytes] = []  # the nodes that do not have it or can not be reached
    fullness: bytes = b""  # of "full": what the store says of itself, in its own encoding


class NodeDied(NodeMessage, tag=43):
    """A node of the cluster died, with its store and every process on it."""

    node_id: bytes
    cause: Death


class CopiesKept(NodeMessage, tag=44):
    """An answer to :class:`KeepCopies`; none comes of a node that dies first."""

    node_id: bytes
    object_ids: list[bytes]  # that are primary copies now
    gone: list[bytes]  # that are not in that store any more
    serial: int = 0


class LeaseWarning(NodeMessage, tag=46):
    """No node can hold what this request asks for; it goes on waiting. Said once for its kind."""

    request_id: int
    message: str  # what it needs, and the most that there is
    serial: int = 0


class LogLines(NodeMessage, tag=62):
    """To a driver: what a worker of its job printed; at most ``LOG_LINES_UNDER_WAY_MAX`` of these
    are sent before :class:`LogsTaken`.
    """

    number: int  # from 1
    name: str  # of the function or the actor's class; empty: not known
    pid: int
    ip: str  # where the worker runs; empty: on the driver's own node
    is_error: bool  # from its stderr
    lines: list[str]  # without line ends
    serial: int = 0


class LogsFlushed(NodeMessage, tag=63):
    """All that :class:`FlushLogs` asked for has been sent."""

    number: int


class AskObjects(NodeMessage, tag=56):
    """Somebody wants memory explained. Answered by :class:`ObjectsReport` of that number."""

    number: int
    rows_max: int


class AskWaits(NodeMessage, tag=57):
    """Somebody wants waits explained. Answered by :class:`WaitsReport` of that number."""

    number: int
    rows_max: int
    prefix: bytes = b""  # tasks whose id begins so are reported whatever the limit


class PlacementGroupUpdate(NodeMessage, tag=73):
    """The state of a placement group that this process subscribed to."""

    group: PlacementGroupView
    serial: int = 0


# ---- parts ----


class Death(msgspec.Struct, array_like=True, gc=False):
    """Why a process ended. Mirrors ``DeathCause`` of common.proto."""

    kind: str  # the enum name without its prefix, lower case: "signaled", "exited", ...
    message: str
    pid: int = 0
    exit_code: int = 0
    signal: int = 0
    log_tail: str = ""


class ActorView(msgspec.Struct, array_like=True, gc=False):
    """What a caller needs to know about an actor. ``state`` is the enum name without its prefix."""

    actor_id: bytes
    state: str  # "PENDING_CREATION", "ALIVE", "RESTARTING", "DEAD", ...
    incarnation: int = 0
    endpoint: str = ""
    worker_id: bytes = b""
    node_id: bytes = b""
    pid: int = 0
    name: str = ""
    namespace: str = ""
    class_name: str = ""
    max_restarts: int = 0
    handle_state: bytes = b""
    death: Death | None = None
    creation_error: bytes = b""
    pending_reason: str = ""


class PlacementGroupView(msgspec.Struct, array_like=True, gc=False):
    """A row of the placement-group table. Amounts in units of 1e-4; ``state``: its enum's name."""

    group_id: bytes
    state: str  # "PENDING", "PREPARED", "CREATED", "RESCHEDULING", "REMOVED"
    job_id: bytes = b""
    name: str = ""
    namespace: str = ""
    strategy: str = ""
    bundles: list[dict[str, int]] = []
    selectors: list[dict[str, str]] = []
    node_ids: list[bytes] = []  # one for each bundle; empty where it is not reserved
    is_detached: bool = False
    pending_reason: str = ""
    pending_since_s: float = 0.0
    scheduling_state: str = ""
    attempts: int = 0
    creation_latency_ms: float = 0.0
    highest_retry_delay_ms: float = 0.0
    removal_reason: str = ""


class TaskEvent(msgspec.Struct, array_like=True, gc=False):
    """One step in a task's life, from the process where it happened. Times are Unix seconds."""

    kind: str  # "submit" (owner, whole life), "lease" (owner, request to grant), "run" (worker)
    task_id: bytes
    name: str
    start_s: float
    end_s: float
    trace_id: str  # 32 hex digits
    span_id: str  # 16 hex digits
    parent_span_id: str = ""  # empty: a root span
    error: str = ""
    attempt: int = 0


COUNTER, GAUGE, HISTOGRAM = 0, 1, 2
METRIC_SERIES_MAX = 200
"""Combinations of tags that a process keeps apart; the others are counted together."""


class MetricRow(msgspec.Struct, array_like=True, gc=False):
    """One combination of tags."""

    tags: list[str]  # values, in the order of the keys
    value: float  # counters: the increase; gauges: what it is; histograms: the observations' sum
    counts: list[int] = []  # histograms: new observations per bucket, one more than boundaries


class MetricRows(msgspec.Struct, array_like=True):
    """A metric of a program, and what is new about it."""

    name: str  # as the program calls it
    kind: int
    description: str
    tag_keys: list[str]
    boundaries: list[float]  # of a histogram: upper bounds of the buckets but the last
    rows: list[MetricRow]


# ---- bodies of ControlCall; replies are named beside each ----


class KvPut(msgspec.Struct, array_like=True):
    """``kv_put`` -> bool: whether the key was new (or was overwritten)."""

    namespace: str
    key: bytes
    value: bytes
    overwrite: bool = True


class KvGet(msgspec.Struct, array_like=True):
    """``kv_get`` -> bytes | None. ``kv_delete`` -> int. ``kv_keys`` (key is a prefix) ->
    list[bytes].
    """

    namespace: str
    key: bytes
    is_prefix: bool = False


class ActorRegistration(msgspec.Struct, array_like=True):
    """``register_actor`` -> RegisteredActor; error_kind "already_exists" when the name is taken."""

    actor_id: bytes
    name: str
    namespace: str
    is_detached: bool
    class_name: str
    max_restarts: int
    placement_resources: dict[str, int]
    running_resources: dict[str, int]
    env_vars: dict[str, str]
    creation_task: bytes
    handle_state: bytes
    get_if_exists: bool = False
    trace_parent: str = ""
    is_spread: bool = False  # these five as in RequestLease
    node_id: bytes = b""
    is_soft: bool = False
    is_impatient: bool = False
    labels: LabelRules | None = None
    placement_group_id: bytes = b""  # these two as in RequestLease
    bundle_index: int = -1
    captures: bool = False  # what it starts goes into its group too


class RegisteredActor(msgspec.Struct, array_like=True):
    """Answer to ``register_actor``: the new actor, or the existing one."""

    actor: ActorView
    is_new: bool


class ActorName(msgspec.Struct, array_like=True):
    """``get_named_actor`` -> ActorView | None."""

    name: str
    namespace: str


class ActorKill(msgspec.Struct, array_like=True):
    """``kill_actor`` -> bool: whether it was found."""

    actor_id: bytes
    no_restart: bool = True


class ActorRelease(msgspec.Struct, array_like=True):
    """``release_actor`` -> None: the last handle is gone; the actor ends after its queued calls."""

    actor_id: bytes


class PlacementGroupCreation(msgspec.Struct, array_like=True):
    """``create_placement_group`` -> None; error_kind "already_exists" when the name is taken."""

    group_id: bytes
    strategy: str
    bundles: list[dict[str, int]]
    name: str = ""
    namespace: str = ""
    is_detached: bool = False
    selectors: list[dict[str, str]] = []  # one for each bundle, or none at all
    soft_target_id: bytes = b""


class PlacementGroupKey(msgspec.Struct, array_like=True):
    """``remove_placement_group`` -> None: it is removed, or there was none."""

    group_id: bytes


class PlacementGroupName(msgspec.Struct, array_like=True):
    """``get_placement_group`` -> PlacementGroupView | None. By id, if that is not empty."""

    name: str = ""
    namespace: str = ""
    group_id: bytes = b""


class Empty(msgspec.Struct, array_like=True):
    """``list_nodes`` -> list[NodeView]. ``list_actors`` -> list[ActorView].
    ``list_placement_groups`` -> list[PlacementGroupView].
    """


class NodeView(msgspec.Struct, array_like=True):
    """A row of the node table. Amounts in units of 1e-4."""

    node_id: bytes
    is_alive: bool
    node_name: str
    hostname: str
    ip_address: str
    stream_endpoint: str
    store_endpoint: str
    raylet_endpoint: str
    metrics_endpoint: str
    is_head: bool
    total: dict[str, int]
    available: dict[str, int]
    labels: dict[str, str]
    death: Death | None = None
    session_dir: str = ""
    is_suspect: bool = False  # silent for a while, but not held for dead
    drain_reason: str = ""  # "idle_termination" or "preemption" of a node that is to leave, or left
    drain_message: str = ""
    drain_deadline_s: float = 0.0  # Unix time; 0: none


class DrainOrder(msgspec.Struct, array_like=True):
    """``drain_node`` -> DrainAnswer."""

    node_id: bytes
    reason: str  # "idle_termination" or "preemption"
    message: str = ""
    deadline_s: float = 0.0  # Unix time; 0: none


class DrainAnswer(msgspec.Struct, array_like=True):
    """Whether the node is to leave (or is dead), and why not."""

    is_accepted: bool
    rejection: str = ""


class ListObjects(msgspec.Struct, array_like=True):
    """``list_objects`` -> list[NodeObjects]: every node's, those that did not answer with why."""

    rows_max: int
    timeout_s: float


class Why(msgspec.Struct, array_like=True):
    """``why`` -> list[Explanation]: of every task, object, actor, node and worker whose id in hex
    begins so; empty when there is none.
    """

    prefix: str
    timeout_s: float


class ListLogs(msgspec.Struct, array_like=True):
    """``list_logs`` -> list[LogFile]: the files among a node's logs."""

    node_id: bytes


class LogFile(msgspec.Struct, array_like=True):
    """One file. ``changed_s``: Unix time."""

    name: str
    size: int
    changed_s: float


class ReadLog(msgspec.Struct, array_like=True):
    """``read_log`` -> LogPart | None: part of one file; None when there is no such file."""

    node_id: bytes
    file: str
    offset: int = 0  # negative: so many bytes before the end
    bytes_max: int = 1 << 20


class LogPart(msgspec.Struct, array_like=True):
    """Some bytes of a log."""

    data: bytes
    offset: int
    size: int  # of the file now


CONTROL_METHODS = (
    "kv_put",
    "kv_get",
    "kv_delete",
    "kv_keys",
    "register_actor",
    "get_named_actor",
    "get_actor",  # body ActorRelease (an actor id) -> ActorView | None
    "kill_actor",
    "release_actor",
    "list_nodes",
    "drain_node",
    "list_actors",
    "list_objects",
    "why",
    "create_placement_group",
    "remove_placement_group",
    "get_placement_group",
    "list_placement_groups",
    "list_logs",
    "read_log",
)

FromProcess = (
    RegisterProcess
    | RequestLease
    | CancelLeaseRequest
    | TellBacklog
    | ReturnLease
    | Blocked
    | Unblocked
    | ControlCall
    | KillWorker
    | ActorCreated
    | ActorCreationFailed
    | Exiting
    | TaskEvents
    | UserMetrics
    | SubscribeActor
    | UnsubscribeActor
    | PullObject
    | CancelPull
    | ObjectsReport
    | WaitsReport
    | DeleteCopies
    | KnowOwner
    | KeepCopies
    | SubscribePlacementGroup
    | LogsTaken
    | FlushLogs
)
FromRaylet = (
    ProcessRegistered
    | LeaseGranted
    | LeaseRefused
    | LeaseWarning
    | LeaseLost
    | ReclaimLease
    | ControlReply
    | CreateActor
    | ActorUpdate
    | ExitNow
    | WorkerDied
    | PullEnded
    | NodeDied
    | CopiesKept
    | AskObjects
    | AskWaits
    | PlacementGroupUpdate
    | LogLines
    | LogsFlushed
)
