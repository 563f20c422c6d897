"""What the cluster holds: lists of its entities, and summaries. Source: Ray's state API.

So far objects and placement groups. A list of objects asks every node and process at the moment of
the call, one of placement groups the GCS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from skate.session import require_session
from skate.util.placement_group import row_of_group
from skate_core_ids import PlacementGroupID
from skate_rpc.node_protocol import PlacementGroupView
from skate_rpc.object_report import NodeObjects
from skate_rpc.object_rows import ReferenceRow, rows_of
from skate_worker.call_site import records_all
from skate_worker.current import current_core
from skate_worker.errors import SkateSystemError

if TYPE_CHECKING:
    from skate_worker.core import CoreWorker

__all__ = [
    "ObjectState",
    "PlacementGroupState",
    "RayStateApiException",
    "StateApiError",
    "get_placement_group",
    "list_objects",
    "list_placement_groups",
    "summarize_objects",
]

LIMIT_MAX: Final = 10_000
NO_SITE: Final = "(not recorded)"

Filter = tuple[str, str, Any]


class StateApiError(SkateSystemError):
    """A list is incomplete: a node or process did not report."""


RayStateApiException = StateApiError


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the state API: its fields are also found by name, and are a dict on request."""

    def __getitem__(self, name: str) -> Any:
        if name not in self.__dataclass_fields__:
            raise KeyError(name)
        return getattr(self, name)

    def asdict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ObjectState(_Row):
    """One reference: an object as one process holds it. Ids in hex, sizes in bytes."""

    object_id: str
    object_size: int
    """-1 while the object is not there yet."""
    task_status: str
    """Of the task that makes it; "NIL" for what was put."""
    reference_type: str
    """The most telling of ``reasons``; "UNEXPLAINED" for bytes that no process refers to."""
    call_site: str
    """The line that made it; of small values only with ``SKATE_RECORD_REF_CREATION_SITES=1``."""
    type: str
    """``DRIVER`` or ``WORKER``; empty when only a store knows the object."""
    pid: int
    ip: str
    attempt_number: int
    state: str
    reasons: dict[str, int]
    """Why the process holds it, and how many times each."""
    task_name: str
    node_id: str
    worker_id: str
    owner_id: str
    owner_pid: int
    """0: the owner is dead or did not report."""
    stored_on: list[str]
    """The nodes whose stores hold it."""
    is_spilled: bool
    view_count: int
    """Views of its bytes that processes have, such as arrays."""


@dataclass(frozen=True, slots=True)
class PlacementGroupState(_Row):
    """One placement group. Ids in hex."""

    placement_group_id: str
    name: str
    creator_job_id: str
    state: str
    """``PENDING``, ``PREPARED``, ``CREATED``, ``RESCHEDULING`` or ``REMOVED``."""
    bundles: list[dict[str, Any]]
    """Each with ``bundle_index``, ``unit_resources`` (whole resources), ``label_selector`` and
    ``node_id`` (empty: not reserved)."""
    is_detached: bool
    stats: dict[str, Any]
    """As in ``placement_group_table``; ``pending_reason`` says why it is not created."""
    strategy: str
    ray_namespace: str


_FIELDS: Final = tuple(field.name for field in fields(ObjectState))
_GROUP_FIELDS: Final = tuple(field.name for field in fields(PlacementGroupState))
_GROUP_FILTERS: Final = tuple(name for name in _GROUP_FIELDS if name not in {"bundles", "stats"})


