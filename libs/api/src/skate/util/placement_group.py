"""Placement groups: resources that are reserved together, on one node or on several.

A group is a list of *bundles*, each an amount of resources on one node. All of them are reserved or
none is. Tasks and actors run inside by ``PlacementGroupSchedulingStrategy``::

    group = placement_group([{"CPU": 2}, {"CPU": 2}], strategy="SPREAD")
    skate.get(group.ready())
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    f.options(scheduling_strategy=strategy).remote()
    remove_placement_group(group)

Source: SURFACE rows P1, P5, P6, P8, P9, P11, P12.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from skate.objects import wait
from skate.options import Amounts
from skate.session import require_session
from skate_core_ids import NodeID, PlacementGroupID
from skate_rpc import node_protocol as node
from skate_scheduler import from_units, request_units
from skate_worker.current import current_core

if TYPE_CHECKING:
    from skate_worker.core import CoreWorker
    from skate_worker.object_ref import ObjectRef

__all__ = [
    "PlacementGroup",
    "VALID_PLACEMENT_GROUP_STRATEGIES",
    "get_current_placement_group",
    "get_placement_group",
    "placement_group",
    "placement_group_table",
    "remove_placement_group",
]

VALID_PLACEMENT_GROUP_STRATEGIES: Final = frozenset(
    {"PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"}
)
WAIT_S: Final = 30.0


class PlacementGroup:
    """A handle to a placement group. Equal to others of the same group; can be sent to tasks.

    The group does not end with its handles, but with :func:`remove_placement_group` or its job.
    """

    def __init__(
        self,
        id: PlacementGroupID,  # noqa: A002 - Ray's name, which programs use
        bundle_cache: Sequence[Mapping[str, float]] | None = None,
        *,
        is_plain: bool = False,
    ) -> None:
        """Handles come from :func:`placement_group` and :func:`get_placement_group`."""
        self.id = id
        self.bundle_cache = None if bundle_cache is None else [dict(one) for one in bundle_cache]
        # Made here, without a name, and not detached: its removal need not be waited for.
        self._is_plain = is_plain

    @staticmethod
    def empty() -> PlacementGroup:
        """A handle to no group."""
        return PlacementGroup(PlacementGroupID.nil(), [])

    @property
    def is_empty(self) -> bool:
        """Whether this is a handle to no group."""
        return self.id.is_nil()

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        """The bundles as they were asked for. Raises ``ValueError`` for a group that is gone."""
        if self.bundle_cache is None:
            view = _core().placement_groups.view(bytes(self.id))
            if view is None:
                raise ValueError(f"The cluster does not know the placement group {self.id.hex()}.")
            self.bundle_cache = _bundles_of(view)
        return self.bundle_cache

    @property
    def bundle_count(self) -> int:
        """How many bundles it has."""
        return len(self.bundle_specs)

    def ready(self) -> ObjectRef[PlacementGroup]:
        """A reference that has this handle as its value once the group is created.

        It needs no resources. It fails with ``TaskPlacementGroupRemovedError`` when the group is
        removed. It can be awaited, waited for and given to tasks.
        """
        return _core().placement_groups.ready(bytes(self.id), self)

    def wait(self, timeout_seconds: float = WAIT_S) -> bool:
        """Wait until the group is created or removed. False: it is neither, after this long."""
        ready, _ = wait([self.ready()], timeout=timeout_seconds)
        return bool(ready)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"PlacementGroup({self.id.hex()})"

    def __reduce__(self) -> tuple[Any, ...]:
        core = current_core()
        if core is not None and not self.is_empty:
            # Whoever gets it may use it at once, so the cluster has to know the group.
            core.placement_groups.await_registered(bytes(self.id))
        return PlacementGroup, (self.id, self.bundle_cache)


def placement_group(
    bundles: list[dict[str, float]],
    strategy: str = "PACK",
    name: str = "",
    lifetime: str | None = None,
    _soft_target_node_id: str | None = None,
    bundle_label_selector: list[dict[str, str]] | None = None,
) -> PlacementGroup:
    """Ask for a placement group; returns at once, before it is placed.

    Args:
        bundles: The resources of each, such as ``[{"CPU": 1, "GPU": 1}, {"CPU": 2}]``.
        strategy: ``"PACK"`` (on few nodes), ``"SPREAD"`` (on many), ``"STRICT_PACK"`` (on one, or
            it waits) or ``"STRICT_SPREAD"`` (on a node each, or it waits).
        name: By which :func:`get_placement_group` finds it in this namespace.
        lifetime: None: it is removed when its job ends; ``"detached"``: it stays until removed.
        _soft_target_node_id: ``STRICT_PACK`` goes to this node if it can.
        bundle_label_selector: For each bundle which labels its node must have.

    Raises:
        ValueError: bundles, strategy, lifetime or selectors that can not be, or a name that is
            taken.
    """
    amounts = _checked_bundles(bundles)
    if strategy not in VALID_PLACEMENT_GROUP_STRATEGIES:
        valid = ", ".join(sorted(VALID_PLACEMENT_GROUP_STRATEGIES))
        raise ValueError(f"strategy must be one of {valid}, got {strategy!r}.")
    if lifetime not in (None, "detached"):
        raise ValueError(f"lifetime must be None or 'detached', got {lifetime!r}.")
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {type(name).__name__}.")
    selectors = _checked_selectors(bundle_label_selector, len(amounts))
    target = _checked_target(_soft_target_node_id, strategy)
    core = _core()
    is_plain = not name and lifetime is None
    group = PlacementGroup(PlacementGroupID.of(core.job_id), bundles, is_plain=is_plain)
    core.placement_groups.create(
        node.PlacementGroupCreation(
            bytes(group.id),
            strategy,
            [dict(one) for one in amounts],
            name,
            core.namespace,
            lifetime == "detached",
            selectors,
            target,
        )
    )
    return group


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """Remove a group: its tasks and actors are killed, and its resources are free.

    Nothing happens when it is removed already, or unknown. A task that waits for the group fails
    with ``TaskPlacementGroupRemovedError``.

    Raises:
        TypeError: not a placement group.
    """
    group = _checked_handle("remove_placement_group", placement_group)
    if not group.is_empty:
        # What outlives this process, or frees a name, is waited for.
        waits = not group._is_plain  # noqa: SLF001 - of this module
        _core().placement_groups.remove(bytes(group.id), waits=waits)


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """The group of this name in this namespace.

    Raises:
        ValueError: an empty name, or nobody has it.
    """
    if not placement_group_name:
        raise ValueError("get_placement_group() needs the name of a placement group.")
    view = _core().placement_groups.named(placement_group_name)
    if view is None:
        raise ValueError(
            f"There is no placement group named {placement_group_name!r} in the namespace"
            f" {_core().namespace!r}; see placement_group_table()."
        )
    return _handle(view)


def get_current_placement_group() -> PlacementGroup | None:
    """The group that the running task or actor is in; None outside of one, as in a driver."""
    core = current_core() or require_session()
    if not core.group_id:
        return None
    return PlacementGroup(PlacementGroupID(core.group_id))


def placement_group_table(placement_group: PlacementGroup | None = None) -> dict[str, Any]:
    """What the cluster knows of a group, or of all (by id in hex). Empty for an unknown one.

    ``state`` is ``PENDING``, ``PREPARED``, ``CREATED``, ``RESCHEDULING`` or ``REMOVED``;
    ``stats["pending_reason"]`` says why one waits.
    """
    groups = _core().placement_groups
    if placement_group is None:
        return {view.group_id.hex(): row_of_group(view) for view in groups.views()}
    view = groups.view(bytes(_checked_handle("placement_group_table", placement_group).id))
    return {} if view is None else row_of_group(view)


def check_placement_group_index(placement_group: PlacementGroup, bundle_index: int) -> None:
    """Raise ``ValueError`` unless the group has this bundle, or the index is -1."""
    if isinstance(bundle_index, bool) or not isinstance(bundle_index, int):
        raise ValueError(f"A bundle index is a whole number, got {bundle_index!r}.")
    if placement_group.is_empty:
        if bundle_index != -1:
            raise ValueError(
                f"A bundle index ({bundle_index}) was given without a placement group."
            )
        return
    if not -1 <= bundle_index < placement_group.bundle_count:
        raise ValueError(
            f"The placement group has {placement_group.bundle_count} bundles: the index must be -1"
            f" (any) or lie between 0 and {placement_group.bundle_count - 1}, got {bundle_index}."
        )


def check_fits_a_bundle(
    placement_group: PlacementGroup, bundle_index: int, needs: Amounts, subject: str
) -> None:
    """Raise ``ValueError`` when no bundle of the group could ever hold ``needs``."""
    specs = placement_group.bundle_specs
    chosen = specs if bundle_index < 0 else [specs[bundle_index]]
    for spec in chosen:
        units = {name: request_units(name, amount) for name, amount in spec.items()}
        if all(amount <= units.get(name, 0) for name, amount in needs):
            return
    which = "none of its bundles" if bundle_index < 0 else f"not bundle {bundle_index}"
    wanted = {name: from_units(amount) for name, amount in needs}
    raise ValueError(
        f"{subject} needs {wanted}, and {which} of placement group {placement_group.id.hex()} can"
        f" ever hold that: its bundles are {specs}."
    )


def _core() -> CoreWorker:
    return current_core() or require_session()


def _checked_handle(function: str, value: Any) -> PlacementGroup:
    if not isinstance(value, PlacementGroup):
        raise TypeError(f"{function}() takes a PlacementGroup, got {type(value).__name__}.")
    return value


def _handle(view: node.PlacementGroupView) -> PlacementGroup:
    return PlacementGroup(PlacementGroupID(view.group_id), _bundles_of(view))


def _bundles_of(view: node.PlacementGroupView) -> list[dict[str, float]]:
    return [{name: from_units(units) for name, units in bundle.items()} for bundle in view.bundles]


def row_of_group(view: node.PlacementGroupView) -> dict[str, Any]:
    """A row of :func:`placement_group_table`, in Ray's shape."""
    nodes = [node_id.hex() for node_id in view.node_ids]
    return {
        "placement_group_id": view.group_id.hex(),
        "name": view.name,
        "bundles": dict(enumerate(_bundles_of(view))),
        "bundles_to_node_id": dict(enumerate(nodes)),
        "strategy": view.strategy,
        "state": view.state,
        "stats": {
            "end_to_end_creation_latency_ms": view.creation_latency_ms,
            "scheduling_latency_ms": view.creation_latency_ms,
            "scheduling_attempt": view.attempts,
            "highest_retry_delay_ms": view.highest_retry_delay_ms,
            "scheduling_state": view.scheduling_state,
            "pending_reason": view.pending_reason,
            "removal_reason": view.removal_reason,
        },
    }


