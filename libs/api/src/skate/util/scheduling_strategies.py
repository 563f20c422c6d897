"""Values of the option ``scheduling_strategy``, and what labels a node is to have.

Source: SURFACE L1, L2, L4 to L7, P7, P8, T15.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from skate.options import Amounts
from skate.util.placement_group import (
    PlacementGroup,
    check_fits_a_bundle,
    check_placement_group_index,
    get_current_placement_group,
)
from skate_core_ids import NodeID
from skate_rpc.node_protocol import LabelRules
from skate_scheduler import LabelError, LabelExpression, LabelOperator, LabelSelector
from skate_worker.specs import Strategy

if TYPE_CHECKING:
    from skate_worker.core import CoreWorker

DEFAULT: Final = "DEFAULT"
SPREAD: Final = "SPREAD"

__all__ = [
    "DEFAULT",
    "SPREAD",
    "DoesNotExist",
    "Exists",
    "In",
    "NodeAffinitySchedulingStrategy",
    "NodeLabelSchedulingStrategy",
    "NotIn",
    "PlacementGroupSchedulingStrategy",
]


class NodeAffinitySchedulingStrategy:
    """Run on one node.

    With ``soft=False`` it runs there or nowhere: it waits while the node is busy, and fails when
    the node is dead or could never hold it. With ``soft=True`` any node may take it then.
    A busy node is not waited for with ``_fail_on_unavailable`` (it fails at once) or
    ``_spill_on_unavailable`` (any node may take it).
    """

    def __init__(
        self,
        node_id: str | NodeID,
        soft: bool,
        _spill_on_unavailable: bool = False,
        _fail_on_unavailable: bool = False,
    ) -> None:
        """``node_id`` as ``skate.nodes()`` shows it.

        Raises:
            TypeError: a value of another type.
            ValueError: ``node_id`` is no id of a node, or a combination that has no meaning.
        """
        if isinstance(node_id, NodeID):
            node_id = node_id.hex()
        if not isinstance(node_id, str):
            raise TypeError(f"node_id must be a string, got {type(node_id).__name__}.")
        if not isinstance(soft, bool):
            raise TypeError(f"soft must be True or False, got {soft!r}.")
        try:
            parsed = NodeID.from_hex(node_id)
        except ValueError:
            raise ValueError(f"{node_id!r} is not the id of a node; see skate.nodes().") from None
        if parsed.is_nil():
            raise ValueError("The nil id names no node; see skate.nodes().")
        if _spill_on_unavailable and not soft:
            raise ValueError("_spill_on_unavailable goes with soft=True alone.")
        if _fail_on_unavailable and soft:
            raise ValueError("_fail_on_unavailable goes with soft=False alone.")
        self.node_id = node_id
        self.soft = soft
        self.is_impatient: bool = bool(_spill_on_unavailable or _fail_on_unavailable)

    def __repr__(self) -> str:
        return f"NodeAffinitySchedulingStrategy({self.node_id!r}, soft={self.soft})"


class PlacementGroupSchedulingStrategy:
    """Run inside a placement group.

    ``placement_group_bundle_index``: in this bundle; -1: in any with room.
    ``placement_group_capture_child_tasks``: what it starts goes into the group too; None: as where
    it is started.
    """

    def __init__(
        self,
        placement_group: PlacementGroup,
        placement_group_bundle_index: int = -1,
        placement_group_capture_child_tasks: bool | None = None,
    ) -> None:
        """The bundle's index and size are checked at ``.remote()``.

        Raises:
            ValueError: not a placement group, or ``capture_child_tasks`` is no truth value.
        """
        given: Any = placement_group
        if not isinstance(given, PlacementGroup):
            kind = type(given).__name__
            raise ValueError(f"placement_group must be a PlacementGroup, got {kind}.")
        if placement_group_capture_child_tasks not in (None, True, False):
            raise ValueError(
                "placement_group_capture_child_tasks must be True, False or None,"
                f" got {placement_group_capture_child_tasks!r}."
            )
        self.placement_group = placement_group
        self.placement_group_bundle_index = placement_group_bundle_index
        self.placement_group_capture_child_tasks = placement_group_capture_child_tasks

    def __repr__(self) -> str:
        return (
            f"PlacementGroupSchedulingStrategy({self.placement_group!r},"
            f" {self.placement_group_bundle_index})"
        )


class _Condition:
    """On one label. Made by the four subclasses."""

    _operator: LabelOperator

    def __init__(self, *values: Any) -> None:
        """Raises ``ValueError``: one of the values is not a string."""
        for value in values:
            if not isinstance(value, str):
                raise ValueError(f"{type(self).__name__} takes strings, got {value!r}.")
        self.values: tuple[str, ...] = values

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.values))})"

    def to_expression(self, key: object) -> LabelExpression:
        """The condition on the label ``key``. Raises ``LabelError``."""
        return LabelExpression.of(key, self._operator, self.values)


class In(_Condition):
    """The label is there, with one of these values."""

    _operator = LabelOperator.IN


class NotIn(_Condition):
    """The label is not there, or has none of these values."""

    _operator = LabelOperator.NOT_IN


class Exists(_Condition):
    """The label is there."""

    _operator = LabelOperator.EXISTS

    def __init__(self) -> None:
        super().__init__()


class DoesNotExist(_Condition):
    """The label is not there."""

    _operator = LabelOperator.DOES_NOT_EXIST

    def __init__(self) -> None:
        super().__init__()


class NodeLabelSchedulingStrategy:
    """Run on a node whose labels fulfil ``hard``, if possible on one that fulfils ``soft`` too.

    Without a node that fulfils ``hard`` it waits for one::

        NodeLabelSchedulingStrategy(hard={"zone": In("a", "b")}, soft={"disk": Exists()})
    """

    def __init__(
        self, hard: Mapping[str, _Condition], *, soft: Mapping[str, _Condition] | None = None
    ) -> None:
        """A label's key each, with its condition.

        Raises:
            ValueError: both are empty, or a key or condition that can not be.
        """
        self.hard: dict[str, _Condition] = dict(_checked_map("hard", hard))
        self.soft: dict[str, _Condition] = dict(_checked_map("soft", soft or {}))
        if not self.hard and not self.soft:
            raise ValueError("hard and soft of NodeLabelSchedulingStrategy are both empty.")
        self.hard_selector: LabelSelector = _selector_of("hard", self.hard)
        self.soft_selector: LabelSelector = _selector_of("soft", self.soft)

    def __repr__(self) -> str:
        return f"NodeLabelSchedulingStrategy({self.hard!r}, soft={self.soft!r})"


def _checked_map(name: str, value: Any) -> Mapping[str, _Condition]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} must be a dict of labels and conditions, got {value!r}.")
    for key, condition in value.items():
        if not isinstance(condition, _Condition):
            raise ValueError(
                f"{name}[{key!r}] must be In(...), NotIn(...), Exists() or DoesNotExist(),"
                f" got {condition!r}."
            )
    return value


def _selector_of(name: str, conditions: Mapping[str, _Condition]) -> LabelSelector:
    try:
        return LabelSelector.of(one.to_expression(key) for key, one in conditions.items())
    except LabelError as error:
        raise ValueError(f"{name}: {error}") from None


def parse_selector(name: str, value: Any) -> LabelSelector:
    """The option ``label_selector``. Raises ``TypeError`` or ``ValueError``."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict of labels, got {type(value).__name__}.")
    try:
        return LabelSelector.parse(value)
    except LabelError as error:
        raise ValueError(f"{name}: {error}") from None