def list_objects(
    address: str | None = None,
    filters: Sequence[Filter] | None = None,
    limit: int = 100,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[ObjectState]:
    """Every reference in the cluster, the largest objects first.

    An object that several processes hold has a row of each; bytes in a store that no process
    refers to have a row too, so that nothing is left unexplained.

    Args:
        address: The cluster of this session; None.
        filters: ``(field, "=" or "!=", value)`` each; all must hold.
        limit: At most so many rows, up to 10 000.
        timeout: Seconds for all nodes and processes together.
        detail: Accepted; every row has all fields.
        raise_on_missing_output: Raise when a node or process did not report.

    Raises:
        StateApiError: some did not report; the message names the first.
        ValueError: another address, or a filter or limit that does not exist.
    """
    checks = _checks(filters, limit, "Objects", _FIELDS)
    rows = [_state_of(row) for row in rows_of(_ask(address, timeout, raise_on_missing_output))]
    chosen = [row for row in rows if all(_holds(row, check) for check in checks)]
    chosen.sort(key=lambda row: -row.object_size)
    return chosen[:limit]


def list_placement_groups(
    address: str | None = None,
    filters: Sequence[Filter] | None = None,
    limit: int = 100,
    timeout: float = 30,
    detail: bool = False,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> list[PlacementGroupState]:
    """Every placement group that the GCS remembers, lately removed ones too, the newest last.

    Args:
        address: The cluster of this session; None.
        filters: ``(field, "=" or "!=", value)`` each; all must hold. Not by bundles or stats.
        limit: At most so many rows, up to 10 000.
        timeout: Accepted; how long the GCS is waited for is the session's.
        detail: Accepted; every row has all fields.
        raise_on_missing_output: Accepted; the GCS knows all of them.

    Raises:
        ControlCallError: the GCS does not answer.
        ValueError: another address, or a filter or limit that does not exist.
    """
    checks = _checks(filters, limit, "Placement groups", _GROUP_FILTERS)
    rows = map(_group_state, _core_at(address).placement_groups.views())
    return [row for row in rows if all(_holds(row, check) for check in checks)][:limit]


def get_placement_group(
    id: str,  # noqa: A002  Ray's name for it
    address: str | None = None,
    timeout: float = 30,
    _explain: bool = False,
) -> PlacementGroupState | None:
    """One placement group by its id in hex; None when the cluster does not know it.

    Raises as :func:`list_placement_groups`; ``ValueError`` also for what is no id.
    """
    group_id = PlacementGroupID.from_hex(id)
    view = _core_at(address).placement_groups.view(bytes(group_id))
    return None if view is None else _group_state(view)


def summarize_objects(
    address: str | None = None,
    timeout: float = 30,
    raise_on_missing_output: bool = True,
    _explain: bool = False,
) -> dict[str, Any]:
    """References by the line that made them, in Ray's shape: ``{"cluster": {"summary": ...}}``.

    Raises:
        StateApiError: a node or process did not report.
        ValueError: another address than that of this session.
    """
    rows = rows_of(_ask(address, timeout, raise_on_missing_output))
    by_site: dict[str, list[ReferenceRow]] = {}
    for row in rows:
        by_site.setdefault(row.call_site or NO_SITE, []).append(row)
    sizes = {row.object_id: max(0, row.object_size) for row in rows}
    return {
        "cluster": {
            "summary": {site: _summary(group) for site, group in by_site.items()},
            "total_objects": len(sizes),
            "total_size_mb": sum(sizes.values()) / 1024**2,
            "callsite_enabled": records_all(),
            "summary_by": "callsite",
        }
    }


def _summary(rows: list[ReferenceRow]) -> dict[str, Any]:
    sizes = {row.object_id: max(0, row.object_size) for row in rows}
    return {
        "total_objects": len(sizes),
        "total_size_mb": sum(sizes.values()) / 1024**2,
        "total_num_workers": len({row.worker_id for row in rows if row.worker_id}),
        "total_num_nodes": len({row.node_id for row in rows}),
        "task_state_counts": dict(Counter(row.task_status for row in rows)),
        "task_attempt_number_counts": dict(Counter(str(row.attempt_number + 1) for row in rows)),
        "ref_type_counts": dict(Counter(row.reference_type for row in rows)),
    }


def _ask(address: str | None, timeout_s: float, must_be_whole: bool) -> list[NodeObjects]:
    nodes = _core_at(address).list_objects(timeout_s)
    if must_be_whole:
        for problem in _problems(nodes):
            raise StateApiError(
                f"The list is incomplete: {problem} Pass raise_on_missing_output=False to take"
                " what there is."
            )
    return nodes


def _core_at(address: str | None) -> CoreWorker:
    core = current_core() or require_session()
    if address not in (None, "auto", core.gcs_endpoint):
        raise ValueError(
            f"The state of another cluster ({address!r}) is not listed from this session; call"
            " skate.init(address) first."
        )
    return core


def _problems(nodes: list[NodeObjects]) -> list[str]:
    found = [f"node {node.node_id.hex()}: {node.problem}" for node in nodes if node.problem]
    for node in nodes:
        found += (
            f"process {process.pid} on node {node.node_id.hex()}: {process.problem}"
            for process in node.processes
            if process.problem
        )
    return found


def _state_of(row: ReferenceRow) -> ObjectState:
    return ObjectState(**{name: getattr(row, name) for name in _FIELDS})


def _group_state(view: PlacementGroupView) -> PlacementGroupState:
    row = row_of_group(view)
    selectors = view.selectors or [{} for _ in view.bundles]
    return PlacementGroupState(
        placement_group_id=row["placement_group_id"],
        name=view.name,
        creator_job_id=view.job_id.hex(),
        state=view.state,
        bundles=[
            {
                "bundle_index": index,
                "unit_resources": resources,
                "label_selector": selectors[index],
                "node_id": row["bundles_to_node_id"][index],
            }
            for index, resources in row["bundles"].items()
        ],
        is_detached=view.is_detached,
        stats=row["stats"],
        strategy=view.strategy,
        ray_namespace=view.namespace,
    )


def _checks(
    filters: Sequence[Filter] | None, limit: int, what: str, names: Sequence[str]
) -> list[Filter]:
    if not 0 < limit <= LIMIT_MAX:
        raise ValueError(f"limit must lie between 1 and {LIMIT_MAX}, got {limit}.")
    return [_checked(item, what, names) for item in filters or ()]


def _checked(item: Any, what: str, names: Sequence[str]) -> Filter:
    if not isinstance(item, tuple | list) or len(item) != 3:
        raise ValueError(f"A filter is (field, '=' or '!=', value), got {item!r}.")
    name, predicate, value = item
    if name not in names:
        raise ValueError(f"{what} have no field {name!r}; they have {', '.join(names)}.")
    if predicate not in ("=", "!="):
        raise ValueError(f"A filter compares by '=' or '!=', not by {predicate!r}.")
    return name, predicate, value


def _holds(row: ObjectState | PlacementGroupState, check: Filter) -> bool:
    name, predicate, value = check
    return (str(getattr(row, name)) == str(value)) == (predicate == "=")
