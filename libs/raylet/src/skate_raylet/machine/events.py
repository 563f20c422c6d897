"""What happened, as the node's machines learn it. Times come beside it, ids are raw bytes."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from skate_scheduler import ANY_LABELS, LabelRules, ResourceSet

EnvVars = tuple[tuple[str, str], ...]
"""Environment variables of a worker, sorted by name, so that equal environments are equal keys."""


class Strategy(msgspec.Struct, frozen=True):
    """Where a request may be served. The default: here until the node is half used, then the best
    node.
    """

    is_spread: bool = False  # the nodes take turns
    node_id: bytes = b""  # this node
    is_soft: bool = False  # with ``node_id``: any node once that one is dead or too small
    is_impatient: bool = False  # with ``node_id``: a busy node is like one that is too small
    labels: LabelRules = ANY_LABELS
    group_id: bytes = b""  # inside this placement group
    bundle_index: int = -1  # with ``group_id``: in this bundle; -1: in any with room


DEFAULT_STRATEGY = Strategy()


class LeaseRequested(msgspec.Struct, frozen=True):
    """A process asks for a worker. Repeating a known ``request_id`` changes nothing."""

    holder_id: bytes
    request_id: int
    job_id: bytes
    resources: ResourceSet
    env_vars: EnvVars = ()
    backlog: int = 0  # tasks like it that nobody asks a worker for, if they are named here
    strategy: Strategy = DEFAULT_STRATEGY
    since_s: float | None = None  # when it was first asked for; None: now
    is_foreign: bool = False  # of another node's holder: served here or not at all
    near: tuple[tuple[bytes, int], ...] = ()  # nodes and their bytes of its arguments, most first


class LeaseRequestCancelled(msgspec.Struct, frozen=True):
    """A process no longer wants a request; if it was granted meanwhile, it returns the lease."""

    holder_id: bytes
    request_id: int


class BacklogTold(msgspec.Struct, frozen=True):
    """What is behind a process's requests now. Of a request that is over it changes nothing."""

    holder_id: bytes
    backlogs: tuple[tuple[int, int], ...]  # request and backlog


class LeaseReturned(msgspec.Struct, frozen=True):
    """A holder gave its lease back. ``discard``: the worker must not be used again."""

    holder_id: bytes
    lease_id: bytes
    discard: bool = False


class LeaseRevoked(msgspec.Struct, frozen=True):
    """A request or its lease is over for its holder, who is past hearing of it; a worker ends."""

    holder_id: bytes
    request_id: int
    kind: str
    message: str


class ActorRequested(msgspec.Struct, frozen=True):
    """The GCS wants this life of an actor here. Repeating it changes nothing."""

    actor_id: bytes
    incarnation: int
    job_id: bytes
    placement: ResourceSet  # the node must be large enough for it
    running: ResourceSet  # held while the actor lives
    env_vars: EnvVars = ()
    strategy: Strategy = DEFAULT_STRATEGY  # which bundle of a group, if any


class ActorEnded(msgspec.Struct, frozen=True):
    """This life of the actor is over or not wanted: whatever it has here is to go."""

    actor_id: bytes
    incarnation: int
    kind: str  # cause, as in ``Death.kind``
    message: str
    grace_s: float = 0.0


class BundlesWanted(msgspec.Struct, frozen=True):
    """The GCS wants bundles set aside here (``opens``: and opened), if ``bundle_refusal`` has none.

    Repeating it changes nothing.
    """

    group_id: bytes
    attempt: int
    bundles: Mapping[int, ResourceSet]  # by index
    opens: bool = False


class BundlesOpened(msgspec.Struct, frozen=True):
    """All nodes have set theirs aside: leases may begin inside these. May be repeated."""

    group_id: bytes
    attempt: int
    indices: tuple[int, ...]


class BundlesReturned(msgspec.Struct, frozen=True):
    """Bundles of this attempt, or an older one, are not wanted: who uses them is ended.

    May be repeated, and may come before the order that it undoes, which is refused then.
    """

    group_id: bytes
    attempt: int
    indices: tuple[int, ...]