def parse_fallbacks(name: str, value: Any) -> list[LabelSelector]:
    """The option ``fallback_strategy``: what to try after ``label_selector``, in this order.

    Raises ``TypeError`` or ``ValueError``.
    """
    if not isinstance(value, list | tuple):
        raise TypeError(f"{name} must be a list of dicts, got {type(value).__name__}.")
    selectors: list[LabelSelector] = []
    for index, option in enumerate(value):
        where = f"{name}[{index}]"
        if not isinstance(option, Mapping):
            raise TypeError(f"{where} must be a dict, got {type(option).__name__}.")
        if set(option) != {"label_selector"}:
            raise ValueError(f"{where} must hold a label_selector and nothing else, got {option}.")
        selectors.append(parse_selector(f"{where}['label_selector']", option["label_selector"]))
    return selectors


_STRATEGIES = (
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)


def check_strategy(name: str, value: Any) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless ``value`` is a scheduling strategy."""
    if isinstance(value, _STRATEGIES):
        return
    if not isinstance(value, str):
        raise TypeError(
            f"{name} must be 'DEFAULT', 'SPREAD', a PlacementGroupSchedulingStrategy, a"
            f" NodeAffinitySchedulingStrategy or a NodeLabelSchedulingStrategy,"
            f" got {type(value).__name__}."
        )
    if value not in (DEFAULT, SPREAD):
        raise ValueError(f"{name} must be 'DEFAULT' or 'SPREAD', got {value!r}.")


def group_strategy(
    options: Mapping[str, Any], *, is_captured: bool
) -> PlacementGroupSchedulingStrategy | None:
    """The placement group that checked options, or the running task, put something into."""
    value = options.get("scheduling_strategy")
    if value is not None:
        return value if isinstance(value, PlacementGroupSchedulingStrategy) else None
    group = get_current_placement_group() if is_captured else options["placement_group"]
    return PlacementGroupSchedulingStrategy(
        group or PlacementGroup.empty(),
        options.get("placement_group_bundle_index", -1),
        options.get("placement_group_capture_child_tasks"),
    )


def inside_group(
    value: PlacementGroupSchedulingStrategy, core: CoreWorker, needs: Amounts, subject: str
) -> Strategy | None:
    """A checked strategy as the runtime takes it; None for a handle to no group.

    ``needs``: what must fit a bundle. ``subject`` names the task or actor in an error.

    Raises:
        ValueError: there is no such bundle, or none could ever hold ``needs``.
    """
    group, index = value.placement_group, value.placement_group_bundle_index
    check_placement_group_index(group, index)
    if group.is_empty:
        return None
    core.placement_groups.await_registered(bytes(group.id))
    check_fits_a_bundle(group, index, needs, subject)
    captures = value.placement_group_capture_child_tasks
    if captures is None:
        captures = bool(core.captured_group)
    return Strategy(group_id=bytes(group.id), bundle_index=index, captures=captures)


def to_runtime(value: Any, selector: Mapping[str, str], fallbacks: Any) -> Strategy | None:
    """Checked options as the runtime takes them; None for the default.

    Raises ``ValueError``: ``selector`` beside a :class:`NodeLabelSchedulingStrategy`.
    """
    labels = _label_rules(value, selector, fallbacks)
    if isinstance(value, NodeAffinitySchedulingStrategy):
        node_id = bytes.fromhex(value.node_id)
        return Strategy(
            node_id=node_id,
            is_soft=value.soft,
            is_impatient=value.is_impatient,
            labels=labels,
        )
    if value == SPREAD:
        return Strategy(is_spread=True, labels=labels)
    return None if labels is None else Strategy(labels=labels)


def _label_rules(value: Any, selector: Mapping[str, str], fallbacks: Any) -> LabelRules | None:
    if isinstance(value, NodeLabelSchedulingStrategy):
        if selector:
            raise ValueError(
                "label_selector and NodeLabelSchedulingStrategy both say which labels a node is to"
                " have; give one of them."
            )
        hard = (value.hard_selector.to_tuples(),) if value.hard_selector else ()
        return LabelRules(hard, value.soft_selector.to_tuples())
    if not selector:
        return None  # any node will do, so that a fallback is never needed
    first = parse_selector("label_selector", selector)
    alternatives = [first, *parse_fallbacks("fallback_strategy", fallbacks)]
    return LabelRules(tuple(one.to_tuples() for one in alternatives))
