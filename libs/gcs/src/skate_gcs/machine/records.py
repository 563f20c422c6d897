"""The rows of the tables: immutable values, replaced on each change.

Because a row never changes, a snapshot of a table is a list of references, and what is to be
persisted or published can wait in a queue without a copy. Each class is also the storage schema of
its row: fields may be added with a default, never renamed, retyped or removed.

Resources are dicts of amounts in units of 1e-4; nobody mutates them.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from skate_scheduler import ANY_LABELS, LabelRules


class DeathKind(IntEnum):
    """Why something ended. The numbers are those of ``DeathCause.Kind`` in common.proto."""

    UNSPECIFIED = 0
    EXITED = 1
    SIGNALED = 2
    OUT_OF_MEMORY = 3
    KILLED_BY_USER = 4
    JOB_FINISHED = 5
    NODE_DIED = 6
    OWNER_DIED = 7
    CREATION_FAILED = 8
    HANDLES_RELEASED = 9
    INTENDED_EXIT = 10
    START_FAILED = 11
    UNSCHEDULABLE = 12
    PLACEMENT_GROUP_REMOVED = 13
    NODE_PREEMPTED = 14


class ActorState(IntEnum):
    """An actor's state. The numbers are those of ``ActorState`` in gcs.proto."""

    DEPENDENCIES_UNREADY = 1
    PENDING_CREATION = 2
    ALIVE = 3
    RESTARTING = 4
    DEAD = 5


class PlacementGroupState(IntEnum):
    """A placement group's state. The numbers are those of ``PlacementGroupState`` in gcs.proto."""

    PENDING = 1
    PREPARED = 2
    CREATED = 3
    RESCHEDULING = 4
    REMOVED = 5


class GroupPhase(IntEnum):
    """How far an attempt to place bundles has come; what a restarted GCS goes on with."""

    IDLE = 0  # none is under way
    PREPARING = 1  # nodes are asked to set bundles aside; may still be undone
    COMMITTING = 2  # all have; they are told that it holds, and it is never undone


class DeathCause(msgspec.Struct, frozen=True):
    """Why a process, actor or node ended, as its parent saw it."""

    kind: DeathKind = DeathKind.UNSPECIFIED
    message: str = ""  # one sentence for a person
    pid: int = 0
    exit_code: int = 0
    signal: int = 0
    log_tail: str = ""


class Address(msgspec.Struct, frozen=True):
    """Where a process listens for the task plane."""

    node_id: bytes = b""
    worker_id: bytes = b""
    endpoint: str = ""


class DrainReason(IntEnum):
    """Why a node is to leave. The numbers are those of ``DrainInfo.Reason`` in gcs.proto."""

    UNSPECIFIED = 0
    IDLE_TERMINATION = 1
    PREEMPTION = 2


class DrainRecord(msgspec.Struct, frozen=True):
    """The order to a node to take no new work, and to leave when it is idle or at a deadline."""

    reason: DrainReason
    message: str = ""
    deadline_s: float = 0.0  # Unix time; 0: none


class NodeRecord(msgspec.Struct, frozen=True):
    """One life of a node. ``death_cause`` is None exactly while it lives."""

    node_id: bytes
    node_name: str = ""
    hostname: str = ""
    ip_address: str = ""
    raylet_endpoint: str = ""
    stream_endpoint: str = ""
    store_endpoint: str = ""
    metrics_endpoint: str = ""
    pid: int = 0
    is_head: bool = False
    total: dict[str, int] = msgspec.field(default_factory=dict)
    available: dict[str, int] = msgspec.field(default_factory=dict)
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    death_cause: DeathCause | None = None
    start_time_s: float = 0.0  # Unix time
    end_time_s: float = 0.0  # Unix time, 0 while alive
    session_dir: str = ""
    object_endpoint: str = ""
    is_suspect: bool = False  # silent for a while; forgotten by a restart of the GCS
    drain: DrainRecord | None = None  # kept after its end

    @property
    def is_preempted(self) -> bool:
        """Whether what is lost with the node is the fault of neither its users nor itself."""
        return self.drain is not None and self.drain.reason is DrainReason.PREEMPTION

    @property
    def is_alive(self) -> bool:
        """Whether the node is not declared dead."""
        return self.death_cause is None


class JobRecord(msgspec.Struct, frozen=True):
    """One driver's run."""

    job_id: bytes
    driver: Address
    driver_pid: int = 0
    entrypoint: str = ""
    namespace: str = ""
    start_time_s: float = 0.0  # Unix time
    end_time_s: float = 0.0  # Unix time, 0 while it runs
    is_finished: bool = False
    metadata: dict[str, str] = msgspec.field(default_factory=dict)


class WorkerRecord(msgspec.Struct, frozen=True):
    """A worker or driver that died."""

    worker_id: bytes
    node_id: bytes = b""
    job_id: bytes = b""
    pid: int = 0
    is_driver: bool = False
    death_cause: DeathCause = DeathCause()
    end_time_s: float = 0.0  # Unix time


class Strategy(msgspec.Struct, frozen=True):
    """Where an actor may run. The default: on its creator's node until that is half used."""

    is_spread: bool = False  # the nodes take turns
    node_id: bytes = b""  # this node
    is_soft: bool = False  # with ``node_id``: any node once that one is dead or too small
    is_impatient: bool = False  # with ``node_id``: a busy node is like one that is too small
    labels: LabelRules = ANY_LABELS
    group_id: bytes = b""  # inside this placement group
    bundle_index: int = -1  # with ``group_id``: in this bundle; -1: in any with room
    captures: bool = False  # with ``group_id``: what it starts goes there too