def _checked_bundles(bundles: Any) -> list[Amounts]:
    if not isinstance(bundles, list):
        given = type(bundles).__name__
        raise ValueError(f"bundles must be a list of dicts of resources, got {given}.")
    if not bundles:
        raise ValueError("bundles must not be empty: name the resources of at least one bundle.")
    return [_checked_bundle(index, bundle) for index, bundle in enumerate(bundles)]


def _checked_bundle(index: int, bundle: Any) -> Amounts:
    if not isinstance(bundle, Mapping):
        given = type(bundle).__name__
        raise ValueError(f"bundles[{index}] must be a dict of resources, got {given}.")
    units: dict[str, int] = {}
    for name, amount in bundle.items():
        try:
            units[name] = request_units(name, amount)
        except (TypeError, ValueError) as error:
            raise ValueError(f"bundles[{index}]: {error}") from None
    positive = tuple(sorted((name, amount) for name, amount in units.items() if amount))
    if not positive:
        raise ValueError(f"bundles[{index}] asks for nothing, got {bundle}; name what it reserves.")
    return positive


def _checked_selectors(selectors: Any, count: int) -> list[dict[str, str]]:
    if selectors is None:
        return []
    from skate.util.scheduling_strategies import parse_selector  # noqa: PLC0415 - seldom used

    if not isinstance(selectors, list) or len(selectors) != count:
        raise ValueError(
            f"bundle_label_selector must be a list with a dict for each of the {count} bundles,"
            f" got {selectors!r}."
        )
    for index, selector in enumerate(selectors):
        try:
            parse_selector(f"bundle_label_selector[{index}]", selector)
        except TypeError as error:
            raise ValueError(str(error)) from None
    return [dict(selector) for selector in selectors]


def _checked_target(node_id: Any, strategy: str) -> bytes:
    if not node_id:
        return b""
    if strategy != "STRICT_PACK":
        raise ValueError(f"_soft_target_node_id goes with STRICT_PACK alone, got {strategy!r}.")
    try:
        return bytes(NodeID.from_hex(node_id))
    except (TypeError, ValueError):
        raise ValueError(f"{node_id!r} is not the id of a node; see skate.nodes().") from None


class _CallableModule(ModuleType):
    """``skate.util.placement_group`` is a function too, as in Ray, whatever was imported first."""

    def __call__(self, *args: Any, **kwargs: Any) -> PlacementGroup:
        return placement_group(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
