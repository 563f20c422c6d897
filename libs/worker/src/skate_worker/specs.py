"""What a submission needs to know, already validated by the API.

One object per remote function or per ``.options(...)``, made once: what does not change from call
to call (scheduling key, defaults) is computed here and not on the way of each task. Amounts of
resources are in units of 1e-4. Defaults: SURFACE 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from skate_rpc.node_protocol import LabelRules

Amounts = tuple[tuple[str, int], ...]
Pairs = tuple[tuple[str, str], ...]
RetryRule = bool | tuple[type[BaseException], ...]


@dataclass(frozen=True, slots=True)
class Strategy:
    """Where work may run, when that is not left to the default policy."""

    is_spread: bool = False  # the nodes take turns
    node_id: bytes = b""  # this node
    is_soft: bool = False  # with ``node_id``: any node once that one is dead or too small
    is_impatient: bool = False  # with ``node_id``: a busy node is like one that is too small
    labels: LabelRules | None = None
    group_id: bytes = b""  # inside this placement group
    bundle_index: int = -1  # with ``group_id``: in this bundle; -1: in any with room
    captures: bool = False  # with ``group_id``: what it starts goes there too
    near: bytes = b""  # the node with most bytes of the arguments: taken while it has room


SchedulingKey = tuple[Amounts, Pairs, Strategy | None]


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """Options of a plain task. ``max_retries`` -1: without end; counts deaths of the worker or
    node.
    """

    name: str
    num_returns: int = 1
    resources: Amounts = (("CPU", 10_000),)
    max_retries: int = 3
    retry_exceptions: RetryRule = False
    env_vars: Pairs = ()
    max_calls: int = 0
    strategy: Strategy | None = None

    @property
    def scheduling_key(self) -> SchedulingKey:
        """Tasks of one key may share a leased worker."""
        return (self.resources, self.env_vars, self.strategy)


@dataclass(frozen=True, slots=True)
class ActorOptions:
    """Options of an actor's creation. ``max_restarts`` -1: without end."""

    class_name: str
    name: str = ""
    namespace: str = ""
    is_detached: bool = False
    get_if_exists: bool = False
    max_restarts: int = 0
    max_task_retries: int = 0
    max_concurrency: int = 1
    is_async: bool = False
    concurrency_groups: tuple[tuple[str, int], ...] = ()
    placement_resources: Amounts = (("CPU", 10_000),)
    running_resources: Amounts = ()
    env_vars: Pairs = ()
    handle_state: bytes = b""
    strategy: Strategy | None = None


@dataclass(frozen=True, slots=True)
class CallOptions:
    """Options of one method of an actor.

    ``max_task_retries`` -1: without end. ``pending_calls_max`` -1: as many as may be.
    """

    method: str
    name: str
    num_returns: int = 1
    max_task_retries: int = 0
    retry_exceptions: RetryRule = False
    concurrency_group: str = ""
    pending_calls_max: int = -1