class ActorSpec(msgspec.Struct, frozen=True):
    """What was asked for. ``creation_task`` is emptied at the actor's death."""

    actor_id: bytes
    job_id: bytes
    owner: Address
    name: str = ""  # empty: unnamed
    namespace: str = ""
    is_detached: bool = False
    class_name: str = ""
    max_restarts: int = 0  # -1: without end
    placement_resources: dict[str, int] = msgspec.field(default_factory=dict)
    running_resources: dict[str, int] = msgspec.field(default_factory=dict)
    env_vars: dict[str, str] = msgspec.field(default_factory=dict)
    creation_task: bytes = b""
    trace_parent: str = ""
    handle_state: bytes = b""
    strategy: Strategy = Strategy()


class ActorLife(msgspec.Struct, frozen=True):
    """What became of it: the part of an actor's row that changes, and so is stored by itself.

    Flat, because it is a storage row. What is legal in which state::

        DEAD                         death_cause is set, node_id is empty
        ALIVE                        node_id == address.node_id, not empty
        PENDING_CREATION, RESTARTING node_id empty: no node was chosen yet
                                     node_id set: that node was asked to start this incarnation
    """

    state: ActorState
    incarnation: int = 0  # grows with each start that could have run twice otherwise
    restarts_used: int = 0  # <= max_restarts unless that is -1
    node_id: bytes = b""
    address: Address = Address()
    pid: int = 0
    death_cause: DeathCause | None = None
    creation_error: bytes = b""
    start_time_s: float = 0.0  # Unix time of the latest start
    end_time_s: float = 0.0  # Unix time of the death
    outlives_job: bool = False  # detached, or created by an actor that outlives its job
    is_released: bool = False  # no handle is left: it ends instead of restarting
    number: int = 0  # order of registration


class ActorRecord(msgspec.Struct, frozen=True):
    """An actor's whole row."""

    spec: ActorSpec
    life: ActorLife
    pending_reason: str = ""  # why it is not placed yet; not stored, found out again

    @property
    def is_dead(self) -> bool:
        """Whether it will never run again."""
        return self.life.state is ActorState.DEAD


class KillRecord(msgspec.Struct, frozen=True):
    """A node's outstanding duty to end an incarnation; kept until the node obeyed or died."""

    node_id: bytes
    actor_id: bytes
    incarnation: int
    cause: DeathCause


class BundleSpec(msgspec.Struct, frozen=True):
    """One bundle of a placement group."""

    resources: dict[str, int]
    selector: dict[str, str] = msgspec.field(default_factory=dict)  # as people write it


class PlacementGroupSpec(msgspec.Struct, frozen=True):
    """What was asked for."""

    group_id: bytes
    job_id: bytes
    owner: Address
    strategy: str
    bundles: tuple[BundleSpec, ...]
    name: str = ""  # empty: unnamed
    namespace: str = ""
    is_detached: bool = False
    soft_target_id: bytes = b""  # STRICT_PACK goes to this node if it can


class PlacementGroupRecord(msgspec.Struct, frozen=True):
    """A placement group's row.

    What is legal in which state::

        PENDING       node_ids all empty, or (PREPARING) all set
        PREPARED      COMMITTING; node_ids set, but for those of nodes that died since
        CREATED       IDLE; node_ids all set
        RESCHEDULING  some node_ids empty, or (PREPARING, COMMITTING) those of an attempt
        REMOVED       IDLE; node_ids all empty
    """

    spec: PlacementGroupSpec
    state: PlacementGroupState
    node_ids: tuple[bytes, ...]  # one for each bundle: who was asked to hold it, or holds it
    attempts: tuple[int, ...]  # one for each bundle: the attempt that placed it there
    phase: GroupPhase = GroupPhase.IDLE
    attempt: int = 0  # the latest; grows with each, and is stored before a node hears of it
    creator_actor_id: bytes = b""  # of an actor that outlives its job: the group ends with it
    number: int = 0  # order of registration
    pending_since_s: float = 0.0  # Unix time
    registered_s: float = 0.0  # Unix time
    created_s: float = 0.0  # Unix time of the first creation; 0 before
    highest_retry_delay_s: float = 0.0
    removal_reason: str = ""
    removed_s: float = 0.0  # Unix time
    # These two are not stored up to date: they are found out again.
    pending_reason: str = ""
    scheduling_state: str = "QUEUED"

    @property
    def is_removed(self) -> bool:
        """Whether it is gone for good."""
        return self.state is PlacementGroupState.REMOVED


class BundleRef(msgspec.Struct, frozen=True):
    """Bundles of a group at one node, as one attempt placed them."""

    group_id: bytes
    attempt: int
    indices: tuple[int, ...]


class CounterRecord(msgspec.Struct, frozen=True):
    """A number that must never go back."""

    value: int


Row = (
    NodeRecord
    | JobRecord
    | WorkerRecord
    | ActorSpec
    | ActorLife
    | KillRecord
    | PlacementGroupRecord
    | CounterRecord
    | bytes
)
Announced = NodeRecord | JobRecord | ActorRecord | WorkerRecord | PlacementGroupRecord
