"""Values of the option ``scheduling_strategy``. Source: SURFACE L1, L2, L4, T15."""

from __future__ import annotations

from typing import Any, Final

from skate_core_ids import NodeID
from skate_worker.specs import Strategy

DEFAULT: Final = "DEFAULT"
SPREAD: Final = "SPREAD"

__all__ = ["DEFAULT", "SPREAD", "NodeAffinitySchedulingStrategy"]


class NodeAffinitySchedulingStrategy:
    """Run on one node.

    With ``soft=False`` it runs there or nowhere: it waits while the node is busy, and fails when
    the node is dead or could never hold it. With ``soft=True`` any node may take it then.
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
        if _spill_on_unavailable or _fail_on_unavailable:
            raise ValueError(
                "_spill_on_unavailable and _fail_on_unavailable are not supported yet; a busy node"
                " is waited for."
            )
        self.node_id = node_id
        self.soft = soft

    def __repr__(self) -> str:
        return f"NodeAffinitySchedulingStrategy({self.node_id!r}, soft={self.soft})"


def check_strategy(name: str, value: Any) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless ``value`` is a scheduling strategy."""
    if isinstance(value, NodeAffinitySchedulingStrategy):
        return
    if not isinstance(value, str):
        raise TypeError(
            f"{name} must be 'DEFAULT', 'SPREAD' or a NodeAffinitySchedulingStrategy,"
            f" got {type(value).__name__}."
        )
    if value not in (DEFAULT, SPREAD):
        raise ValueError(f"{name} must be 'DEFAULT' or 'SPREAD', got {value!r}.")


def to_runtime(value: Any) -> Strategy | None:
    """A checked strategy as the runtime takes it; None for the default."""
    if isinstance(value, NodeAffinitySchedulingStrategy):
        return Strategy(node_id=bytes.fromhex(value.node_id), is_soft=value.soft)
    return Strategy(is_spread=True) if value == SPREAD else None