class GroupSeen(msgspec.Struct, frozen=True):
    """A placement group lives. ``node_ids``: where each bundle can be used, or ``b""``."""

    group_id: bytes
    node_ids: tuple[bytes, ...]
    is_answer: bool = False  # to ``AskForGroup``; as of then, so any news since are newer


class GroupGone(msgspec.Struct, frozen=True):
    """A placement group was removed: who waits for it is refused."""

    group_id: bytes
    message: str
    is_answer: bool = False  # as of GroupSeen


class GroupUnanswered(msgspec.Struct, frozen=True):
    """``AskForGroup`` got no answer."""

    group_id: bytes


class WorkerBlocked(msgspec.Struct, frozen=True):
    """The worker waits for values: its CPUs may be lent."""

    worker_id: bytes


class WorkerUnblocked(msgspec.Struct, frozen=True):
    """The worker runs again, with its CPUs."""

    worker_id: bytes


class WorkerRegistered(msgspec.Struct, frozen=True):
    """A started process introduced itself."""

    startup_id: int
    worker_id: bytes


class WorkerStartFailed(msgspec.Struct, frozen=True):
    """A start came to nothing: no fork, or the process ended before it registered."""

    startup_id: int
    message: str  # for people, with the end of the log
    is_transient: bool  # worth another try


class WorkerGone(msgspec.Struct, frozen=True):
    """A registered worker's process ended, for whatever reason."""

    startup_id: int
    worker_id: bytes


class WorkerRetiring(msgspec.Struct, frozen=True):
    """A worker said that it will end by itself; it must not be handed out again."""

    startup_id: int


class WorkerUnfit(msgspec.Struct, frozen=True):
    """A worker must end: killed by its lease's holder, or it no longer speaks to the node."""

    startup_id: int
    kind: str
    message: str
    grace_s: float = 0.0


class HolderGone(msgspec.Struct, frozen=True):
    """A process that held leases ended or hung up."""

    holder_id: bytes


class JobFinished(msgspec.Struct, frozen=True):
    """A job is over: its workers go as soon as nobody uses them.

    Its actors are ended by the GCS, which knows which of them outlive it.
    """

    job_id: bytes


class TimePassed(msgspec.Struct, frozen=True):
    """``next_wakeup`` came."""


class WorkerHanded(msgspec.Struct, frozen=True):
    """From the pool to the leases: here is the worker for this lease."""

    lease_id: bytes
    startup_id: int
    worker_id: bytes


class WorkerRefused(msgspec.Struct, frozen=True):
    """From the pool to the leases: there will be no worker for this lease."""

    lease_id: bytes
    kind: str  # as in ``LeaseRefused.kind``
    message: str


NodeEvent = (
    LeaseRequested
    | LeaseRequestCancelled
    | BacklogTold
    | LeaseReturned
    | LeaseRevoked
    | ActorRequested
    | ActorEnded
    | BundlesWanted
    | BundlesOpened
    | BundlesReturned
    | GroupSeen
    | GroupGone
    | GroupUnanswered
    | WorkerBlocked
    | WorkerUnblocked
    | WorkerRegistered
    | WorkerStartFailed
    | WorkerGone
    | WorkerRetiring
    | WorkerUnfit
    | HolderGone
    | JobFinished
    | TimePassed
)
"""What the shell tells :class:`~skate_raylet.machine.node_machine.NodeMachine`."""

LeaseEvent = (
    LeaseRequested
    | LeaseRequestCancelled
    | LeaseReturned
    | LeaseRevoked
    | ActorRequested
    | ActorEnded
    | BundlesWanted
    | BundlesOpened
    | BundlesReturned
    | GroupGone
    | WorkerBlocked
    | WorkerUnblocked
    | WorkerGone
    | HolderGone
    | JobFinished
    | TimePassed
    | WorkerHanded
    | WorkerRefused
)
